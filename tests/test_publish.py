"""A whole training run: what stands in the database afterwards, and that a failure leaves nothing there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from town import CONFIG, EACH, ENCODER, GRID_M, QUARTERS, SRID, contents, train_town

from callipper_db import db, models, search
from callipper_db.arrays import Array
from callipper_db.errors import CheckpointMissing, DatabaseFailed, NoActiveModel, TextEncoderMissing, TextUnknown
from callipper_db.progress import Silent
from callipper_trainer.data.source import Source
from callipper_trainer.remember import remember
from callipper_trainer.text_encoder import TextEncoder, place_words

COUNT = EACH * len(QUARTERS)
OTHER = replace(CONFIG, encoder="coordinate", epochs=3, seed=1)


def unpack(vector: str) -> list[float]:
    return [float(number) for number in vector.strip("[]").split(",")]


def read_vectors(connection: db.Connection, query: str) -> Array:
    """The vectors that a query of one column yields."""
    return np.array([unpack(text) for (text,) in connection.execute(query).fetchall()])


# The model from its rows: an implementation in numpy, from nothing but what stands in the database.


def layer(connection: db.Connection, version: int, name: str) -> tuple[Array, Array]:
    rows = connection.execute(
        "SELECT weight::text, bias FROM callipper.location_weight WHERE version = %s AND layer = %s ORDER BY neuron",
        [version, name],
    ).fetchall()
    return np.array([unpack(weight) for weight, _ in rows]), np.array([bias for _, bias in rows])


def grid_features(feature: dict[str, Any], metres: Array) -> Array:
    angles = metres[:, :, None] / np.array(feature["divisors_m"])
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=2).reshape(len(metres), -1)


def context_features(connection: db.Connection, version: int, feature: dict[str, Any], metres: Array) -> Array:
    """Of each level the mean code and log(1 + number) of the four cells around, by their share; of large cells each kind."""
    levels = []
    for number, size_m in enumerate(feature["sizes_m"]):
        rows = connection.execute(
            "SELECT i, j, n, code_sum::text FROM callipper.context_cell WHERE version = %s AND level = %s",
            [version, number],
        ).fetchall()
        cells = {(i, j): np.array([n, *unpack(code)]) for i, j, n, code in rows}
        code = slice(1, 1 + feature["code"])
        nothing = np.zeros(code.stop + (feature["kinds"] if size_m >= feature["kinds_from_m"] else 0))
        columns = []
        for place in metres / size_m - 0.5:
            i, j = np.floor(place).astype(int)
            east, north = place - [i, j]
            mix = (
                (1 - east) * (1 - north) * cells.get((i, j), nothing)
                + east * (1 - north) * cells.get((i + 1, j), nothing)
                + (1 - east) * north * cells.get((i, j + 1), nothing)
                + east * north * cells.get((i + 1, j + 1), nothing)
            )
            counts = np.log1p([mix[0], *mix[code.stop :]])
            columns.append([*(mix[code] / (mix[0] + feature["prior"])), *counts])
        levels.append(columns)
    return np.concatenate(levels, axis=1)


def embed_by_rows(connection: db.Connection, version: int, metres: Array) -> Array:
    """(N, 2) easting and northing -> (N, 128)."""
    found = connection.execute(
        "SELECT origin_easting, origin_northing, arch, standardisation FROM callipper.model WHERE version = %s",
        [version],
    ).fetchone()
    assert found is not None
    easting, northing, arch, standardisation = found
    metres = metres - [easting, northing]
    parts = []
    for feature in arch["features"]:
        if feature["kind"] == "grid":
            parts.append(grid_features(feature, metres))
        else:
            context = context_features(connection, version, feature, metres)
            parts.append((context - standardisation["mean"]) * standardisation["scale"])
    features = np.hstack(parts)
    x = before = features
    for step in arch["layers"]:
        weight, bias = layer(connection, version, step["layer"])
        if step.get("residual") == "begin":
            before = x
        if step.get("residual") == "join":
            x = np.hstack([x, features])
        x = x @ weight.T + bias
        if step["activation"] == "relu":
            x = np.maximum(x, 0)
        if step.get("residual") == "add":
            x = before + x
    assert x.shape[1] == arch["dimensions"]
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def check_embeddings(connection: db.Connection, version: int) -> None:
    """The views hold what the rows of this version make of cells and points."""
    for view, key, place in (
        ("cells", "cell_id", f"ST_Centroid(ST_Transform(geom, {SRID}))"),
        ("points", "point_id", f"ST_Transform(geom, {SRID})"),
    ):
        rows = connection.execute(f"SELECT ST_X(p), ST_Y(p) FROM (SELECT {place} p FROM {view} ORDER BY {key}) q")
        expected = embed_by_rows(connection, version, np.array(rows.fetchall()))
        found = read_vectors(connection, f"SELECT emb::text FROM {view} ORDER BY {key}")
        assert len(found) > 100
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(found, expected, atol=2e-5)


def check_texts(connection: db.Connection, version: int, encoder: TextEncoder, texts: list[str]) -> None:
    """text_embed answers with the encoder's vectors, projected by the rows of this version."""
    rows = connection.execute(
        "SELECT weight::text, bias FROM callipper.text_projection WHERE version = %s ORDER BY neuron", [version]
    ).fetchall()
    weight, bias = np.array([unpack(weight) for weight, _ in rows]), np.array([bias for _, bias in rows])
    expected = encoder.transformer.encode(texts).astype(np.float64) @ weight.T + bias
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = connection.execute("SELECT text_embed(t)::text FROM unnest(%s::text[]) t", [texts]).fetchall()
    np.testing.assert_allclose([unpack(vector) for (vector,) in found], expected, atol=1e-5)


def test_embeddings_are_what_the_published_weights_make(reading: db.Connection) -> None:
    check_embeddings(reading, 1)


def test_texts_are_what_the_encoder_and_the_published_projection_make(
    reading: db.Connection, encoder: TextEncoder
) -> None:
    texts = ["park", "Cafe", "education", "school", place_words()[-1]]
    check_texts(reading, 1, encoder, texts)
    norms = reading.execute("SELECT min(vector_norm(emb)), max(vector_norm(emb)) FROM callipper.text_embedding")
    np.testing.assert_allclose(norms.fetchone(), [1, 1], atol=1e-5)


def test_every_training_text_category_and_place_word_is_answered(reading: db.Connection) -> None:
    texts = [text for (text,) in reading.execute("SELECT DISTINCT text FROM points").fetchall()]
    assert "cafe" in texts
    names = [name for (name,) in reading.execute("SELECT DISTINCT name FROM points WHERE name IS NOT NULL").fetchall()]
    assert "The Old Cafe" in names
    texts += names
    texts += [*QUARTERS, *(group for group, _, _ in QUARTERS.values()), *place_words()]
    answered = reading.execute("SELECT count(text_embed(t)) FROM unnest(%s::text[]) t", [texts]).fetchone()
    assert answered == (len(texts),)
    same = reading.execute(
        "SELECT text_embed(E' PARK\\n') = text_embed('park'), text_embed('Place of  Worship') IS NULL"
    )
    assert same.fetchone() == (True, False)


def test_points_are_the_pois(reading: db.Connection) -> None:
    wrong = reading.execute(
        "SELECT count(*) FROM poi FULL JOIN points ON point_id = poi_id WHERE points.geom IS DISTINCT FROM poi.geom"
        " OR points.name IS DISTINCT FROM poi.name OR points.category IS DISTINCT FROM poi.category"
    ).fetchone()
    assert wrong == (0,)
    assert reading.execute("SELECT count(*) FROM points").fetchone() == (COUNT,)


@pytest.mark.parametrize("kind", list(QUARTERS))
def test_the_answer_lies_in_the_right_quarter(shared_town: str, kind: str) -> None:
    found = search.nearest_cells(shared_town, kind, 10)
    places = [place for cell in found for place in cell["places"]]
    right = sum(kind in place.lower() for place in places)
    assert len(places) >= 3
    assert right > 0.7 * len(places)


def test_what_is_stored_about_a_model(shared_town: str, encoder: TextEncoder) -> None:
    shown = models.show_model(shared_town, None)
    provenance, metrics = shown["provenance"], shown["metrics"]
    assert (shown["version"], shown["status"], shown["srid"]) == (1, "active", SRID)
    assert shown["text_encoder"] == ENCODER
    assert (provenance["source"], provenance["rows"]) == ("callipper.poi", COUNT)
    assert provenance["config"] == CONFIG.to_dict()
    assert len(provenance["content_sha256"]) == 64
    assert {"callipper-db", "torch", "numpy"} <= provenance["packages"].keys()
    assert {"read", "encode", "features", "fit"} <= provenance["seconds"].keys()
    assert len(metrics["history"]) == CONFIG.epochs
    best = metrics["history"][metrics["best_epoch"] - 1]
    assert metrics["validation_loss"] == best["validation_loss"]
    assert shown["arch"]["encoder"] == CONFIG.encoder
    assert (shown["grid_kind"], shown["grid_size_m"]) == ("square", GRID_M)
    assert shown["points"] == COUNT
    json.dumps(provenance)
    with db.session(shared_town) as connection:
        covered = connection.execute(
            "SELECT bool_and(ST_Covers(m.extent, p.geom)) FROM poi p, model m WHERE m.version = 1"
        ).fetchone()
    assert covered == (True,)


# A second version


@pytest.fixture(scope="module")
def second(module_town: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A town with version 1, contextual, and version 2, by coordinates alone."""
    summary = train_town(module_town, tmp_path_factory.mktemp("second"), OTHER)
    assert (summary.version, summary.rows, summary.srid) == (2, COUNT, SRID)
    return module_town


def test_versions_stand_beside_each_other(second: str, encoder: TextEncoder) -> None:
    with db.session(second) as connection:
        for version in (2, 1, 2):
            connection.execute("SELECT callipper.activate(%s)", [version])
            check_embeddings(connection, version)
            check_texts(connection, version, encoder, ["park", "food"])
            status = connection.execute("SELECT version FROM model WHERE status = 'active'").fetchall()
            assert status == [(version,)]


def test_versions_share_the_grid(second: str) -> None:
    with db.session(second) as connection:
        assert connection.execute("SELECT count(*), count(DISTINCT grid_id) FROM model").fetchone() == (2, 1)
        assert connection.execute("SELECT count(*) FROM grid").fetchone() == (1,)
        cells = connection.execute(
            "SELECT (SELECT count(*) FROM cell), count(*) FILTER (WHERE version = 1), count(*) FILTER (WHERE version = 2)"
            " FROM cell_embedding"
        ).fetchone()
        assert cells is not None
        assert cells[0] == cells[1] == cells[2]


def test_the_same_seed_and_data_give_the_same_model(second: str, tmp_path: Path) -> None:
    summary = train_town(second, tmp_path, OTHER)
    with db.session(second) as connection:
        differing = connection.execute(
            "SELECT count(*) FROM cell_embedding a JOIN cell_embedding b USING (cell_id)"
            " WHERE a.version = 2 AND b.version = %s AND a.emb <> b.emb",
            [summary.version],
        ).fetchone()
        connection.execute("SELECT callipper.activate(2)")
        connection.execute("SELECT callipper.drop_model(%s)", [summary.version])
    assert differing == (0,)


def test_a_source_of_the_users_own(town: str, tmp_path: Path) -> None:
    with db.session(town) as connection:
        connection.execute(
            'CREATE TABLE public."Stops" AS SELECT poi_id + 1000 AS gid, category AS kind, geom FROM poi'
        )
        connection.execute("CREATE TABLE public.known AS SELECT 1 AS number, 'mine' AS text")
    source = Source("public.Stops", template="A place of {kind}")
    summary = train_town(town, tmp_path, replace(OTHER, epochs=1), source=source)
    assert summary.texts == len(QUARTERS)
    with db.session(town) as connection:
        found = connection.execute(
            "SELECT min(point_id), count(*), count(name), count(category) FROM points"
        ).fetchone()
        assert found == (1001, COUNT, 0, 0)
        assert connection.execute("SELECT text FROM public.known").fetchall() == [("mine",)]
    assert models.show_model(town, 2)["provenance"]["source"] == 'public."Stops"'


def test_an_hnsw_index_is_built_and_used(town: str, tmp_path: Path) -> None:
    train_town(town, tmp_path, replace(OTHER, epochs=1), index="hnsw")
    query = "SELECT cell_id FROM cells ORDER BY emb <-> text_embed('park') LIMIT 5"
    with db.session(town) as connection:
        index = connection.execute(
            "SELECT indexdef FROM pg_indexes WHERE tablename = 'cell_embedding_v2' AND indexdef LIKE '%hnsw%'"
        ).fetchall()
        assert len(index) == 1
        exact = connection.execute(query).fetchall()
        connection.execute("SET LOCAL enable_seqscan = off")
        plan = "\n".join(line for (line,) in connection.execute(f"EXPLAIN {query}").fetchall())
        assert "Index Scan using cell_embedding_v2_emb_idx" in plan
        assert connection.execute(query).fetchall() == exact


# remember


def test_remember_adds_texts_to_the_active_model(town: str, encoder: TextEncoder) -> None:
    texts = ["a quiet corner to read", "Fresh FISH", "a quiet corner to read", "park"]
    with pytest.raises(TextUnknown, match="has not met the text"):
        search.nearest_cells(town, texts[0])
    assert remember(town, texts) == 2
    assert remember(town, ["fresh  fish"]) == 0
    with db.session(town) as connection:
        check_texts(connection, 1, encoder, texts)
    assert len(search.nearest_cells(town, "fresh fish", 3)) == 3


@pytest.mark.parametrize("texts", [[""], ["park", " \n"]])
def test_remember_refuses_an_empty_text(town: str, texts: list[str]) -> None:
    with pytest.raises(TextUnknown, match="the text is empty"):
        remember(town, texts)


def test_remember_needs_a_model_and_its_own_encoder(database: str, town: str) -> None:
    with pytest.raises(NoActiveModel):
        remember(database, ["park"])
    with db.session(town) as connection:
        connection.execute("UPDATE callipper.text_encoder SET revision = 'another'")
    with pytest.raises(TextEncoderMissing, match="its weights are not those that the active model was trained with"):
        remember(town, ["fresh fish"])


# Failures


class Failed(Exception):
    pass


class FailAt(Silent):
    """Raises when a stage begins."""

    def __init__(self, name: str) -> None:
        self.name = name

    def stage(self, name: str, total: int | None = None) -> None:
        if name == self.name:
            raise Failed


class Noting(Silent):
    """Notes the epochs that were run, and what was said."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.notes: list[str] = []

    def epoch(self, figures: dict[str, Any]) -> None:
        self.epochs.append(figures["epoch"])

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.mark.parametrize(
    "stage",
    ["reading POIs", "encoding texts", "training", "cutting the grid", "writing cells", "writing points", "activating"],
)
def test_a_failure_leaves_nothing(module_town: str, tmp_path: Path, stage: str) -> None:
    before = contents(module_town)
    with pytest.raises(Failed):
        train_town(module_town, tmp_path, replace(OTHER, epochs=1), FailAt(stage))
    assert contents(module_town) == before


def test_a_failure_in_the_server_leaves_nothing(town: str, tmp_path: Path) -> None:
    with db.session(town) as connection:
        connection.execute(
            "ALTER TABLE callipper.model ADD CONSTRAINT refuses CHECK (version < 2 OR status <> 'active')"
        )
    before = contents(town)
    with pytest.raises(DatabaseFailed, match="refuses") as caught:
        train_town(town, tmp_path, replace(OTHER, epochs=2))
    assert isinstance(caught.value.__cause__, psycopg.errors.CheckViolation)
    assert contents(town) == before
    with db.session(town) as connection:
        connection.execute("ALTER TABLE callipper.model DROP CONSTRAINT refuses")
    # The training itself was done; it is not repeated.
    reporter = Noting()
    train_town(town, tmp_path, replace(OTHER, epochs=2), reporter, resume=True)
    assert (reporter.epochs, reporter.notes) == ([], [])
    assert contents(town)["active"][0] == (1, "ready")
    with pytest.raises(CheckpointMissing):
        train_town(town, tmp_path, replace(OTHER, epochs=2), resume=True)


def test_a_run_that_starts_over_says_so(town: str, tmp_path: Path) -> None:
    with pytest.raises(Failed):
        train_town(town, tmp_path, OTHER, FailAt("cutting the grid"))
    reporter = Noting()
    train_town(town, tmp_path, replace(OTHER, epochs=1), reporter)
    assert reporter.epochs == [1]
    assert reporter.notes == [
        f"An unfinished run was found ({tmp_path / 'checkpoint.pt'}) and is started over; --resume goes on with it."
    ]
