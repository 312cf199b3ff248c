"""Kepler.gl's widget with the published schema: what it takes from Python, and what it draws in a browser: make compat.

A notebook runs the widget's script with the state of the Python object. Here a page does, which reaches no other server, so
that the map has no base map.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterator
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import geopandas
import keplergl
import pandas
import psycopg
import pytest
from keplergl import KeplerGl
from PIL import Image
from playwright.sync_api import Page, Route, sync_playwright
from sqlalchemy import create_engine

from callipper_db.layers import add_layer
from clients import count, url
from page import FLAGS, WIDE

pytestmark = pytest.mark.filterwarnings("default")

WAIT_MS = 300_000  # for a machine that does other work too, and has no graphics card
PLACE = "http://widget.test/"
WIDGET = Path(keplergl.__file__).parent / "static" / "widget.js"
PURPLE, YELLOW = "#301060", "#FFE020"

# What a notebook gives to the widget's script (anywidget.dev).
PAGE = """
<!doctype html><title>widget</title><style>body { margin: 0 }</style><div id="map" style="height: 800px"></div>
<script type="module">
import widget from "./widget.js";
const state = window.state = await (await fetch("./state.json")).json();
const model = {get: name => state[name], set: (name, value) => { state[name] = value; }, save_changes() {}, on() {}};
widget.render({model, el: document.getElementById("map")});
</script>
"""


def config(dsn: str) -> dict[str, Any]:
    """A map of the layer by percentile, in the middle of the screen; the cells' layer is there and hidden."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute(
            "SELECT ST_X(m), ST_Y(m) FROM (SELECT ST_Centroid(ST_Extent(geom)) AS m FROM callipper_map.cell) q"
        ).fetchone()
    assert row
    two = {"name": "two", "type": "custom", "category": "Custom", "colors": [PURPLE, YELLOW]}
    shared = {"opacity": 1, "thickness": 0, "filled": True, "stroked": False}
    layers = [
        layer("coffee", "geom", True, shared | {"colorRange": two}, "percentile"),
        layer("cells", "geojson", False, shared, None),
    ]
    state = {"longitude": row[0], "latitude": row[1], "zoom": 12, "bearing": 0, "pitch": 0}
    return {
        "version": "v1",
        "config": {"visState": {"layers": layers}, "mapState": state, "mapStyle": {"styleType": "no_map"}},
    }


def layer(data: str, column: str, shown: bool, look: dict[str, Any], color_by: str | None) -> dict[str, Any]:
    return {
        "id": data,
        "type": "geojson",
        "config": {
            "dataId": data,
            "label": data,
            "columns": {"geojson": column},
            "isVisible": shown,
            "visConfig": look,
        },
        "visualChannels": {
            "colorField": color_by and {"name": color_by, "type": "real"},
            "colorScale": "quantize",
        },
    }


@pytest.fixture(scope="module")
def dsn(module_town: str) -> str:
    add_layer(module_town, "coffee", "cafe")
    return module_town


@pytest.fixture(scope="module")
def city(dsn: str) -> KeplerGl:
    """The lines of docs/tools.md, with a configuration such as city.config has."""
    engine = create_engine(url(dsn))
    coffee = geopandas.read_postgis(
        "SELECT cell_id, geom, percentile FROM callipper_map.layer_coffee", engine, geom_col="geom"
    )
    cells = pandas.read_sql("SELECT cell_id, geojson, cluster_label, poi_count FROM callipper_map.cell_geojson", engine)
    engine.dispose()
    return KeplerGl(data={"coffee": coffee, "cells": cells}, height=800, config=config(dsn))


@pytest.fixture
def page(city: KeplerGl) -> Iterator[Page]:
    """The widget in a browser."""
    state = {name: value for name, value in city.get_state().items() if not name.startswith("_")}

    def answer(route: Route) -> None:
        asked = route.request.url
        if asked == PLACE:
            route.fulfill(body=PAGE, content_type="text/html")
        elif asked == f"{PLACE}widget.js":
            route.fulfill(path=WIDGET, content_type="text/javascript")
        elif asked == f"{PLACE}state.json":
            route.fulfill(json=state)
        elif asked.startswith(("blob:", "data:")):
            route.continue_()
        else:
            route.abort()

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert found, "no Chromium: scripts/install-chromium.sh"
    with sync_playwright() as playwright:
        flags = [*FLAGS, "--no-sandbox"] if os.geteuid() == 0 else FLAGS
        browser = playwright.chromium.launch(executable_path=found, args=flags)
        page = browser.new_page(viewport=WIDE)
        page.set_default_timeout(WAIT_MS)
        page.route("**/*", answer)
        page.goto(PLACE)
        page.get_by_role("button", name="Zoom in").wait_for()
        yield page
        browser.close()


def test_the_map_is_drawn_by_percentile(page: Page, dsn: str, city: KeplerGl) -> None:
    """The cell that fits best has the brightest colour, the one that fits least the darkest."""
    with psycopg.connect(dsn) as connection:
        ends = [
            connection.execute(
                f"SELECT lon, lat FROM callipper_map.layer_coffee ORDER BY percentile {order}, cell_id LIMIT 1".encode()
            ).fetchone()
            for order in ("DESC", "ASC")
        ]
    spots = [spot_of(place, city.config["config"]["mapState"]) for place in ends if place]
    wanted = [YELLOW, PURPLE]
    ends_at = time.monotonic() + WAIT_MS / 1000
    while (shown := colors(page, spots)) != wanted and time.monotonic() < ends_at:
        page.wait_for_timeout(1000)
    keep(page)
    assert shown == wanted
    # It hands back both layers, with what it adds to a configuration.
    layers = page.evaluate("state.config.config.visState.layers")
    assert [(found["config"]["dataId"], "textLabel" in found["config"]) for found in layers] == [
        ("coffee", True),
        ("cells", True),
    ]


def spot_of(place: tuple[float, float], view: dict[str, float]) -> tuple[int, int]:
    """Where on the screen a place is: Web Mercator, with the whole world on a square of 512 pixels at zoom 0."""
    world = 512 * 2 ** view["zoom"]

    def pixels(lon: float, lat: float) -> tuple[float, float]:
        return lon / 360 * world, -math.asinh(math.tan(math.radians(lat))) / (2 * math.pi) * world

    here, middle = pixels(*place), pixels(view["longitude"], view["latitude"])
    return round(WIDE["width"] / 2 + here[0] - middle[0]), round(WIDE["height"] / 2 + here[1] - middle[1])


def colors(page: Page, spots: list[tuple[int, int]]) -> list[str]:
    picture = Image.open(BytesIO(page.screenshot(timeout=WAIT_MS))).convert("RGB")
    return ["#{:02X}{:02X}{:02X}".format(*picture.getpixel(spot)) for spot in spots]  # type: ignore[misc]


def keep(page: Page) -> None:
    if folder := os.environ.get("MAP_PICTURES"):
        page.screenshot(path=Path(folder) / "kepler.png", timeout=WAIT_MS)


def test_the_exported_page_has_all_rows(dsn: str, city: KeplerGl, tmp_path: Path) -> None:
    """A browser takes the program of such a page from the network, so the page is read here."""
    city.save_to_html(file_name=tmp_path / "city.html")
    text = (tmp_path / "city.html").read_text()
    layer = json.loads(re.findall(r"processGeojson\((.*)\)\}\);$", text, re.MULTILINE)[0])
    cells = csv.DictReader(StringIO(json.loads(re.findall(r"processCsvData\((.*)\)\}\);$", text, re.MULTILINE)[0])))
    with psycopg.connect(dsn) as connection:
        percentiles = connection.execute("SELECT cell_id, percentile FROM callipper_map.layer_coffee").fetchall()
        counts = connection.execute("SELECT cell_id::text, poi_count::text FROM callipper_map.cell").fetchall()
    found = {each["properties"]["cell_id"]: each["properties"]["percentile"] for each in layer["features"]}
    assert found == pytest.approx(dict(percentiles)) and len(found) == count(dsn, "cell")
    assert {each["geometry"]["type"] for each in layer["features"]} == {"Polygon"}
    rows = list(cells)
    assert {row["cell_id"]: row["poi_count"] for row in rows} == dict(counts)
    assert {json.loads(row["geojson"])["type"] for row in rows} == {"Polygon"}
