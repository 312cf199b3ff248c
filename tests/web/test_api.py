"""The map's server: what it answers, what it refuses, and that it cannot write."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from click.testing import Result
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo

from callipper_db import db, models
from callipper_db.errors import MapBusy
from callipper_db.web.app import STATIC, create_app
from callipper_db.web.database import MapDatabase
from callipper_db.web.questions import CellQuestion
from callipper_db.web.serve import listen, own_address
from callipper_db.web.settings import MapSettings, is_every_address, is_loopback
from callipper_db.web.sql_shown import of_layer
from handmade import write_model
from mvt import features
from processes import running, wait_for
from sessions import user_session
from town import GRID_M, MIDDLE, QUARTERS, train_town

HERE = f"{MIDDLE[0]},{MIDDLE[1]}"
LOCAL = "http://localhost"


@pytest.fixture(scope="module")
def dsn(module_town: str) -> str:
    return module_town


@pytest.fixture(scope="module")
def client(dsn: str) -> Iterator[TestClient]:
    with TestClient(create_app(MapSettings(dsn, title="Town")), base_url=LOCAL) as client:
        yield client


def tile_address(dsn: str, kind: str, z: int = 14) -> str:
    """The tile of a kind that the middle of the town is in."""
    with user_session(dsn) as connection:
        x, y = connection.execute(
            "SELECT floor((%s + 180) / 360 * 2 ^ %s)::int, floor((1 - asinh(tan(radians(%s))) / pi()) / 2 * 2 ^ %s)::int",
            [MIDDLE[0], z, MIDDLE[1], z],
        ).fetchone() or (0, 0)
    return f"/tiles/{kind}/{z}/{x}/{y}.mvt"


def test_the_city_is_described(client: TestClient, dsn: str) -> None:
    city = client.get("/api/city").json()
    assert (city["title"], city["active"], city["basemap"]) == ("Town", 1, None)
    assert city["sources"] == [{"source": "town", "pois": 300}]
    assert city["models"][0]["pois"] == 300 and len(city["models"][0]["bounds"]) == 4
    with user_session(dsn) as connection:
        cells = connection.execute("SELECT cluster, lon, lat FROM callipper_map.cell").fetchall()
    labels = {(group["cluster"], group["lon"], group["lat"]) for group in city["clusters"]}
    assert labels <= set(cells), "each label stands in a cell of its group"
    assert {group["cluster"]: group["cells"] for group in city["clusters"]} == Counter(cluster for cluster, *_ in cells)


def test_search_gives_the_answers_of_the_function_with_its_pois(client: TestClient, dsn: str) -> None:
    answer = client.get("/api/search", params={"q": "cafe", "k": 3}).json()
    with user_session(dsn) as connection:
        expected = connection.execute("SELECT cell_id, because FROM callipper.search('cafe', 3)").fetchall()
        shown = connection.execute(answer["sql"].encode()).fetchall()
        heat = connection.execute(answer["heat_sql"].encode()).fetchall()
    assert [(cell["cell_id"], cell["because"]) for cell in answer["cells"]] == expected
    assert [row[0] for row in shown] == [cell_id for cell_id, _ in expected]
    assert len(heat) > 100
    for cell in answer["cells"]:
        assert [reason["label"] for reason in cell["reasons"]] == cell["because"].split("; ")
        assert all(abs(reason["lon"] - cell["lon"]) < 0.01 for reason in cell["reasons"])
        assert cell["geometry"]["type"] == "Polygon"


@pytest.mark.parametrize("asked", [{"q": "cafe"}, {"q": "cafe", "like": "park", "unlike": "factory"}])
def test_what_is_shown_can_be_saved_as_a_layer(client: TestClient, dsn: str, asked: dict[str, str]) -> None:
    answer = client.get("/api/search", params=asked).json()
    with user_session(dsn) as connection:
        heat = connection.execute(answer["heat_sql"].encode()).fetchall()
        connection.execute(answer["layer_sql"].encode())
        layer = connection.execute("SELECT cell_id, geom, percentile FROM callipper_map.layer_cafe")
        assert sorted(layer.fetchall()) == sorted(heat)
        connection.rollback()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Somewhere: to drink coffee!", "somewhere_to_drink_coffee"),
        ("24 h café", "layer_24_h_caf"),
        ("咖啡", "layer"),
        ("quiet " * 20, "quiet_quiet_quiet_quiet_quiet_quiet_quiet_quiet_qu"),
    ],
)
def test_a_layer_is_named_after_its_question(text: str, name: str) -> None:
    statement = of_layer(CellQuestion(q=text))
    assert statement == f"SELECT callipper.save_layer('{name}', '{text.strip()}');"


def test_cells_of_a_list_may_be_kept_apart(client: TestClient) -> None:
    cells = client.get("/api/search", params={"q": "cafe", "k": 5, "apart": 500}).json()["cells"]
    assert len(cells) == 5
    for n, one in enumerate(cells):
        for other in cells[:n]:
            north, east = 111_195 * (one["lat"] - other["lat"]), 111_195 * 0.614 * (one["lon"] - other["lon"])
            assert (north**2 + east**2) ** 0.5 > 490


def test_search_by_examples_within_an_area(client: TestClient, dsn: str) -> None:
    area = f"{MIDDLE[0] - 0.01},{MIDDLE[1] - 0.01},{MIDDLE[0] + 0.01},{MIDDLE[1] + 0.01}"
    asked = {"q": "park", "like": "school", "unlike_at": HERE, "within": area, "k": 4}
    answer = client.get("/api/search", params=asked).json()
    with user_session(dsn) as connection:
        assert [row[0] for row in connection.execute(answer["sql"].encode()).fetchall()] == [
            cell["cell_id"] for cell in answer["cells"]
        ]
    assert answer["heat_sql"] is answer["layer_sql"] is None, "no public function takes places for every cell"
    assert all(abs(cell["lon"] - MIDDLE[0]) < 0.012 for cell in answer["cells"])
    assert all("known_for" in cell and cell["because"] is None for cell in answer["cells"] if "because" in cell)


def test_a_place_has_reasons_support_and_likenesses_elsewhere(client: TestClient, dsn: str) -> None:
    answer = client.get("/api/place", params={"at": HERE, "min_distance": 1000, "k": 3}).json()
    with user_session(dsn) as connection:
        expected = connection.execute(
            "SELECT text, pois FROM callipper.describe(ST_SetSRID(ST_Point(%s, %s), 4326), 3)", list(MIDDLE)
        ).fetchall()
        (support,) = connection.execute(
            "SELECT loc_support(ST_SetSRID(ST_Point(%s, %s), 4326))", list(MIDDLE)
        ).fetchone() or (None,)
    assert [(kind["text"], kind["pois"]) for kind in answer["kinds"]] == expected
    assert answer["kinds"][0]["reasons"]
    assert answer["support"] == pytest.approx(support, abs=0.006)
    assert answer["similar"] and answer["inside"]
    for cell in answer["similar"]:
        assert abs(cell["lat"] - MIDDLE[1]) + abs(cell["lon"] - MIDDLE[0]) > 0.008


def test_tiles_are_those_of_the_functions_and_have_an_etag(client: TestClient, dsn: str) -> None:
    address = tile_address(dsn, "match")
    first = client.get(address, params={"q": "cafe"})
    assert first.headers["content-encoding"] == "gzip"
    x, y = address.removesuffix(".mvt").split("/")[-2:]
    with user_session(dsn) as connection:
        (expected,) = connection.execute(
            "SELECT callipper_map.similarity_tile(14, %s, %s, 'cafe')", [int(x), int(y)]
        ).fetchone() or (None,)
    assert first.content == expected and features(first.content, "cells")
    assert client.get(address, params={"q": "cafe"}, headers={"accept-encoding": ""}).content == expected
    again = client.get(address, params={"q": "cafe"}, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = client.get(address, params={"q": "school"}, headers={"if-none-match": first.headers["etag"]})
    assert other.status_code == 200 and other.content != first.content
    for kind, layer in (("cells", "cells"), ("places", "places")):
        assert features(client.get(tile_address(dsn, kind)).content, layer)


def test_a_new_model_has_new_etags(town: str) -> None:
    with TestClient(create_app(MapSettings(town)), base_url=LOCAL) as client:
        before = client.get("/api/search", params={"q": "cafe"}).headers["etag"]
        models.activate_model(town, 1)
        client.app.state.database.forget()  # type: ignore[attr-defined]
        assert client.get("/api/search", params={"q": "cafe"}).headers["etag"] != before


def test_saved_layers_are_tiles(town: str) -> None:
    from callipper_db.layers import add_layer

    add_layer(town, "coffee", "cafe")
    with TestClient(create_app(MapSettings(town)), base_url=LOCAL) as client:
        assert [layer["name"] for layer in client.get("/api/city").json()["layers"]] == ["coffee"]
        layer = features(client.get(tile_address(town, "layer/coffee")).content, "cells")
        match = features(client.get(tile_address(town, "match"), params={"q": "cafe"}).content, "cells")
        assert {cell["id"]: cell["properties"] for cell in layer} == {cell["id"]: cell["properties"] for cell in match}
        missing = client.get(tile_address(town, "layer/tea"))
        assert (missing.status_code, missing.json()["error"]) == (
            400,
            "No answer. There is no layer tea. SELECT * FROM list_layers() lists them.",
        )


def test_two_versions_are_compared_by_percentiles(client: TestClient, dsn: str) -> None:
    cells = client.get("/api/changes", params={"q": "cafe", "other": 1, "k": 4}).json()["cells"]
    assert len(cells) == 4 and all(cell["percentile"] == cell["other_percentile"] for cell in cells)


def test_two_grids_are_compared_where_their_cells_lie(town: str, tmp_path: Path) -> None:
    """Each cell with the one of the other grid that holds its middle, in both directions."""
    train_town(town, tmp_path, grid_m=2 * GRID_M)
    match = "SELECT cell_id, percentile FROM callipper._match_cells(%(version)s, text_embed('cafe', %(version)s), NULL, 100000)"
    # A corner of four small cells is the middle of a large one, so what is a millimetre beside it is looked at.
    pairs = """
        SELECT c.cell_id, o.cell_id FROM callipper.cell c JOIN callipper.model m ON m.grid_id = c.grid_id AND m.version = %s,
            callipper.cell o JOIN callipper.model n ON n.grid_id = o.grid_id AND n.version = %s
        WHERE ST_Intersects(o.geom, ST_Translate(ST_Centroid(c.geom), 1e-8, 1e-8))"""
    with TestClient(create_app(MapSettings(town)), base_url=LOCAL) as client, user_session(town) as connection:
        percentiles = [dict(connection.execute(match, {"version": version}).fetchall()) for version in (1, 2)]
        models.activate_model(town, 1)
        for model, other in ((1, 2), (2, 1)):
            here, there = percentiles[model - 1], percentiles[other - 1]
            paired = connection.execute(pairs, [model, other]).fetchall()
            moved = sorted((abs(here[cell] - there[partner]) for cell, partner in paired), reverse=True)
            cells = client.get("/api/changes", params={"q": "cafe", "model": model, "other": other, "k": 6}).json()[
                "cells"
            ]
            found = [abs(cell["percentile"] - cell["other_percentile"]) for cell in cells]
            assert found == pytest.approx(moved[:6], abs=0.2) and found[0] > 1


def test_files_hold_every_cell(client: TestClient, dsn: str) -> None:
    answer = client.get("/api/cells", params={"q": "cafe", "format": "csv"})
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    with user_session(dsn) as connection:
        expected = connection.execute(
            "SELECT cell_id FROM callipper_map.cells_by_text('cafe') ORDER BY similarity DESC, cell_id"
        ).fetchall()
    assert [(int(row["cell_id"]),) for row in rows] == expected
    assert answer.headers["content-disposition"] == 'attachment; filename="cells.csv"'
    collection = client.get("/api/cells", params={"q": "cafe", "k": 7}).json()
    assert [feature["id"] for feature in collection["features"]] == [cell_id for (cell_id,) in expected[:7]]


REFUSED: list[tuple[str, dict[str, str], int, str]] = [
    ("/api/search", {}, 400, "There is nothing to look for"),
    ("/api/search", {"q": "  "}, 422, "q: is empty."),
    ("/api/search", {"q": "a\x00b"}, 422, "q: has a character"),
    ("/api/search", {"q": "x" * 1001}, 422, "q: string should have at most 1000 characters."),
    ("/api/search", {"q": "cafe", "k": "0"}, 422, "k: input should be greater than"),
    ("/api/search", {"q": "cafe", "colour": "red"}, 422, "There is no parameter 'colour'."),
    ("/api/search", {"q": "cafe", "model": "9"}, 404, "There is no model version 9."),
    ("/api/search", {"q": "cafe", "within": "1,2,3"}, 400, "within is neither a bounding box"),
    ("/api/search", {"q": "cafe", "within": "POLYGON((0 0, 1 1"}, 400, "within is neither a bounding box"),
    ("/api/search", {"like_at": "200,3"}, 422, "like_at: is not on earth"),
    ("/api/search", {"like_at": "nan,3"}, 422, "like_at: is not on earth"),
    ("/api/place", {}, 422, "The parameter at is missing."),
    ("/api/place", {"at": "here"}, 422, "at: is not a place"),
    ("/api/place", {"at": HERE, "min_distance": "inf"}, 422, "min_distance: "),
    ("/api/place", {"at": "-170,-80"}, 400, ""),
    ("/tiles/match/99/0/0.mvt", {"q": "cafe"}, 422, "z: "),
    ("/tiles/match/3/8/0.mvt", {"q": "cafe"}, 400, "There is no tile 8, 0 at zoom 3"),
    ("/tiles/cells/3/-1/0.mvt", {}, 422, "x: "),
    ("/tiles/layer/x'; DROP TABLE callipper.poi; --/3/1/1.mvt", {}, 400, "There is no layer x'; DROP TABLE"),
    ("/api/nothing", {}, 404, "There is nothing at /api/nothing."),
]


@pytest.mark.parametrize(("path", "parameters", "status", "says"), REFUSED)
def test_what_cannot_be_answered_is_refused_with_a_sentence(
    client: TestClient, path: str, parameters: dict[str, str], status: int, says: str
) -> None:
    answer = client.get(path, params=parameters)
    assert (answer.status_code, says in answer.json()["error"]) == (status, True), answer.text


def test_other_methods_are_refused(client: TestClient) -> None:
    assert client.post("/api/search", json={"q": "cafe"}).json() == {
        "error": "POST is not possible there; ask with GET."
    }


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(["/api/search", "/api/place", "/api/cells", "/api/changes", "/tiles/match/12/2105/1350.mvt"]),
    parameters=st.dictionaries(
        st.sampled_from(
            ["like_at", "unlike_at", "within", "k", "model", "apart", "at", "min_distance", "other", "format"]
        ),
        st.one_of(
            st.text(max_size=40),
            st.integers().map(str),
            st.floats().map(str),
            st.tuples(st.floats(-200, 200), st.floats(-100, 100)).map(lambda place: f"{place[0]},{place[1]}"),
            st.sampled_from(
                ["5.1,52,5.2,52.1", "POINT(5.12 52.09)", "POLYGON((5 52,5 53,6 53,5 52))", "GEOMETRYCOLLECTION EMPTY"]
            ),
        ),
        max_size=4,
    ),
)
def test_no_parameter_makes_the_server_fail(client: TestClient, path: str, parameters: dict[str, str]) -> None:
    answer = client.get(path, params=parameters | {"q": "cafe"} if path != "/api/place" else parameters)
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert answer.json()["error"]


def test_nothing_can_be_written(dsn: str) -> None:
    database = MapDatabase(MapSettings(dsn))
    try:
        with database.reading() as connection:
            assert connection.execute("SELECT current_user::text").fetchone() == ("callipper_reader",)
            assert connection.execute("SHOW transaction_read_only").fetchone() == ("on",)
        with (
            pytest.raises(Exception, match=r"read-only transaction|permission denied"),
            database.reading() as connection,
        ):
            connection.execute("DELETE FROM callipper.poi")
    finally:
        database.close()


def test_a_slow_answer_is_stopped(dsn: str) -> None:
    with TestClient(create_app(MapSettings(dsn, timeout_s=0.001)), base_url=LOCAL) as client:
        answer = client.get("/api/city")
        assert (answer.status_code, "told to stop" in answer.json()["error"]) == (504, True)


def test_without_a_model_it_says_how_to_train_one(database: str) -> None:
    with TestClient(create_app(MapSettings(database)), base_url=LOCAL) as client:
        for path in ("/api/city", "/healthz"):
            answer = client.get(path)
            assert (answer.status_code, "callipper-db train" in answer.json()["error"]) == (409, True)


def test_without_a_schema_it_says_init(empty_database: str) -> None:
    with TestClient(create_app(MapSettings(empty_database)), base_url=LOCAL) as client:
        answer = client.get("/api/city")
        assert (answer.status_code, "callipper-db init" in answer.json()["error"]) == (409, True)


def test_without_a_server_it_says_so(open_folder: object) -> None:
    dsn = make_conninfo("", host=str(open_folder), dbname="none", user="nobody")
    app = create_app(replace(MapSettings(dsn), wait_s=0.1))
    with TestClient(app, base_url=LOCAL) as client:
        answer = client.get("/api/city")
        assert (answer.status_code, answer.json()["error"].startswith("Cannot connect to")) == (503, True)


def test_a_token_is_asked_for(dsn: str) -> None:
    with TestClient(create_app(MapSettings(dsn, "0.0.0.0", token="secret")), base_url="http://map.example") as client:
        refused = client.get("/api/city")
        assert (refused.status_code, "token" in refused.json()["error"]) == (401, True)
        assert client.get("/?token=wrong").status_code == 401
        assert client.get("/api/city", headers={"authorization": "Bearer secret"}).status_code == 200
        assert client.get("/healthz").status_code == 200
        page = client.get("/?token=secret", follow_redirects=False)
        assert (page.status_code, page.headers["location"]) == (303, "/")
        assert "httponly" in page.headers["set-cookie"].lower()
        assert client.get("/api/city").status_code == 200, "by the cookie"


def test_many_who_wait_open_no_connections_of_their_own(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All connections are busy: those who waited too long try once, together, whether the database is there."""
    people = 30
    database = MapDatabase(replace(MapSettings(dsn), connections=1, wait_s=1.0))
    database.pool.wait()
    all_wait, attempts = threading.Barrier(people), []

    def attempt(_: str) -> db.Connection:
        attempts.append(1)
        return connect(dsn)

    def ask() -> str:
        all_wait.wait()
        try:
            with database.reading():
                return "answered"
        except MapBusy:
            return "busy"

    connect = db.connect
    monkeypatch.setattr(db, "connect", attempt)
    try:
        with database.reading(), ThreadPoolExecutor(people) as threads:
            assert set(threads.map(lambda _: ask(), range(people))) == {"busy"}
        assert 1 <= len(attempts) < people / 2
    finally:
        database.close()


def test_another_sites_name_for_this_machine_is_refused(client: TestClient) -> None:
    assert client.get("/api/city", headers={"host": "evil.example"}).status_code == 403
    assert client.get("/api/city", headers={"host": "127.0.0.1:8765"}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/healthz", "/api/city", "/api/search?q=cafe", "/static/js/main.js", "/openapi.json"]
)
def test_head_has_the_headers_of_get(client: TestClient, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content, len(get.content) > 0) == (200, b"", True)
    same = [{name: value for name, value in answer.headers.items() if name != "date"} for answer in (head, get)]
    assert same[0] == same[1] and int(same[0]["content-length"]) > 0


def test_head_is_counted_under_its_route(client: TestClient) -> None:
    line = 'callipper_map_requests_total{route="/api/examples",status="200"}'

    def count() -> float:
        found = [row for row in client.get("/metrics").text.splitlines() if row.startswith(line)]
        return float(found[0].split()[-1]) if found else 0.0

    before = count()
    client.head("/api/examples")
    assert count() == before + 1


def test_head_of_what_is_not_there(client: TestClient) -> None:
    assert client.head("/api/nothing").status_code == client.get("/api/nothing").status_code == 404
    assert client.head("/api/search").status_code == client.get("/api/search").status_code == 400
    assert client.post("/api/search").status_code == 405


@pytest.mark.parametrize(
    ("host", "alone"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("db", False)]
)
def test_loopback(host: str, alone: bool) -> None:
    assert is_loopback(host) is alone


@pytest.mark.parametrize(
    ("host", "every"),
    [("0.0.0.0", True), ("::", True), ("[::]", True), ("", True), ("127.0.0.1", False), ("db", False)],
)
def test_every_address(host: str, every: bool) -> None:
    assert is_every_address(host) is every


def test_a_map_on_all_addresses_is_reached_by_its_own() -> None:
    """What is printed is an address of this machine, at which a socket on 0.0.0.0 answers."""
    own = own_address("0.0.0.0")
    if own is None:
        pytest.skip("this machine has no network")
    assert not ip_address(own).is_unspecified and not ip_address(own).is_loopback
    with listen("0.0.0.0", 0) as listener, socket.create_connection((own, listener.getsockname()[1]), timeout=10):
        accepted, (other, _) = listener.accept()
        accepted.close()
    assert other == own


def test_the_page_loads_from_this_server_alone(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200 and "http" not in page.text.replace("http://www.w3.org", "")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "http" not in policy
    for path in ("js/main.js", "css/page.css", "vendor/maplibre-gl/maplibre-gl.mjs"):
        assert client.get(f"/static/{path}").status_code == 200
    assert "javascript" in client.get("/static/vendor/maplibre-gl/maplibre-gl.mjs").headers["content-type"]
    assert client.get("/static/../app.py").status_code == 404


def test_metrics(client: TestClient) -> None:
    client.get("/api/city")
    text = client.get("/metrics").text
    assert 'callipper_map_requests_total{route="/api/city",status="200"}' in text
    assert "callipper_map_pool_size" in text and text.endswith("# EOF\n")


def test_the_log_has_a_line_of_json_for_each_request(dsn: str, tmp_path: Path) -> None:
    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in command.said if line.startswith("{")]

    with running(tmp_path, "map", "--port", "0", "--json-log", "--dsn", dsn) as command:
        command.hear("The map is at ")
        address = command.said[0].split()[4].rstrip("/")
        for path in ("/api/city", "/api/search?q=park", "/nowhere"):
            with suppress(HTTPError):
                urlopen(address + path).close()
        wait_for(lambda: len(lines()) == 3)
        command.end(signal.SIGTERM)
    assert not any("park" in line for line in command.said), "what was asked is nobody's business"
    assert [(line["level"], line["route"], line["status"]) for line in lines()] == [
        ("info", "/api/city", 200),
        ("info", "/api/search", 200),
        ("info", "other", 404),
    ]
    assert all(line["ms"] > 0 and datetime.fromisoformat(line["at"]).tzinfo for line in lines())


def test_every_route_is_documented(client: TestClient) -> None:
    described = client.get("/openapi.json").json()["paths"]
    assert {"/api/city", "/api/search", "/api/place", "/api/changes", "/api/cells", "/healthz"} <= set(described)
    assert all(operation["get"]["description"] for operation in described.values())


def test_the_command_says_where_a_port_is_taken(run: Callable[..., Result], dsn: str) -> None:
    from callipper_db.web.serve import listen

    with listen("127.0.0.1", 0) as taken:
        result = run("map", "--dsn", dsn, "--port", str(taken.getsockname()[1]), exit_code=1)
    assert "Give another with --port" in result.output


def test_connections_are_given_back(dsn: str) -> None:
    database = MapDatabase(replace(MapSettings(dsn), connections=1))
    try:
        for _ in range(3):
            with database.reading() as connection:
                connection.execute("SELECT 1")
        assert isinstance(connection, db.Connection)
    finally:
        database.close()


def test_without_everyday_words_the_kinds_of_places_are_offered(client: TestClient) -> None:
    """The town's model has no text tower: it answers few everyday words."""
    assert set(QUARTERS) <= set(client.get("/api/examples").json())


def test_the_map_library_is_the_one_that_was_fetched() -> None:
    """scripts/vendor-maplibre.sh writes the sums, after it has compared the package with the hash of the release."""
    folder = STATIC / "vendor" / "maplibre-gl"
    sums = dict(line.split()[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert {path.name for path in folder.iterdir()} == {*sums, "SHA256SUMS"}
    for name, expected in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == expected, name


def test_a_version_without_words_for_places_answers_without_reasons(database: str) -> None:
    with user_session(database) as connection:
        model = write_model(connection)
    with TestClient(create_app(MapSettings(database)), base_url=LOCAL) as client:
        answer = client.get("/api/search", params={"q": "pub", "k": 3})
        assert answer.status_code == 200, answer.text
        cells = answer.json()["cells"]
        assert [cell["cell_id"] for cell in cells] == model.ranking("pub")[:3].tolist()
        assert all(cell["known_for"] is None for cell in cells)


def test_a_request_takes_one_connection_alone(dsn: str) -> None:
    """With a single connection, one that asked for a second would wait for itself."""
    alone = replace(MapSettings(dsn), connections=1, wait_s=1.0)
    with TestClient(create_app(alone), base_url=LOCAL) as client:
        for path, asked in (
            (tile_address(dsn, "match"), {"q": "cafe"}),
            ("/api/search", {"q": "cafe", "unlike": "factory"}),
            ("/api/changes", {"q": "cafe", "other": "1"}),
            ("/api/cells", {"q": "cafe", "k": "3"}),
            ("/api/place", {"at": HERE}),
            ("/api/city", {}),
            ("/api/examples", {}),
        ):
            client.app.state.database.forget()  # type: ignore[attr-defined]
            assert client.get(path, params=asked).status_code == 200, path
