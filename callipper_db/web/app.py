"""The map's server: each route checks its parameters, asks once, and answers JSON, a tile, or a file of the page."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware

from callipper_db.errors import AnswerUnusable, CallipperError
from callipper_db.web import failures, queries, sql_shown
from callipper_db.web.access import Access
from callipper_db.web.database import Cache, MapDatabase
from callipper_db.web.metrics import Measured, Metrics
from callipper_db.web.questions import MOST_CELLS, CellQuestion, ChangeQuestion, Download, PlaceQuestion, Question
from callipper_db.web.settings import MapSettings
from callipper_db.web.tiles import Column, Row, Tiles, Zoom, tile_of

SPARE_THREADS = 40
STATIC = Path(__file__).parent / "static"
DESCRIPTION = """Spatial-semantic search, as JSON. Everything is read-only. An error is `{"error": "a sentence"}`."""


def create_app(settings: MapSettings) -> FastAPI:
    """The application. It opens its pool at once; `lifespan` closes it."""
    database = MapDatabase(settings)
    metrics = Metrics(database)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # A thread for each request that may wait for the database, so that one that needs no answer of it does not wait too.
        current_default_thread_limiter().total_tokens = settings.connections + settings.waiting + SPARE_THREADS
        yield
        database.close()

    app = FastAPI(
        title="callipper-db map",
        version=version("callipper-db"),
        description=DESCRIPTION,
        docs_url=None,  # their scripts come from a CDN
        redoc_url=None,
        lifespan=lifespan,
        middleware=[
            Middleware(Measured, metrics=metrics),
            Middleware(Access, settings=settings),
            Middleware(GZipMiddleware, minimum_size=800, compresslevel=5),
        ],
        exception_handlers={
            CallipperError: failures.answer_error,
            RequestValidationError: failures.answer_bad_request,
            HTTPException: failures.answer_http_error,
            Exception: failures.answer_unforeseen,
        },
        responses={code: {"description": "A sentence that says what is wrong."} for code in (400, 404, 409, 503, 504)},
    )
    app.state.database = database
    _add_answers(app, settings, database)
    _add_tiles(app, database)
    _add_operations(app, database, metrics)
    _add_page(app)
    return app


def _add_answers(app: FastAPI, settings: MapSettings, database: MapDatabase) -> None:
    vectors = queries.Vectors(database)
    kept: Cache[list[str]] = Cache(room=4)

    @app.get("/api/city")
    def city() -> dict[str, Any]:
        """The models, their sources, groups of cells and saved layers, and how the page is set up."""
        return {
            "stamp": database.stamp(),
            "title": settings.title,
            "basemap": settings.basemap,
            "version": version("callipper-db"),
            "most_cells": MOST_CELLS,
            **queries.city(database),
        }

    @app.get("/api/examples")
    def examples() -> list[str]:
        """Questions that this city answers."""
        stamp = database.stamp()
        return kept.get(stamp) or kept.put(stamp, queries.examples(database))

    @app.get("/api/search")
    def search(request: Request, question: Annotated[CellQuestion, Query()]) -> Response:
        """The best cells for a question, with the reasons."""
        _check(question)
        model = question.model or _active(database)
        return _json(
            request,
            database,
            lambda: {
                "model": model,
                "cells": queries.search_cells(database, question, model, vectors),
                "sql": sql_shown.of_cells(question),
                "heat_sql": sql_shown.of_heat(question),
            },
        )

    @app.get("/api/place")
    def place(request: Request, question: Annotated[PlaceQuestion, Query()]) -> Response:
        """What a place is like, its support, and the cells most like it elsewhere, with the reasons."""
        model = question.model or _active(database)
        return _json(
            request,
            database,
            lambda: {
                "model": model,
                **queries.describe_place(database, question, model),
                "sql": sql_shown.of_place(question),
            },
        )

    @app.get("/api/changes")
    def changes(request: Request, question: Annotated[ChangeQuestion, Query()]) -> Response:
        """The cells whose percentile for a question differs most between two versions."""
        _check(question)
        model = question.model or _active(database)
        return _json(
            request,
            database,
            lambda: {
                "model": model,
                "other": question.other,
                "cells": queries.changed_cells(database, question, model, vectors),
            },
        )

    @app.get("/api/cells")
    def cells(question: Annotated[Download, Query()]) -> Response:
        """All cells and how well they fit, best first, as a file."""
        _check(question)
        model = question.model or _active(database)
        rows = queries.cells(database, question, model, vectors)
        headers = {"Content-Disposition": f'attachment; filename="cells.{question.format}"'}
        if question.format == "csv":
            return Response(_csv(rows), media_type="text/csv; charset=utf-8", headers=headers)
        return Response(_geojson(rows), media_type="application/geo+json", headers=headers)


def _add_tiles(app: FastAPI, database: MapDatabase) -> None:
    tiles = Tiles(database)
    vectors = queries.Vectors(database)

    @app.get("/tiles/match/{z}/{x}/{y}.mvt", response_class=Response)
    def match_tile(request: Request, z: Zoom, x: Column, y: Row, question: Annotated[Question, Query()]) -> Response:
        """How well cells fit a question: layer `cells`, whole percents."""
        _check(question)
        model = question.model or _active(database)
        return tiles.answer(
            request,
            ("match", model, question.key),
            (z, x, y),
            lambda connection: tile_of(
                connection,
                "SELECT callipper._match_tile(%s, %s, %s, %s, %s::text::@vector)",
                *(z, x, y, model, vectors.of(connection, question, model)),
            ),
        )

    @app.get("/tiles/cells/{z}/{x}/{y}.mvt", response_class=Response)
    def cell_tile(request: Request, z: Zoom, x: Column, y: Row) -> Response:
        """Groups, colours and support of the active version's cells: layer `cells`."""
        make = "SELECT callipper_map.cell_tile(%s, %s, %s)"
        return tiles.answer(request, ("cells",), (z, x, y), lambda connection: tile_of(connection, make, z, x, y))

    @app.get("/tiles/places/{z}/{x}/{y}.mvt", response_class=Response)
    def place_tile(request: Request, z: Zoom, x: Column, y: Row) -> Response:
        """POIs: layer `places`."""
        make = "SELECT callipper_map.place_tile(%s, %s, %s)"
        return tiles.answer(request, ("places",), (z, x, y), lambda connection: tile_of(connection, make, z, x, y))

    @app.get("/tiles/layer/{name}/{z}/{x}/{y}.mvt", response_class=Response)
    def layer_tile(request: Request, name: str, z: Zoom, x: Column, y: Row) -> Response:
        """A saved layer: as /tiles/match."""
        if "\x00" in name or len(name) > 63:
            raise AnswerUnusable(reason="There is no layer of this name.")
        make = "SELECT callipper._layer_tile(%s, %s, %s, %s)"
        return tiles.answer(
            request, ("layer", name), (z, x, y), lambda connection: tile_of(connection, make, z, x, y, name)
        )


def _add_operations(app: FastAPI, database: MapDatabase, metrics: Metrics) -> None:
    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """Whether the map can answer: the database is there, and a model is active."""
        return {"status": "ok", "model": database.stamp().partition(".")[0]}

    @app.get("/metrics", response_class=Response)
    def openmetrics() -> Response:
        """Figures of this server, as OpenMetrics."""
        return Response(metrics.exposition(), media_type=metrics.content_type)


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/static", _Static(directory=STATIC), name="static")


class _Static(StaticFiles):
    """Files that a browser asks for again after an upgrade."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def _check(question: Question) -> None:
    if question.is_empty:
        raise AnswerUnusable(reason="There is nothing to look for. Give a text with q, or a place with like_at.")


def _active(database: MapDatabase) -> int:
    return int(database.stamp().partition(".")[0])


def _json(request: Request, database: MapDatabase, answer: Any) -> Response:
    """An answer, or 304: its ETag is made of the model's state and the address."""
    state = f"{database.stamp()} {request.url.path}?{request.url.query}"
    headers = {"ETag": f'W/"{hashlib.sha256(state.encode()).hexdigest()[:24]}"', "Cache-Control": "private, no-cache"}
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return JSONResponse(answer(), headers=headers)


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    names = ("cell_id", "lon", "lat", "similarity", "percentile")
    csv.writer(text).writerows([names, *([row[name] for name in names] for row in rows)])
    return text.getvalue()


def _geojson(rows: list[dict[str, Any]]) -> str:
    features = (
        f'{{"type":"Feature","id":{row["cell_id"]},"geometry":{row["geometry"]},"properties":'
        + json.dumps({"similarity": row["similarity"], "percentile": row["percentile"]})
        + "}"
        for row in rows
    )
    return f'{{"type":"FeatureCollection","features":[{",".join(features)}]}}'
