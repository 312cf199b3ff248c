"""Connections: what is said of one that fails, and what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

from callipper_db import db
from callipper_db.cli.options import database_digest
from callipper_db.errors import ConnectionFailed

NOWHERE = "127.0.0.1:1"  # a port at which nobody listens


@pytest.mark.parametrize(
    ("dsn", "said"),
    [
        (f"postgresql://me:hush@{NOWHERE}/city", "user=me dbname=city host=127.0.0.1 port=1"),
        (f"postgresql://me@{NOWHERE}/city?sslpassword=hush&sslcert=/no", "user=me dbname=city"),
        ("host=127.0.0.1 port=1 password=hush user=me", "user=me"),
        (f"postgresql+psycopg2://me:hush@{NOWHERE}/city", "postgresql+psycopg2 is a scheme of SQLAlchemy's"),
        (f"postgresql+asyncpg://me:hush@{NOWHERE}/city", "write postgresql://"),
        (f"mysql://me:hush@{NOWHERE}/city", "it does not begin with postgresql://"),
        (f"postgresql://me:hu%sh%hush@{NOWHERE}/city", "write % as %25"),
        (f"postgresql://me:hush@hush@{NOWHERE}/city", "a password with @ or / in it"),
        (f"postgresql://me:hush/hush@{NOWHERE}/city", "a password with @ or / in it"),
        (f"postgresql://me:12/hush@{NOWHERE}/city", "a password with @ or / in it"),
        (f"postgresql://me:1?hush/hush@{NOWHERE}/city", "it does not parse"),
        (f"postgresql://me:hush:hush/hush@{NOWHERE}/city", "a password with @ or / in it"),
        ("host=127.0.0.1 port=1 password=hush hush", "it does not parse"),
        ("host=127.0.0.1 port=1 password='hush", "it does not parse"),
        ("host=127.0.0.1 passwort=hush", "it does not parse"),
        ("hush\0hush", "it does not parse"),
        ("hush\udcffhush", "it does not parse"),
    ],
)
def test_a_failed_connection_shows_no_secret(run: Any, dsn: str, said: str) -> None:
    result = run("models", "list", "--dsn", dsn, exit_code=1)
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: Cannot connect to ") and said in line
    assert "hush" not in result.output


def test_a_password_of_the_environment_is_not_shown(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "hush")
    result = run("models", "list", "--dsn", f"postgresql://me@{NOWHERE}/city", exit_code=1)
    assert "hush" not in result.output


def test_the_error_keeps_no_secret_for_a_traceback() -> None:
    with pytest.raises(ConnectionFailed) as caught:
        db.connect(f"postgresql+psycopg2://me:hush@{NOWHERE}/city")
    assert caught.value.__cause__ is None and caught.value.__context__ is None


@pytest.mark.parametrize(
    "dsn", ["postgresql:///city?host=%2Fa%40b", "postgresql://me:a%40b%2Fc@", "postgresql://127.0.0.1:1,127.0.0.1:2/c"]
)
def test_a_dsn_with_unusual_characters_is_read(dsn: str) -> None:
    with pytest.raises(ConnectionFailed) as caught:
        db.connect(f"{dsn}{'&' if '?' in dsn else '?'}connect_timeout=2")
    assert isinstance(caught.value.__cause__, psycopg.OperationalError)


def test_names_of_checkpoints_do_not_depend_on_the_password(tmp_path: Path) -> None:
    one, other = (f"postgresql://me:{password}@db/city?sslpassword={password}" for password in ("hush", "hash"))
    assert database_digest(one) == database_digest(other)
    assert database_digest(one) != database_digest("postgresql://me:hush@db/town")
