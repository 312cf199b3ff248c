"""A whole training run: what stands in the database afterwards, and that a failure leaves nothing there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from callipper_db import db, models, search
from callipper_db.errors import CheckpointMissing, DatabaseFailed, NoActiveModel, TextEncoderMissing, TextUnknown
from callipper_db.place_words import vocabulary
from callipper_db.progress import Silent
from callipper_trainer.data.source import Source
from callipper_trainer.remember import remember
from callipper_trainer.text_encoder import TextEncoder
from published import check_embeddings, check_texts
from sessions import user_session
from town import CONFIG, EACH, ENCODER, GRID_M, QUARTERS, SRID, contents, train_town

COUNT = EACH * len(QUARTERS)
OTHER = replace(CONFIG, encoder="coordinate", epochs=3, seed=1)


# The model from its rows: an implementation in numpy, from nothing but what stands in the database.


def test_embeddings_are_what_the_published_weights_make(reading: db.Connection) -> None:
    check_embeddings(reading, 1)


def test_texts_are_what_the_encoder_and_the_published_projection_make(
    reading: db.Connection, encoder: TextEncoder
) -> None:
    texts = ["park", "Cafe", "education", "school", vocabulary()[-1]]
    check_texts(reading, 1, encoder, texts)
    norms = reading.execute("SELECT min(vector_norm(emb)), max(vector_norm(emb)) FROM callipper.text_embedding")
    np.testing.assert_allclose(norms.fetchone(), [1, 1], atol=1e-5)


def test_every_training_text_category_and_place_word_is_answered(reading: db.Connection) -> None:
    texts = [text for (text,) in reading.execute("SELECT DISTINCT text FROM points").fetchall()]
    assert "cafe" in texts
    query = "SELECT DISTINCT name || ', ' || text FROM points WHERE name IS NOT NULL"
    names = [name for (name,) in reading.execute(query).fetchall()]
    assert "The Old Cafe, cafe" in names
    texts += names
    texts += [*QUARTERS, *(group for group, _, _ in QUARTERS.values()), *vocabulary()]
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
    with user_session(shared_town) as connection:
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
    with user_session(second) as connection:
        for version in (2, 1, 2):
            connection.execute("SELECT callipper.activate(%s)", [version])
            check_embeddings(connection, version)
            check_texts(connection, version, encoder, ["park", "food"])
            status = connection.execute("SELECT version FROM model WHERE status = 'active'").fetchall()
            assert status == [(version,)]


def test_versions_share_the_grid(second: str) -> None:
    with user_session(second) as connection:
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
    with user_session(second) as connection:
        differing = connection.execute(
            "SELECT count(*) FROM cell_embedding a JOIN cell_embedding b USING (cell_id)"
            " WHERE a.version = 2 AND b.version = %s AND a.emb <> b.emb",
            [summary.version],
        ).fetchone()
        connection.execute("SELECT callipper.activate(2)")
        connection.execute("SELECT callipper.drop_model(%s)", [summary.version])
    assert differing == (0,)


def test_a_source_of_the_users_own(town: str, tmp_path: Path) -> None:
    with user_session(town) as connection:
        connection.execute(
            'CREATE TABLE public."Stops" AS SELECT poi_id + 1000 AS gid, category AS kind, geom FROM poi'
        )
        connection.execute("CREATE TABLE public.known AS SELECT 1 AS number, 'mine' AS text")
    source = Source("public.Stops", template="A place of {kind}")
    summary = train_town(town, tmp_path, replace(OTHER, epochs=1), source=source)
    assert summary.texts == len(QUARTERS)
    with user_session(town) as connection:
        found = connection.execute(
            "SELECT min(point_id), count(*), count(name), count(category) FROM points"
        ).fetchone()
        assert found == (1001, COUNT, 0, COUNT)
        assert connection.execute("SELECT text FROM public.known").fetchall() == [("mine",)]
    assert models.show_model(town, 2)["provenance"]["source"] == 'public."Stops"'


@pytest.mark.parametrize(
    ("key", "join"),
    [
        ("md5(source_id)::uuid", "callipper.point_id(s.key::text)"),
        ("source_id", "callipper.point_id(s.key)"),
        ("1e20 + poi_id", "callipper.point_id(s.key::text)"),
        ("poi_id::int", "s.key"),
        ("poi_id / 7 AS line, poi_id % 7", "callipper.point_id((s.line, s.key)::text)"),
    ],
    ids=["uuid", "text", "numeric", "integer", "composite"],
)
def test_points_join_back_by_a_key_of_any_type(town: str, tmp_path: Path, key: str, join: str) -> None:
    """And name and category are shown, though they are not in callipper.poi."""
    with user_session(town) as connection:
        connection.execute(f"CREATE TABLE public.shop AS SELECT {key} AS key, name, category, geom FROM poi")
        columns = "line, key" if "line" in key else "key"
        connection.execute(f"ALTER TABLE public.shop ADD PRIMARY KEY ({columns})")
    train_town(town, tmp_path, replace(OTHER, epochs=1), source=Source("public.shop"))
    with user_session(town) as connection:
        joined = connection.execute(
            "SELECT count(*), count(*) FILTER (WHERE p.name IS NOT DISTINCT FROM s.name AND p.category = s.category)"
            f" FROM points p JOIN public.shop s ON p.point_id = {join}"
        ).fetchone()
        assert joined == (COUNT, COUNT)
        shown = connection.execute(
            "SELECT count(*), count(*) FILTER (WHERE q.name IS NOT DISTINCT FROM s.name AND q.category = s.category)"
            f" FROM search_points('park', 30) q JOIN public.shop s ON q.point_id = {join}"
        ).fetchone()
        assert shown == (30, 30)


def test_an_hnsw_index_is_built_and_used(town: str, tmp_path: Path) -> None:
    train_town(town, tmp_path, replace(OTHER, epochs=1), index="hnsw")
    query = "SELECT cell_id FROM cells ORDER BY emb <-> text_embed('park') LIMIT 5"
    with user_session(town) as connection:
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
    with user_session(town) as connection:
        check_texts(connection, 1, encoder, texts)
    assert len(search.nearest_cells(town, "fresh fish", 3)) == 3


@pytest.mark.parametrize("texts", [[""], ["park", " \n"]])
def test_remember_refuses_an_empty_text(town: str, texts: list[str]) -> None:
    with pytest.raises(TextUnknown, match="the text is empty"):
        remember(town, texts)


def test_remember_needs_a_model_and_its_own_encoder(database: str, town: str) -> None:
    with pytest.raises(NoActiveModel):
        remember(database, ["park"])
    with user_session(town) as connection:
        connection.execute("UPDATE callipper.text_encoder SET revision = 'another'")
    with pytest.raises(TextEncoderMissing, match="its weights are not those that the model was trained with"):
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
    [
        "reading POIs",
        "encoding texts",
        "training",
        "cutting the grid",
        "writing the model",
        "writing cells",
        "writing points",
        "activating",
    ],
)
def test_a_failure_leaves_nothing(module_town: str, tmp_path: Path, stage: str) -> None:
    before = contents(module_town)
    with pytest.raises(Failed):
        train_town(module_town, tmp_path, replace(OTHER, epochs=1), FailAt(stage))
    assert contents(module_town) == before


def test_a_failure_in_the_server_leaves_nothing(town: str, tmp_path: Path) -> None:
    with user_session(town) as connection:
        connection.execute(
            "ALTER TABLE callipper.model ADD CONSTRAINT refuses CHECK (version < 2 OR status <> 'active')"
        )
    before = contents(town)
    with pytest.raises(DatabaseFailed, match="refuses") as caught:
        train_town(town, tmp_path, replace(OTHER, epochs=2))
    assert isinstance(caught.value.__cause__, psycopg.errors.CheckViolation)
    assert contents(town) == before
    with user_session(town) as connection:
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
        f"{tmp_path / 'checkpoint.pt'} holds an unfinished run. This run starts over; --resume continues that one."
    ]


def test_what_questions_read_is_analysed_before_the_first_one(town: str, tmp_path: Path) -> None:
    """Else the planner knows nothing of the tables until autovacuum comes: of a million cells, search took 48 s, not 0.5."""
    unknown = (
        "SELECT array_agg(relname::text) FROM pg_class WHERE relnamespace = 'callipper'::regnamespace AND relkind = 'r'"
        " AND reltuples < 0 AND relpages >= 0 AND pg_relation_size(oid) > 5 * 8192 AND relname <> ALL (%s)"
    )
    with user_session(town) as connection:
        connection.execute("ALTER TABLE callipper.cell SET (autovacuum_enabled = false)")
    train_town(town, tmp_path)
    with user_session(town) as connection:
        assert connection.one(unknown, [["kind_term", "poi", "text_vector"]]) == (None,)
        assert connection.one("SELECT reltuples >= 0 FROM pg_class WHERE oid = 'callipper.cell'::regclass") == (True,)
