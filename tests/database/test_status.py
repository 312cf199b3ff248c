"""What `status` and `doctor` say of a database, and which versions `models prune` removes."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from callipper_db import models, schema
from callipper_db.doctor import examine
from handmade import ORIGIN, write_model
from sessions import user_session

# What is found -> the statements that make it, part of the fix that doctor names, and the statements that end it.
# {} is the name of the database.
MISCONFIGURED: dict[str, tuple[list[str], str, list[str]]] = {
    "search_path": (
        ["ALTER DATABASE {} SET search_path = public"],
        "run: callipper-db init",
        ["ALTER DATABASE {} SET search_path = public, callipper"],
    ),
    "read only": (
        ["ALTER DATABASE {} SET default_transaction_read_only = on"],
        "RESET default_transaction_read_only",
        ["SET default_transaction_read_only = off", "ALTER DATABASE {} RESET default_transaction_read_only"],
    ),
    "statement_timeout": (
        ["ALTER DATABASE {} SET statement_timeout = '2s'"],
        "SET statement_timeout = '5s'",
        ["ALTER DATABASE {} RESET statement_timeout"],
    ),
    "autovacuum": (
        ["ALTER TABLE callipper.poi SET (autovacuum_enabled = false)"],
        "ALTER TABLE callipper.poi RESET (autovacuum_enabled)",
        ["ALTER TABLE callipper.poi RESET (autovacuum_enabled)"],
    ),
    "statistics": (
        [
            "ALTER TABLE callipper.poi SET (autovacuum_enabled = false)",
            "INSERT INTO callipper.poi (source, source_id, category, geom)"
            " SELECT 'many', n::text, repeat('pub', 50), ST_SetSRID(ST_Point(3, 50), 4326) FROM generate_series(1, 6000) n",
        ],
        "callipper.poi: never analysed, as after a restore, so queries may be planned badly. Run: ANALYZE",
        ["ANALYZE callipper.poi", "ALTER TABLE callipper.poi RESET (autovacuum_enabled)"],
    ),
    "indexes": (
        ["CREATE UNIQUE INDEX CONCURRENTLY broken ON callipper.poi (source)"],  # two POIs have the same
        "REINDEX INDEX callipper.broken",
        ["DROP INDEX callipper.broken"],
    ),
    "text encoder": (
        ["DELETE FROM callipper.text_norm"],
        "callipper-db text-encoder install handmade",
        [
            "INSERT INTO callipper.text_norm (text_encoder_id, layer, part, gain, bias)"
            " SELECT text_encoder_id, 0, 'output', '[1]', '[0]' FROM callipper.text_encoder"
        ],
    ),
    "freshness": (
        [
            "UPDATE callipper.model SET follows_changes = status = 'active'",
            "UPDATE callipper.poi SET name = 'The Anchor'",
        ],
        "callipper-db refresh",
        ["DELETE FROM callipper.poi_change"],
    ),
    "active model": (
        ["UPDATE callipper.model SET status = 'ready'", "SELECT callipper._announce_change()"],
        "callipper-db models activate 2",
        ["SELECT callipper.activate(1)"],
    ),
    "who may create functions": (
        ["GRANT CREATE ON SCHEMA public TO PUBLIC"],
        'REVOKE CREATE ON SCHEMA "public" FROM PUBLIC',
        ["REVOKE CREATE ON SCHEMA public FROM PUBLIC"],
    ),
}


@pytest.fixture
def two_models(database: str) -> str:
    """The DSN of a database with version 1, active, and version 2."""
    with user_session(database) as connection:
        write_model(connection, ORIGIN[None] + [[5.0, 5.0], [50.0, 50.0]], hnsw=True)
        write_model(connection, ORIGIN[None] + 5, seed=1, activate=False)
    return database


def execute(dsn: str, statements: list[str]) -> None:
    with user_session(dsn, autocommit=True) as connection:
        for statement in statements:
            with suppress(psycopg.errors.UniqueViolation):  # which leaves an index that cannot be used
                connection.execute(statement.format(conninfo_to_dict(dsn)["dbname"]).encode())


def warnings(dsn: str) -> dict[str, str]:
    return {finding.what: finding.says for finding in examine(dsn) if not finding.ok}


def test_doctor_finds_ten_misconfigurations_and_names_their_fixes(two_models: str) -> None:
    execute(two_models, MISCONFIGURED["text encoder"][2])
    assert not MISCONFIGURED.keys() & warnings(two_models).keys()
    for what, (statements, fix, undo) in MISCONFIGURED.items():
        execute(two_models, statements)
        assert fix in warnings(two_models).get(what, ""), what
        execute(two_models, undo)
    assert not MISCONFIGURED.keys() & warnings(two_models).keys()


def test_status(run: Any, two_models: str) -> None:
    execute(
        two_models,
        [*MISCONFIGURED["freshness"][0], "SELECT callipper.text_embed('pub')", "SELECT pg_stat_force_next_flush()"],
    )
    found = json.loads(run("status", "--json", "--dsn", two_models).stdout)
    assert found["versions"]["callipper-db"] == found["versions"]["schema"] == schema.version()
    assert [(model["version"], model["status"]) for model in found["models"]] == [(2, "ready"), (1, "active")]
    assert found["active"]["version"] == 1 and found["active"]["pois"] == 2
    assert found["changed_pois"] == 2
    assert [(index["name"], index["valid"]) for index in found["indexes"]] == [("cell_embedding_v1_emb_idx", True)]
    parts = {what: size for what, size in found["bytes"].items() if what != "all"}
    assert parts.keys() == {"models", "pois", "grids", "text encoders", "map"} and min(parts.values()) > 0
    with user_session(two_models) as connection:
        total = connection.execute(
            "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r'"
            " AND relnamespace IN ('callipper'::regnamespace, 'callipper_map'::regnamespace)"
        ).fetchone()
    assert (sum(parts.values()),) == (found["bytes"]["all"],) == total
    assert found["texts"]["looked_up"] >= 1 and found["texts"]["hit_rate"] == 1.0
    assert found["slow_statements"] is None
    said = run("status", "--dsn", two_models).stdout
    for words in (
        "POIs changed since",
        "cell_embedding_v1_emb_idx (valid)",
        "without the extension pg_stat_statements",
    ):
        assert words in said


def test_prune_keeps_the_newest_and_the_active_version(run: Any, two_models: str) -> None:
    with user_session(two_models) as connection:
        for seed in (2, 3, 4):
            write_model(connection, ORIGIN[None] + 5, seed=seed, activate=False)
    assert run("models", "prune", "--keep", "2", "--dry-run", "--dsn", two_models).stdout.split("\n")[:-1] == [
        "Model version 2 would go.",
        "Model version 3 would go.",
    ]
    run("models", "prune", "--keep", "2", "--dsn", two_models)
    assert [model["version"] for model in models.list_models(two_models)] == [5, 4, 1]
    assert run("models", "prune", "--keep", "2", "--dsn", two_models).stdout == "There is no version to remove.\n"
    run("models", "prune", "--keep", "0", "--dsn", two_models)
    assert [model["version"] for model in models.list_models(two_models)] == [1]
