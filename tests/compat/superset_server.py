"""Superset's own server on the published schema, asked by its REST API as its pages ask it: make compat."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from callipper_db.layers import add_layer
from clients import CLIENTS, count, url

pytestmark = pytest.mark.filterwarnings("default")

WAIT_S = 300  # for a server that starts on a machine that does other work too
USER = {"username": "admin", "password": "a password for a test"}
# Its own tables are in a database of the tests' server: Superset is about to give up SQLite.
CONFIG = """
import os
from superset.utils.log import StdOutEventLogger

SECRET_KEY = "for a test on this machine alone"
SQLALCHEMY_DATABASE_URI = os.environ["OWN_TABLES"]
EVENT_LOGGER = StdOutEventLogger()
CACHE_CONFIG = DATA_CACHE_CONFIG = FILTER_STATE_CACHE_CONFIG = EXPLORE_FORM_DATA_CACHE_CONFIG = {"CACHE_TYPE": "SimpleCache"}
RATELIMIT_ENABLED = TALISMAN_ENABLED = False
"""
# superset db upgrade, superset init and superset fab create-admin, in one process: each takes half a minute to start.
PREPARE = """
import json, sys
from superset.cli.main import superset
for command in json.loads(sys.argv[1]):
    superset.main(command, standalone_mode=False)
"""
COMMANDS = (
    ["db", "upgrade"],
    ["init"],
    ["fab", "create-admin", "--firstname", "A", "--lastname", "B", "--email", "a@example.org"]
    + [part for name, value in USER.items() for part in (f"--{name}", value)],
)


@pytest.fixture(scope="module")
def dsn(module_town: str) -> str:
    add_layer(module_town, "coffee", "cafe")
    return module_town


@pytest.fixture(scope="module")
def own_tables(cluster_dsn: str) -> Iterator[str]:
    """The DSN of a bare database for what Superset keeps."""
    name = sql.Identifier("superset")
    with psycopg.connect(cluster_dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'").format(name))
        yield make_conninfo(cluster_dsn, dbname="superset")
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


@pytest.fixture(scope="module")
def server(own_tables: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with its tables and a user."""
    home = tmp_path_factory.mktemp("superset")
    (home / "superset_config.py").write_text(CONFIG)
    environment = os.environ | {
        "PYTHONPATH": str(home),
        "SUPERSET_HOME": str(home),
        "OWN_TABLES": url(own_tables, "postgresql+psycopg2").render_as_string(),
    }
    programs = CLIENTS / "superset" / "bin"
    done = subprocess.run(
        [programs / "python", "-c", PREPARE, json.dumps(COMMANDS)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = home / "server.log"
    with log.open("wb") as output:
        running = subprocess.Popen(
            [programs / "superset", "run", "--port", str(port)], env=environment, stdout=output, stderr=output
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", running, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        running.terminate()
        running.wait()


def wait_for(address: str, running: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + WAIT_S
    while time.monotonic() < ends and running.poll() is None:
        try:
            if httpx.get(address).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    pytest.fail(f"Superset does not answer:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[httpx.Client]:
    """One who has logged in."""
    with httpx.Client(base_url=f"{server}/api/v1", timeout=WAIT_S, headers={"Referer": server}) as client:
        token = said(client.post("/security/login", json=USER | {"provider": "db", "refresh": False}))["access_token"]
        client.headers["Authorization"] = f"Bearer {token}"
        client.headers["X-CSRFToken"] = said(client.get("/security/csrf_token/"))["result"]
        yield client


@pytest.fixture(scope="module")
def database(client: httpx.Client, dsn: str) -> int:
    """The number of the city's database, added after its button "Test connection"."""
    asked = {"database_name": "city", "sqlalchemy_uri": url(dsn, "postgresql+psycopg2").render_as_string()}
    assert said(client.post("/database/test_connection/", json=asked)) == {"message": "OK"}
    return int(said(client.post("/database/", json=asked | {"expose_in_sqllab": True}))["id"])


def said(answer: httpx.Response) -> dict[str, Any]:
    assert answer.is_success, f"{answer.status_code} {answer.text[:2000]}"
    found: dict[str, Any] = answer.json()
    return found


def test_a_wrong_address_is_no_connection(client: httpx.Client, dsn: str) -> None:
    """So that a test of the right one says something."""
    address = url(dsn, "postgresql+psycopg2").set(database="nowhere").render_as_string()
    answer = client.post("/database/test_connection/", json={"database_name": "no", "sqlalchemy_uri": address})
    assert answer.status_code == 400 and "Unable to connect" in answer.text


def test_the_schema_and_its_tables_are_listed(client: httpx.Client, database: int) -> None:
    assert "callipper_map" in said(client.get(f"/database/{database}/schemas/"))["result"]
    tables = said(client.get(f"/database/{database}/tables/", params={"q": "(schema_name:callipper_map)"}))["result"]
    kinds = {table["value"]: table["type"] for table in tables}
    assert {"cell": "table", "place": "table", "layer_coffee": "view", "cell_geojson": "view"}.items() <= kinds.items()


# A query, and how many columns it has.
QUERIES = (
    ("SELECT cell_id, percentile FROM callipper_map.cells_by_text('cafe')", 2),
    ("SELECT text, pois FROM callipper_map.describe_place(5.12, 52.09, 1)", 2),
    ("SELECT rank, because FROM callipper_map.find_cells('park', 5)", 2),
    ("SELECT geojson, color FROM callipper_map.cell_geojson", 2),
    ("SELECT cell_id, similarity FROM callipper_map.layer_coffee WHERE percentile > 90 ORDER BY similarity DESC", 2),
    ("SELECT cell_id, lon, lat, percentile FROM callipper_map.cells_by_text('park') WHERE percentile > 90", 4),
)


@pytest.mark.parametrize(("query", "columns"), QUERIES)
def test_sql_lab_runs_queries(client: httpx.Client, database: int, dsn: str, query: str, columns: int) -> None:
    """It rewrites SQL with sqlglot, which takes <=> for IS NOT DISTINCT FROM, and search and describe for keywords."""
    asked = {"database_id": database, "sql": query, "schema": "callipper_map", "queryLimit": 5000, "runAsync": False}
    answer = said(client.post("/sqllab/execute/", json=asked))
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(query.encode()).fetchall()
    assert answer["status"] == "success"
    assert len(answer["data"]) == len(rows) > 0
    assert sorted(next(iter(row.values())) for row in answer["data"]) == sorted(row[0] for row in rows)
    types = [column["type"] for column in answer["columns"]]
    assert len(types) == columns and "UNKNOWN" not in types, types


def test_sql_labs_limit_replaces_that_of_a_query(client: httpx.Client, database: int) -> None:
    query = "SELECT cell_id FROM callipper_map.cell LIMIT 3"
    asked = {"database_id": database, "sql": query, "schema": "callipper_map", "queryLimit": 7, "runAsync": False}
    assert len(said(client.post("/sqllab/execute/", json=asked))["data"]) == 7


def add_dataset(client: httpx.Client, database: int, **more: str) -> tuple[int, dict[str, str]]:
    """Its number, and the type of each column."""
    asked = {"database": database, "schema": "callipper_map"} | more
    number = said(client.post("/dataset/", json=asked))["id"]
    found = said(client.get(f"/dataset/{number}"))["result"]["columns"]
    return number, {column["column_name"]: column["type"] for column in found}


def chart(client: httpx.Client, dataset: int, query: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that a chart of a dataset asks for."""
    asked = {"datasource": {"id": dataset, "type": "table"}, "queries": [query | {"row_limit": 5000}], "force": True}
    (result,) = said(client.post("/chart/data", json=asked))["result"]
    assert result["error"] is None
    rows: list[dict[str, Any]] = result["data"]
    return rows


def test_a_chart_of_the_cells(client: httpx.Client, database: int, dsn: str) -> None:
    """The number of cells and of POIs by group, as a bar chart asks for them."""
    dataset, types = add_dataset(client, database, table_name="cell")
    assert {name for name, kind in types.items() if kind in ("UNKNOWN", "NULL")} <= {"geom"}, types
    total = {"expressionType": "SQL", "sqlExpression": "sum(poi_count)", "label": "pois"}
    rows = chart(client, dataset, {"columns": ["cluster", "cluster_label"], "metrics": ["count", total]})
    with psycopg.connect(dsn) as connection:
        wanted = connection.execute(
            "SELECT cluster, cluster_label, count(*), sum(poi_count) FROM callipper_map.cell GROUP BY 1, 2 ORDER BY 1"
        ).fetchall()
    found = sorted((row["cluster"], row["cluster_label"], row["count"], row["pois"]) for row in rows)
    assert found == wanted and len(wanted) > 1


def test_a_chart_of_a_layer(client: httpx.Client, database: int, dsn: str) -> None:
    """The cells that fit best, as a table's chart with a filter asks for them."""
    dataset, types = add_dataset(client, database, table_name="layer_coffee")
    assert set(types) == {"cell_id", "geom", "lon", "lat", "similarity", "percentile"}
    assert {name for name, kind in types.items() if kind in ("UNKNOWN", "NULL")} <= {"geom"}, types
    best = {
        "columns": ["cell_id", "lon", "lat", "percentile"],
        "filters": [{"col": "percentile", "op": ">", "val": 90}],
        "orderby": [["percentile", False]],
    }
    rows = chart(client, dataset, best)
    with psycopg.connect(dsn) as connection:
        wanted = connection.execute("SELECT cell_id FROM callipper_map.layer_coffee WHERE percentile > 90").fetchall()
    assert {row["cell_id"] for row in rows} == {cell for (cell,) in wanted} and wanted
    shares = [row["percentile"] for row in rows]
    assert shares == sorted(shares, reverse=True)


def test_polygons_of_a_map(client: httpx.Client, database: int, dsn: str) -> None:
    """What a deck.gl Polygon asks for: GeoJSON as text and a value; no column of its dataset is unknown."""
    dataset, types = add_dataset(client, database, table_name="cell_geojson")
    assert not {"UNKNOWN", "NULL"} & set(types.values()), types
    rows = chart(client, dataset, {"columns": ["geojson", "color", "poi_count"]})
    assert len(rows) == count(dsn, "cell")
    assert {json.loads(row["geojson"])["type"] for row in rows} == {"Polygon"}


def test_a_chart_of_a_query(client: httpx.Client, database: int, dsn: str) -> None:
    """A virtual dataset of a function of callipper_map."""
    query = QUERIES[-1][0]
    dataset, types = add_dataset(client, database, table_name="parks", sql=query)
    assert not {"UNKNOWN", "NULL"} & set(types.values()), types
    (row,) = chart(client, dataset, {"metrics": ["count"], "columns": []})
    with psycopg.connect(dsn) as connection:
        assert row["count"] == len(connection.execute(query.encode()).fetchall()) > 0
