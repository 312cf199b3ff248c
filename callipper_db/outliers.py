"""Rows whose place is most likely wrong: far from all others, at 0, 0, or with longitude and latitude swapped.

The rule, for at least MIN_ROWS rows. The middle is the median longitude and latitude; rows at exactly 0, 0 do not count for it.

- far: further from the middle than FACTOR times the distance within which 99 % of the rows lie (all but one of fewer than 100
  rows), plus SLACK_KM;
- at 0, 0: exactly there, with no other row within a degree;
- swapped: further than FACTOR times the distance within which 75 % of the rows lie, plus SLACK_KM, and with longitude and
  latitude swapped within that distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, LiteralString

from psycopg import sql

from callipper_db.db import Connection

MIN_ROWS = 8
FACTOR = 5
SLACK_KM = 100
SAMPLE = 2000  # rows that the distances are taken from
NAMED = 5  # outliers that are named

# Without the tiniest numbers, whose squares would underflow.
NOT_TINY: LiteralString = "CASE WHEN abs(p.{axis}) < 1e-12 THEN 0 ELSE p.{axis} END"

# Kilometres on a sphere.
DISTANCE: LiteralString = (
    "12742 * asin(sqrt(least(1, sind(({y} - my) / 2) ^ 2 + cosd({y}) * cosd(my) * sind(({x} - mx) / 2) ^ 2)))"
)

# Only few rows are outside of the box, or so far out along parallel and meridian, that their distance must be worked out.
FIND = """
WITH place AS NOT MATERIALIZED (
    SELECT name, x, y FROM ({rows}) AS r WHERE x BETWEEN -180 AND 180 AND y BETWEEN -90 AND 90
), counted AS MATERIALIZED (
    SELECT {count} AS n
), chosen AS MATERIALIZED (
    SELECT {x} AS x, {y} AS y FROM place AS p, counted AS c
    WHERE (p.x <> 0 OR p.y <> 0)
        AND (c.n <= {sample} OR abs(hashfloat8extended(p.x + p.y, 0) % 1000000) < 1000000.0 * {sample} / c.n)
), middle AS MATERIALIZED (
    SELECT count(*) AS n, percentile_disc(0.5) WITHIN GROUP (ORDER BY x) AS mx,
        percentile_disc(0.5) WITHIN GROUP (ORDER BY y) AS my FROM chosen
), reach AS MATERIALIZED (
    SELECT min(mx) AS mx, min(my) AS my, min(n) AS n, cosd(min(my)) AS narrowing,
        {factor} * percentile_disc((SELECT 1 - greatest(0.01, 1.0 / greatest(n, 1)) FROM middle)) WITHIN GROUP (ORDER BY d)
            + {slack} AS far,
        {factor} * percentile_disc(0.75) WITHIN GROUP (ORDER BY d) + {slack} AS swapped_far,
        greatest(percentile_disc(0.75) WITHIN GROUP (ORDER BY d), 1) AS swapped_near
    FROM (SELECT mx, my, n, {distance} AS d FROM chosen, middle) AS m
), box AS MATERIALIZED (
    SELECT reach.*, swapped_far / 111.2 AS far_degrees, mx - swapped_far / 222.4 AS x_min, mx + swapped_far / 222.4 AS x_max,
        my - swapped_far / 222.4 AS y_min, my + swapped_far / 222.4 AS y_max
    FROM reach WHERE n >= {least}
)
SELECT name, x, y, why FROM (
    SELECT name, x, y,
        CASE WHEN x = 0 AND y = 0 THEN CASE WHEN {distance} > {slack} AND NOT (
            SELECT count(*) > 0 FROM place AS p WHERE abs(p.x) <= 1 AND abs(p.y) <= 1 AND (p.x <> 0 OR p.y <> 0)
        ) THEN 'at 0, 0' END
            WHEN {distance} > swapped_far AND abs(x) <= 90 AND {swapped} <= swapped_near
                THEN 'with longitude and latitude swapped'
            WHEN {distance} > far THEN 'far from all others' END AS why
    FROM (
        SELECT box.*, name, {x} AS x, {y} AS y FROM place AS p, box
        WHERE (p.x NOT BETWEEN x_min AND x_max OR p.y NOT BETWEEN y_min AND y_max OR abs(p.x) < 1e-12)
            AND (
                least(abs(p.x - mx), 360 - abs(p.x - mx)) * narrowing + abs(p.y - my) > far_degrees
                OR (abs(p.x) < 1e-12 AND abs(p.y) < 1e-12)
            )
        OFFSET 0
    ) AS out
    OFFSET 0
) AS judged
WHERE why IS NOT NULL"""


@dataclass(frozen=True)
class Outliers:
    """Rows with their reasons, in the order of their names."""

    rows: list[tuple[Any, float, float, str]]  # name, longitude, latitude, why

    def __bool__(self) -> bool:
        return bool(self.rows)

    def __str__(self) -> str:
        by_reason: dict[str, list[str]] = {}
        for name, x, y, why in self.rows:
            by_reason.setdefault(why, []).append(f"{name} ({x:g}, {y:g})")
        said = [
            f"{len(names):,} {'row is' if len(names) == 1 else 'rows are'} {why}: {', '.join(names[:NAMED])}"
            + (", ..." if len(names) > NAMED else "")
            for why, names in by_reason.items()
        ]
        return "; ".join(said) + "."


def find_outliers(connection: Connection, rows: LiteralString, count: int | None = None) -> Outliers:
    """The outliers among the rows of a query that yields name, x and y, in degrees.

    count: how many rows there are, where that is known.
    """
    query = sql.SQL(FIND).format(
        rows=sql.SQL(rows),
        count=sql.SQL("(SELECT count(*) FROM place)") if count is None else sql.Literal(count),
        x=sql.SQL(NOT_TINY.format(axis="x")),
        y=sql.SQL(NOT_TINY.format(axis="y")),
        sample=sql.Literal(SAMPLE),
        distance=sql.SQL(DISTANCE.format(x="x", y="y")),
        swapped=sql.SQL(DISTANCE.format(x="y", y="x")),
        slack=sql.Literal(SLACK_KM),
        factor=sql.Literal(FACTOR),
        least=sql.Literal(MIN_ROWS),
    )
    return Outliers(sorted(connection.execute(query).fetchall(), key=lambda row: (row[3], str(row[0]))))
