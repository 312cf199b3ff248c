"""Sessions of a user, with the search_path of the database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from callipper_db import db


@contextmanager
def user_session(dsn: str, *, autocommit: bool = False) -> Iterator[db.Connection]:
    """As db.session(), but for the search_path."""
    with db.session(dsn, autocommit=autocommit) as connection:
        connection.execute("SELECT set_config('search_path', %s::text, false)", [connection.users_path])
        yield connection
