"""Clients that people use, opened for real on a trained town: make compat. docs/tools.md has the versions and the outcomes.

They are apart from the suite because their packages are many, and warn as they like.
"""

from __future__ import annotations

import json
import os
import socket
import socketserver
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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

# Clients whose packages do not go together with those of this project: scripts/install-clients.sh
CLIENTS = Path(__file__).parents[2] / "build" / "compat"


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


def test_a_gis_reads_exports(dsn: str, tmp_path: Path) -> None:
    import pyogrio

    from callipper_db.export import export_layer
    from callipper_db.progress import Silent

    export_layer(dsn, "cells", "gpkg", tmp_path / "cells.gpkg", Silent())
    frame = pyogrio.read_dataframe(tmp_path / "cells.gpkg")
    assert len(frame) == count(dsn, "cell")


# A program of QGIS's own Python, which is Debian's: it says what each layer is, and draws two maps.
QGIS = """
import json, sys
from qgis.core import (
    QgsApplication, QgsDataSourceUri, QgsGradientColorRamp, QgsGraduatedSymbolRenderer, QgsMapRendererParallelJob,
    QgsMapSettings, QgsPointXY, QgsProperty, QgsSymbolLayer, QgsVectorLayer, QgsWkbTypes, Qgis,
)
from qgis.PyQt.QtCore import QSize
from qgis.PyQt.QtGui import QColor

host, port, user, name, folder, lon, lat = sys.argv[1:]
application = QgsApplication([], False)
application.initQgis()

def open_layer(table, key):
    uri = QgsDataSourceUri()
    uri.setConnection(host, port, name, user, "")
    uri.setDataSource("callipper_map", table, "geom", "", key)
    layer = QgsVectorLayer(uri.uri(False), table, "postgres")
    assert layer.isValid(), layer.error().message()
    return layer

def draw(layers, path):
    settings = QgsMapSettings()
    settings.setLayers(layers)
    settings.setOutputSize(QSize(600, 600))
    settings.setDestinationCrs(layers[-1].crs())
    settings.setExtent(layers[-1].extent())
    settings.setBackgroundColor(QColor("white"))
    job = QgsMapRendererParallelJob(settings)
    job.start()
    job.waitForFinished()
    assert not job.errors(), [error.message for error in job.errors()]
    image = job.renderedImage()
    image.save(path)
    at = settings.mapToPixel().transform(QgsPointXY(float(lon), float(lat)))
    return image.pixelColor(round(at.x()), round(at.y())).name()

cell, coffee, place = open_layer("cell", "cell_id"), open_layer("layer_coffee", "cell_id"), open_layer("place", "place_id")
ramp = QgsGradientColorRamp(QColor("#ffffcc"), QColor("#b10026"))
heat = QgsGraduatedSymbolRenderer.createRenderer(
    coffee, "percentile", 10, QgsGraduatedSymbolRenderer.EqualInterval, coffee.renderer().symbol().clone(), ramp
)
coffee.setRenderer(heat)
fill = cell.renderer().symbol().symbolLayer(0)
fill.setDataDefinedProperty(QgsSymbolLayer.PropertyFillColor, QgsProperty.fromExpression('"color"'))
found = {
    layer.name(): {
        "rows": layer.featureCount(), "crs": layer.crs().authid(), "type": QgsWkbTypes.displayString(layer.wkbType()),
        "key": [layer.fields()[number].name() for number in layer.primaryKeyAttributes()],
        "fields": {field.name(): field.typeName() for field in layer.fields()},
    }
    for layer in (cell, coffee, place)
}
print(json.dumps({
    "version": Qgis.QGIS_VERSION, "layers": found,
    "heat": draw([coffee], folder + "/heat.png"), "colors": draw([cell], folder + "/colors.png"),
}))
application.exitQgis()
"""


def test_qgis_draws_layers(dsn: str, tmp_path: Path) -> None:
    parts = conninfo_to_dict(dsn)
    address = [str(parts[name]) for name in ("host", "port", "user", "dbname")]
    with psycopg.connect(dsn) as connection:
        best = connection.execute(
            "SELECT l.lon, l.lat, c.color FROM callipper_map.layer_coffee l JOIN callipper_map.cell c USING (cell_id)"
            " ORDER BY l.percentile DESC LIMIT 1"
        ).fetchone()
    assert best is not None
    done = subprocess.run(
        ["/usr/bin/python3", "-W", "ignore", "-c", QGIS, *address, str(tmp_path), str(best[0]), str(best[1])],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"QT_QPA_PLATFORM": "offscreen"},
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    cell, layer, place = (said["layers"][name] for name in ("cell", "layer_coffee", "place"))
    assert (cell["key"], layer["key"], place["key"]) == (["cell_id"], ["cell_id"], ["place_id"])
    assert {shown["crs"] for shown in (cell, layer, place)} == {"EPSG:4326"}
    assert (cell["type"], layer["type"], place["type"]) == ("Polygon", "Polygon", "Point")
    assert cell["rows"] == layer["rows"] == count(dsn, "cell")
    assert not {"vector", "_float4"} & {kind for shown in (cell, layer, place) for kind in shown["fields"].values()}
    # The middle of the best cell has the top colour of the ramp, and its own colour by the expression.
    assert said["heat"] == "#b10026"
    assert said["colors"] == best[2]


def test_ogr2ogr_copies_tables_and_layers(dsn: str, tmp_path: Path) -> None:
    import pyogrio

    parts = conninfo_to_dict(dsn)
    source = f"PG:host={parts['host']} port={parts['port']} user={parts['user']} dbname={parts['dbname']} schemas=callipper_map"
    for form, path in (("GPKG", tmp_path / "city.gpkg"), ("ESRI Shapefile", tmp_path / "city")):
        done = subprocess.run(
            ["/usr/bin/ogr2ogr", "-f", form, str(path), source, "cell", "layer_coffee", "place"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    for table in ("cell", "layer_coffee", "place"):
        info = pyogrio.read_info(tmp_path / "city.gpkg", layer=table)
        assert (info["features"], info["crs"]) == (count(dsn, table), "EPSG:4326")
        assert "emb" not in info["fields"]
        assert pyogrio.read_info(tmp_path / "city" / f"{table}.shp")["features"] == count(dsn, table)
    files = (tmp_path / "city.gpkg", tmp_path / "city" / "cell.shp")
    texts = [pyogrio.read_dataframe(path, layer="cell", read_geometry=False)["top_texts"].dropna() for path in files]
    assert sorted(texts[0]) == sorted(texts[1]), "nothing is cut"


@contextmanager
def tcp_port(dsn: str) -> Iterator[int]:
    """A port of this machine that leads to the server's socket, because JDBC knows no Unix sockets."""
    parts = conninfo_to_dict(dsn)
    path = f"{parts['host']}/.s.PGSQL.{parts['port']}"

    class Forward(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.socket(socket.AF_UNIX) as server:
                server.connect(path)
                back = threading.Thread(target=pump, args=(server, self.request))
                back.start()
                pump(self.request, server)
                back.join()

    def pump(source: socket.socket, target: socket.socket) -> None:
        while data := source.recv(65536):
            target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Forward) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


JDBC = """
import json, sys
import jpype, jpype.imports
jpype.startJVM(classpath=["/usr/share/java/postgresql.jar"])
from java.sql import DriverManager, Types
connection = DriverManager.getConnection(sys.argv[1], sys.argv[2], "")
names = {getattr(Types, name): name for name in ("BIGINT", "INTEGER", "DOUBLE", "REAL", "VARCHAR", "ARRAY", "OTHER")}

def columns(query, *values):
    statement = connection.prepareStatement(query)
    for number, value in enumerate(values, 1):
        (statement.setString if isinstance(value, str) else statement.setLong)(number, value)
    rows = statement.executeQuery()
    about, found = rows.getMetaData(), 0
    while rows.next():
        found += 1
    return {str(about.getColumnName(n)): names.get(about.getColumnType(n)) for n in range(1, about.getColumnCount() + 1)}, found

keys = connection.getMetaData().getPrimaryKeys(None, "callipper_map", "cell")
keys.next()
print(json.dumps({
    "key": str(keys.getString("COLUMN_NAME")),
    "cell": columns("SELECT * FROM callipper_map.cell"),
    "vector": columns("SELECT cell_id, emb FROM callipper_map.cell_vector"),
    "find_cells": columns("SELECT * FROM callipper_map.find_cells(?, ?)", "cafe", 5),
    "search": columns("SELECT cell_id, similarity FROM callipper.search(?, ?)", "cafe", 5),
    "layer": columns("SELECT * FROM callipper_map.layer_coffee"),
}))
"""


def test_jdbc_knows_types_and_keys(dsn: str) -> None:
    parts = conninfo_to_dict(dsn)
    with tcp_port(dsn) as port:
        address = f"jdbc:postgresql://127.0.0.1:{port}/{parts['dbname']}"
        done = subprocess.run(
            [sys.executable, "-c", JDBC, address, str(parts["user"])], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["key"] == "cell_id"
    cells = count(dsn, "cell")
    for name, rows in (("cell", cells), ("vector", cells), ("layer", cells), ("find_cells", 5), ("search", 5)):
        columns, found = said[name]
        assert found == rows, name
        # Geometry alone has no type of JDBC's; lon and lat are next to it.
        assert {column for column, kind in columns.items() if kind in (None, "OTHER")} <= {"geom"}, columns
    assert said["cell"][0]["cell_id"] == "BIGINT"
    assert said["cell"][0]["lon"] == "DOUBLE"
    assert said["vector"][0]["emb"] == "ARRAY"


DBT_TABLES = {
    # Planners go parallel on the 100,000 rows of shop, whose texts and places are embedded here.
    "shop_text": "SELECT id, callipper.text_embed(kind) AS emb FROM public.shop",
    "shop_place": "SELECT id, callipper.loc_embed(geom) AS emb, callipper.text_similarity('cafe', geom) AS cafe"
    " FROM public.shop WHERE id % 1000 = 0",
    "best_cells": "SELECT cell_id, geom, percentile FROM callipper_map.cells_by_text('cafe') WHERE percentile > 90",
    "found": "SELECT * FROM callipper_map.find_cells('cafe', 5)",
}


def test_dbt_makes_tables_of_100_000_rows(dsn: str, tmp_path: Path) -> None:
    parts = conninfo_to_dict(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE public.shop AS SELECT n AS id, (ARRAY['cafe', 'school', 'park'])[1 + n % 3] AS kind,"
            " ST_SetSRID(ST_Point(5.1 + n % 317 * 1e-4, 52.08 + n % 331 * 1e-4), 4326) AS geom"
            " FROM generate_series(1, 100000) AS n"
        )
        connection.execute("ANALYZE public.shop")
    profile = {
        "target": "here",
        "outputs": {
            "here": {
                "type": "postgres",
                "host": parts["host"],
                "port": int(str(parts["port"])),
                "user": parts["user"],
                "password": "",
                "dbname": parts["dbname"],
                "schema": "dbt",
                "threads": 2,
            }
        },
    }
    project = {"name": "city", "version": "1.0.0", "profile": "city", "models": {"city": {"+materialized": "table"}}}
    # YAML reads JSON.
    (tmp_path / "profiles.yml").write_text(json.dumps({"city": profile}))
    (tmp_path / "dbt_project.yml").write_text(json.dumps(project))
    (tmp_path / "models").mkdir()
    for name, query in DBT_TABLES.items():
        (tmp_path / "models" / f"{name}.sql").write_text(query)
    done = subprocess.run(
        [CLIENTS / "dbt" / "bin" / "dbt", "--no-send-anonymous-usage-stats", "run", "--profiles-dir", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    with psycopg.connect(dsn) as connection:
        rows = {name: connection.execute(f"SELECT count(*) FROM dbt.{name}".encode()).fetchone() for name in DBT_TABLES}
        shapes = connection.execute(
            "SELECT f_table_name, srid, type FROM geometry_columns WHERE f_table_schema = 'dbt' ORDER BY 1"
        ).fetchall()
    assert rows["shop_text"] == (100_000,)
    assert rows["shop_place"] == (100,)
    assert rows["found"] == (5,)
    assert shapes == [("best_cells", 4326, "POLYGON"), ("found", 4326, "POLYGON")]


# What martin publishes by itself: functions of z, x and y, at most one more argument, of JSON, that return bytea; and columns
# of geometry_columns, which it serves quickly with a spatial index.
MARTIN_FUNCTIONS = """
SELECT r.routine_name::text FROM information_schema.routines r, LATERAL (
    SELECT array_agg(p.parameter_name::text ORDER BY p.ordinal_position),
        array_agg(p.data_type::text ORDER BY p.ordinal_position)
    FROM information_schema.parameters p WHERE p.specific_name = r.specific_name AND p.parameter_mode = 'IN'
) AS a (names, types)
WHERE r.routine_schema = 'callipper_map' AND r.data_type = 'bytea' AND names[1:3] = ARRAY['z', 'x', 'y']
    AND types[1:3] = ARRAY['integer', 'integer', 'integer']
    AND (cardinality(types) = 3 OR cardinality(types) = 4 AND types[4] IN ('json', 'jsonb'))
"""
MARTIN_TABLES = """
SELECT f_table_name, srid, type, EXISTS (
    SELECT FROM pg_index i JOIN pg_opclass o ON o.oid = i.indclass[0] JOIN pg_attribute a ON a.attrelid = i.indrelid
    WHERE i.indrelid = format('%I.%I', f_table_schema, f_table_name)::regclass AND i.indnkeyatts = 1
        AND a.attnum = i.indkey[0] AND a.attname = f_geometry_column AND o.opcname = 'gist_geometry_ops_2d'
)
FROM geometry_columns WHERE f_table_schema = 'callipper_map'
"""


def test_martins_conditions_hold_for_tables_and_functions(dsn: str) -> None:
    x, y = tile(13)
    with psycopg.connect(dsn) as connection:
        functions = {name for (name,) in connection.execute(MARTIN_FUNCTIONS)}
        tables = {row[0]: row[1:] for row in connection.execute(MARTIN_TABLES)}
        # As martin calls a function: the fields of the URL as JSON.
        answers = [
            connection.execute(
                "SELECT callipper_map.similarity_tile_json(%s, %s, %s, %s::json)", [13, x, y, json.dumps(fields)]
            ).fetchone()
            for fields in ({"query": "cafe"}, {})
        ]
    assert functions == {"similarity_tile_json", "cell_tile", "place_tile"}
    assert tables["cell"] == (4326, "POLYGON", True)
    assert tables["place"] == (4326, "POINT", True)
    assert tables["layer_coffee"] == (4326, "POLYGON", False)
    assert all(answer is not None and features(answer[0], "cells") for answer in answers)


def test_onnx_runs_without_this_program(dsn: str, tmp_path: Path) -> None:
    import onnxruntime

    from callipper_db.progress import Silent
    from callipper_trainer.onnx_towers import export_onnx
    from callipper_trainer.text_encoder import find_encoder
    from town import ENCODER, SRID

    export_onnx(dsn, tmp_path / "model.onnx", Silent())
    places, texts = (onnxruntime.InferenceSession(tmp_path / f"model.{tower}.onnx") for tower in ("places", "texts"))
    said = places.get_modelmeta().custom_metadata_map
    assert (said["callipper_db.version"], said["callipper_db.srid"]) == ("1", str(SRID))
    words = ["cafe", "school", "park", "hospital"]
    with psycopg.connect(dsn) as connection:
        connection.execute("SET search_path = callipper, public")
        rows = connection.execute(
            "SELECT ST_X(m), ST_Y(m), emb::real[] FROM cells, ST_Transform(ST_Centroid(geom), %s) AS m ORDER BY cell_id",
            [SRID],
        ).fetchall()
        wanted = connection.execute(
            "SELECT text_embed(t)::real[] FROM unnest(%s::text[]) WITH ORDINALITY AS q(t, n) ORDER BY n", [words]
        ).fetchall()
        kinds = json.loads(texts.get_modelmeta().custom_metadata_map["callipper_db.kinds"])
        shared = np.zeros((len(words), len(kinds)))
        for number, kind, share in connection.execute(
            "SELECT * FROM callipper._shared_words(callipper._active_version(), %s::text[], %s::int4[])", [words, kinds]
        ):
            shared[number - 1, kinds.index(kind)] = share
    metres = np.array([row[:2] for row in rows])
    (found,) = places.run(None, {"metres": metres})
    np.testing.assert_allclose(found, np.array([row[2] for row in rows], np.float32), atol=1e-5)
    (alone,) = places.run(None, {"metres": metres[:1]})
    np.testing.assert_allclose(alone, found[:1], atol=1e-6)
    (found,) = texts.run(None, {"vectors": find_encoder(ENCODER).encode(words), "shared": shared})
    np.testing.assert_allclose(found, np.array([row[0] for row in wanted], np.float32), atol=1e-5)
