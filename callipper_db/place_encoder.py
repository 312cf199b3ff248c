"""Embeddings of many places at once: by torch where it is installed and the role may read the weights, else by SQL.

Both give the same numbers, to 1e-5. torch embeds some ten thousand places a second, loc_embed() some hundred.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from psycopg import sql

from callipper_db import db
from callipper_db.arrays import Array
from callipper_db.binary_copy import read_rows, write_rows
from callipper_db.errors import NoActiveModel, PlacesUnusable
from callipper_db.progress import Advance, silent
from callipper_db.tables import DIMENSIONS

TOO_FAR_M = (
    8e6  # from the model's extent, as loc_embed() has it: a projection has no numbers for the other side of the earth
)
BY_SQL = 500  # places a statement, so that progress is seen

# Whether a place on earth can be asked about; NULL counts as no.
USABLE = (
    "lon BETWEEN -360 AND 360 AND lat BETWEEN -90 AND 90 AND ST_DistanceSphere(ST_ClosestPoint(extent,"
    " ST_SetSRID(ST_MakePoint(lon, lat), 4326)), ST_SetSRID(ST_MakePoint(lon, lat), 4326)) <= " + str(int(TOO_FAR_M))
)
IN_METRES = (
    "SELECT ST_X(m), ST_Y(m) FROM pg_temp.place, LATERAL (SELECT ST_Transform(ST_SetSRID(ST_MakePoint(lon, lat), 4326), {srid})"
    " AS m OFFSET 0) AS q ORDER BY number"
)


@dataclass(frozen=True)
class PlaceEncoder:
    """The location encoder of one model version."""

    version: int
    srid: int  # of the metres that it reads
    state: tuple[int, str | None]  # the version and its last refresh: two encoders of one state embed alike
    loaded: Any  # callipper_trainer's LoadedModel; None: SQL computes

    def embed_lonlat(self, connection: db.Connection, lonlat: Array, advance: Advance = silent) -> Array:
        """(N, 2) degrees -> (N, D) float32, unit length. The connection is the one that opened the encoder.

        Raises PlacesUnusable where a place is none, or is too far from the model's POIs.
        """
        lonlat = np.asarray(lonlat, np.float64)
        if not len(lonlat):
            return np.empty((0, DIMENSIONS), np.float32)
        with connection.transaction():
            _write_places(connection, lonlat)
            self._check(connection, lonlat)
            if self.loaded is None:
                result = self._by_sql(connection, len(lonlat), advance)
            else:
                query = connection.named(IN_METRES).format(srid=sql.Literal(self.srid))
                metres = np.column_stack(read_rows(connection, query, ["float8", "float8"]))
                result = self.embed_metres(metres, advance)
            connection.execute("DROP TABLE pg_temp.place")
        return result

    def embed_metres(self, metres: Array, advance: Advance = silent) -> Array:
        """(N, 2) easting and northing in `srid` -> (N, D) float32, by torch."""
        assert self.loaded is not None, "SQL takes places in degrees"
        from callipper_trainer.embed import embed_places

        result: Array = embed_places(self.loaded.trained, metres, advance)
        return result

    def _by_sql(self, connection: db.Connection, count: int, advance: Advance) -> Array:
        parts = []
        for start in range(0, count, BY_SQL):
            query = connection.named(
                "SELECT callipper.loc_embed(ST_SetSRID(ST_MakePoint(lon, lat), 4326), {version}) FROM pg_temp.place"
                " WHERE number >= {first} AND number < {end} ORDER BY number"
            ).format(
                version=sql.Literal(self.version), first=sql.Literal(start), end=sql.Literal(min(start + BY_SQL, count))
            )
            parts += read_rows(connection, query, ["vector"], DIMENSIONS)
            advance(len(parts[-1]))
        return np.concatenate(parts)

    def _check(self, connection: db.Connection, lonlat: Array) -> None:
        count, first = connection.one(
            connection.named(
                "SELECT count(*), min(number) FROM pg_temp.place, callipper.model m"
                f" WHERE m.version = %s AND ({USABLE}) IS NOT TRUE"
            ),
            [self.version],
        )
        if count:
            lon, lat = lonlat[first].tolist()
            raise PlacesUnusable(count=count, total=len(lonlat), first=first, lon=lon, lat=lat)


def open_encoder(
    connection: db.Connection, *, torch: bool | None = None, kept: PlaceEncoder | None = None
) -> PlaceEncoder:
    """The active version's encoder. torch: whether to compute with it; None: where that can be done.

    kept: one opened before with the same `torch`, which is returned again as long as it is of the active version's state.
    The connection must be in no transaction. Raises NoActiveModel, and ModuleNotFoundError where torch is wanted and missing.
    """
    row = connection.execute(
        "SELECT m.version, m.srid, m.provenance -> 'refreshed' ->> 'at',"
        " coalesce(has_table_privilege('callipper.context_cell', 'SELECT'), false)"
        " FROM callipper.model m WHERE m.status = 'active'"
    ).fetchone()
    if row is None:
        raise NoActiveModel
    version, srid, refreshed, may_read = row
    if kept is not None and kept.state == (version, refreshed):
        return kept
    loaded = None
    if torch or (torch is None and may_read):
        try:
            from callipper_trainer.model_rows import load_model

            loaded = load_model(connection, version)
        except ModuleNotFoundError:
            if torch:
                raise
    return PlaceEncoder(version, srid, (version, refreshed), loaded)


def _write_places(connection: db.Connection, lonlat: Array) -> None:
    connection.execute("CREATE TEMPORARY TABLE place (number int8 PRIMARY KEY, lon float8, lat float8)")
    columns: dict[str, tuple[str, Any]] = {
        "number": ("int8", np.arange(len(lonlat))),
        "lon": ("float8", lonlat[:, 0]),
        "lat": ("float8", lonlat[:, 1]),
    }
    write_rows(connection, sql.Identifier("pg_temp", "place"), columns)
