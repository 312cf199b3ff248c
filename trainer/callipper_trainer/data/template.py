"""A template for the text of a POI, as an SQL expression."""

from __future__ import annotations

import re
from collections.abc import Mapping

from psycopg import sql

from callipper_db.errors import BadSource

TEMPLATE_TOKEN = re.compile(
    r"(?s)(?P<doubled>\{\{|\}\}|\[\[|\]\])|\{(?P<column>[^{}]+)\}|(?P<bracket>[\[\]])|(?P<literal>[^\[\]{}]+)|(?P<stray>.)"
)
TRIMMED = r"nullif(btrim(({})::text, E' \t\n\r\f\x0b'), '')"


def words_expression(column: str, kind: str) -> str:
    """The SQL expression of a column that may hold several categories: an array, or a list separated by semicolons.

    It calls pg_temp.words, which data/source.py creates. The semicolon of an HTML entity does not separate.
    """
    quoted = sql.Identifier("s", column).as_string()
    if kind.startswith("_"):  # PostgreSQL's names of array types
        return f"pg_temp.words({quoted}::text[])"
    text = f"{quoted}::text"
    several = f"pg_temp.words(string_to_array({text}, ';'))"
    return f"CASE WHEN strpos({text}, ';') > 0 AND {text} !~ '&#?\\w+;' THEN {several} ELSE {text} END"


def template_expression(
    template: str, columns: dict[str, str], relation: str, made: Mapping[str, str] | None = None
) -> str:
    """'[{name}, ]A place of {category}' as SQL. A part in brackets is left out if a column in it is NULL or empty.

    A literal bracket or brace is written twice. made: SQL expressions for columns that the relation does not have.
    """
    pieces: list[str] = []
    optional: list[str] | None = None  # the pieces since the open bracket
    for token in TEMPLATE_TOKEN.finditer(template):
        if token["stray"] or (token["bracket"] and (token["bracket"] == "[") != (optional is None)):
            where = f"the template's {token[0]} at character {token.start() + 1}"
            raise BadSource(
                source=relation, reason=f"{where} lacks its partner; one that is meant as such is written twice"
            )
        if token["bracket"] == "[":
            optional = []
        elif token["bracket"] == "]":
            pieces += [f"coalesce({' || '.join(optional)}, '')"] if optional else []
            optional = None
        else:
            (pieces if optional is None else optional).append(_piece(token, columns, relation, made or {}))
    if optional is not None:
        raise BadSource(source=relation, reason="the template's [ is not closed")
    if not pieces:
        raise BadSource(source=relation, reason="the template is empty")
    return " || ".join(pieces)


def _piece(token: re.Match[str], columns: dict[str, str], relation: str, made: Mapping[str, str]) -> str:
    name = token["column"]
    if name is None:
        return sql.Literal(token["literal"] or token[0][0]).as_string()
    if name in made:
        return TRIMMED.format(made[name])
    if name not in columns:
        raise BadSource(source=relation, reason=f"the template names {{{name}}}; the columns are {', '.join(columns)}")
    if columns[name].startswith("_"):
        return TRIMMED.format(words_expression(name, columns[name]))
    return TRIMMED.format(sql.Identifier("s", name).as_string())
