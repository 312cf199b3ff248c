"""Checks what works on this machine and in the database."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from callipper_db import db, schema
from callipper_db.errors import CallipperError
from callipper_db.versions import MINIMUM, MINIMUM_POSTGRES, SAFE_PARALLEL_BUILD

EXTRAS = {
    "train": ("torch", "sentence_transformers", "safetensors"),
    "geo": ("osmium", "pyarrow", "pyogrio"),
    "map": ("matplotlib", "fastapi", "uvicorn", "psycopg_pool", "prometheus_client"),
    "mcp": ("mcp", "psycopg_pool"),
}
NEW_OWNER = (
    "CREATE ROLE callipper_owner; ALTER SCHEMA callipper OWNER TO callipper_owner;"
    " ALTER SCHEMA callipper_map OWNER TO callipper_owner;"
)


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    what: str
    ok: bool
    says: str
    needed: bool = True


def examine(dsn: str) -> list[Finding]:
    """Check the server, its extensions, the schema, the active model and the Python packages."""
    try:
        with db.session(dsn) as connection:
            findings = [*_server(connection), _schema(connection)]
            if findings[-1].ok:
                findings.append(_model(connection))
                warnings = schema.open_schemas(connection)
                findings += [Finding("who may create functions", False, says, needed=False) for says in warnings]
                findings += _owner(connection)
    except CallipperError as error:
        findings = [Finding("connection", False, str(error))]
    return findings + [_extra(name, modules) for name, modules in EXTRAS.items()]


def _server(connection: db.Connection) -> list[Finding]:
    version = connection.info.server_version
    major = version // 10000
    findings = [
        Finding(
            "PostgreSQL",
            major >= MINIMUM_POSTGRES,
            f"{major}.{version % 10000}, {MINIMUM_POSTGRES} or newer is needed",
        )
    ]
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
        findings.append(Finding("vector, recommended version", False, says, needed=False))
    return findings


def _schema(connection: db.Connection) -> Finding:
    if schema.is_current(connection) and not schema.newer(connection):
        return Finding("schema callipper", True, "as this program makes it")
    found = schema.revision(connection)
    if found is None:
        return Finding("schema callipper", False, "not there; run: callipper-db init")
    if by := schema.newer(connection):
        return Finding(
            "schema callipper", False, f"newer than this program: it is {by}; pip install --upgrade callipper-db"
        )
    return Finding("schema callipper", False, f"revision {found}, not this program's; run: callipper-db init")


def _model(connection: db.Connection) -> Finding:
    row = connection.execute("SELECT callipper._active_version()").fetchone()
    version = row[0] if row else 0
    if version == 0:
        return Finding(
            "active model", False, "none yet; run: callipper-db load FILE, then callipper-db train", needed=False
        )
    return Finding("active model", True, f"version {version}")


def _owner(connection: db.Connection) -> list[Finding]:
    """A warning where functions run with the rights of a superuser, which they have from their owner."""
    row = connection.execute(
        "SELECT n.nspowner::regrole::text, r.rolsuper FROM pg_catalog.pg_namespace n"
        " JOIN pg_catalog.pg_roles r ON r.oid = n.nspowner WHERE n.nspname = 'callipper' AND EXISTS ("
        " SELECT FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_roles o ON o.oid = p.proowner"
        " WHERE p.pronamespace = n.oid AND p.prosecdef AND o.rolsuper)"
    ).fetchone()
    if row is None:
        return []
    owner, is_superuser = row
    says = f"some of its functions run with the rights of a superuser, and {owner} owns it. Run: callipper-db init"
    if is_superuser:
        says = (
            f"it belongs to {owner}, a superuser, so that its functions run with all rights. Let an ordinary role own it:"
            f" {NEW_OWNER} Then run: callipper-db init"
        )
    return [Finding("who owns the schema", False, says, needed=False)]


def _extra(name: str, modules: tuple[str, ...]) -> Finding:
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        says = f"{', '.join(missing)} missing; pip install 'callipper-db[{name}]'"
        return Finding(f"extra {name}", False, says, needed=False)
    return Finding(f"extra {name}", True, "installed", needed=False)
