"""The page of the map in a real browser: make compat. No test lets pass an error in the console, or a request to elsewhere.

MAP_PICTURES=folder keeps a picture of each state.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, Response, expect, sync_playwright

from callipper_db.layers import add_layer
from callipper_db.models import activate_model
from callipper_db.web.app import create_app
from callipper_db.web.serve import listen
from callipper_db.web.settings import MapSettings
from town import train_town

pytestmark = pytest.mark.filterwarnings("default")

# WebGL without a graphics card.
FLAGS = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
SERIOUS = {"serious", "critical"}
expect.set_options(timeout=60_000)  # milliseconds, for a machine that does other work too


class Served:
    """A map's server in a thread."""

    def __init__(self, settings: MapSettings) -> None:
        listener = listen(settings.host, 0)
        self.address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._server = uvicorn.Server(
            uvicorn.Config(create_app(settings), log_level="error", timeout_graceful_shutdown=1)
        )
        self._thread = Thread(target=self._server.run, kwargs={"sockets": [listener]})
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()


@contextmanager
def serving(settings: MapSettings) -> Iterator[Served]:
    served = Served(settings)
    try:
        yield served
    finally:
        served.stop()


@pytest.fixture(scope="module")
def dsn(module_town: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The town with a saved layer and a second version, on a coarser grid."""
    add_layer(module_town, "coffee", "cafe")
    train_town(module_town, tmp_path_factory.mktemp("second"), grid_m=300.0)
    activate_model(module_town, 1)
    return module_town


@pytest.fixture(scope="module")
def address(dsn: str) -> Iterator[str]:
    with serving(MapSettings(dsn, title="Town")) as served:
        yield served.address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert found, "no Chromium: scripts/install-chromium.sh"
    flags = [*FLAGS, "--no-sandbox"] if os.geteuid() == 0 else FLAGS
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=flags)
        yield browser
        browser.close()


Open = Callable[..., Page]


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Open]:
    """Opens the page at an address, and watches it."""
    pages: list[Page] = []
    wrong: list[str] = []

    def visit(path: str = "/", at: str = address, allow: str = "$^", also: str = "$^", **context: object) -> Page:
        page = browser.new_context(viewport=context.pop("viewport", WIDE), **context).new_page()  # type: ignore[arg-type]
        page.on("console", lambda message: note(message.text, allow) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: note(str(error), allow))
        page.on(
            "request",
            lambda request: note(request.url, f"^(blob:)?{re.escape(at)}/|^data:|^blob:{re.escape(at)}|{also}"),
        )
        page.goto(at + path)
        pages.append(page)
        return page

    def note(text: str, allowed: str) -> None:
        if not re.search(allowed, text):
            wrong.append(text)

    yield visit
    for page in pages:
        page.context.close()
    assert not wrong


def ready(page: Page) -> Page:
    page.wait_for_selector("body[data-ready]")
    expect(page.locator("#examples .chip").first).to_be_visible()
    return page


def keep(page: Page, name: str) -> None:
    if folder := os.environ.get("MAP_PICTURES"):
        page.wait_for_load_state("networkidle")
        page.screenshot(path=Path(folder) / f"{name}.png")


def parameters(page: Page) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


def middle_of_the_map(page: Page) -> tuple[float, float]:
    """A spot of the map that neither panel covers."""
    panel = page.locator("#panel").bounding_box()
    assert panel
    return (panel["x"] + panel["width"] + 790) / 2 + 60, 400


def ask(page: Page, text: str) -> None:
    page.get_by_label("What are you looking for?").fill(text)
    page.get_by_role("button", name="Find", exact=True).click()
    expect(page.locator("#results .card").first).to_be_visible()


def has_cells(response: Response) -> bool:
    """Whether it is a tile of the question, and not an empty one beside the town."""
    asked = re.search(r"/tiles/match/.*q=cafe", response.url)
    return asked is not None and int(response.headers.get("content-length", 0)) > 100


def test_a_question_has_places_with_their_reasons_on_the_map(visit: Open) -> None:
    page = ready(visit())
    with page.expect_response(has_cells) as tile:
        ask(page, "cafe")
    assert tile.value.status == 200 and len(tile.value.body()) > 100
    expect(page.locator("#results .card").first).to_contain_text(re.compile("cafe", re.IGNORECASE))
    expect(page.locator("#results .card").first).to_contain_text("within 250 m")
    expect(page.locator(".mark.found").first).to_be_visible()
    assert parameters(page)["q"] == ["cafe"]
    page.get_by_role("button", name="Show place 1 on the map").click()
    expect(page.locator(".mark.found.chosen")).to_have_text("1")
    keep(page, "question")


def test_example_questions_are_asked_by_a_click(visit: Open) -> None:
    page = ready(visit())
    page.locator("#examples .chip").first.click()
    expect(page.locator("#results .card").first).to_be_visible()


def test_a_click_says_what_a_place_is_like_and_where_else(visit: Open) -> None:
    page = ready(visit())
    page.mouse.click(*middle_of_the_map(page))
    place = page.get_by_role("region", name="What this place is like")
    expect(place).to_contain_text("supported by POIs")
    expect(place.locator(".kinds li").first).to_contain_text("the city's share")
    expect(place.locator(".card").first).to_be_visible()
    keep(page, "place")
    with page.expect_response(re.compile("min_distance=1000")):
        place.get_by_label("Most like it, away by at least").select_option("1000")
    place.get_by_role("button", name="More like this").click()
    expect(page.locator("#parts .chip")).to_contain_text("like the place")
    expect(page.locator("#results")).to_contain_text("Places most like that")
    page.get_by_role("button", name="Close the place").click()
    expect(place).to_be_hidden()
    assert "at" not in parameters(page) and "like_at" in parameters(page)


def test_likes_and_dislikes_by_text(visit: Open) -> None:
    page = ready(visit("/?q=park"))
    page.locator("#refine summary").click()
    page.get_by_label("More like", exact=True).fill("school")
    page.keyboard.press("Enter")
    page.get_by_label("Less like", exact=True).fill("factory")
    page.keyboard.press("Enter")
    expect(page.locator("#parts .chip")).to_have_count(2)
    assert (parameters(page)["like"], parameters(page)["unlike"]) == (["school"], ["factory"])
    expect(page.locator("#results")).to_contain_text("Fits better than")
    page.get_by_role("button", name="Remove: not factory").click()
    expect(page.locator("#parts .chip")).to_have_count(1)
    assert "unlike" not in parameters(page)


def test_search_within_a_box_and_a_polygon(visit: Open) -> None:
    page = ready(visit("/?q=cafe"))
    page.locator("#refine summary").click()
    x, y = middle_of_the_map(page)
    page.get_by_role("button", name="Box").click()
    page.mouse.move(x - 60, y - 60)
    page.mouse.down()
    page.mouse.move(x + 60, y + 60, steps=4)
    with page.expect_response(re.compile("/api/search.*within=")) as found:
        page.mouse.up()
    west, south, east, north = map(float, parameters(page)["within"][0].split(","))
    for cell in found.value.json()["cells"]:
        assert west - 0.003 < cell["lon"] < east + 0.003 and south - 0.003 < cell["lat"] < north + 0.003
    expect(page.locator("#place")).to_be_hidden()  # the drag was no click
    keep(page, "box")
    page.get_by_role("button", name="Polygon").click()
    with page.expect_response(re.compile("/api/search.*POLYGON")):
        for east_px, north_px in ((-80, 0), (0, -80), (80, 0)):
            page.mouse.click(x + east_px, y + north_px)
            page.wait_for_timeout(350)  # else the browser takes two clicks for a double one
        page.keyboard.press("Enter")
    assert parameters(page)["within"][0].startswith("POLYGON((")
    page.get_by_role("button", name="Box").click()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Box")).to_have_attribute("aria-pressed", "false")
    page.get_by_role("button", name="Remove: within the polygon").click()
    page.get_by_role("button", name="What is in view").click()
    expect(page.get_by_role("button", name="Remove: within the box")).to_be_visible()


def test_layers(visit: Open) -> None:
    page = ready(visit("/?q=cafe"))
    page.get_by_label("Groups of like cells").check()
    expect(page.locator("#legend .groups li").first).to_be_visible()
    keep(page, "groups")
    page.get_by_label("Colours of likeness").check()
    expect(page.locator("#legend")).to_contain_text("alike")
    with page.expect_response(re.compile("/tiles/layer/coffee/")) as tile:
        page.get_by_label("Layer coffee").check()
    assert tile.value.status == 200
    page.get_by_label("POIs").uncheck()
    assert parameters(page)["layer"] == ["saved:coffee"] and parameters(page)["places"] == ["0"]


def test_two_models_side_by_side(visit: Open) -> None:
    page = ready(visit("/?q=cafe"))
    with page.expect_response(re.compile(r"/tiles/match/.*model=2")) as tile:
        page.get_by_label("Compare with").select_option("2")
    assert tile.value.status == 200
    expect(page.get_by_role("region", name="What changed between the models")).to_contain_text("moved most")
    expect(page.locator("#changes .card")).to_have_count(6)
    handle = page.get_by_label("Where the two models meet on the map")
    handle.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert page.locator("#maps").evaluate("maps => maps.style.getPropertyValue('--at')") == "55%"
    keep(page, "compare")
    box = page.locator("#swipe .right").bounding_box()
    assert box
    page.mouse.click(box["x"] + 30, 300)  # on the side of the other model
    expect(page.get_by_role("region", name="What this place is like")).to_be_visible()
    page.get_by_role("button", name="Close the place").click()
    page.get_by_label("What are you looking for?").fill("")
    page.get_by_role("button", name="Find", exact=True).click()
    expect(page.locator("#changes")).to_contain_text("Ask a question")
    expect(page.locator("#other-map")).to_be_hidden()
    page.get_by_label("Groups of like cells").check()
    expect(page.get_by_label("Compare with")).to_have_value("")
    assert "other" not in parameters(page)


def test_a_link_shows_the_same_and_back_goes_back(visit: Open) -> None:
    page = ready(visit("/?q=park&unlike=factory&at=5.12,52.09&min=1000"))
    expect(page.get_by_label("What are you looking for?")).to_have_value("park")
    expect(page.get_by_role("button", name="Remove: not factory")).to_be_visible()
    expect(page.get_by_role("region", name="What this place is like")).to_be_visible()
    first = page.locator("#results .card").first.inner_text()
    page.get_by_role("button", name="Remove: not factory").click()
    expect(page.locator("#parts .chip")).to_have_count(0)
    page.go_back()
    expect(page.get_by_role("button", name="Remove: not factory")).to_be_visible()
    expect(page.locator("#results .card").first).to_have_text(first, use_inner_text=True)


def test_the_sql_of_what_is_shown_runs(visit: Open, dsn: str) -> None:
    page = ready(visit("/?q=cafe&at=5.12,52.09"))
    expect(page.locator("#place")).to_be_visible()
    expect(page.locator("#results .card").first).to_be_visible()
    page.get_by_role("button", name="Show the SQL").click()
    shown = page.locator("dialog pre").all_inner_texts()
    assert len(shown) == 4
    with psycopg.connect(dsn) as connection, connection.transaction(force_rollback=True):
        for text in shown:
            for statement in filter(None, map(str.strip, text.split(";"))):
                assert connection.execute(statement.encode()).fetchall()
    page.get_by_role("button", name="Copy", exact=True).first.click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_be_hidden()


def test_downloads(visit: Open) -> None:
    page = ready(visit("/?q=cafe"))
    expect(page.locator("#results .card").first).to_be_visible()
    page.get_by_role("button", name="Download").click()
    with page.expect_download() as listed:
        page.get_by_role("button", name="GeoJSON").click()
    features = json.loads(listed.value.path().read_text())["features"]
    assert features[0]["properties"]["rank"] == 1 and "(cafe)" in features[0]["properties"]["because"].lower()
    with page.expect_download() as cells:
        page.get_by_role("link", name="CSV").click()
    assert cells.value.path().read_text().startswith("cell_id,lon,lat,similarity,percentile\n")


def test_the_keyboard_alone_asks_about_a_place(visit: Open) -> None:
    page = ready(visit())
    page.locator("#map canvas").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("region", name="What this place is like")).to_be_visible()
    page.get_by_label("What are you looking for?").focus()
    page.keyboard.type("cafe")
    page.keyboard.press("Enter")
    expect(page.locator("#results .card").first).to_be_visible()


def test_a_server_that_went_away_is_said_and_tried_again(visit: Open, dsn: str) -> None:
    served = Served(MapSettings(dsn))
    port = urlsplit(served.address).port
    page = ready(visit("/", served.address, "ERR_CONNECTION_REFUSED|Failed to fetch"))
    served.stop()
    page.get_by_label("What are you looking for?").fill("cafe")
    page.get_by_role("button", name="Find", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("does not answer. Start it again: callipper-db map")
    keep(page, "gone")
    again = uvicorn.Server(uvicorn.Config(create_app(MapSettings(dsn)), log_level="error", timeout_graceful_shutdown=1))
    thread = Thread(target=again.run, kwargs={"sockets": [listen("127.0.0.1", port)]})
    thread.start()
    try:
        page.get_by_role("button", name="Try again").click()
        expect(page.locator("#results .card").first).to_be_visible()
        expect(page.get_by_role("alert")).to_be_hidden()
    finally:
        again.should_exit = True
        thread.join()


def test_no_model_and_too_little_time_are_said(visit: Open, database: str, dsn: str) -> None:
    with serving(MapSettings(database)) as served:
        page = visit("/", served.address, "409|404")
        expect(page.get_by_role("alert")).to_contain_text("callipper-db train")
    with serving(MapSettings(dsn, timeout_s=0.001)) as served:
        page = visit("/", served.address, "504|503")
        expect(page.get_by_role("alert")).to_contain_text("no answer within 0.001 seconds")
        keep(page, "too-slow")


class RedTiles(BaseHTTPRequestHandler):
    """Raster tiles of one red pixel, which the browser stretches."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Access-Control-Allow-Origin", "*")
        self.end_headers()
        pixel = BytesIO()
        Image.new("RGB", (1, 1), (255, 0, 0)).save(pixel, "PNG")
        self.wfile.write(pixel.getvalue())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_raster_basemap_lies_below(visit: Open, dsn: str) -> None:
    """From another server of this machine; and a sentence says when it is gone."""
    with ThreadingHTTPServer(("127.0.0.1", 0), RedTiles) as tiles:
        Thread(target=tiles.serve_forever).start()
        basemap = f"http://127.0.0.1:{tiles.server_port}/{{z}}/{{x}}/{{y}}.png"
        host = re.escape(f"http://127.0.0.1:{tiles.server_port}/")
        with serving(MapSettings(dsn, basemap=basemap)) as served:
            page = ready(visit("/?q=cafe", served.address, also=f"^{host}"))
            expect(page.locator("#results .card").first).to_be_visible()
            page.wait_for_load_state("networkidle")
            keep(page, "raster")
            shown = page.screenshot()
            red, green, blue = Image.open(BytesIO(shown)).convert("RGB").getpixel((1000, 700))
            assert red > green + 30 and red > blue + 30
            tiles.shutdown()
            tiles.server_close()
            page = ready(visit("/", served.address, "ERR_CONNECTION_REFUSED|Failed to fetch", also=f"^{host}"))
            expect(page.get_by_role("alert")).to_contain_text("The basemap at 127.0.0.1")
            ask(page, "cafe")


def test_a_text_that_the_model_cannot_answer_is_said(visit: Open) -> None:
    page = ready(visit("/", allow="400"))
    page.get_by_label("What are you looking for?").fill("zyzzyva of no meaning")
    page.get_by_role("button", name="Find", exact=True).click()
    expect(page.get_by_role("alert")).to_be_visible()


@pytest.mark.parametrize(("name", "viewport"), [("wide", WIDE), ("phone", PHONE)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nobody_is_shut_out(visit: Open, name: str, viewport: dict[str, int], scheme: str) -> None:
    """axe-core finds nothing serious, in light and dark, on a desk and on a phone; nothing is wider than the screen."""
    page = ready(visit("/?q=cafe&unlike=factory&at=5.12,52.09", viewport=viewport, color_scheme=scheme))
    expect(page.locator("#place .card").first).to_be_visible()
    expect(page.locator("#results .card").first).to_be_visible()
    page.locator("#refine summary").click()
    keep(page, f"{name}-{scheme}")
    found = Axe().run(page).response["violations"]
    page.get_by_role("button", name="Show the SQL").click()
    found += Axe().run(page).response["violations"]
    serious = [(each["id"], [node["html"] for node in each["nodes"]]) for each in found if each["impact"] in SERIOUS]
    assert not serious
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") is (scheme == "dark")


def test_sources_are_always_in_sight(visit: Open) -> None:
    for viewport in (WIDE, PHONE):
        page = ready(visit("/", viewport=viewport))
        sources = page.locator("#sources")
        expect(sources).to_be_in_viewport()
        expect(sources).to_contain_text("Model version 1")
        expect(sources).to_contain_text("town")
