"""Counts and times of requests, as OpenMetrics and in the log."""

from __future__ import annotations

import logging
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from callipper_db.web.database import MapDatabase
from callipper_db.web.log import NAME

log = logging.getLogger(NAME)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The figures of one server."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, database: MapDatabase) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "callipper_map_requests", "requests answered", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "callipper_map_request_seconds",
            "seconds to the last byte",
            ["route"],
            buckets=SECONDS,
            registry=self._registry,
        )
        for name, key, says in (
            ("size", "pool_size", "connections to the database"),
            ("available", "pool_available", "connections that no request uses"),
            ("waiting", "requests_waiting", "requests that wait for a connection"),
        ):
            gauge = Gauge(f"callipper_map_pool_{name}", says, registry=self._registry)
            gauge.set_function(lambda key=key: database.pool.get_stats().get(key, 0))  # type: ignore[misc]

    def exposition(self) -> bytes:
        """All figures as text."""
        return bytes(generate_latest(self._registry))  # type: ignore[no-untyped-call]

    def observe(self, route: str, status: int, seconds: float) -> None:
        """One request has been answered."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)


class Measured:
    """Measures each request, under the pattern of its address."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, started = 500, time.perf_counter()

        async def remember(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, remember)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            seconds = time.perf_counter() - started
            self.metrics.observe(route, status, seconds)
            # Without the parameters, which are what somebody asked.
            figures = {"method": scope["method"], "route": route, "status": status, "ms": round(1000 * seconds, 1)}
            log.info("%(method)s %(route)s", figures, extra={"request": figures})
