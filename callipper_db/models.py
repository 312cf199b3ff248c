"""Model versions: list, show, activate, drop."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.rows import dict_row

from callipper_db import db
from callipper_db.errors import DatabaseFailed, ModelActive, UnknownModel

COLUMNS = (
    """m.version, m.status, m.created_at, m.activated_at, m.srid, e.name AS text_encoder, m.metrics, m.provenance"""
)


def list_models(dsn: str) -> list[dict[str, Any]]:
    """Every version, newest first."""
    with db.session(dsn) as connection, connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            f"SELECT {COLUMNS} FROM callipper.model m JOIN callipper.text_encoder e USING (text_encoder_id)"
            " ORDER BY m.version DESC"
        ).fetchall()


def show_model(dsn: str, version: int | None) -> dict[str, Any]:
    """One version, the active one for None, with its architecture and what it covers. Raises UnknownModel."""
    with db.session(dsn) as connection, connection.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute(
            f"SELECT {COLUMNS}, m.arch, ST_AsText(m.extent, 5) AS extent, g.kind AS grid_kind, g.size_m AS grid_size_m,"
            " (SELECT count(*) FROM callipper.cell_embedding c WHERE c.version = m.version) AS cells,"
            " (SELECT count(*) FROM callipper.point_embedding p WHERE p.version = m.version) AS points,"
            " (SELECT count(*) FROM callipper.text_embedding t WHERE t.version = m.version) AS texts"
            " FROM callipper.model m JOIN callipper.text_encoder e USING (text_encoder_id)"
            " LEFT JOIN callipper.grid g USING (grid_id)"
            " WHERE m.version = coalesce(%s::bigint, callipper._active_version())",
            [version],
        ).fetchone()
    if found is None:
        raise UnknownModel(version="(active)" if version is None else version)
    return found


def activate_model(dsn: str, version: int) -> None:
    """Make a version the one that answers. Raises UnknownModel."""
    _check_range(version)
    try:
        with db.session(dsn) as connection, connection.transaction():
            connection.execute("SELECT callipper.activate(%s)", [version])
    except DatabaseFailed as error:
        if isinstance(error.__cause__, psycopg.errors.UndefinedObject):
            raise UnknownModel(version=version) from error
        raise


def drop_model(dsn: str, version: int, *, force: bool = False) -> None:
    """Remove a version with everything that belongs to it. Raises UnknownModel, ModelActive."""
    _check_range(version)
    try:
        with db.session(dsn) as connection, connection.transaction():
            connection.execute("SELECT callipper.drop_model(%s, %s)", [version, force])
    except DatabaseFailed as error:
        if isinstance(error.__cause__, psycopg.errors.UndefinedObject):
            raise UnknownModel(version=version) from error
        if isinstance(error.__cause__, psycopg.errors.ObjectInUse):
            raise ModelActive(version=version) from error
        raise


def _check_range(version: int) -> None:
    """The functions take a 4-byte integer, and would not be found for a larger one."""
    if not 0 < version < 2**31:
        raise UnknownModel(version=version)
