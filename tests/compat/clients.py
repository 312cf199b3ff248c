"""Clients that people use, opened for real on a trained town: make compat. docs/tools.md has the versions and the outcomes.

They are apart from the suite because their packages are many, and warn as they like.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.engine import URL

from callipper_db.layers import add_layer
from mvt import features
from town import MIDDLE

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def dsn(module_town: str) -> str:
    add_layer(module_town, "coffee", "cafe")
    return module_town


def url(dsn: str, driver: str = "postgresql+psycopg") -> URL:
    parts = conninfo_to_dict(dsn)
    query = {"host": str(parts["host"]), "port": str(parts.get("port", 5432))}
    return URL.create(driver, username=str(parts["user"]), database=str(parts["dbname"]), query=query)


@pytest.fixture(scope="module")
def engine(dsn: str) -> Iterator[Engine]:
    engine = create_engine(url(dsn))
    yield engine
    engine.dispose()


def count(dsn: str, table: str) -> int:
    with psycopg.connect(dsn) as connection:
        (rows,) = connection.execute(f"SELECT count(*) FROM callipper_map.{table}".encode()).fetchone() or (0,)
        return int(rows)


def test_geopandas_reads_tables_and_layers(engine: Engine, dsn: str) -> None:
    import geopandas

    cells = geopandas.read_postgis("SELECT * FROM callipper_map.cell", engine, geom_col="geom", index_col="cell_id")
    assert (len(cells), cells.crs.to_epsg(), cells.index.is_unique) == (count(dsn, "cell"), 4326, True)
    assert set(cells.geom_type) == {"Polygon"}
    layer = geopandas.read_postgis("SELECT * FROM callipper_map.layer_coffee", engine, geom_col="geom")
    assert layer["percentile"].between(0, 100).all()


def test_pandas_reads_vectors_as_lists(engine: Engine, dsn: str) -> None:
    import pandas

    frame = pandas.read_sql("SELECT cell_id, lon, lat, emb FROM callipper_map.cell_vector", engine)
    matrix = np.stack(frame["emb"])
    assert len(matrix) == count(dsn, "cell")
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 1, atol=1e-5)


def test_polars_reads_vectors_by_adbc(dsn: str) -> None:
    import polars

    uri = url(dsn, "postgresql").render_as_string()
    frame = polars.read_database_uri("SELECT cell_id, lon, lat, emb FROM callipper_map.cell_vector", uri, engine="adbc")
    assert frame.schema["emb"] == polars.List(polars.Float32)
    assert len(frame) == count(dsn, "cell")


def test_sqlalchemy_automaps_every_table(engine: Engine, dsn: str) -> None:
    import geoalchemy2  # noqa: F401  # makes the type known
    from sqlalchemy.ext.automap import automap_base
    from sqlalchemy.orm import Session

    base: Any = automap_base()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        base.prepare(engine, schema="callipper_map")
    assert set(base.classes.keys()) == {"cell", "place"}
    with Session(engine) as session:
        cell = session.scalars(select(base.classes.cell).order_by(base.classes.cell.poi_count.desc())).first()
        assert cell is not None
        assert session.get(base.classes.cell, cell.cell_id) is cell


DJANGO = """
import json, sys
import django
from django.conf import settings
settings.configure(
    DATABASES={"default": json.loads(sys.argv[1])}, INSTALLED_APPS=[], DEFAULT_AUTO_FIELD="django.db.models.BigAutoField"
)
django.setup()
from django.core.management import call_command
from django.db import connection
import io
text = io.StringIO()
call_command("inspectdb", "cell", "place", stdout=text)
source = text.getvalue()
assert "primary_key=True" in source, source
source = source.replace("class Meta:", "class Meta:\\n        app_label = 'city'")
names = {}
exec(source, names)
cell = names["Cell"].objects.order_by("-poi_count").first()
assert names["Cell"].objects.get(pk=cell.pk).color == cell.color
print(names["Cell"].objects.count(), names["Place"].objects.filter(kind="cafe").count())
"""


def test_django_inspects_and_queries(dsn: str) -> None:
    parts = conninfo_to_dict(dsn)
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts["dbname"],
        "USER": parts["user"],
        "HOST": parts["host"],
        "PORT": parts.get("port", 5432),
        "OPTIONS": {"options": "-c search_path=callipper_map,public"},
    }
    done = subprocess.run(
        [sys.executable, "-c", DJANGO, json.dumps(database)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(count(dsn, "cell")), "60"]


def test_tipg_serves_items_and_tiles(dsn: str) -> None:
    parts = conninfo_to_dict(dsn)
    from contextlib import asynccontextmanager

    from fastapi import FastAPI
    from starlette.testclient import TestClient
    from tipg.collections import register_collection_catalog
    from tipg.database import close_db_connection, connect_to_db
    from tipg.errors import DEFAULT_STATUS_CODES, add_exception_handlers
    from tipg.factory import Endpoints
    from tipg.settings import DatabaseSettings, PostgresSettings

    settings = DatabaseSettings(schemas=["callipper_map"])
    # The address is that of the keywords below, which may be a socket; tipg's settings know none.
    address = PostgresSettings(database_url="postgresql://localhost/city")
    where = {"host": parts["host"], "port": parts.get("port", 5432), "user": parts["user"], "database": parts["dbname"]}

    @asynccontextmanager
    async def lifespan(app: FastAPI):  # type: ignore[no-untyped-def]
        await connect_to_db(app, schemas=["callipper_map"], settings=address, **where)
        await register_collection_catalog(app, db_settings=settings)
        yield
        await close_db_connection(app)

    app = FastAPI(lifespan=lifespan)
    app.include_router(Endpoints().router)
    add_exception_handlers(app, DEFAULT_STATUS_CODES)
    with TestClient(app) as client:
        names = {collection["id"] for collection in client.get("/collections?limit=100").json()["collections"]}
        assert {"callipper_map.cell", "callipper_map.place", "callipper_map.layer_coffee"} <= names
        assert not {name for name in names if name.startswith("callipper.")}
        key = client.get("/collections/callipper_map.cell/items?limit=1").json()["features"][0]["id"]
        item = client.get(f"/collections/callipper_map.cell/items/{key}")
        assert item.status_code == 200, item.text
        assert item.json()["geometry"]["type"] == "Polygon"
        for layer in ("callipper_map.cell", "callipper_map.layer_coffee"):
            items = client.get(f"/collections/{layer}/items?limit=3")
            assert items.status_code == 200, f"{layer}: {items.text[:500]}"
            assert len(items.json()["features"]) == 3
        x, y = tile(13)
        answer = client.get(f"/collections/callipper_map.cell/tiles/WebMercatorQuad/13/{x}/{y}")
        assert answer.status_code == 200, answer.text
        found = features(answer.content, "default")
        assert found
        assert "emb" not in found[0]["properties"]


def tile(z: int) -> tuple[int, int]:
    lon, lat = np.radians(MIDDLE)
    return int((lon / np.pi + 1) / 2 * 2**z), int((1 - np.arcsinh(np.tan(lat)) / np.pi) / 2 * 2**z)


# As pg_tileserv asks for functions (layer_proc.go): z, x and y first, bytea back.
PG_TILESERV_FUNCTIONS = """
SELECT format('%s.%s', n.nspname, p.proname), oidvectortypes(p.proargtypes), p.proargnames[4:], d.description
FROM pg_proc p JOIN pg_namespace n ON p.pronamespace = n.oid LEFT JOIN pg_description d ON p.oid = d.objoid
WHERE p.proargtypes[0:2] = ARRAY[23::oid, 23::oid, 23::oid] AND p.proargnames[1:3] = ARRAY['z'::text, 'x'::text, 'y'::text]
    AND prorettype = 17 AND has_function_privilege(p.oid, 'execute')
"""
# As it asks for tables (layer_table.go): a geometry with its type and SRID; a primary key gives the id.
PG_TILESERV_TABLES = """
SELECT n.nspname || '.' || c.relname, postgis_typmod_type(a.atttypmod), postgis_typmod_srid(a.atttypmod), k.attname
FROM pg_class c JOIN pg_namespace n ON c.relnamespace = n.oid JOIN pg_attribute a ON a.attrelid = c.oid
    JOIN pg_type t ON a.atttypid = t.oid LEFT JOIN pg_index i ON c.oid = i.indrelid AND i.indisprimary
    LEFT JOIN pg_attribute k ON k.attrelid = c.oid AND k.attnum = i.indkey[0]
WHERE c.relkind IN ('r', 'v', 'm', 'p', 'f') AND t.typname = 'geometry' AND has_table_privilege(c.oid, 'select')
    AND postgis_typmod_srid(a.atttypmod) > 0 AND n.nspname = 'callipper_map'
"""


def test_pg_tileservs_queries_find_tables_and_functions(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("SET search_path = public")
        functions = {row[0]: row[1:] for row in connection.execute(PG_TILESERV_FUNCTIONS)}
        tables = {row[0]: row[1:] for row in connection.execute(PG_TILESERV_TABLES)}
        extent = connection.execute("SELECT ST_EstimatedExtent('callipper_map', 'cell', 'geom')").fetchone()
    ours = {name for name in functions if name.startswith("callipper")}
    assert ours == {
        f"callipper_map.{name}" for name in ("similarity_tile", "similarity_tile_json", "cell_tile", "place_tile")
    }
    assert functions["callipper_map.similarity_tile"][1] == ["query"]
    assert tables["callipper_map.cell"] == ("Polygon", 4326, "cell_id")
    assert tables["callipper_map.place"] == ("Point", 4326, "place_id")
    assert extent != (None,), "the bounds come from statistics"


def test_supersets_parser_keeps_the_functions() -> None:
    """Superset rewrites SQL with sqlglot, which takes <=> for IS NOT DISTINCT FROM and search and describe for keywords."""
    import sqlglot

    for query in (
        "SELECT cell_id, percentile FROM callipper_map.cells_by_text('quiet street') WHERE percentile > 90",
        "SELECT text, pois FROM callipper_map.describe_place(7.42, 43.73)",
        "SELECT rank, because FROM callipper_map.find_cells('park', 5)",
        "SELECT geojson, color FROM callipper_map.cell_geojson WHERE cluster = 0",
        "SELECT cell_id, similarity FROM callipper_map.layer_coffee ORDER BY similarity DESC LIMIT 10",
    ):
        parsed = sqlglot.parse_one(query, dialect="postgres").sql(dialect="postgres")
        assert " ".join(parsed.upper().split()) == " ".join(query.upper().split())


def test_what_superset_shows_of_its_columns(engine: Engine) -> None:
    """Scalar columns and GeoJSON text, so that no type is unknown."""
    from sqlalchemy import inspect
    from sqlalchemy.types import NullType

    columns = inspect(engine).get_columns("cell_geojson", schema="callipper_map")
    assert {column["name"] for column in columns} >= {"geojson", "color", "cluster_label"}
    assert not [column for column in columns if isinstance(column["type"], NullType)]
    with engine.connect() as connection:
        shape = connection.exec_driver_sql("SELECT geojson FROM callipper_map.cell_geojson LIMIT 1").scalar_one()
    assert json.loads(shape)["type"] == "Polygon"


def test_a_gis_reads_exports(dsn: str, tmp_path: Path) -> None:
    import pyogrio

    from callipper_db.export import export_layer
    from callipper_db.progress import Silent

    export_layer(dsn, "cells", "gpkg", tmp_path / "cells.gpkg", Silent())
    frame = pyogrio.read_dataframe(tmp_path / "cells.gpkg")
    assert len(frame) == count(dsn, "cell")
