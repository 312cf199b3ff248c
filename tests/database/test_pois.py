"""POIs that should go, which database is used, and what a reader of the model may see."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from callipper_db.errors import UnknownSource
from callipper_db.pois import list_sources, remove_pois
from sessions import user_session

Run = Callable[..., Result]


@pytest.fixture
def stocked(database: str) -> str:
    """Three POIs of the source a, one of b."""
    with user_session(database) as connection:
        connection.execute(
            "INSERT INTO callipper.poi (source, source_id, name, category, geom, attributes)"
            " SELECT s, i, n, c, ST_SetSRID(ST_Point(2, 48), 4326), t::jsonb FROM (VALUES ('a', '1', 'A', 'Pub', '{}'),"
            " ('a', '2', NULL, 'ATM', '{\"dup\": \"1\"}'), ('a', '3', 'C', NULL, '{\"dup\": \"1\"}'),"
            " ('b', '1', 'D', 'Pub', '{}')) AS v(s, i, n, c, t)"
        )
    return database


def left(dsn: str) -> list[str]:
    with user_session(dsn) as connection:
        return [key for (key,) in connection.execute("SELECT source || source_id FROM poi ORDER BY 1")]


def test_sources_are_listed(stocked: str) -> None:
    assert list_sources(stocked) == [
        {"source": "a", "pois": 3, "with_category": 2, "categories": 2},
        {"source": "b", "pois": 1, "with_category": 1, "categories": 1},
    ]


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ({}, ["b1"]),
        ({"category": "Pub"}, ["a2", "a3", "b1"]),
        ({"dup": "1"}, ["a1", "b1"]),
        ({"dup": "1", "category": "ATM"}, ["a1", "a3", "b1"]),
        ({"category": ""}, ["a1", "a2", "b1"]),
        ({"dup'; DROP TABLE poi; --": "1"}, ["a1", "a2", "a3", "b1"]),
    ],
)
def test_pois_are_removed(stocked: str, where: dict[str, str], kept: list[str]) -> None:
    assert remove_pois(stocked, "a", where, dry_run=True) == 4 - len(kept)
    assert len(left(stocked)) == 4
    assert remove_pois(stocked, "a", where) == 4 - len(kept)
    assert left(stocked) == kept


def test_a_source_that_is_not_there(stocked: str) -> None:
    with pytest.raises(UnknownSource, match=r"There is no source c\. The sources are: a, b\."):
        remove_pois(stocked, "c")


def test_what_is_removed_is_noted_for_refresh(stocked: str) -> None:
    remove_pois(stocked, "a")
    with user_session(stocked) as connection:
        assert connection.execute("SELECT count(*) > 0 FROM callipper.poi_change").fetchone() == (True,)


def test_pois_commands(stocked: str, run: Run) -> None:
    assert "a       3     2                2" in run("pois", "list-sources", "--dsn", stocked).stdout
    said = run("pois", "remove", "--dsn", stocked, "--source", "a", "--where", "category=Pub", "--dry-run").stdout
    assert said == "1 POIs of a would be removed\n"
    result = run("pois", "remove", "--dsn", stocked, "--source", "a", "--where", "kind=Pub", exit_code=1)
    assert result.stderr.endswith("No POI of a has kind=Pub. Nothing is removed.\n")
    said = run("pois", "remove", "--dsn", stocked, "--source", "a").stdout
    assert said == "3 POIs of a are removed. The model follows with: callipper-db refresh\n"
    result = run("pois", "remove", "--dsn", stocked, "--source", "a", exit_code=1)
    assert "There is no source a. The sources are: b." in result.output


# Which database


def test_an_empty_dsn_is_refused(run: Run) -> None:
    for empty in ("", " "):
        assert "--dsn is empty. Give a database" in run("pois", "list-sources", "--dsn", empty, exit_code=1).output


def test_the_pg_variables_are_honoured_and_named(stocked: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = conninfo_to_dict(stocked)
    for variable, key in {"PGHOST": "host", "PGPORT": "port", "PGDATABASE": "dbname", "PGUSER": "user"}.items():
        monkeypatch.setenv(variable, str(parts[key]))
    monkeypatch.setenv("PGPASSWORD", "s3cret")
    result = run("pois", "list-sources", "--json")
    assert '"pois": 3' in result.stdout
    assert result.stderr.startswith("Database: ")
    assert f"dbname={parts['dbname']}" in result.stderr
    assert result.stderr.endswith("(the PG variables of the environment).\n")
    assert "s3cret" not in result.output


def test_callipper_dsn_goes_before_the_pg_variables(stocked: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLIPPER_DSN", stocked)
    monkeypatch.setenv("PGHOST", "nowhere.invalid")
    assert '"pois": 3' in run("pois", "list-sources", "--json").stdout


def test_a_pg_service_that_is_not_there_is_said(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PGSERVICE", "city")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "none"))
    assert "Cannot connect to" in run("pois", "list-sources", exit_code=1).output


# A reader


@pytest.fixture
def reader(town: str) -> Iterator[str]:
    """The DSN of a role without callipper_reader, that has only what _grant_reader gives."""
    name = sql.Identifier(f"callipper_test_analyst_{os.getpid()}")
    with user_session(town) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
        connection.execute("SELECT callipper._grant_reader(%s)", [f"callipper_test_analyst_{os.getpid()}"])
    try:
        yield make_conninfo(town, user=f"callipper_test_analyst_{os.getpid()}")
    finally:
        with user_session(town) as connection:
            connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(name))


def test_a_role_that_was_granted_asks(reader: str, run: Run) -> None:
    assert len(json.loads(run("query", "park", "--dsn", reader, "-k", "2", "--json").stdout)) == 2
    shown = run("models", "show", "--dsn", reader).stdout
    assert '"cells": ' in shown and '"cells": null' not in shown
    doctor = run("doctor", "--dsn", reader).stdout
    assert "ok  schema callipper: as this program makes it" in doctor
    assert "ok  active model: version 1" in doctor
