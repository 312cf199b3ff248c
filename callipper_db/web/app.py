"""The map's server: answers, tiles, operations, and the files of the page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware

from callipper_db.errors import CallipperError
from callipper_db.web import answers, failures, tiles
from callipper_db.web.access import Access
from callipper_db.web.database import MapDatabase
from callipper_db.web.head import Head
from callipper_db.web.metrics import Measured, Metrics
from callipper_db.web.queries import Vectors
from callipper_db.web.replies import Replies
from callipper_db.web.settings import MapSettings

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
            Middleware(Head),
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
    app.state.replies = Replies(database, Vectors(database))
    app.include_router(answers.router)
    app.include_router(tiles.router)
    _add_operations(app, database, metrics)
    _add_page(app)
    return app


def _add_operations(app: FastAPI, database: MapDatabase, metrics: Metrics) -> None:
    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """Whether the map can answer: the database is there, and a model is active."""
        return {"status": "ok", "model": str(database.version_of(None))}

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
