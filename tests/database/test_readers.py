"""Many readers while models come and go: none waits, none sees two versions in one statement."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel

from callipper_db import models, schema
from callipper_db.errors import DatabaseFailed
from callipper_db.progress import Silent
from callipper_trainer.refresh.refresh import refresh
from callipper_trainer.text_encoder import TextEncoder
from clones import clone_model
from processes import wait_for
from sessions import user_session
from town import MIDDLE

# READERS and ACTIVATIONS of the suite, and of make crowd, which takes five minutes.
SHORT, WHOLE = (4, 5), (20, 50)
# That a reader waits for a lock, at most. Behind an idle transaction it would wait for ever.
PATIENCE = "200ms"
# Commands ask for locks for 50 ms at a time. Next to another test process, a session that holds one may not get its turn for
# longer: this share of the suite's statements may give up. make crowd, which runs alone, allows none.
LATE = 1 / 1000
HERE = f"ST_SetSRID(ST_Point({MIDDLE[0]}, {MIDDLE[1]}), 4326)"
# Each gives pairs that are equal within one version. The town's texts are remembered; no text goes through a transformer.
QUESTIONS = {
    "search and cells": "SELECT s.similarity, -(c.emb <#> text_embed('park'))"
    " FROM search('park', 5) s JOIN cells c USING (cell_id)",
    "with ordinality": "SELECT s.similarity, -(c.emb <#> text_embed('cafe'))"
    " FROM search('cafe', 5) WITH ORDINALITY s JOIN cells c USING (cell_id)",
    "search and points": "SELECT s.similarity, -(p.emb <#> text_embed('park'))"
    " FROM search_points('park', 5) s JOIN points p USING (point_id)",
    "a place and cells": f"SELECT s.similarity, -(c.emb <#> loc_embed({HERE}))"
    f" FROM similar_to({HERE}, 5) s JOIN cells c USING (cell_id)",
    "texts of a place": f"SELECT d.similarity, -(text_embed(d.text) <#> loc_embed({HERE})) FROM describe({HERE}, 5) d",
    "texts and places of rows": "SELECT text_similarity(t.text, p.geom), -(text_embed(t.text) <#> loc_embed(p.geom))"
    " FROM unnest(ARRAY['park', 'cafe']) t(text),"
    " (SELECT geom FROM callipper.poi ORDER BY poi_id LIMIT 3) p",
    "in a subquery": "SELECT (SELECT similarity FROM search('school', 1)),"
    " (SELECT -(emb <#> text_embed('school')) FROM cells WHERE cell_id = (SELECT cell_id FROM search('school', 1)))",
}


class Heard(Silent):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def versions(town: str) -> list[int]:
    """The town's model, which is active, and copies of it in spaces of their own."""
    with user_session(town) as connection:
        return [1, *(clone_model(connection, 1, shift) for shift in (1, 20, 50))]


@contextmanager
def reader(dsn: str, isolation: IsolationLevel = IsolationLevel.READ_COMMITTED) -> Iterator[psycopg.Connection[Any]]:
    """A user's session, which gives up when it waits for a lock."""
    with psycopg.connect(dsn) as connection:
        connection.execute(f"SET lock_timeout = '{PATIENCE}'")
        connection.commit()
        connection.isolation_level = isolation
        yield connection


def check(rows: list[tuple[float, float]]) -> None:
    assert rows, "no rows: the two sides are of different versions"
    for one, other in rows:
        assert one == pytest.approx(other, abs=1e-5), "the two sides are of different versions"


def ask_all(connection: psycopg.Connection[Any], prepare: bool = False) -> None:
    for question in QUESTIONS.values():
        check(connection.execute(question.encode(), prepare=prepare).fetchall())


def active(connection: psycopg.Connection[Any]) -> int:
    """The version that the views show: the one whose cells are as theirs."""
    ((version,),) = connection.execute(
        "SELECT e.version FROM callipper.cell_embedding e JOIN cells c USING (cell_id)"
        " WHERE e.emb = c.emb AND cell_id = (SELECT min(cell_id) FROM cells)"
    ).fetchall()
    return int(version)


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
@pytest.mark.parametrize("isolation", [IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ])
def test_a_transaction_across_an_activation(
    town: str, versions: list[int], question: str, isolation: IsolationLevel
) -> None:
    """Also with plans that were made before, or in the old transaction."""
    with reader(town, isolation) as session:
        for prepare in (False, True):
            models.activate_model(town, versions[0])
            before = active(session)
            check(session.execute(question.encode(), prepare=prepare).fetchall())
            models.activate_model(town, versions[1])
            for _ in range(2):
                check(session.execute(question.encode(), prepare=prepare).fetchall())
            if isolation is IsolationLevel.REPEATABLE_READ:
                assert active(session) == before == versions[0], "it keeps its version"
            session.commit()
            check(session.execute(question.encode(), prepare=prepare).fetchall())
            assert active(session) == versions[1], "the next transaction does not"
            session.commit()


def change_pois(dsn: str) -> None:
    with user_session(dsn) as connection:
        connection.execute("UPDATE callipper.poi SET category = 'park' WHERE poi_id % 10 = 0 AND source = 'town'")


@pytest.mark.parametrize("isolation", [IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ])
def test_a_transaction_across_a_refresh(town: str, encoder: TextEncoder, isolation: IsolationLevel) -> None:
    """All its statements are sound but one: a prepared one of READ COMMITTED, whose plan has a place's embedding in it."""
    with reader(town, isolation) as plain, reader(town, isolation) as prepared:
        sessions = {plain: False, prepared: True}
        before = {session: place_and_cells(session, prepare) for session, prepare in sessions.items()}
        for session, prepare in sessions.items():
            ask_all(session, prepare)
        change_pois(town)
        refresh(town, Silent(), text_encoder=encoder.name)
        ask_all(plain)
        if isolation is IsolationLevel.REPEATABLE_READ:
            ask_all(prepared, prepare=True)
            assert before == {session: place_and_cells(session, prepare) for session, prepare in sessions.items()}
        for session, prepare in sessions.items():
            session.commit()
            ask_all(session, prepare)
            assert place_and_cells(session, prepare) != before[session], "the refresh has changed nothing here"


def place_and_cells(connection: psycopg.Connection[Any], prepare: bool) -> list[tuple[Any, ...]]:
    return connection.execute(QUESTIONS["a place and cells"].encode(), prepare=prepare).fetchall()


def test_a_plan_of_an_old_transaction_is_not_kept(town: str, versions: list[int]) -> None:
    statements = {
        "nearest": "SELECT array_agg(cell_id), max(emb::text)"
        " FROM (SELECT * FROM cells ORDER BY emb <-> text_embed('park') LIMIT 3) c",
        "text": "SELECT text_embed('park')::text",
        "place": f"SELECT loc_embed({HERE})::text",
    }
    with reader(town, IsolationLevel.REPEATABLE_READ) as session:
        session.execute("SELECT 1 FROM callipper.model")
        models.activate_model(town, versions[1])
        for name, statement in statements.items():
            session.execute(f"PREPARE {name} AS {statement}".encode())
        old = {name: session.execute(f"EXECUTE {name}".encode()).fetchall() for name in statements}
        assert old == {name: session.execute(f"EXECUTE {name}".encode()).fetchall() for name in statements}
        session.commit()
        for name, statement in statements.items():
            found = session.execute(f"EXECUTE {name}".encode()).fetchall()
            assert found != old[name]
            assert found == session.execute(statement.encode()).fetchall()


def test_a_function_that_activates_asks_the_new_version(town: str, versions: list[int]) -> None:
    with psycopg.connect(town) as session:
        session.execute(
            "DO $$ BEGIN"
            f" PERFORM activate({versions[1]}); PERFORM set_config('test.first', text_embed('park')::text, false);"
            f" PERFORM activate({versions[2]}); PERFORM set_config('test.second', text_embed('park')::text, false);"
            " END $$"
        )
        found = session.execute("SELECT current_setting('test.first'), current_setting('test.second')").fetchone()
        expected = session.execute(
            "SELECT text_embed('park', %s)::text, text_embed('park', %s)::text", versions[1:3]
        ).fetchone()
        assert found == expected


@pytest.mark.parametrize("isolation", [IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ])
def test_a_version_that_is_dropped_under_an_old_transaction(
    town: str, versions: list[int], isolation: IsolationLevel
) -> None:
    with reader(town, isolation) as session:
        session.execute("SELECT count(*) FROM callipper.model")
        models.activate_model(town, versions[1])
        models.drop_model(town, versions[0])
        if isolation is IsolationLevel.REPEATABLE_READ:
            for question in QUESTIONS.values():
                with pytest.raises(psycopg.errors.SerializationFailure, match="version 1 was dropped after") as caught:
                    session.execute(question.encode())
                assert caught.value.diag.message_hint == "Begin a new transaction."
                session.rollback()
                session.execute("SELECT 1")
                break
        ask_all(session)


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_an_idle_reader_is_in_nobodys_way(town: str, versions: list[int], question: str) -> None:
    """Neither activate() nor drop_model() of another version waits for it, and nobody waits behind them."""
    with reader(town) as idle, reader(town) as other:
        for _ in range(8):  # then a function's plans are generic ones, which lock all that they name
            idle.execute(question.encode())
        with psycopg.connect(town, autocommit=True) as owner:
            owner.execute("SET lock_timeout = '2s'")
            owner.execute("SELECT activate(%s)", [versions[1]])
            owner.execute("SELECT drop_model(%s)", [versions[2]])
            ask_all(other)
            other.commit()
            with pytest.raises(psycopg.errors.LockNotAvailable, match="model version 1 is still being read") as caught:
                owner.execute("SET lock_timeout = '300ms'; SELECT drop_model(1)")
            assert str(idle.info.backend_pid) in (caught.value.diag.message_hint or "")
            ask_all(other)
            assert [row for (row,) in owner.execute("SELECT version FROM callipper.model ORDER BY 1")] == [
                versions[0],
                versions[1],
                versions[3],
            ]
            other.commit()
            idle.rollback()
            # What the idle one has kept from going goes now.
            owner.execute("SELECT drop_model(1)")
            pattern = f"dropped|_v(1|{versions[2]})$"
            left = owner.execute(
                "SELECT relname FROM pg_class WHERE relnamespace = 'callipper'::regnamespace AND relname ~ %s",
                [pattern],
            ).fetchall()
            assert left == []


def test_no_reader_waits_for_a_drop_that_waits(town: str, versions: list[int]) -> None:
    """The drop cannot get its locks: an idle reader holds the tables of all versions, and the partitions of version 1."""
    with (
        reader(town) as idle,
        reader(town) as other,
        psycopg.connect(town, autocommit=True) as owner,
        ThreadPoolExecutor(1) as pool,
    ):
        ask_all(idle)
        whole = "SELECT count(*) > 0 FROM callipper.cell_embedding WHERE version = 1"
        idle.execute(whole)
        owner.execute("SET lock_timeout = '2s'")
        owner.execute("SELECT activate(%s)", [versions[1]])
        for version in (versions[2], 1):
            drop = pool.submit(owner.execute, "SELECT drop_model(%s)", [version])
            asked = 0
            while not drop.done() or not asked:
                assert other.execute("SELECT count(*) FROM search('park', 5, model => 1)").fetchone() == (5,)
                assert other.execute(whole).fetchone() == (True,)
                other.commit()
                asked += 1
            if version == 1:
                with pytest.raises(psycopg.errors.LockNotAvailable, match="model version 1 is still being read"):
                    drop.result()
            else:
                drop.result()


def test_init_waits_for_an_idle_reader_and_nobody_for_init(
    town: str, versions: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = (
        "SELECT FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    with (
        reader(town) as idle,
        reader(town) as other,
        psycopg.connect(town, autocommit=True) as watcher,
        ThreadPoolExecutor(1) as pool,
    ):
        monkeypatch.setattr(schema, "SILENT_S", 0.05)
        heard = Heard()
        idle.execute("SELECT count(*) FROM callipper.cells")
        init = pool.submit(schema.init, town, reporter=heard)
        try:
            wait_for(lambda: init.done() or watcher.execute(tries).fetchone() is not None)
            wait_for(lambda: init.done() or heard.notes)
            for _ in range(3):
                ask_all(other)
                other.commit()
            assert not init.done()
        finally:
            idle.rollback()
        init.result()
        asked = r"in a transaction for \d+ s, idle after: SELECT count.* FROM callipper.cells"
        who = rf"process {idle.info.backend_pid} of \w+, {asked}"
        vacuum = r"(; process \d+ of autovacuum worker, .*)?"  # may be at the same tables
        assert re.fullmatch(f"Waiting for {who}{vacuum}", heard.notes[0])
        ask_all(other)
        other.commit()
        monkeypatch.setattr(schema, "PATIENCE_S", 0.0)
        idle.execute("SELECT count(*) FROM callipper.cells")
        with pytest.raises(
            DatabaseFailed, match=f"an open transaction reads or writes what init replaces.* It is {who}"
        ):
            schema.init(town)


def test_init_says_which_run_it_waits_for(town: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And names no reader, who is not in its way here."""
    monkeypatch.setattr(schema, "SILENT_S", 0.05)
    heard = Heard()
    with psycopg.connect(town) as run, reader(town) as idle, ThreadPoolExecutor(1) as pool:
        idle.execute("SELECT count(*) FROM callipper.model")
        run.execute("LOCK TABLE callipper.model IN ROW EXCLUSIVE MODE")
        init = pool.submit(schema.init, town, reporter=heard)
        try:
            wait_for(lambda: init.done() or heard.notes)
            assert not init.done()
        finally:
            run.rollback()
            idle.rollback()
        init.result()
        (note,) = heard.notes
        assert note.startswith(f"Waiting for process {run.info.backend_pid} of ")
        assert ";" not in note


@dataclass
class Crowd:
    """What the readers have met."""

    dsn: str
    stop: threading.Event = field(default_factory=threading.Event)
    refreshes: int = 0  # begun and ended ones: an odd number while one is at work
    statements: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    longest_s: float = 0.0

    def read(self, number: int) -> None:
        isolation = IsolationLevel.REPEATABLE_READ if number % 2 else IsolationLevel.READ_COMMITTED
        with reader(self.dsn, isolation) as session:
            turns = cycle(QUESTIONS)
            while not self.stop.is_set():
                try:
                    self._transaction(session, list(islice(turns, 3)), prepare=number % 4 < 2)
                except psycopg.Error as error:
                    session.rollback()
                    self.errors[f"{error.sqlstate} {error.diag.message_primary}"] += 1
                except AssertionError as error:
                    self.wrong.append(f"{isolation.name}: {error}")
                    self.stop.set()

    def _transaction(self, session: psycopg.Connection[Any], names: list[str], *, prepare: bool) -> None:
        texts = set()
        since = self.refreshes
        for name in names:
            if not prepare:
                since = self.refreshes
            began = time.monotonic()
            rows = session.execute(QUESTIONS[name].encode(), prepare=prepare).fetchall()
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            self.statements[name] += 1
            # READ COMMITTED promises less about loc_embed() of a constant while a refresh commits, and to a prepared statement
            # until its transaction ends: see test_a_transaction_across_a_refresh.
            undisturbed = self.refreshes == since and since % 2 == 0
            if session.isolation_level is IsolationLevel.REPEATABLE_READ or undisturbed:
                check(rows)
            texts |= set(session.execute("SELECT text_embed('park')::text").fetchall())
        if session.isolation_level is IsolationLevel.REPEATABLE_READ:
            assert len(texts) == 1, "the transaction has changed its version"
        session.commit()


def test_a_crowd_of_readers(
    town: str, encoder: TextEncoder, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over activations, drops of what was active before, and a refresh, with one more reader idle in a transaction."""
    whole = pytestconfig.getoption("--whole-crowd")
    readers, activations = WHOLE if whole else SHORT
    crowd = Crowd(town)
    threads = [threading.Thread(target=crowd.read, args=(number,)) for number in range(readers)]
    with reader(town) as idle:
        ask_all(idle)
        for thread in threads:
            thread.start()
        try:
            _change_models(town, crowd, activations, lambda: refresh(town, Silent()))
        finally:
            crowd.stop.set()
            for thread in threads:
                thread.join()
        check(idle.execute(QUESTIONS["search and cells"].encode()).fetchall())
    asked = sum(crowd.statements.values())
    late = sum(count for error, count in crowd.errors.items() if error.startswith("55P03"))
    with capsys.disabled():
        sys.stdout.write(
            f"\n{asked} statements of {readers} readers over {activations} activations,"
            f" longest {1000 * crowd.longest_s:.0f} ms, {late} waited {PATIENCE} for a lock; errors: {dict(crowd.errors)}\n"
        )
    assert crowd.wrong == []
    assert late <= (0 if whole else max(1, asked * LATE))
    expected = ("40001 model version", "55P03")
    assert [error for error in crowd.errors if not error.startswith(expected)] == []
    assert min(crowd.statements[name] for name in QUESTIONS) > readers


def _change_models(dsn: str, crowd: Crowd, activations: int, renew: Callable[[], object]) -> None:
    before: int | None = None
    for number in range(activations):
        if crowd.stop.is_set():
            return
        with user_session(dsn) as connection:
            version = clone_model(connection, 1, 1 + number % 100)
        models.activate_model(dsn, version)
        if before is not None:
            models.drop_model(dsn, before)
        before = version
        if number == activations // 2:
            change_pois(dsn)
            crowd.refreshes += 1
            renew()
            crowd.refreshes += 1
