"""callipper-db: spatial-semantic search in PostGIS. The database side; nothing here imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from callipper_db.city import City

__all__ = ["connect"]


def connect(dsn: str) -> City:
    """The active model of a database, for programs and notebooks. Raises ConnectionFailed, NotInitialised, NoActiveModel."""
    from callipper_db.city import City

    return City(dsn)
