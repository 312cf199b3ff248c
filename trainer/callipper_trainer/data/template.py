"""A template for the text of a POI, as an SQL expression."""

from __future__ import annotations

import re

from psycopg import sql

from callipper_db.errors import BadSource

TEMPLATE_TOKEN = re.compile(
    r"(?s)(?P<doubled>\{\{|\}\}|\[\[|\]\])|\{(?P<column>[^{}]+)\}|(?P<bracket>[\[\]])|(?P<literal>[^\[\]{}]+)|(?P<stray>.)"
)
TRIMMED = r"nullif(btrim(({})::text, E' \t\n\r\f\x0b'), '')"


def template_expression(template: str, columns: dict[str, str], relation: str) -> str:
    """'[{name}, ]A place of {category}' as SQL; what stands in brackets goes where a column in it is NULL or empty.

    A bracket or brace of the text's own is written twice.
    """
    pieces: list[str] = []
    optional: list[str] | None = None  # what stands in the brackets that are open
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
            (pieces if optional is None else optional).append(_piece(token, columns, relation))
    if optional is not None:
        raise BadSource(source=relation, reason="the template's [ is not closed")
    if not pieces:
        raise BadSource(source=relation, reason="the template is empty")
    return " || ".join(pieces)


def _piece(token: re.Match[str], columns: dict[str, str], relation: str) -> str:
    name = token["column"]
    if name is None:
        return sql.Literal(token["literal"] or token[0][0]).as_string()
    if name not in columns:
        raise BadSource(source=relation, reason=f"the template names {{{name}}}; the columns are {', '.join(columns)}")
    return TRIMMED.format(sql.Identifier("s", name).as_string())
