"""Evaluation of a published model: its labels, its scores next to floors, and what is kept with the version."""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result
from psycopg import sql
from psycopg.conninfo import make_conninfo

from callipper_db import db, models
from callipper_db.arrays import Array
from callipper_db.binary_copy import read_rows
from callipper_db.cli.main import main
from callipper_db.errors import (
    BadInput,
    BadLabels,
    BadSource,
    CallipperError,
    ModelUnreadable,
    NoActiveModel,
    NotEnoughData,
    UnknownModel,
)
from callipper_db.progress import Silent
from callipper_db.search import SHARED_M, compare_answers
from callipper_trainer.data.samples import Samples
from callipper_trainer.data.source import Source, read_samples
from callipper_trainer.embed import embed_places, embed_texts
from callipper_trainer.evaluation.evaluate import Assessment, assess
from callipper_trainer.evaluation.labels import Labels, LabelSource, read_labels
from callipper_trainer.evaluation.plot import place_errors
from callipper_trainer.evaluation.protocol import Prediction, Score, Targets
from callipper_trainer.evaluation.retrieval import (
    evaluate_retrieval,
    fit_without,
    hold_out,
    measure,
    number_labels,
    read_labelled,
    retrieval_auc,
    usual_texts,
)
from callipper_trainer.fit import fit
from callipper_trainer.model_rows import load_model
from callipper_trainer.peaks import shared_words
from handmade import write_model
from sessions import user_session
from town import CONFIG, ENCODER, MIDDLE, QUARTERS, SRID, places, train_town

KINDS = list(QUARTERS)
COUNT = 400
RNG = np.random.default_rng(5)
LONLAT = RNG.uniform(np.subtract(MIDDLE, [0.022, 0.014]), np.add(MIDDLE, [0.022, 0.014]), (COUNT, 2))
CENTRES = np.array([[MIDDLE[0] + east, MIDDLE[1] + north] for _, east, north in QUARTERS.values()])
NEAREST = np.square((LONLAT[:, None] - CENTRES) * [0.61, 1]).sum(axis=2).argmin(axis=1)
KIND = np.array(KINDS)[NEAREST]
WEIGHT = np.exp(-np.square((LONLAT[:, None] - CENTRES) * [61, 100]).sum(axis=2))
SHARES = WEIGHT / WEIGHT.sum(axis=1, keepdims=True)
ROWS: list[dict[str, Any]] = [
    {
        "kind": str(kind),
        "number": KINDS.index(kind),
        "height": round(float(lat - MIDDLE[1]) * 1000, 6),
        "name": f"n{n}",
    }
    | {f"share_{column}": float(value) for column, value in enumerate(shares)}
    for n, (kind, (_, lat), shares) in enumerate(zip(KIND, LONLAT, SHARES, strict=True))
]
SHARE_COLUMNS = [f"share_{column}" for column in range(len(KINDS))]


@pytest.fixture(scope="module")
def metres(shared_town: str) -> Array:
    """(COUNT, 2) the places in the town's CRS, by PostGIS."""
    with user_session(shared_town) as connection:
        found = connection.execute(
            "SELECT ST_X(g), ST_Y(g) FROM unnest(%s::float8[], %s::float8[]) WITH ORDINALITY AS p(x, y, n),"
            " ST_Transform(ST_SetSRID(ST_Point(x, y), 4326), %s) AS g ORDER BY n",
            [LONLAT[:, 0].tolist(), LONLAT[:, 1].tolist(), SRID],
        ).fetchall()
    return np.array(found)


def geojson(coordinates: Array, rows: list[dict[str, Any]], srid: int | None = None) -> str:
    features = [
        {"type": "Feature", "properties": row, "geometry": {"type": "Point", "coordinates": list(place)}}
        for row, place in zip(rows, coordinates.tolist(), strict=True)
    ]
    crs = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG::{srid}"}}
    return json.dumps({"type": "FeatureCollection", **({"crs": crs} if srid else {}), "features": features})


def csv_text(columns: dict[str, list[Any]]) -> str:
    lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    return "\n".join(lines) + "\n"


def column(name: str) -> list[Any]:
    return [row[name] for row in ROWS]


def read(
    dsn: str, labels: str | Path, columns: str = "kind", task: str | None = None, srid: int | None = None
) -> Labels:
    with user_session(dsn, autocommit=True) as connection:
        source = LabelSource(str(labels), columns.split(","), task, srid)
        return read_labels(connection, source, load_model(connection))


def assert_all_there(labels: Labels, metres: Array, lonlat: Array = LONLAT) -> None:
    """Every place with its own kind, in whatever order, to a millimetre."""
    assert len(labels) == len(metres)
    found = {
        tuple(place): labels.targets.names[number]
        for place, number in zip(labels.metres.round(2), labels.targets.values.argmax(axis=1), strict=True)
    }
    expected = dict(zip(map(tuple, metres.round(2)), KIND, strict=True))
    assert found == expected
    order = np.lexsort((lonlat[:, 1], lonlat[:, 0]))
    np.testing.assert_allclose(labels.lonlat[np.lexsort(labels.lonlat.T[::-1])], lonlat[order], atol=1e-8)


# The model as it was


def test_a_loaded_model_embeds_as_the_stored_cells_and_points(shared_town: str) -> None:
    with user_session(shared_town, autocommit=True) as connection:
        model = load_model(connection, 1)
        for table, key in (("cell", "ST_Centroid(c.geom)"), ("point", "e.geom")):
            join = "JOIN callipper.cell c USING (cell_id)" if table == "cell" else ""
            query = sql.SQL(
                f"SELECT ST_X(g), ST_Y(g), emb FROM (SELECT ST_Transform({key}, {SRID}) AS g, e.emb"
                f" FROM callipper.{table}_embedding e {join} WHERE e.version = 1) AS s"
            )
            easting, northing, stored = read_rows(connection, query, ["float8", "float8", "vector"], 256)
            found = embed_places(model.trained, np.column_stack([easting, northing]))
            assert len(found) > 100
            np.testing.assert_allclose(found, stored, atol=1e-5 if table == "cell" else 1e-6)
        centres = model_cells(connection)
        np.testing.assert_allclose(embed_places(model.trained, centres[0]), centres[1], atol=1e-6)


def model_cells(connection: db.Connection) -> tuple[Array, Array]:
    """Centres of the grid in metres, as the grid itself counts them, and what is stored for them."""
    query = sql.SQL(
        "SELECT (c.i + 0.5) * g.size_m, (c.j + 0.5) * g.size_m, e.emb FROM callipper.cell_embedding e"
        " JOIN callipper.cell c USING (cell_id) JOIN callipper.grid g USING (grid_id) WHERE e.version = 1"
    )
    x, y, stored = read_rows(connection, query, ["float8", "float8", "vector"], 256)
    return np.column_stack([x, y]), stored


def test_a_loaded_model_embeds_texts_as_they_are_stored(shared_town: str, encoder: Any) -> None:
    with user_session(shared_town, autocommit=True) as connection:
        model = load_model(connection)
        query = sql.SQL("SELECT emb FROM callipper.text_embedding WHERE version = 1 AND text = 'park'")
        (stored,) = read_rows(connection, query, ["vector"], 256)
        shared = shared_words(connection, 1, model.trained.peaks, ["park"])
    np.testing.assert_allclose(embed_texts(model.trained, encoder.encode(["park"]), shared), stored, atol=1e-5)


def test_a_coordinate_model_loads_too(town: str, tmp_path: Path) -> None:
    summary = train_town(town, tmp_path, replace(CONFIG, encoder="coordinate", epochs=2))
    with user_session(town, autocommit=True) as connection:
        model = load_model(connection)
        assert (model.version, model.trained.pyramid, model.config.encoder) == (summary.version, None, "coordinate")
        query = sql.SQL(
            "SELECT ST_X(g), ST_Y(g), emb FROM callipper.points, LATERAL (SELECT ST_Transform(geom, 32631) AS g) AS s"
        )
        easting, northing, stored = read_rows(connection, query, ["float8", "float8", "vector"], 256)
    np.testing.assert_allclose(embed_places(model.trained, np.column_stack([easting, northing])), stored, atol=1e-6)


def test_models_that_are_not_there(database: str, shared_town: str) -> None:
    with user_session(database, autocommit=True) as connection:
        with pytest.raises(NoActiveModel):
            load_model(connection)
        with pytest.raises(UnknownModel, match="no model version 7"):
            load_model(connection, 7)
        with connection.transaction():
            write_model(connection)
        with pytest.raises(ModelUnreadable, match="no location encoder"):
            load_model(connection)


def test_a_model_of_another_program_is_refused(town: str) -> None:
    with user_session(town, autocommit=True) as connection:
        connection.execute("UPDATE callipper.model SET arch = jsonb_set(arch, '{features,1,kind}', '\"moon\"')")
        with pytest.raises(ModelUnreadable, match="its features are not known to this program"):
            load_model(connection)


# Labels


@pytest.mark.parametrize(
    "kind", ["geojson", "geojson.gz in metres", "csv.gz", "csv in metres", "csv with WKT", "parquet"]
)
def test_labels_from_each_kind_of_file(shared_town: str, metres: Array, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"labels.{kind.split()[0]}"
    srid = None
    if kind == "geojson":
        path.write_text(geojson(LONLAT, ROWS))
    elif kind == "geojson.gz in metres":
        path.write_bytes(gzip.compress(geojson(metres, ROWS, SRID).encode()))
    elif kind == "csv.gz":
        text = csv_text({"KIND": column("kind"), "Lon": LONLAT[:, 0].tolist(), "lat": LONLAT[:, 1].tolist()})
        path.write_bytes(gzip.compress(text.encode()))
    elif kind == "csv in metres":
        path.write_text(csv_text({"x": metres[:, 0].tolist(), "kind": column("kind"), "y": metres[:, 1].tolist()}))
        srid = SRID
    elif kind == "csv with WKT":
        shapes = [f"POINT ({x!r} {y!r})" for x, y in LONLAT.tolist()]
        path.write_text(csv_text({"kind": column("kind"), "geom": shapes}))
    else:
        wkb = [b"\x01\x01\x00\x00\x00" + np.array(place, "<f8").tobytes() for place in LONLAT]
        table = pa.table({"kind": column("kind"), "geometry": pa.array(wkb, pa.binary())})
        geo = {"version": "1.0.0", "primary_column": "geometry", "columns": {"geometry": {"encoding": "WKB"}}}
        pq.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), path)
    labels = read(shared_town, path, srid=srid)
    assert_all_there(labels, metres)
    assert (labels.name, labels.targets.task, labels.guessed, labels.notes) == (
        "labels: kind",
        "classification",
        True,
        [],
    )


@pytest.fixture
def labelled_town(town: str) -> str:
    """A town with a table of labels."""
    with user_session(town) as connection:
        connection.execute(
            'CREATE TABLE public.label (kind text, "Height" float8, geom geometry(Point, 4326));'
            " CREATE VIEW public.label_view AS SELECT * FROM public.label"
        )
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO public.label VALUES (%s, %s, ST_SetSRID(ST_Point(%s, %s), 4326))",
                list(zip(column("kind"), column("height"), *LONLAT.T.tolist(), strict=True)),
            )
    return town


@pytest.mark.parametrize(
    "labels",
    [
        "public.label",
        "label_view",
        f"SELECT upper(kind) AS loud, lower(kind) AS kind, ST_Transform(geom, {SRID}) AS geom FROM label",
    ],
)
def test_labels_from_the_database(labelled_town: str, metres: Array, labels: str) -> None:
    found = read(labelled_town, labels)
    assert_all_there(found, metres)
    assert len(found.name) < 70 and found.name.endswith(": kind")


def test_the_order_of_the_rows_does_not_matter(labelled_town: str) -> None:
    up, down = (read(labelled_town, f"SELECT * FROM label ORDER BY geom {way}", "Height") for way in ("ASC", "DESC"))
    assert np.array_equal(up.metres, down.metres) and np.array_equal(up.targets.values, down.targets.values)


@pytest.mark.parametrize(
    ("columns", "task", "expected"),
    [
        ("kind", None, "classification"),
        ("number", None, "classification"),
        ("height", None, "regression"),
        ("number", "regression", "regression"),
        (",".join(SHARE_COLUMNS), None, "distribution"),
        ("share_0,share_1", None, "regression"),
        ("share_0,share_1", "distribution", "distribution"),
    ],
)
def test_what_a_column_is_taken_for(
    shared_town: str, tmp_path: Path, columns: str, task: str | None, expected: str
) -> None:
    path = tmp_path / "labels.geojson"
    path.write_text(geojson(LONLAT, ROWS))
    labels = read(shared_town, path, columns, task)
    assert (labels.targets.task, labels.guessed) == (expected, task is None)
    if expected == "distribution":
        np.testing.assert_allclose(labels.targets.values.sum(axis=1), 1)
    if expected == "classification":
        assert labels.targets.names == (sorted(KINDS) if columns == "kind" else ["0", "1", "2", "3", "4"])
    else:
        assert labels.targets.names == columns.split(",")


def test_what_is_left_out_is_counted(shared_town: str, tmp_path: Path) -> None:
    rows = [dict(row) for row in ROWS]
    lonlat = LONLAT.copy()
    rows[0]["height"], rows[1]["height"], rows[2]["height"] = None, "", "NaN"
    lonlat[3:7] += [3, 0]
    features = json.loads(geojson(lonlat, rows))
    features["features"][7]["geometry"] = None
    features["features"][8]["geometry"]["coordinates"] = [400, 5]
    path = tmp_path / "labels.geojson"
    path.write_text(json.dumps(features))
    labels = read(shared_town, path, "height")
    assert len(labels) == COUNT - 9 and labels.targets.task == "regression"
    assert labels.notes == [
        "2 labels without a usable place were left out.",
        "3 labels without a value in height were left out.",
        "4 labels outside the extent of model version 1 were left out.",
    ]


def test_rows_that_cannot_be_read_are_counted(shared_town: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    good = csv_text({"kind": column("kind"), "lon": LONLAT[:, 0].tolist(), "lat": LONLAT[:, 1].tolist()})
    path.write_bytes(good.encode() + b"pub,5.12\n\x81\xfe,5.12,52.09\n")
    labels = read(shared_town, path)
    assert (len(labels), labels.notes) == (COUNT, ["2 rows of the file cannot be read and were left out."])


def test_a_class_keeps_its_spelling(shared_town: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    codes = ["01", "1"] * (COUNT // 2)
    path.write_text(csv_text({"code": codes, "lon": LONLAT[:, 0].tolist(), "lat": LONLAT[:, 1].tolist()}))
    assert read(shared_town, path, "code", "classification").targets.names == ["01", "1"]


@pytest.mark.parametrize(
    ("columns", "task", "message"),
    [
        ("colour", None, "there is no column 'colour'. The columns are: kind, number, height, name, share_0"),
        ("kind", "regression", "kind holds text ('"),
        ("height,kind", None, "kind holds text ('"),
        ("kind,number", "classification", "one --target column"),
        ("height", "distribution", "several --target columns"),
        ("height,number", "distribution", "negative"),
        ("name", None, "name has 400 different values in 400 labels, so it holds names"),
    ],
)
def test_targets_that_do_not_fit(
    shared_town: str, tmp_path: Path, columns: str, task: str | None, message: str
) -> None:
    path = tmp_path / "labels.geojson"
    path.write_text(geojson(LONLAT, ROWS))
    with pytest.raises(BadLabels) as caught:
        read(shared_town, path, columns, task)
    assert message in str(caught.value) and str(caught.value).startswith(f"--labels {path}: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row, _: row | {"kind": None}, "no row has a value in kind"),
        (lambda row, _: row | {"kind": "park"}, "all labels are 'park'"),
        (lambda row, n: row | {"kind": None if n >= 49 else row["kind"]}, "49 labels, and at least 50"),
    ],
)
def test_too_little_to_learn_from(shared_town: str, tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "labels.geojson"
    path.write_text(geojson(LONLAT, [change(row, number) for number, row in enumerate(ROWS)]))
    with pytest.raises((BadLabels, NotEnoughData), match=message):
        read(shared_town, path)


def test_labels_of_another_city(shared_town: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.geojson"
    path.write_text(geojson(np.add(LONLAT, [2.0, -1.0]), ROWS))
    with pytest.raises(BadLabels, match=r"no label lies within the extent of model version 1 .*--srid"):
        read(shared_town, path)
    path.write_text(geojson(np.add(LONLAT, [115.0, 0.0]), ROWS))  # so far away that UTM has no numbers for it
    with pytest.raises(BadLabels, match=r"extent of model version 1|EPSG:32631, does not reach"):
        read(shared_town, path)


def test_files_that_are_no_labels(shared_town: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    with pytest.raises(BadInput, match="there is no such file"):
        read(shared_town, path)
    path.write_text(csv_text({"kind": column("kind"), "height": column("height")}))
    with pytest.raises(BadLabels, match=r"no columns of coordinates.*The columns are: kind, height"):
        read(shared_town, path)
    path.write_text(csv_text({"kind": column("kind"), "x": [""] * COUNT, "y": ["north"] * COUNT}))
    with pytest.raises(BadLabels, match="no row with a usable place"):
        read(shared_town, path)
    path.write_text(csv_text({"kind": column("kind"), "x": [1] * COUNT, "y": [1] * COUNT}))
    with pytest.raises(BadLabels, match="no SRID 999999"):
        read(shared_town, path, srid=999_999)


@pytest.mark.parametrize(
    ("labels", "columns", "message"),
    [
        ("public.nothing", "kind", "there is no such table or view"),
        ("public.label", "colour", "colour"),
        ("SELECT kind FROM public.label", "kind", "no column of type geometry among kind"),
        ("SELECT kind, ST_SetSRID(geom, 0) AS geom FROM public.label", "kind", "no SRID"),
        ("SELECT * FROM public.label WHERE false", "kind", "no row with a usable place"),
        ("SELECT 1/0 AS kind, geom FROM public.label", "kind", "division by zero"),
        ("WITH gone AS (DELETE FROM public.label RETURNING *) SELECT * FROM gone", "kind", "WITH"),
    ],
)
def test_tables_that_are_no_labels(labelled_town: str, labels: str, columns: str, message: str) -> None:
    with pytest.raises(BadLabels) as caught:
        read(labelled_town, labels, columns)
    assert message in str(caught.value)
    assert len(read(labelled_town, "public.label")) == COUNT


# Scores of a model


@pytest.fixture
def label_file(tmp_path: Path) -> Path:
    path = tmp_path / "labels.geojson"
    path.write_text(geojson(LONLAT, ROWS))
    return path


def run(*arguments: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == exit_code, result.output
    return result


@pytest.fixture(scope="module")
def assessed(module_town: str, tmp_path_factory: pytest.TempPathFactory) -> Assessment:
    path = tmp_path_factory.mktemp("labels") / "labels.geojson"
    path.write_text(geojson(LONLAT, ROWS))
    return assess(module_town, LabelSource(str(path), ["kind"]), None, Silent(), seeds=2)


def test_the_model_stands_beside_the_floors(assessed: Assessment) -> None:
    names = ["model", "5 nearest neighbours", "coordinates", "position encoding", "context features"]
    for split in ("random", "blocks"):
        assert [score.name for score in assessed.lines(split)] == names
    model = assessed.lines("random")[0]
    assert model.mean["macro_f1"] > 0.7  # the kinds of the town are quarters, which any encoder sees
    json.dumps(assessed.to_dict())


def test_the_verdict_is_paired(assessed: Assessment) -> None:
    for verdict in assessed.verdicts():
        model, *floors = assessed.lines(verdict.split)
        best = max(floors, key=lambda score: score.mean["macro_f1"])
        gains = [a["macro_f1"] - b["macro_f1"] for a, b in zip(model.runs, best.runs, strict=True)]
        assert (verdict.floor, verdict.gain) == (best.name, pytest.approx(np.mean(gains)))
        assert verdict.spread == pytest.approx(np.std(gains, ddof=1))
        assert ("better" if verdict.gain > 0 else "worse") in str(verdict)


def test_lower_is_better_for_a_divergence(assessed: Assessment) -> None:
    targets = Targets("distribution", SHARES, KINDS)
    scores = [
        Score(name, "blocks", {"kl": value}, {"kl": 0.0}, [{"kl": value}])
        for name, value in (("model", 0.1), ("low", 0.2), ("high", 0.9))
    ]
    (verdict,) = replace(assessed, labels=replace(assessed.labels, targets=targets), scores=scores).verdicts()
    assert (verdict.floor, verdict.gain) == ("low", pytest.approx(0.1))


def test_figures_stay_with_the_version_and_are_merged(town: str, label_file: Path) -> None:
    before = models.show_model(town, 1)["metrics"]
    options = ["--labels", str(label_file), "--seeds", "1", "--dsn", town]
    run("evaluate", *options, "--target", "kind", "--split", "random")
    run("evaluate", *options, "--target", "kind", "--split", "blocks")
    run("evaluate", *options, "--target", "height", "--split", "blocks")
    metrics = models.show_model(town, 1)["metrics"]
    evaluation = metrics.pop("evaluation")
    assert metrics == before
    assert {name: set(splits) for name, splits in evaluation.items()} == {
        "labels: kind": {"random", "blocks"},
        "labels: height": {"blocks"},
    }
    kept = evaluation["labels: kind"]["random"]
    assert (kept["task"], kept["labels"], kept["seeds"]) == ("classification", COUNT, 1)
    assert kept["model"].keys() == {"macro_f1", "accuracy"} and len(kept["floors"]) == 4
    run("evaluate", *options, "--target", "kind", "--split", "random", "--seeds", "2")
    again = models.show_model(town, 1)["metrics"]["evaluation"]
    assert again["labels: kind"]["random"]["seeds"] == 2
    assert again["labels: kind"]["blocks"] == evaluation["labels: kind"]["blocks"]


def test_a_role_that_only_reads_gets_its_answer(town: str, label_file: Path) -> None:
    with user_session(town) as connection:
        connection.execute("DROP ROLE IF EXISTS callipper_test_reader")
        connection.execute("CREATE ROLE callipper_test_reader LOGIN")
        connection.execute("GRANT USAGE ON SCHEMA callipper TO callipper_test_reader")
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA callipper TO callipper_test_reader")
        connection.execute("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA callipper TO callipper_test_reader")
    try:
        options = ["--labels", str(label_file), "--target", "kind", "--seeds", "1", "--split", "random"]
        reader = make_conninfo(town, options="-c role=callipper_test_reader")
        result = run("evaluate", *options, "--dsn", reader)
        assert "The figures are not kept with the version" in result.stderr and "macro F1" in result.stdout
        assert "evaluation" not in models.show_model(town, 1)["metrics"]
    finally:
        with user_session(town) as connection:
            connection.execute("DROP OWNED BY callipper_test_reader")
            connection.execute("DROP ROLE callipper_test_reader")


def test_evaluate_answers_in_json(module_town: str, label_file: Path) -> None:
    target = ",".join(SHARE_COLUMNS)
    options = ["--labels", str(label_file), "--target", target, "--seeds", "1", "--dsn", module_town, "--json"]
    answer = json.loads(run("evaluate", *options).stdout)
    assert (answer["task"], answer["guessed"], answer["labels"], answer["version"]) == ("distribution", True, COUNT, 1)
    assert {(score["name"], score["split"]) for score in answer["scores"]} >= {("model", "random"), ("model", "blocks")}
    assert all(score["mean"]["kl"] > 0 for score in answer["scores"]) and len(answer["verdicts"]) == 2


def test_evaluate_answers_in_tables_and_a_picture(module_town: str, label_file: Path, tmp_path: Path) -> None:
    picture = tmp_path / "errors.png"
    options = ["--labels", str(label_file), "--seeds", "1", "--dsn", module_town, "--map", str(picture)]
    said = run("evaluate", *options, "--target", "kind", "--split", "blocks").stdout
    for part in ("400 labels, classification (guessed", "held out by blocks", "macro F1", "hospital", "than the best"):
        assert part in said
    assert said.endswith(f"Wrote {picture}.\n")
    assert picture.read_bytes().startswith(b"\x89PNG")
    for target in ("height", ",".join(SHARE_COLUMNS)):
        picture.unlink()
        run("evaluate", *options, "--target", target, "--split", "random")
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_errors_of_places_are_means_over_the_seeds_that_hold_them_out() -> None:
    truth = np.array([[1.0], [2.0], [3.0], [4.0]])
    predictions = [
        Prediction(np.array([0, 2]), np.array([[2.0], [3.0]])),
        Prediction(np.array([2, 3]), np.array([[5.0], [3.5]])),
    ]
    score = Score("model", "blocks", {}, {}, [], [], predictions)
    rows, error = place_errors(score, Targets("regression", truth, ["height"]))
    assert (rows.tolist(), error.tolist()) == ([0, 2, 3], [1.0, 1.0, -0.5])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give --labels with --target, or --retrieval."),
        (["--labels", "x.csv"], "--labels and --target go together"),
        (["--target", "kind", "--retrieval"], "--labels and --target go together"),
        (["--retrieval", "--map", "x.png"], "--map needs both"),
    ],
)
def test_options_that_do_not_go_together(module_town: str, arguments: list[str], message: str) -> None:
    assert message in run("evaluate", *arguments, "--dsn", module_town, exit_code=2).stderr


def test_an_unknown_version(module_town: str, label_file: Path) -> None:
    options = ["--labels", str(label_file), "--target", "kind", "--dsn", module_town]
    result = run("evaluate", *options, "--model", "99", exit_code=1)
    assert result.stderr.splitlines()[-1] == "Error: There is no model version 99. See: callipper-db models list"


def test_a_picture_without_matplotlib(module_town: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "callipper_trainer.evaluation.plot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    options = ["--labels", "x.csv", "--target", "kind", "--dsn", module_town, "--map", "x.png"]
    assert "pip install 'callipper-db[map]'" in run("evaluate", *options, exit_code=1).stderr


# Retrieval


MANY = """SELECT n AS id, kind AS category, ST_SetSRID(ST_Point(
    lon + sin(n * 12.9898) * 0.006, lat + sin(n * 78.233) * 0.004), 4326) AS geom
    FROM generate_series(1, 1500) n, (VALUES (0, 'cafe', 5.12, 52.09), (1, 'school', 5.14, 52.09), (2, 'park', 5.10, 52.09))
    AS q(place, kind, lon, lat) WHERE n % 3 = place"""


@pytest.fixture
def big_town(town: str, tmp_path: Path) -> str:
    """A town with a second version, of POIs that are many enough to hold out."""
    config = replace(CONFIG, epochs=3, batch_size=128)
    train_town(town, tmp_path, config, source=Source(MANY, template="A place of {category}", identifier="s.id"))
    return town


def test_texts_find_places_that_the_model_has_not_seen(big_town: str) -> None:
    answer = json.loads(run("evaluate", "--retrieval", "--device", "cpu", "--dsn", big_town, "--json").stdout)[
        "retrieval"
    ]
    assert (answer["version"], answer["held_out"], answer["trained_on"]) == (2, 150, 1350)
    assert {row["label"] for row in answer["labels"]} == {"cafe", "school", "park"}
    assert sum(row["places"] for row in answer["labels"]) == 150
    assert answer["macro_auc"]["description"] > 0.9
    with user_session(big_town) as connection:
        assert connection.execute("SELECT count(*) FROM callipper.model").fetchone() == (2,)
    assert models.show_model(big_town, 2)["metrics"]["evaluation"]["retrieval"]["macro_auc"] == answer["macro_auc"]
    assert "AUC, asked by label" in run("evaluate", "--retrieval", "--dsn", big_town).stdout


def random_samples(count: int) -> tuple[Samples, Array]:
    """Places with labels drawn at random, and the vectors of their three texts."""
    rng = np.random.default_rng(3)
    metres, text_id = rng.uniform(0, 30_000, (count, 2)), rng.integers(0, 3, count).astype(np.int32)
    samples = Samples(np.arange(count), metres / 1e5, metres, text_id, ["a", "b", "c"], SRID, np.full(count, -1))
    return samples, np.eye(3, 40, dtype=np.float32)


def encode(texts: list[str]) -> Array:
    """(V, 40), in place of a sentence encoder: unlike texts have unlike vectors."""
    return np.stack([np.random.default_rng(crc32(text.encode())).normal(size=40) for text in texts]).astype(np.float32)


def test_texts_that_say_nothing_of_the_place_find_nothing() -> None:
    samples, vectors = random_samples(1500)
    config = replace(CONFIG, epochs=4, batch_size=128)
    found = measure(samples, vectors, samples.text_id, samples.texts, {"text": vectors}, config, Silent(), encode)
    assert found.macro_auc["text"] == pytest.approx(0.5, abs=0.1)
    kept, held_out = hold_out(1500)
    trained = fit_without(samples, vectors, kept, config, Silent(), encode)
    asked = retrieval_auc(
        embed_places(trained, samples.metres[held_out]), embed_texts(trained, vectors), samples.text_id[held_out]
    )
    assert found.auc["text"] == {samples.texts[label]: pytest.approx(value) for label, value in asked.items()}


def test_what_is_held_out_is_in_no_part_of_the_model() -> None:
    """Neither a place nor, where only held-out places carry it, a text."""
    samples, vectors = random_samples(300)
    kept = np.flatnonzero(samples.text_id != 2)
    trained = fit_without(samples, vectors, kept, replace(CONFIG, epochs=1), Silent(), encode)
    assert trained.pyramid is not None
    for level in trained.pyramid.levels:
        corners = np.floor((samples.metres[kept] - samples.origin) / level.size_m)
        cells, counts = np.unique(corners, axis=0, return_counts=True)
        assert np.array_equal(level.ij, cells) and np.array_equal(level.count, counts)
    assert trained.peaks is not None
    assert set(trained.peaks.points.point_id.tolist()) == set(kept.tolist())
    # The principal component of two texts is their difference, and the third has no part in it.
    assert np.abs(trained.pyramid.text_code.weight[0, :2]) == pytest.approx(np.sqrt(0.5), abs=1e-3)
    assert trained.pyramid.text_code.weight[:, 2] == pytest.approx(0, abs=1e-6)


def test_names_are_learnt_from_the_kept_places_too() -> None:
    samples, vectors = random_samples(300)
    named = replace(samples, name_id=np.where(np.arange(300) % 2, 3 + np.arange(300) % 3, -1), texts=list("abcdef"))
    vectors = np.eye(6, 40, dtype=np.float32)
    kept, config = np.arange(0, 300, 7), replace(CONFIG, epochs=1)
    found = fit_without(named, vectors, kept, config, Silent(), encode)
    expected = fit(
        samples.metres[kept],
        samples.text_id[kept],
        vectors,
        samples.origin,
        config,
        name_id=named.name_id[kept],
    )
    without = fit_without(replace(named, name_id=np.full(300, -1)), vectors, kept, config, Silent(), encode)
    weights = [trained.model.text_projection.weight for trained in (found, expected, without)]
    torch.testing.assert_close(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2], atol=1e-4)


def test_a_town_too_small_to_hold_out(module_town: str) -> None:
    with pytest.raises(NotEnoughData, match="no label has 20"):
        evaluate_retrieval(module_town, None, Silent(), text_encoder=ENCODER)


def test_labels_of_the_source(town: str, tmp_path: Path) -> None:
    with user_session(town, autocommit=True) as connection:
        model = load_model(connection)
        samples, labels = read_labelled(connection, model, None)
        original = read_samples(connection, Source()).samples
        for row in range(len(samples)):  # the same names, of which none has a label
            one, other = samples.name_id[row], original.name_id[row]
            assert (one < 0) == (other < 0)
            assert one < 0 or samples.texts[one] == original.texts[other]
        assert (samples.name_id >= 0).any()
        assert {labels[number] for number in samples.text_id} == set(KINDS) and len(samples) == sum(
            len(places(kind)) for kind in KINDS
        )
        grouped, groups = read_labelled(connection, model, "category_group")
        assert {groups[number] for number in grouped.text_id} == {group for group, _, _ in QUARTERS.values()}
        with pytest.raises(BadSource, match="colour"):
            read_labelled(connection, model, "colour")
        with connection.transaction():
            connection.execute(
                "CREATE TABLE public.stop AS SELECT poi_id AS id, category AS text, geom FROM callipper.poi"
            )
    train_town(town, tmp_path, replace(CONFIG, epochs=1), source=Source("public.stop"))
    with user_session(town, autocommit=True) as connection:
        samples, labels = read_labelled(connection, load_model(connection), None)
    assert labels == samples.texts  # without a category, a text is its own label


def test_a_label_is_asked_by_its_most_usual_text() -> None:
    texts = ["Joe's, a cafe", "a cafe", "a pub", "a kiosk"]
    text_id = np.array([0, 1, 1, 2, 3, 3])
    samples = Samples(np.arange(6), np.zeros((6, 2)), np.zeros((6, 2)), text_id, texts, SRID, np.full(6, -1))
    names, label_id = number_labels(["cafe", "cafe", "pub", None], text_id)
    assert (names, label_id.tolist()) == (["cafe", "pub"], [0, 0, 0, 1, -1, -1])
    assert usual_texts(samples, label_id, 2) == ["a cafe", "a pub"]


# Two versions


def test_two_versions_side_by_side(town: str, tmp_path: Path, label_file: Path) -> None:
    train_town(town, tmp_path, replace(CONFIG, encoder="coordinate", epochs=2))
    run("evaluate", "--labels", str(label_file), "--target", "kind", "--seeds", "1", "--model", "1", "--dsn", town)
    found = json.loads(run("models", "compare", "1", "2", "--dsn", town, "--json").stdout)
    assert found["settings"] == {"encoder": ["contextual", "coordinate"], "epochs": [30, 2]}
    assert found["model"]["status"] == ["ready", "active"] and found["model"]["CRS"] == [f"EPSG:{SRID}"] * 2
    assert all(size > 100_000 for size in found["model"]["bytes"])
    first, second = found["evaluation"]["labels: kind (blocks), macro_f1"]
    assert 0 < first <= 1 and second is None
    shown = [models.show_model(town, version)["metrics"]["validation_loss"] for version in (1, 2)]
    assert found["training"]["validation_loss"] == shown
    said = run("models", "compare", "1", "2", "--dsn", town).stdout
    assert "version 1" in said and "coordinate" in said and "labels: kind (blocks), macro_f1" in said


def test_answers_of_two_versions_side_by_side(town: str, tmp_path: Path) -> None:
    train_town(town, tmp_path, replace(CONFIG, encoder="coordinate", epochs=2), activate=False)
    assert [model["status"] for model in models.list_models(town)] == ["ready", "active"]
    asked = ["models", "compare", "1", "2", "--ask", "park", "--ask", "hospital", "-k", "3", "--dsn", town]
    found = json.loads(run(*asked, "--json").stdout)["answers"]
    assert list(found) == ["park", "hospital"]
    with user_session(town) as connection:
        for text, sides in found.items():
            for version, side in ((1, "first"), (2, "second")):
                rows = connection.execute(
                    "SELECT ST_X(ST_Centroid(geom)), ST_Y(ST_Centroid(geom)), because FROM search(%s, 3, NULL, %s)",
                    [text, version],
                ).fetchall()
                places = [(cell["lon"], cell["lat"], cell["because"]) for cell in sides[side]]
                assert places == [(pytest.approx(lon), pytest.approx(lat), because) for lon, lat, because in rows]
            near = [any(_metres(one, other) <= SHARED_M for other in sides["second"]) for one in sides["first"]]
            assert [cell["shared"] for cell in sides["first"]] == near
    with user_session(town) as connection:
        connection.execute("UPDATE callipper.model SET status = 'ready'")  # as after a first train --no-activate
    assert json.loads(run(*asked, "--json").stdout)["answers"] == found
    said = run(*asked).stdout
    assert f"park: {sum(cell['shared'] for cell in found['park']['first'])} of the 3 places of version 1" in said
    assert "hospital: " in said and found["park"]["second"][0]["because"].split("; ")[0] in said
    result = run("models", "compare", "1", "2", "--ask", " ", "--dsn", town, exit_code=1)
    assert result.stderr.startswith("Error: The active model cannot answer this text")


def _metres(one: dict[str, float], other: dict[str, float]) -> float:
    """Between two places of the town, by a sphere: no two of its cells are so far apart that the difference counts."""
    degree_m = 111_195.0
    east = (one["lon"] - other["lon"]) * degree_m * np.cos(np.radians(one["lat"]))
    return float(np.hypot(east, (one["lat"] - other["lat"]) * degree_m))


def test_versions_that_are_not_there_or_have_little_to_tell(database: str) -> None:
    with user_session(database) as connection:
        write_model(connection)
        write_model(connection, seed=1)
    assert "validation_loss" in run("models", "compare", "1", "2", "--dsn", database).stdout
    result = run("models", "compare", "1", "9", "--dsn", database, exit_code=1)
    assert result.stderr == "Error: There is no model version 9. See: callipper-db models list\n"
    for version in (9, 2**40):
        with pytest.raises(UnknownModel, match=f"no model version {version}\\."):
            compare_answers(database, "pub", 1, version)


def test_every_error_is_ours(shared_town: str) -> None:
    assert issubclass(BadLabels, CallipperError) and issubclass(ModelUnreadable, CallipperError)
