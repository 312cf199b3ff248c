"""Checks what works on this machine and in the database."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from importlib.util import find_spec

from psycopg import sql

from callipper_db import db, schema
from callipper_db.errors import CallipperError
from callipper_db.versions import MINIMUM, MINIMUM_POSTGRES, SAFE_PARALLEL_BUILD

EXTRAS = {
    "train": ("torch", "sentence_transformers", "safetensors"),
    "geo": ("osmium", "pyarrow", "pyogrio"),
    "map": ("matplotlib", "fastapi", "uvicorn", "psycopg_pool", "prometheus_client"),
    "mcp": ("mcp", "psycopg_pool"),
}
LARGE_BYTES = 2**20  # of a table whose statistics matter
SLOW_TEXT_MS = 5000  # a long text that is not remembered, on a busy server
NEW_OWNER = (
    "CREATE ROLE callipper_owner; ALTER SCHEMA callipper OWNER TO callipper_owner;"
    " ALTER SCHEMA callipper_map OWNER TO callipper_owner;"
)

# Tables that were never analysed, and indexes that are not valid.
LEFT_BEHIND = """
SELECT ARRAY(SELECT format('callipper.%%I', relname) FROM pg_catalog.pg_class
             WHERE relnamespace = 'callipper'::regnamespace AND relkind = 'r'
                 AND reltuples < 0 AND pg_catalog.pg_relation_size(oid) > %s ORDER BY 1),
       ARRAY(SELECT format('callipper.%%I', x.relname) FROM pg_catalog.pg_index i
             JOIN pg_catalog.pg_class c ON c.oid = i.indrelid JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
             WHERE c.relnamespace = 'callipper'::regnamespace AND c.relkind = 'r' AND NOT i.indisvalid ORDER BY 1)
"""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    what: str
    ok: bool
    says: str
    needed: bool = True


def _advice(what: str, says: str) -> Finding:
    return Finding(what, False, says, needed=False)


def examine(dsn: str) -> list[Finding]:
    """Check the server, its extensions, the schema, the active model and the Python packages."""
    try:
        with db.session(dsn) as connection:
            findings = [*_server(connection), _schema(connection)]
            if findings[-1].ok:
                findings.append(_model(connection))
                findings += [_advice("who may create functions", says) for says in schema.open_schemas(connection)]
                advice = _owner(connection) | _settings(connection) | _data(connection)
                findings += [_advice(what, says) for what, says in advice.items()]
    except CallipperError as error:
        findings = [Finding("connection", False, str(error))]
    return findings + [_extra(name, modules) for name, modules in EXTRAS.items()]


def _server(connection: db.Connection) -> list[Finding]:
    version = connection.info.server_version
    major = version // 10000
    says = f"{major}.{version % 10000}, {MINIMUM_POSTGRES} or newer is needed"
    findings = [Finding("PostgreSQL", major >= MINIMUM_POSTGRES, says)]
    installed = db.extension_schemas(connection)
    for name, minimum in MINIMUM.items():
        found = schema.extension_version(connection, name)
        needs = ".".join(map(str, minimum))
        if found is None:
            findings.append(Finding(name, False, f"not on the server; {schema.install_command(name, major)}"))
            continue
        where = f"in schema {installed[name]}" if name in installed else "available, not yet created: callipper-db init"
        old = db.version_tuple(found) < minimum
        findings.append(Finding(name, not old, f"{found} {where}" + (f"; {needs} or newer is needed" if old else "")))
    found = schema.extension_version(connection, "vector")
    if found and db.version_tuple(found) < SAFE_PARALLEL_BUILD:
        recommended = ".".join(map(str, SAFE_PARALLEL_BUILD))
        says = f"{found}; update to {recommended}: older ones can overflow a buffer in parallel HNSW builds (CVE-2026-3172)"
        findings.append(_advice("vector, recommended version", says))
    return findings


def _schema(connection: db.Connection) -> Finding:
    if schema.is_current(connection) and not schema.newer(connection):
        return Finding("schema callipper", True, "as this program makes it")
    found = schema.revision(connection)
    if found is None:
        return Finding("schema callipper", False, "not there; run: callipper-db init")
    if by := schema.newer(connection):
        says = f"newer than this program: it is {by}; pip install --upgrade callipper-db"
        return Finding("schema callipper", False, says)
    fix = "ALTER EXTENSION callipper UPDATE" if schema.is_extension(connection) else "callipper-db init"
    return Finding("schema callipper", False, f"revision {found}, not this program's; run: {fix}")


def _model(connection: db.Connection) -> Finding:
    (version,) = connection.one("SELECT callipper._active_version()")
    (ready,) = connection.one("SELECT max(version) FROM callipper.model")
    if version:
        return Finding("active model", True, f"version {version}")
    train = "none yet; run: callipper-db load FILE, then callipper-db train"
    return _advice("active model", f"none; run: callipper-db models activate {ready}" if ready else train)


def _owner(connection: db.Connection) -> dict[str, str]:
    """A warning where functions run with the rights of a superuser, which they have from their owner."""
    row = connection.execute(
        "SELECT n.nspowner::regrole::text, r.rolsuper FROM pg_catalog.pg_namespace n"
        " JOIN pg_catalog.pg_roles r ON r.oid = n.nspowner WHERE n.nspname = 'callipper' AND EXISTS ("
        " SELECT FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_roles o ON o.oid = p.proowner"
        " WHERE p.pronamespace = n.oid AND p.prosecdef AND o.rolsuper)"
    ).fetchone()
    if row is None:
        return {}
    owner, is_superuser = row
    says = f"some of its functions run with the rights of a superuser, and {owner} owns it. Run: callipper-db init"
    if is_superuser:
        says = (
            f"it belongs to {owner}, a superuser, so that its functions run with all rights. Let an ordinary role own it:"
            f" {NEW_OWNER} Then run: callipper-db init"
        )
    return {"who owns the schema": says}


def _settings(connection: db.Connection) -> dict[str, str]:
    """Warnings of settings of the server, the database or the role that make questions or commands fail."""
    read_only, standby, timeout_ms, vacuums, excepted = connection.one(
        "SELECT current_setting('transaction_read_only') = 'on', pg_catalog.pg_is_in_recovery(),"
        " (SELECT setting::int FROM pg_catalog.pg_settings WHERE name = 'statement_timeout'),"
        " current_setting('autovacuum') = 'on', ARRAY(SELECT format('callipper.%I', relname) FROM pg_catalog.pg_class"
        " WHERE relnamespace = 'callipper'::regnamespace AND 'autovacuum_enabled=false' = ANY(reloptions) ORDER BY 1)"
    )
    database = sql.Identifier(connection.info.dbname).as_string()
    found = {}
    if "callipper" not in [name.strip(' "') for name in connection.users_path.split(",")]:
        found["search_path"] = (
            f"callipper is not in {connection.users_path}, so write callipper.text_embed, or run: callipper-db init. A"
            ' setting of the role goes before that of the database: ALTER ROLE ... SET search_path = "$user", public, callipper'
        )
    if standby:
        found["read only"] = "this is a standby: questions are answered here; load, train and refresh on its primary"
    elif read_only:
        found["read only"] = (
            f"transactions cannot write, so load, train and refresh fail: ALTER DATABASE {database} RESET"
            " default_transaction_read_only; or the same for the role"
        )
    if 0 < timeout_ms < SLOW_TEXT_MS:
        found["statement_timeout"] = (
            f"{timeout_ms} ms; a text that is not remembered may take longer: ALTER DATABASE {database} SET statement_timeout ="
            f" '{SLOW_TEXT_MS // 1000}s'; or the same for the role"
        )
    if not vacuums:
        found["autovacuum"] = "off, so tables grow with each refresh: ALTER SYSTEM SET autovacuum = on; then reload"
    elif excepted:
        found["autovacuum"] = (
            f"off for {', '.join(excepted)}, which grow with each refresh: ALTER TABLE {excepted[0]} RESET (autovacuum_enabled)"
        )
    return found


def _data(connection: db.Connection) -> dict[str, str]:
    """Warnings of tables and indexes that a restore, a crash or a missing refresh has left behind. A reader sees some."""
    unanalysed, invalid = connection.one(LEFT_BEHIND, [LARGE_BYTES])
    found = {}
    if unanalysed:
        found["statistics"] = (
            f"{', '.join(unanalysed)}: never analysed, as after a restore, so queries may be planned badly. Run: ANALYZE"
        )
    if invalid:
        found["indexes"] = (
            f"{', '.join(invalid)} cannot be used, as after a cancelled build: REINDEX INDEX {invalid[0]}"
        )
    if connection.may_read("text_norm"):
        row = connection.execute(
            "SELECT e.name FROM callipper.model m JOIN callipper.text_encoder e USING (text_encoder_id)"
            " WHERE m.status = 'active'"
            " AND NOT EXISTS (SELECT FROM callipper.text_norm n WHERE n.text_encoder_id = e.text_encoder_id)"
        ).fetchone()
        if row is not None:
            found["text encoder"] = (
                f"the weights of {row[0]} are not in the database, so only remembered texts are understood: run callipper-db"
                f" text-encoder install {shlex.quote(row[0])}"
            )
    if connection.may_read("poi_change"):
        (changes,) = connection.one("SELECT count(*) FROM callipper.poi_change")
        followed = connection.execute(
            "SELECT FROM callipper.model WHERE status = 'active' AND follows_changes"
        ).fetchone()
        if changes and followed is not None:
            found["freshness"] = "POIs have changed since the last refresh; run: callipper-db refresh"
    return found


def _extra(name: str, modules: tuple[str, ...]) -> Finding:
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        return _advice(f"extra {name}", f"{', '.join(missing)} missing; pip install 'callipper-db[{name}]'")
    return Finding(f"extra {name}", True, "installed", needed=False)
