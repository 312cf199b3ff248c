"""Tables of OpenStreetMap objects, as osm2pgsql makes them: a column a key, or hstore or jsonb columns of tags.

The category table is the one of callipper_db.read.osm: the different combinations of tags go to the client, which files them.
"""

from __future__ import annotations

from psycopg import sql

from callipper_db.db import Connection
from callipper_db.read import Reader, osm
from callipper_db.read.osm_tags import TagColumns

KIND_TABLE = "pg_temp.osm_kind"  # key, category; data/source.py makes it
NESTED = {"hstore", "json", "jsonb"}


class OsmColumns:
    """The columns of a relation that hold tags, as SQL expressions over its rows, s."""

    def __init__(self, connection: Connection, columns: dict[str, str]) -> None:
        self._tags = TagColumns(Reader(iter(()), list(columns)))
        self._nested = [(name, columns[name]) for name in self._tags.nested if columns[name] in NESTED]
        self._schema = "pg_catalog"
        if any(kind == "hstore" for _, kind in self._nested):
            row = connection.execute(
                "SELECT n.nspname::text FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = typnamespace"
                " WHERE typname = 'hstore'"
            ).fetchone()
            self._schema = str(row[0]) if row else self._schema
        self._columns = columns

    @property
    def found(self) -> bool:
        """Are there any?"""
        return self._tags.found(False) and (bool(self._nested) or bool(self._tags.columns))

    def value(self, key: str) -> str:
        """The value of one key."""
        own = self._tags.columns.get(key) or (key if key in self._columns else None)
        values = [sql.Identifier("s", own).as_string() + "::text"] if own else []
        for name, kind in self._nested:
            operator = f"OPERATOR({sql.Identifier(self._schema).as_string()}.->)" if kind == "hstore" else "->>"
            values.append(f"({sql.Identifier('s', name).as_string()} {operator} {sql.Literal(key).as_string()})")
        return f"coalesce({', '.join(values)})" if values else "NULL"

    @property
    def tags(self) -> str:
        """The tags that the category depends on, as one text."""
        pairs = [
            f"{sql.Literal(key).as_string()}, {value}"
            for key in self._tags.keys
            if (value := self.value(key)) != "NULL"
        ]
        return f"pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object({', '.join(pairs)}))::text"

    @property
    def category(self) -> str:
        """The category, of those in KIND_TABLE."""
        return f"(SELECT k.category FROM {KIND_TABLE} AS k WHERE k.key = pg_catalog.md5({self.tags}))"


def fill_kinds(connection: Connection, relation: sql.Composable, columns: OsmColumns) -> None:
    """Put the category of every combination of tags into KIND_TABLE; street furniture has none."""
    query = sql.SQL("SELECT DISTINCT t, t::jsonb FROM (SELECT {} AS t FROM {} AS s) AS r").format(
        sql.SQL(columns.tags), relation
    )
    with connection.users_names():
        found = connection.execute(query).fetchall()
    kinds = [(text, osm.categorise(tags)) for text, tags in found]
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO pg_temp.osm_kind SELECT md5(%s::text), %s",
            [(text, kind.category) for text, kind in kinds if kind and kind.group != osm.STREET_FURNITURE],
        )
