"""Alembic's environment: runs on the connection that schema.init hands over, or prints SQL (offline)."""

from __future__ import annotations

from typing import Any

from alembic import context
from sqlalchemy.schema import SchemaItem

from callipper_db.tables import MAP_SCHEMA, SCHEMA, metadata


def is_ours(item: SchemaItem, name: str | None, kind: str, reflected: bool, compare_to: SchemaItem | None) -> bool:
    """Leave out what migrations do not own: the partitions of each model version."""
    return not (kind == "table" and reflected and name not in {table.name for table in metadata.sorted_tables})


def is_our_schema(name: str | None, kind: str, parents: Any) -> bool:
    """Look at our schemas alone when comparing."""
    return kind != "schema" or name in (SCHEMA, MAP_SCHEMA)


options: dict[str, Any] = {
    "target_metadata": metadata,
    "version_table_schema": SCHEMA,
    "include_schemas": True,
    "include_name": is_our_schema,
    "include_object": is_ours,
}
if context.is_offline_mode():
    context.configure(dialect_name="postgresql", literal_binds=True, **options)
else:
    context.configure(connection=context.config.attributes["connection"], **options)
with context.begin_transaction():
    context.run_migrations()
