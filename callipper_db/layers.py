"""Saved layers: questions as views of callipper_map, which maps draw like tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.rows import dict_row

from callipper_db import db
from callipper_db.errors import DatabaseFailed, LayerUnusable

REFUSALS = (
    psycopg.errors.InvalidParameterValue,
    psycopg.errors.DuplicateObject,
    psycopg.errors.UndefinedObject,
    psycopg.errors.NoDataFound,
    psycopg.errors.ObjectNotInPrerequisiteState,
    psycopg.errors.FeatureNotSupported,
)


def add_layer(dsn: str, name: str, query: str, likes: Sequence[str] = (), dislikes: Sequence[str] = ()) -> str:
    """Save a question as a view; returns the view's name. Raises LayerUnusable."""
    with _saying_why(name), db.session(dsn) as connection:
        connection.execute(
            "SELECT callipper.save_layer(%s, %s, %s::text[], %s::text[])", [name, query, list(likes), list(dislikes)]
        )
    return f"callipper_map.layer_{name}"


def list_layers(dsn: str) -> list[dict[str, Any]]:
    """The saved layers: name, view, question."""
    with db.session(dsn) as connection, connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            "SELECT name, 'callipper_map.layer_' || name AS view, question FROM callipper.list_layers()"
        ).fetchall()


def remove_layer(dsn: str, name: str) -> None:
    """Drop a layer. Raises LayerUnusable."""
    with _saying_why(name), db.session(dsn) as connection:
        connection.execute("SELECT callipper.remove_layer(%s)", [name])


@contextmanager
def _saying_why(name: str) -> Iterator[None]:
    try:
        yield
    except DatabaseFailed as error:
        if isinstance(error.__cause__, REFUSALS):
            raise LayerUnusable(name=name, reason=str(error).removeprefix("The database refused: ")) from error
        raise
