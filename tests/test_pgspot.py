"""pgspot reads all SQL that CREATE EXTENSION runs: no name is looked up where others may create.

tests/database/test_traps.py tries it out on a server; this reads the branches that no question of it comes to.
"""

from __future__ import annotations

import re
from argparse import Namespace

import pytest
from pglast.parser import ParseError
from pgspot import visitors
from pgspot.state import Counter, State

from callipper_db.db import SEARCH_PATH
from callipper_db.extension import REGISTER, tables
from callipper_db.schema import owner_statements, sql_statements, stamp

EXTENSIONS = {"postgis": "public", "vector": "public"}
# CREATE EXTENSION makes the schema. A session's temporary tables are its own, so that they need not be searched last.
BEGIN = f"CREATE SCHEMA callipper; SET search_path = {SEARCH_PATH}, pg_temp;\n"
OPTIONS = Namespace(
    plpgsql=True,
    summary_only=False,
    proc_without_search_path=[],
    ignore=["PS005"],  # a function that PostgreSQL inlines has no search_path of its own; its names are checked instead
    ignore_lang=[],
    sql_fn=[],
)
read = visitors.visit_sql


def read_either(state: State, text: str, toplevel: bool = False) -> None:
    """pgspot takes the expression of some statements of PL/pgSQL, such as RETURN NEXT, for a statement."""
    try:
        read(state, text, toplevel)
    except ParseError:
        if toplevel:
            raise
        read(state, f"SELECT {text}")


def found_in(text: str, monkeypatch: pytest.MonkeyPatch) -> Counter:
    """What pgspot finds, printed and counted."""
    monkeypatch.setattr(visitors, "visit_sql", read_either)
    counter = Counter(OPTIONS)
    visitors.visit_sql(State(counter), BEGIN + text, True)
    return counter


def readable(text: str) -> str:
    """It prints the definition of a function before it reads it, and then a keyword as a name and a comment inside a
    text that goes on in the next line are errors."""
    return re.sub(r"(?m)'\s+-- .*$", "'", text.replace('"values"', "rows_"))


def test_the_extensions_script_is_clean(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [
        tables(None, "head", EXTENSIONS).replace(SEARCH_PATH, f"{SEARCH_PATH}, pg_temp"),
        *sql_statements(EXTENSIONS),
    ]
    parts += [stamp().as_string() + ";", owner_statements(), REGISTER]
    counter = found_in(readable("\n".join(parts)), monkeypatch)
    assert counter.is_clean(), capsys.readouterr().out


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("SELECT 1 + 1::smallint", "PS001"),
        ("SELECT lower('A')", "PS016"),
        ("SELECT 'a'::text", "PS017"),
    ],
)
def test_a_name_without_a_schema_is_found(
    body: str, code: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counter = found_in(f"CREATE FUNCTION callipper.f() RETURNS int LANGUAGE sql AS $$ {body} $$;", monkeypatch)
    assert not counter.is_clean() and code in capsys.readouterr().out


def test_rights_of_the_owner_without_a_search_path_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    made = "CREATE FUNCTION callipper.f() RETURNS int LANGUAGE sql SECURITY DEFINER AS $$ SELECT 1 $$;"
    assert found_in(made, monkeypatch).errors == 1
