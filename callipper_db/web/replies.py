"""Replies to browsers: made and compressed once for each state of the model, for all who ask."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from pydantic import BaseModel

from callipper_db.web.cache import Cache
from callipper_db.web.database import MapDatabase
from callipper_db.web.queries import Vectors

ROOM_BYTES = 64 * 2**20  # of compressed replies in memory
ENTRY_BYTES = 500  # that Python takes for an entry besides the reply
TILE = "application/vnd.mapbox-vector-tile"
JSON = "application/json"


@dataclass(frozen=True)
class Replies:
    """The replies of one server."""

    database: MapDatabase
    vectors: Vectors
    city_scans: Cache[dict[str, Any]] = field(default_factory=lambda: Cache(room=2))
    _kept: Cache[bytes] = field(default_factory=lambda: Cache(ROOM_BYTES, lambda reply: len(reply) + ENTRY_BYTES))

    def as_json(self, request: Request, question: BaseModel | None, make: Callable[[], Any]) -> Response:
        """What `make` returns as JSON. The path and the question name it."""
        key = (request.url.path, question and question.model_dump_json())
        return self._reply(request, key, JSON, lambda: json.dumps(make(), ensure_ascii=False).encode())

    def as_tile(self, request: Request, key: tuple[Hashable, ...], make: Callable[[], bytes]) -> Response:
        """A vector tile. The key names what it shows."""
        return self._reply(request, key, TILE, make)

    def _reply(self, request: Request, key: Hashable, media_type: str, make: Callable[[], bytes]) -> Response:
        """The reply, or 304 where the browser has it already."""
        whole = (self.database.stamp(), key)
        etag = f'W/"{hashlib.sha256(repr(whole).encode()).hexdigest()[:24]}"'
        headers = {"ETag": etag, "Cache-Control": "private, no-cache", "Vary": "Accept-Encoding"}
        if etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        packed = self._kept.of(whole, lambda: gzip.compress(make(), 5, mtime=0))
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(packed, media_type=media_type, headers=headers | {"Content-Encoding": "gzip"})
        return Response(gzip.decompress(packed), media_type=media_type, headers=headers)


async def _replies(request: Request) -> Replies:
    replies: Replies = request.app.state.replies
    return replies


Served = Annotated[Replies, Depends(_replies)]
