"""Vector tiles: from the database, compressed once, kept while the model is the same."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Annotated

from fastapi import Path, Request, Response

from callipper_db import db
from callipper_db.errors import AnswerUnusable
from callipper_db.web.database import Cache, MapDatabase

HIGHEST_ZOOM = 22
ROOM_BYTES = 64 * 2**20  # of compressed tiles in memory
MEDIA_TYPE = "application/vnd.mapbox-vector-tile"

Zoom = Annotated[int, Path(ge=0, le=HIGHEST_ZOOM)]
Column = Annotated[int, Path(ge=0, lt=2**HIGHEST_ZOOM)]
Row = Annotated[int, Path(ge=0, lt=2**HIGHEST_ZOOM)]


class Tiles:
    """The tiles of one server."""

    def __init__(self, database: MapDatabase) -> None:
        self._database = database
        self._kept: Cache[bytes] = Cache(ROOM_BYTES, lambda tile: len(tile) + 200)
        self._locks = [Lock() for _ in range(256)]  # so that a tile that many ask for at once is made once

    def answer(
        self,
        request: Request,
        key: tuple[Hashable, ...],
        tile: tuple[int, int, int],
        make: Callable[[db.Connection], bytes],
    ) -> Response:
        """A tile, or 304 where the browser has it already. The key names what it shows."""
        z, x, y = tile
        if x >= 2**z or y >= 2**z:
            raise AnswerUnusable(reason=f"There is no tile {x}, {y} at zoom {z}: both go from 0 to {2**z - 1}.")
        whole = (self._database.stamp(), *key, *tile)
        etag = f'W/"{hashlib.sha256(repr(whole).encode()).hexdigest()[:24]}"'
        headers = {"ETag": etag, "Cache-Control": "private, no-cache", "Vary": "Accept-Encoding"}
        if etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        with self._locks[hash(whole) % len(self._locks)]:
            packed = self._kept.get(whole)
            if packed is None:
                with self._database.reading() as connection:
                    packed = self._kept.put(whole, gzip.compress(make(connection), 5, mtime=0))
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(packed, media_type=MEDIA_TYPE, headers=headers | {"Content-Encoding": "gzip"})
        return Response(gzip.decompress(packed), media_type=MEDIA_TYPE, headers=headers)


def tile_of(connection: db.Connection, statement: str, *values: object) -> bytes:
    """The bytes that a tile function returns."""
    row = connection.execute(connection.named(statement), values).fetchone()
    return bytes(row[0]) if row and row[0] is not None else b""
