"""The training lock: who can take it, whom it keeps from what, and when it goes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from callipper_db import schema
from callipper_db.errors import ConnectionLost, TrainerBusy
from callipper_db.progress import Silent
from callipper_trainer.lock import LOCK, only_trainer
from processes import running, wait_for
from sessions import user_session

ADVISORY = 0x0CA1_0002  # what it was once: anybody could take it


@pytest.fixture
def reader(database: str) -> Iterator[str]:
    name = f"callipper_test_lock_reader_{os.getpid()}"
    with user_session(database) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN IN ROLE callipper_reader").format(sql.Identifier(name)))
    yield make_conninfo(database, user=name)
    with user_session(database) as connection:
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def holders(dsn: str) -> list[int]:
    with user_session(dsn) as connection:
        rows = connection.execute(
            "SELECT pid FROM pg_locks WHERE relation = 'callipper.training_lock'::regclass AND granted"
        )
        return [pid for (pid,) in rows]


def free(dsn: str) -> None:
    with only_trainer(dsn, wait=False, reporter=Silent()):
        pass


def test_one_at_a_time(database: str) -> None:
    with only_trainer(database, wait=False, reporter=Silent()) as check:
        (pid,) = holders(database)
        with pytest.raises(TrainerBusy, match=rf"server process {pid}, since \d{{4}}-"):
            free(database)
        check()
    for _ in range(20):  # let go before the end of the block, and not when the server notices
        free(database)


def test_a_reader_cannot_hold_training_up(database: str, reader: str) -> None:
    with psycopg.connect(reader) as stranger:
        stranger.execute("SELECT pg_advisory_lock(%s)", [ADVISORY])
        stranger.commit()
        for mode in ("ROW SHARE", "ROW EXCLUSIVE", "SHARE UPDATE EXCLUSIVE", "SHARE", "EXCLUSIVE", "ACCESS EXCLUSIVE"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                stranger.execute(f"LOCK TABLE callipper.training_lock IN {mode} MODE".encode())
            stranger.rollback()
        free(database)


def test_a_reader_cannot_hold_init_up(database: str, reader: str) -> None:
    with psycopg.connect(reader) as stranger:
        stranger.execute(
            "SELECT pg_advisory_lock(n) FROM generate_series(%s::bigint, %s) AS n", [0x0CA1_0000, 0x0CA1_00FF]
        )
        with psycopg.connect(database, autocommit=True) as owner:
            owner.execute(
                sql.SQL("ALTER DATABASE {} SET lock_timeout = '5s'").format(sql.Identifier(owner.info.dbname))
            )
        schema.init(database)


def test_inits_at_once(empty_database: str) -> None:
    with ThreadPoolExecutor(3) as threads:
        reports = list(threads.map(schema.init, [empty_database] * 3))
    assert sorted(report.before or "" for report in reports) == ["", schema.head(), schema.head()]
    assert reports[0].after == schema.head()


def test_the_lock_keeps_nobody_else_waiting(database: str) -> None:
    with only_trainer(database, wait=False, reporter=Silent()), psycopg.connect(database, autocommit=True) as other:
        other.execute("SET lock_timeout = '2s'")
        other.execute("VACUUM (ANALYZE)")
        other.execute("SELECT * FROM callipper.training_lock")
        row = other.execute(
            "SELECT backend_xid, backend_xmin FROM pg_stat_activity WHERE state = 'idle in transaction' AND pid = %s",
            holders(database),
        ).fetchone()
        assert row == (None, None)  # so VACUUM cleans up behind a run


def test_timeouts_of_the_role_do_not_end_it(database: str) -> None:
    with user_session(database) as connection:
        name = sql.Identifier(connection.info.dbname)
        for setting in ("idle_in_transaction_session_timeout", "idle_session_timeout", "statement_timeout"):
            connection.execute(sql.SQL("ALTER DATABASE {} SET {} = '200ms'").format(name, sql.Identifier(setting)))
    with only_trainer(database, wait=False, reporter=Silent()) as check:
        with psycopg.connect(database) as idle:  # another that the timeout ends, so that we know it has passed
            idle.execute("SELECT")
            wait_for(lambda: not is_alive(idle))
        check()


def is_alive(connection: psycopg.Connection[tuple[object, ...]]) -> bool:
    try:
        next(connection.notifies(timeout=0.1), None)
    except psycopg.OperationalError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_goes_with_its_holder(town: str, tmp_path: Path, number: signal.Signals) -> None:
    with user_session(town) as connection, running(tmp_path, "train", "--dsn", town, "--no-text-tower") as run:
        connection.execute("LOCK TABLE callipper.poi IN ACCESS EXCLUSIVE MODE")
        wait_for(lambda: holders(town))
        run.end(number)
        connection.rollback()
        wait_for(lambda: not holders(town))
    free(town)


def test_a_lock_that_was_lost_is_noticed(database: str) -> None:
    with only_trainer(database, wait=False, reporter=Silent()) as check:
        with psycopg.connect(database, autocommit=True) as admin:
            admin.execute("SELECT pg_terminate_backend(%s)", holders(database))
        wait_for(lambda: not holders(database))
        with pytest.raises(ConnectionLost):
            check()


def test_the_lock_is_that_of_the_page(database: str) -> None:
    """The way to keep training away that docs/operations.md describes."""
    with psycopg.connect(database) as owner:
        owner.execute(LOCK.encode())
        with pytest.raises(TrainerBusy):
            free(database)
