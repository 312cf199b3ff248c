"""What the map asks the database: a connection and a question in, what becomes JSON out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import psycopg

from callipper_db import db
from callipper_db.errors import AnswerUnusable, BadArea, NoActiveModel
from callipper_db.search import read_area
from callipper_db.web.cache import Cache
from callipper_db.web.database import MapDatabase
from callipper_db.web.questions import AreaQuestion, CellQuestion, ChangeQuestion, Download, PlaceQuestion, Question

CELL = """
a.cell_id, round(a.similarity::numeric, 4)::float8 AS similarity, round(a.percentile::numeric, 1)::float8 AS percentile,
round(ST_X(ST_Centroid(a.geom))::numeric, 6)::float8 AS lon, round(ST_Y(ST_Centroid(a.geom))::numeric, 6)::float8 AS lat,
ST_AsGeoJSON(a.geom, 6, 0)::json AS geometry"""
# The POIs that an answer names, with where they are.
REASONS = """
(SELECT json_agg(json_build_object('label', l.label, 'id', l.point_id, 'lon', l.lon, 'lat', l.lat)
        ORDER BY array_position(string_to_array({because}, '; '), l.label))
    FROM callipper._labelled_points(%(model)s, {place}, string_to_array({because}, '; ')) l) AS reasons"""
# What a cell is like, where it does not say so itself.
KNOWN_FOR = """
(SELECT json_agg(json_build_object('text', d.text, 'pois', d.pois, 'because', d.because))
    FROM callipper.describe(ST_Centroid(a.geom), 3, %(model)s) d)"""
SEARCH = f"""
SELECT {CELL}, a.relevant, round(a.lift::numeric, 1)::float8 AS lift, a.because
FROM callipper.search(%(text)s, %(k)s, ST_GeomFromEWKT(%(area)s::text), %(model)s)
    WITH ORDINALITY AS a(cell_id, geom, similarity, percentile, relevant, lift, because, rank)
ORDER BY a.rank
"""
MATCH = f"""
SELECT {CELL}
FROM callipper._match_cells(%(model)s, %(vector)s::text::@vector, ST_GeomFromEWKT(%(area)s::text), %(k)s)
    WITH ORDINALITY AS a(cell_id, geom, similarity, percentile, rank)
ORDER BY a.rank
"""
WHY = f"""
SELECT {REASONS.format(place="a.geom", because="a.because")}, CASE WHEN a.because IS NULL THEN {KNOWN_FOR} END AS known_for
FROM (
    SELECT u.because, u.rank, ST_SetSRID(ST_MakePoint(u.lon, u.lat), 4326) AS geom
    FROM unnest(%(lon)s::float8[], %(lat)s::float8[], %(because)s::text[]) WITH ORDINALITY AS u(lon, lat, because, rank)
) a ORDER BY a.rank
"""
DESCRIBE = f"""
SELECT a.text, a.pois, round(a.lift::numeric, 1)::float8 AS lift, a.because,
    {REASONS.format(place="ST_GeomFromEWKT(%(place)s::text)", because="a.because")}
FROM callipper.describe(ST_GeomFromEWKT(%(place)s::text), %(k)s, %(model)s, %(language)s)
    WITH ORDINALITY AS a(text, similarity, percentile, pois, lift, because, rank)
ORDER BY a.rank
"""
SIMILAR = f"""
SELECT {CELL}
FROM callipper.similar_to(ST_GeomFromEWKT(%(place)s::text), %(k)s, NULL, %(min_distance)s, %(model)s)
    WITH ORDINALITY AS a(cell_id, geom, similarity, percentile, rank)
ORDER BY a.rank
"""
SUPPORT = """
SELECT round(callipper._rate_support(ST_GeomFromEWKT(%(place)s::text), %(model)s)::numeric, 2)::float8 AS support,
    ST_Intersects(m.extent, ST_GeomFromEWKT(%(place)s::text)) AS inside
FROM callipper.model m WHERE m.version = %(model)s
"""
LIKENESS = """
SELECT round((-(callipper.loc_embed(ST_GeomFromEWKT(%(place)s::text)) OPERATOR(@extschema:vector@.<#>)
    callipper.loc_embed(ST_GeomFromEWKT(%(other)s::text))))::numeric, 3)::float8 AS similarity
"""
CHANGED = """
SELECT a.cell_id, round(a.percentile::numeric, 1)::float8 AS percentile,
    round(a.other_percentile::numeric, 1)::float8 AS other_percentile, a.texts, a.other_texts,
    round(ST_X(ST_Centroid(a.geom))::numeric, 6)::float8 AS lon, round(ST_Y(ST_Centroid(a.geom))::numeric, 6)::float8 AS lat,
    ST_AsGeoJSON(a.geom, 6, 0)::json AS geometry
FROM callipper._changed_cells(%(model)s, %(vector)s::text::@vector, %(other)s, %(other_vector)s::text::@vector, %(k)s) a
"""
CELLS = """
SELECT a.cell_id, round(ST_X(ST_Centroid(a.geom))::numeric, 6)::float8 AS lon,
    round(ST_Y(ST_Centroid(a.geom))::numeric, 6)::float8 AS lat, round(a.similarity::numeric, 4)::float8 AS similarity,
    round(a.percentile::numeric, 1)::float8 AS percentile, ST_AsGeoJSON(a.geom, 6, 0) AS geometry
FROM callipper._match_cells(%(model)s, %(vector)s::text::@vector, ST_GeomFromEWKT(%(area)s::text), %(k)s) a
"""
MODELS = """
SELECT m.version, m.status, m.created_at, m.provenance ->> 'source' AS source, (m.provenance ->> 'rows')::bigint AS pois,
    m.provenance ->> 'snapshot' AS snapshot, m.provenance -> 'refreshed' AS refreshed, e.name AS text_encoder,
    g.kind AS grid_kind, g.size_m, ARRAY[ST_XMin(m.extent::@box3d), ST_YMin(m.extent::@box3d),
        ST_XMax(m.extent::@box3d), ST_YMax(m.extent::@box3d)] AS bounds
FROM callipper.model m JOIN callipper.text_encoder e USING (text_encoder_id) LEFT JOIN callipper.grid g USING (grid_id)
ORDER BY m.version DESC
"""
# A group may lie in several parts, or around another. So its label stands where most of its cells are close together: of a
# hundred boxes over the city, in the one with the most cells of the group, at the cell that is nearest to their middle.
CLUSTERS = """
WITH cell AS MATERIALIZED (SELECT cluster, cluster_label, lon, lat FROM callipper_map.cell WHERE cluster IS NOT NULL),
    city AS (SELECT min(lon) AS west, min(lat) AS south, max(lon) - min(lon) AS width, max(lat) - min(lat) AS height FROM cell),
    box AS (
        SELECT cluster, cluster_label AS label, count(*) AS cells, percentile_disc(0.5) WITHIN GROUP (ORDER BY lon) AS lon,
            percentile_disc(0.5) WITHIN GROUP (ORDER BY lat) AS lat
        FROM cell, city
        GROUP BY 1, 2, floor(10 * (lon - west) / nullif(width, 0)), floor(10 * (lat - south) / nullif(height, 0))
    ),
    middle AS (
        SELECT DISTINCT ON (cluster) cluster, label, sum(cells) OVER (PARTITION BY cluster)::bigint AS cells, lon, lat
        FROM box ORDER BY cluster, box.cells DESC, lon, lat
    ),
    nearest AS (
        SELECT cluster, min(ARRAY[point(c.lon, c.lat) <-> point(m.lon, m.lat), c.lon, c.lat]) AS found
        FROM middle m JOIN cell c USING (cluster) GROUP BY 1
    )
SELECT cluster, m.label, m.cells, n.found[2] AS lon, n.found[3] AS lat FROM middle m JOIN nearest n USING (cluster) ORDER BY 1
"""
SOURCES = "SELECT source, count(*) AS pois FROM callipper.poi GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 12"
KINDS = """
SELECT kind, count(*) AS pois FROM callipper_map.place WHERE kind IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT %(k)s
"""
# Everyday questions, of which those are offered that POIs of this city answer.
EVERYDAY = (
    "somewhere to eat",
    "buy fresh bread",
    "a playground for the children",
    "luxury shopping",
    "see some art",
    "go for a swim",
    "a quiet park",
    "catch a train",
    "fix my bike",
    "go out at night",
)
OFFERED = 6
REACH_M = 250.0  # within which places have their reasons, so that nearer ones have the same
# What describe() says of a version that knows no kinds of places and no words for them, or whose encoder is not there.
NO_DESCRIPTION = (psycopg.errors.ObjectNotInPrerequisiteState, psycopg.errors.FeatureNotSupported)
TRIED, MOST_TRIED = 30, 500  # cells looked at for each one that is shown, where those shown are to be apart


def search_cells(database: MapDatabase, question: CellQuestion, model: int, vectors: Vectors) -> list[dict[str, Any]]:
    """The best cells for a question, with reasons: POIs for a single text, else what each cell is known for."""
    k = question.k if question.apart == 0 else min(TRIED * question.k, MOST_TRIED)
    with database.reading() as connection:
        values = {"area": _area(connection, question), "k": k, "model": model}
        if question.is_plain:
            found = database.rows(connection, SEARCH, text=question.likes[0], **values)
        else:
            found = database.rows(connection, MATCH, vector=vectors.of(connection, question, model), **values)
        return _with_reasons(database, connection, _keep_apart(found, question.apart)[: question.k], model)


def _with_reasons(
    database: MapDatabase, connection: db.Connection, cells: list[dict[str, Any]], model: int
) -> list[dict[str, Any]]:
    columns = {name: [cell.get(name) for cell in cells] for name in ("lon", "lat", "because")}
    try:
        with connection.transaction():
            why = database.rows(connection, WHY, model=model, **columns)
    except NO_DESCRIPTION:
        why = [{"reasons": None, "known_for": None} for _ in cells]
    return [cell | reasons for cell, reasons in zip(cells, why, strict=True)]


def _keep_apart(found: list[dict[str, Any]], metres: float) -> list[dict[str, Any]]:
    """The cells that are not closer than some metres to a better one."""
    kept: list[dict[str, Any]] = []
    for cell in found:
        if all(_distance(cell, other) >= metres for other in kept):
            kept.append(cell)
    return kept


def _distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Metres between two cells of a city: the earth is flat there."""
    east = (one["lon"] - other["lon"]) * math.cos(math.radians(one["lat"]))
    return 111_195 * math.hypot(east, one["lat"] - other["lat"])


def cells(database: MapDatabase, question: Download, model: int, vectors: Vectors) -> list[dict[str, Any]]:
    """The cells, best first, and how well they fit; `geometry` is GeoJSON text."""
    with database.reading() as connection:
        area = _area(connection, question)
        vector = vectors.of(connection, question, model)
        return database.rows(connection, CELLS, vector=vector, k=question.k, area=area, model=model)


def describe_place(
    database: MapDatabase, question: PlaceQuestion, model: int, *, similar: bool = True
) -> dict[str, Any]:
    """What a place is like, how well POIs support that, and the cells most like it elsewhere, 250 m from each other."""
    values = {"place": _point(question.at), "model": model, "k": question.k, "language": question.language}
    with database.reading() as connection:
        (answer,) = database.rows(connection, SUPPORT, **values)
        answer["kinds"] = database.rows(connection, DESCRIBE, **values)
        if similar:
            tried = values | {"k": TRIED * question.k, "min_distance": question.min_distance}
            found = _keep_apart(database.rows(connection, SIMILAR, **tried), REACH_M)[: question.k]
            answer["similar"] = _with_reasons(database, connection, found, model)
    return answer


def likeness(database: MapDatabase, place: str, other: str) -> float:
    """The cosine of the embeddings of two places by the active version."""
    with database.reading() as connection:
        (row,) = database.rows(connection, LIKENESS, place=_point(place), other=_point(other))
    return float(row["similarity"])


def changed_cells(
    database: MapDatabase, question: ChangeQuestion, model: int, vectors: Vectors
) -> list[dict[str, Any]]:
    """The cells whose percentile differs most between two versions."""
    with database.reading() as connection:
        values = {
            "vector": vectors.of(connection, question, model),
            "other_vector": vectors.of(connection, question, question.other),
        }
        return database.rows(connection, CHANGED, model=model, other=question.other, k=question.k, **values)


def city(database: MapDatabase, kept: Cache[dict[str, Any]]) -> dict[str, Any]:
    """The models, what they were made of, groups of cells, saved layers. Raises NoActiveModel.

    `kept` is for what takes a scan of all cells or POIs: it is the same while the model is.
    """
    with database.reading() as connection:
        models = database.rows(connection, MODELS)
        active = next((model for model in models if model["status"] == "active"), None)
        if active is None:
            raise NoActiveModel
        layers = database.rows(connection, "SELECT name, question FROM callipper.list_layers()")
        scanned = kept.of(database.stamp_of(connection), lambda: _scan(database, connection, active))
    return {"active": active["version"], "models": models, "layers": layers, **scanned}


def _scan(database: MapDatabase, connection: db.Connection, active: dict[str, Any]) -> dict[str, Any]:
    sources = [{"source": active["source"], "pois": active["pois"]}]
    if active["source"] == "callipper.poi":
        sources = database.rows(connection, SOURCES)
    return {"sources": sources, "clusters": database.rows(connection, CLUSTERS)}


def examples(database: MapDatabase) -> list[str]:
    """Questions that POIs of this city answer; where the model answers no everyday words, its commonest kinds of places."""
    found: list[str] = []
    for text in EVERYDAY:
        with suppress(AnswerUnusable), database.reading() as connection:
            rows = database.rows(connection, "SELECT because FROM callipper.search(%(text)s, 1)", text=text)
            found += [text] if rows and rows[0]["because"] else []
        if len(found) == OFFERED:
            return found
    with database.reading() as connection:
        kinds = database.rows(connection, KINDS, k=OFFERED - len(found))
    return [*found, *(row["kind"] for row in kinds)]


class Vectors:
    """Questions as vectors, each computed once per state of the model."""

    def __init__(self, database: MapDatabase) -> None:
        self._database = database
        self._kept: Cache[str] = Cache(room=2000)

    def of(self, connection: db.Connection, question: Question, model: int) -> str:
        """A question's vector as pgvector writes it."""
        if question.is_empty:
            raise AnswerUnusable(reason="There is nothing to look for. Give a text with q, or a place with like_at.")
        key = (self._database.stamp_of(connection), model, question.key)
        return self._kept.of(key, lambda: _vector(connection, question, model))


def _vector(connection: db.Connection, question: Question, model: int) -> str:
    row = connection.execute(
        connection.named(
            "SELECT callipper._question_vector(%s, %s::text[], %s::text[], %s::text[]::@geometry[],"
            " %s::text[]::@geometry[])::text"
        ),
        [model, question.likes, question.unlike, _points(question.like_at), _points(question.unlike_at)],
    ).fetchone()
    assert row is not None
    return str(row[0])


def _area(connection: db.Connection, question: AreaQuestion) -> str | None:
    if question.within is None:
        return None
    try:
        return read_area(connection, question.within)
    except BadArea as error:
        raise AnswerUnusable(
            reason="within is neither a bounding box, west,south,east,north in degrees, nor a WKT geometry:"
            f" {error.fields['reason']}"
        ) from error


def _point(place: str) -> str:
    return f"SRID=4326;POINT({place.replace(',', ' ')})"


def _points(places: Sequence[str]) -> list[str]:
    return [_point(place) for place in places]
