"""A stranger who may create in public, also where PostGIS and pgvector live there, catches none of our calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from click.testing import Result
from psycopg import sql
from psycopg.conninfo import make_conninfo
from test_schema import PASSWORD, execute, role

from callipper_db import models, schema, search
from callipper_db.progress import Silent
from callipper_trainer.data.source import Source
from callipper_trainer.evaluation.evaluate import assess
from callipper_trainer.evaluation.labels import LabelSource
from callipper_trainer.refresh.refresh import refresh
from callipper_trainer.remember import remember
from tiny_encoder import write_encoder
from town import CONFIG, MIDDLE, NAMES, QUARTERS, places, train_town
from traps import plant

QUESTIONS = (
    "callipper.search('park', 5)",
    "callipper.search_points('park', 5)",
    "callipper.search_by_examples(ARRAY['park'], ARRAY['school'])",
    "callipper.similar_to({here}, 5, NULL, 100)",
    "callipper.similar_points_to({here}, 5)",
    "callipper.describe({here})",
    "callipper_map.find_cells('park', 3)",
    "callipper_map.cells_by_text('park')",
    "callipper_map.cells_by_examples(ARRAY['park'], ARRAY['school'])",
    "callipper_map.places_by_text('park')",
    "callipper_map.describe_place(5.12, 52.09)",
)
VALUES = (
    "callipper.text_embed('an old river bank')",
    "callipper.text_embed(t)",
    "callipper.loc_embed({here})",
    "callipper.loc_support({here})",
    "callipper.text_similarity('park', {here})",
    "callipper.point_id(t)",
)


@pytest.fixture
def stranger(cluster_dsn: str) -> Iterator[str]:
    """The name of a role that goes after the database with all that it owns there: too much to drop at once."""
    with role(cluster_dsn, "callipper_stranger") as name:
        yield name


@pytest.fixture(params=["public", "ext"])
def trapped(request: pytest.FixtureRequest, stranger: str, empty_database: str) -> Iterator[str]:
    """A database whose public is full of traps; a stranger has planted them."""
    home = str(request.param)
    execute(empty_database, f"CREATE SCHEMA IF NOT EXISTS {home}", f"GRANT USAGE ON SCHEMA {home} TO PUBLIC")
    for extension in ("postgis", "vector"):
        execute(empty_database, f"CREATE EXTENSION {extension} SCHEMA {home}")
    execute(empty_database, f'GRANT CREATE, USAGE ON SCHEMA public TO "{stranger}"')
    with psycopg.connect(make_conninfo(empty_database, user=stranger, password=PASSWORD)) as connection:
        assert plant(connection, {"postgis": home, "vector": home}) > 5000
    yield empty_database
    assert sprung(empty_database) == 0


def sprung(dsn: str) -> int:
    """How many traps have caught a call; also if the error was caught, since a sequence counts on."""
    with psycopg.connect(dsn) as connection:
        (found,) = connection.execute(
            "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM public.sprung"
        ).fetchone() or (0,)
        return int(found)


def test_the_traps_work(trapped: str) -> None:
    """In a session of a user, on whose search_path public stands."""
    calls = ("left('abc', 1::smallint)", "cardinality(ARRAY[1])", "round(1.5, 1::smallint)", "1::smallint + 1::oid")
    with psycopg.connect(trapped) as connection:
        for call in calls:
            with pytest.raises(psycopg.errors.RaiseException, match="trap"):
                connection.execute(f"SELECT {call}".encode())
            connection.rollback()
        connection.execute("ALTER SEQUENCE public.sprung RESTART")


def test_none_is_sprung(trapped: str, tmp_path: Path, run: Callable[..., Result]) -> None:
    report = schema.init(trapped)
    assert any("may create" in note and "public" in note for note in report.notes)
    schema.init(trapped)
    rows = [
        f"{kind}/{number},{NAMES[number % 4] or ''},{kind},{group},{lon},{lat}"
        for kind, (group, _, _) in QUARTERS.items()
        for number, (lon, lat) in enumerate(places(kind).tolist())
    ]
    for name in ("town", "again"):
        (tmp_path / f"{name}.csv").write_text("\n".join(["id,name,category,group,lon,lat", *rows]), encoding="utf-8")
    (tmp_path / "metres.csv").write_text("id,name,category,x,y\n1,The Mill,mill,645000,5773000\n", encoding="utf-8")
    (tmp_path / "shapes.geojson").write_text(
        '{"type": "FeatureCollection", "features": [{"type": "Feature", "id": 1, "properties": {"category": "lake"},'
        ' "geometry": {"type": "Polygon", "coordinates": [[[5.1, 52.1], [5.11, 52.1], [5.11, 52.11], [5.1, 52.1]]]}}]}',
        encoding="utf-8",
    )
    run("load", "--dsn", trapped, str(tmp_path / "town.csv"), str(tmp_path / "shapes.geojson"))
    run("load", "--dsn", trapped, str(tmp_path / "metres.csv"), "--srid", "32631")
    run("load", "--dsn", trapped, str(tmp_path / "town.csv"), "--replace-source")
    assert sprung(trapped) == 0
    encoder = str(write_encoder(tmp_path / "tiny", num_hidden_layers=1).name)
    quick = replace(CONFIG, epochs=2)
    train_town(trapped, tmp_path, quick, text_tower=True, encoder=encoder, index="hnsw")
    execute(trapped, "CREATE TABLE public.shop AS SELECT poi_id AS id, name, category, geom FROM callipper.poi")
    train_town(trapped, tmp_path / "own", quick, source=Source("public.shop"), encoder=encoder)
    assert sprung(trapped) == 0
    models.activate_model(trapped, 1)
    execute(
        trapped,
        "UPDATE callipper.poi SET category = 'mill' WHERE category = 'school'",
        "DELETE FROM callipper.poi WHERE poi_id = 5",
    )
    assert refresh(trapped, Silent(), text_encoder=encoder).anything
    assert sprung(trapped) == 0
    assert search.nearest_cells(trapped, "an old river bank", 3, "5.0,52.0,5.3,52.2")
    assert search.similar_cells(trapped, f"{MIDDLE[0]},{MIDDLE[1]}", 3, min_distance_m=200)
    assert search.describe_place(trapped, "POINT(5.12 52.09)", 3)
    assert search.nearest_points(trapped, "the old park", 3, "5.0,52.0,5.3,52.2")
    for labels in ("public.shop", str(tmp_path / "town.csv")):
        assess(trapped, LabelSource(labels, ["category"]), 1, Silent(), split="random", seeds=1)
    assert sprung(trapped) == 0
    run("pois", "list-sources", "--dsn", trapped)
    run("pois", "remove", "--source", "metres", "--where", "category=mill", "--dsn", trapped)
    remember(trapped, ["a quiet corner"], text_encoder=encoder)
    run("plot", "--dsn", trapped, "park", "-o", str(tmp_path / "park.png"))
    run("text-encoder", "list", "--dsn", trapped)
    run("doctor", "--dsn", trapped)
    models.compare_models(trapped, 1, 2)
    models.show_model(trapped, None)
    _ask_as_reader(trapped)
    run("text-encoder", "remove", encoder, "--dsn", trapped)
    models.drop_model(trapped, 2)
    models.drop_model(trapped, 1, force=True)


def _ask_as_reader(dsn: str) -> None:
    """With the search_path that every session has, on which public stands."""
    with psycopg.connect(dsn) as connection:
        (home,) = connection.execute(
            "SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'postgis'"
        ).fetchone() or ("",)
        here = f"{home}.ST_SetSRID({home}.ST_Point(float8 '{MIDDLE[0]}', float8 '{MIDDLE[1]}'), 4326)"
        connection.execute(sql.SQL("SET ROLE callipper_reader"))
        for question in QUESTIONS:
            assert connection.execute(f"SELECT * FROM {question.format(here=here)}".encode()).fetchall()
        for value in VALUES:
            query = f"SELECT {value.format(here=here)} FROM (VALUES ('park'), ('zoo'), ('lake')) AS v(t)"
            assert len(connection.execute(query.encode()).fetchall()) == 3
        assert connection.execute("SELECT cell_id, emb FROM callipper.cells").fetchall()
        assert connection.execute("SELECT name, emb FROM callipper.points").fetchall()
