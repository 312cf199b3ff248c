"""Functions and operators that whoever may create in a schema could plant there to catch calls of others.

PostgreSQL takes the function whose types fit best, wherever on the search_path it stands: left(text, smallint) in public is
called in place of pg_catalog's left(text, integer) when a driver sends a small number.
"""

from __future__ import annotations

import re
from itertools import islice, product
from pathlib import Path
from typing import Any

import psycopg

ROOT = Path(__file__).parents[2]
SOURCES = ("sql/*.sql", "callipper_db/**/*.py", "trainer/callipper_trainer/**/*.py", "migrations/**/*.py")
BY_LIBRARIES = {"version", "current_schema", "current_schemas", "format_type", "pg_table_is_visible", "quote_ident"}
MOST = 60  # traps for one function of PostgreSQL's or of an extension's
LIKE = {  # types that a call may have in place of the declared one
    "float8": ("float4", "numeric", "int4", "int2", "int8"),
    "float4": ("float8", "numeric", "int4"),
    "numeric": ("int4", "int8", "float8"),
    "int4": ("int2", "int8", "oid"),
    "int8": ("int4", "int2"),
    "text": ("varchar", "name", "bpchar", "text"),
    "name": ("text",),
    "oid": ("int4", "int8", "regclass"),
    "regclass": ("oid", "text"),
    "regprocedure": ("oid", "text"),
    "box3d": ("{geometry}",),
}
ELEMENTS = (
    "int4",
    "int8",
    "int2",
    "float8",
    "float4",
    "text",
    "name",
    "numeric",
    "bool",
    "jsonb",
    "{vector}",
    "{geometry}",
)
ANY = {"anyelement", "anynonarray", "anycompatible", "anycompatiblenonarray", "any", "anyenum"}
ANY_ARRAY = {"anyarray", "anycompatiblearray"}
OPERANDS = ("int2", "int4", "int8", "float4", "float8", "numeric", "text", "varchar", "name", "oid", "bool", "jsonb")
PLANT = """
DO $plant$ BEGIN
    CREATE FUNCTION public.{name}({arguments}) RETURNS {returns} LANGUAGE plpgsql AS
        $$ BEGIN PERFORM nextval('public.sprung'); RAISE EXCEPTION 'trap: %', {label}; END $$;
EXCEPTION WHEN OTHERS THEN NULL;  -- it is there already, or none of that kind can be made
END $plant$
"""
PLANT_OPERATOR = """
DO $plant$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_operator
                   WHERE (oprname, oprleft, oprright) = ('{name}', '{left}'::regtype, '{right}'::regtype)) THEN
        CREATE OPERATOR public.{name} (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = public.sprung);
    END IF;
EXCEPTION WHEN OTHERS THEN NULL;  -- a name that takes no second operand
END $plant$
"""


def called() -> set[str]:
    """What looks like a call in our sources."""
    text = "".join(path.read_text(encoding="utf-8") for pattern in SOURCES for path in ROOT.glob(pattern))
    return {name.lower() for name in re.findall(r"\b([A-Za-z_]\w*)\s*\(", text)} | BY_LIBRARIES


def plant(connection: psycopg.Connection[Any], extensions: dict[str, str]) -> int:
    """Plant traps in public for every function and operator that we call; returns how many there are.

    The connection's role must be allowed to create there. What is sprung counts up the sequence public.sprung.
    """
    vector, geometry = (
        f'"{extensions[name]}".{kind}' for name, kind in (("vector", "vector"), ("postgis", "geometry"))
    )
    connection.execute("CREATE SEQUENCE public.sprung; GRANT ALL ON SEQUENCE public.sprung TO PUBLIC")
    functions = connection.execute(
        "SELECT p.proname::text, p.pronargdefaults::int, p.provariadic <> 0, array_agg(t.typname::text ORDER BY a.n),"
        " array_agg(format_type(t.oid, NULL) ORDER BY a.n), format_type(p.prorettype, NULL)"
        " FROM pg_proc p, unnest(p.proargtypes) WITH ORDINALITY AS a(type, n) JOIN pg_type t ON t.oid = a.type"
        " WHERE p.proname = ANY(%s) AND p.prokind IN ('f', 'a', 'w') AND p.pronamespace IN ('pg_catalog'::regnamespace,"
        " (SELECT extnamespace FROM pg_extension WHERE extname = 'vector'),"
        " (SELECT extnamespace FROM pg_extension WHERE extname = 'postgis')) GROUP BY p.oid",
        [sorted(called())],
    ).fetchall()
    wanted = set()
    for name, defaults, variadic, kinds, types, returns in functions:
        for shorter in range(defaults + 1):
            for arguments in _variants(kinds[: len(kinds) - shorter], types, variadic, vector, geometry):
                wanted.add((name, arguments, "int4" if returns.startswith(("any", '"any"')) else returns))
    script = [
        PLANT.format(name=f'"{name}"', arguments=", ".join(arguments), returns=returns, label=f"'{name}'")
        for name, arguments, returns in sorted(wanted)
        if not returns.startswith(("internal", "trigger", "event", "cstring"))
    ]
    script += _operators(connection, vector, geometry)
    for start in range(0, len(script), 500):
        connection.execute(";\n".join(script[start : start + 500]))
    (count,) = connection.execute(
        "SELECT (SELECT count(*) FROM pg_proc p WHERE p.proowner = current_user::regrole)"
        " + (SELECT count(*) FROM pg_operator WHERE oprowner = current_user::regrole)"
    ).fetchone() or (0,)
    return int(count)


def _variants(kinds: list[str], types: list[str], variadic: bool, vector: str, geometry: str) -> list[tuple[str, ...]]:
    if variadic:  # format(text, ...), jsonb_build_object(...)
        ends = [
            tuple(end) for count in range(1, 5) for end in islice(product(("text", "int4", "name"), repeat=count), 20)
        ]
        return [(*types[: len(kinds) - 1], *end) for end in ends]
    if any(kind in ANY | ANY_ARRAY for kind in kinds):
        elements = [element.format(vector=vector, geometry=geometry) for element in ELEMENTS]
        return [
            tuple(
                f"{element}[]" if kind in ANY_ARRAY else element if kind in ANY else type_
                for kind, type_ in zip(kinds, types, strict=False)
            )
            for element in elements
        ]
    choices = [
        (type_, *(like.format(geometry=geometry) for like in LIKE.get(kind, ())))
        for kind, type_ in zip(kinds, types, strict=False)
    ]
    return list(islice(product(*choices), MOST))


def _operators(connection: psycopg.Connection[Any], vector: str, geometry: str) -> list[str]:
    """One for each name and each pair of types that has none."""
    pairs = [*product(OPERANDS, repeat=2), (vector, "text"), (geometry, "text"), (vector, "float4[]")]
    script = [
        PLANT.format(name="sprung", arguments=f"{left}, {right}", returns="bool", label="'an operator'")
        for left, right in pairs
    ]
    names = connection.execute(
        "SELECT DISTINCT oprname::text FROM pg_operator WHERE oprkind = 'b' AND length(oprname) < 4"
    )
    for (name,), (left, right) in product(names.fetchall(), pairs):
        script.append(PLANT_OPERATOR.format(name=name, left=left, right=right))
    return script
