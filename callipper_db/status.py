"""The state of a database in figures: versions, sizes, freshness, indexes, and how questions fare."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from callipper_db import db, models, schema

VERSIONS = """
SELECT current_setting('server_version') AS postgresql,
       (SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'postgis') AS postgis,
       (SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'vector') AS vector,
       callipper._sql_version() AS schema, pg_catalog.pg_is_in_recovery() AS standby
"""
# A partition belongs to its version, all other tables to what their name says.
SIZES = """
SELECT CASE WHEN c.relispartition THEN 'models' WHEN c.relname IN ('poi', 'poi_change') THEN 'pois'
            WHEN c.relname IN ('grid', 'cell') THEN 'grids' WHEN c.relname LIKE 'text\\_%' AND c.relname <> 'text_projection'
            THEN 'text encoders' WHEN c.relnamespace = 'callipper_map'::regnamespace THEN 'map' ELSE 'models' END AS what,
       sum(pg_catalog.pg_total_relation_size(c.oid))::int8 AS bytes
FROM pg_catalog.pg_class c WHERE c.relnamespace IN ('callipper'::regnamespace, 'callipper_map'::regnamespace)
    AND c.relkind = 'r' GROUP BY 1 ORDER BY 1
"""
ACTIVE = """
SELECT m.version, m.created_at, m.activated_at, (m.provenance -> 'refreshed' ->> 'at')::timestamptz AS refreshed_at,
       m.provenance ->> 'source' AS source,
       coalesce(m.provenance -> 'refreshed' -> 'pois', m.provenance -> 'rows')::int8 AS pois,
       (m.provenance -> 'refreshed' -> 'drift')::float8 AS drift, m.follows_changes
FROM callipper.model m WHERE m.status = 'active'
"""
# A statement notes the POIs that it has changed as ranges of their ids. TRUNCATE notes a range without end: all POIs.
CHANGED = """
SELECT CASE WHEN NOT lower_inf(touched)
    THEN coalesce((SELECT sum(upper(r) - lower(r)) FROM unnest(touched) AS r), 0)::int8 END AS pois
FROM (SELECT coalesce(range_agg(r), '{}') AS touched FROM callipper.poi_change c, LATERAL unnest(c.poi_ids) AS r) AS noted
"""
INDEXES = """
SELECT i.relname AS name, x.indisvalid AS valid, pg_catalog.pg_relation_size(i.oid) AS bytes
FROM pg_catalog.pg_index x JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid JOIN pg_catalog.pg_am a ON a.oid = i.relam
WHERE a.amname = 'hnsw' AND i.relkind = 'i' AND i.relnamespace = 'callipper'::regnamespace ORDER BY i.relname
"""
BUILDING = """
SELECT relid::regclass::text AS "table", phase, tuples_done, tuples_total FROM pg_catalog.pg_stat_progress_create_index
WHERE datname = current_database() AND relid IN
    (SELECT oid FROM pg_catalog.pg_class WHERE relnamespace = 'callipper'::regnamespace)
"""
# Each text is looked up once in text_embedding. One that is not there reads the projection once, and the encoder before it.
TEXTS = """
SELECT coalesce(sum(coalesce(s.idx_scan, 0) + s.seq_scan) FILTER (WHERE s.relname ~ '^text_embedding_v[0-9]+$'), 0)::int8
           AS looked_up,
       coalesce(sum(coalesce(s.idx_scan, 0) + s.seq_scan) FILTER (WHERE s.relname = 'text_projection'), 0)::int8 AS computed,
       (SELECT stats_reset FROM pg_catalog.pg_stat_database WHERE datname = current_database()) AS since
FROM pg_catalog.pg_stat_user_tables s WHERE s.schemaname = 'callipper'
"""
SLOW = """
SELECT left(query, 200) AS query, calls, round(mean_exec_time::numeric, 1)::float8 AS mean_ms,
       round(mean_plan_time::numeric, 1)::float8 AS mean_plan_ms
FROM {} WHERE dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
    AND query ~ '(text_embed|search|search_points|search_by_examples|text_similarity)[(]' AND query !~ 'pg_stat_statements'
ORDER BY mean_exec_time + mean_plan_time DESC LIMIT 5
"""


def read_status(dsn: str) -> dict[str, Any]:
    """The state of the database: versions, models, bytes, freshness, indexes, texts. What a role may not read is None.

    `texts.hit_rate` is the share of texts that were remembered, 0 to 1, since the statistics of the database were reset.
    Raises NotInitialised, SchemaNewer.
    """
    schema.ensure_current(dsn)
    listed = models.list_models(dsn)
    with db.session(dsn) as connection, connection.cursor(row_factory=dict_row) as cursor:
        versions = cursor.execute(VERSIONS).fetchone() or {}
        sizes = {row["what"]: row["bytes"] for row in cursor.execute(SIZES)}
        active = cursor.execute(ACTIVE).fetchone()
        (changed,) = connection.one(CHANGED) if connection.may_read("poi_change") else (None,)
        indexes = cursor.execute(INDEXES).fetchall()
        building = cursor.execute(BUILDING).fetchall()
        texts = cursor.execute(TEXTS).fetchone() or {}
        slow = _slow_statements(connection)
    follows = active is not None and active.pop("follows_changes")
    return {
        "versions": {"callipper-db": schema.version(), **versions},
        "models": [{name: model[name] for name in ("version", "status", "created_at")} for model in listed],
        "bytes": sizes | {"all": sum(sizes.values())},
        "active": active,
        "changed_pois": changed if follows else None,
        "indexes": indexes,
        "index_builds": building,
        "texts": texts | {"hit_rate": _hit_rate(texts["looked_up"], texts["computed"])},
        "slow_statements": slow,
    }


def _hit_rate(looked_up: int, computed: int) -> float | None:
    return max(1 - computed / looked_up, 0.0) if looked_up else None


def _slow_statements(connection: db.Connection) -> list[dict[str, Any]] | None:
    """The slowest questions by text, from pg_stat_statements; None where that is not there, or is not loaded."""
    row = connection.execute(
        "SELECT n.nspname::text FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace"
        " WHERE e.extname = 'pg_stat_statements'"
    ).fetchone()
    if row is None:
        return None
    view = sql.Identifier(row[0], "pg_stat_statements")
    try:
        with connection.transaction(), connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(sql.SQL(SLOW).format(view)).fetchall()
    except psycopg.errors.ObjectNotInPrerequisiteState:
        return None
