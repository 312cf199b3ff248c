"""What ends a run early: afterwards the model that was active answers as before, and the next run succeeds.

Each run is held at a point by a lock that the test has on a table, so that it is killed there and nowhere else.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from callipper_db import schema
from callipper_db.cli.main import Terminated, unwound_by_signals
from callipper_db.server import EmbeddedServer
from deployments import kill_server
from locks import locked, wait_until_alone
from processes import Command, running
from sessions import user_session
from town import CONFIG, GRID_M, contents, fill_town, train_town

QUICK = replace(CONFIG, epochs=1)


@contextmanager
def training(dsn: str, home: Path, *arguments: str) -> Iterator[Command]:
    # Without the text encoder in the database: it is installed once, before all else, and stays (test_text_encoder.py).
    options = ("--grid-size", f"{GRID_M}", "--no-text-tower", *arguments)
    with running(home, "train", "--dsn", dsn, *options) as command:
        yield command


def succeeds(dsn: str, folder: Path) -> None:
    """The next run does, and what it makes is dropped again."""
    before = contents(dsn)
    version = train_town(dsn, folder, QUICK).version
    assert contents(dsn)["active"][-1] == (version, "active")
    with user_session(dsn) as connection:
        connection.execute("SELECT callipper.activate(1)")
        connection.execute("SELECT callipper.drop_model(%s)", [version])
    assert contents(dsn) == before


# Reading, encoding; then the grid, the weights, the texts, the cells, the points, and the announcement at the very end.
@pytest.mark.parametrize("relation", ["poi", "text_vector", "cell", "context_cell", "cell_embedding", "change"])
def test_kill_leaves_the_active_model_as_it_was(module_town: str, tmp_path: Path, relation: str) -> None:
    before = contents(module_town)
    with training(module_town, tmp_path, "--epochs", "2") as run:
        with locked(module_town, relation) as wait_until_held:
            wait_until_held()
            assert run.end(signal.SIGKILL) == -signal.SIGKILL
        wait_until_alone(module_town)
    assert contents(module_town) == before
    succeeds(module_town, tmp_path)


def test_kill_during_an_epoch_and_resume(town: str, tmp_path: Path) -> None:
    before = contents(town)
    options = ("--epochs", "40", "--json")
    with locked(town, "cell"), training(town, tmp_path, *options) as run:  # locked: it never gets to publish
        run.hear('{"epoch": 3,')
        run.end(signal.SIGKILL)
    wait_until_alone(town)
    assert contents(town) == before
    with training(town, tmp_path, *options, "--resume") as run:
        assert run.end() == 0
    epochs = [json.loads(line)["epoch"] for line in run.said if line.startswith('{"epoch"')]
    assert epochs == list(range(epochs[0], 41))
    assert 4 <= epochs[0] < 40
    assert contents(town)["active"] == [(1, "ready"), (2, "active")]
    assert not list((tmp_path / "checkpoints").iterdir())
    with training(town, tmp_path, *options, "--resume") as run:
        assert run.end() == 1
    assert run.complaint.startswith("Error: There is nothing to resume")


def test_ctrl_c_during_publishing(module_town: str, tmp_path: Path) -> None:
    before = contents(module_town)
    with training(module_town, tmp_path, "--epochs", "2") as run:
        with locked(module_town, "change") as wait_until_held:
            wait_until_held()
            assert run.end(signal.SIGINT) == 1
        assert run.complaint.strip() == "Aborted!"
    wait_until_alone(module_town)
    assert contents(module_town) == before
    succeeds(module_town, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("relation", ["text_vector", "cell"])
def test_streamed_rows_go_with_the_run(module_town: str, tmp_path: Path, relation: str, number: signal.Signals) -> None:
    before = contents(module_town)
    with training(module_town, tmp_path, "--stream", "--epochs", "2") as run:
        with locked(module_town, relation) as wait_until_held:
            wait_until_held()
            assert list(tmp_path.glob("checkpoints/*.rows/*"))
            assert run.end(number) == (1 if number == signal.SIGINT else 128 + number)
            # The query that waited is cancelled, and not only left alone.
            wait_until_alone(module_town, others=1)
        assert run.complaint.strip() == ("Aborted!" if number == signal.SIGINT else "Terminated.")
    assert not list(tmp_path.glob("checkpoints/*.rows"))
    assert contents(module_town) == before


def test_sigterm_during_an_epoch(town: str, tmp_path: Path) -> None:
    with training(town, tmp_path, "--stream", "--epochs", "40", "--json") as run:
        run.hear('{"epoch": 2,')
        assert run.end(signal.SIGTERM) == 128 + signal.SIGTERM
    assert [path.suffix for path in (tmp_path / "checkpoints").iterdir()] == [".pt"]  # for --resume


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with unwound_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(Terminated):
                os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)  # a second one breaks nothing off
        assert (signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGTERM)) == (signal.SIG_IGN, signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("relation", ["text_vector", "cell_embedding"])
def test_a_lost_connection_is_one_sentence(module_town: str, tmp_path: Path, relation: str) -> None:
    before = contents(module_town)
    with training(module_town, tmp_path, "--epochs", "2") as run, locked(module_town, relation) as wait_until_held:
        wait_until_held()
        with psycopg.connect(module_town, autocommit=True) as admin:
            ended = admin.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'callipper-db'"
            ).fetchone()
        assert ended == (2,)
        assert run.end() == 1
    said = run.complaint
    assert said.startswith("Error: The connection to the database was lost: ")
    assert said.endswith("What was active before still is; run the same command again.\n")
    assert said.count("\n") == 1
    assert contents(module_town) == before
    succeeds(module_town, tmp_path)


def test_two_runs_at_once(town: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        with locked(town, "change") as wait_until_held:
            first = stack.enter_context(training(town, tmp_path / "first", "--epochs", "1"))
            wait_until_held()
            with training(town, tmp_path / "second", "--epochs", "1") as second:
                assert second.end() == 1
            assert second.complaint.startswith(
                "Error: Another training run is at work in this database (server process "
            )
            assert second.complaint.endswith("Wait for it, or add --wait.\n")
            assert second.complaint.count("\n") == 1
            third = stack.enter_context(training(town, tmp_path / "third", "--epochs", "1", "--wait"))
            third.hear("Another training run is at work in this database; waiting for it.")
        assert first.end() == 0
        assert third.end() == 0
    assert contents(town)["active"] == [(1, "ready"), (2, "ready"), (3, "active")]


def test_kill_of_the_server(shared_town: str, open_folder: Path, tmp_path: Path) -> None:
    server = EmbeddedServer(open_folder / "home", durable=False, root_area=open_folder / "area")
    server.start()
    try:
        dsn = server.dsn()
        schema.init(dsn)
        fill_town(dsn)
        copy_vectors(shared_town, dsn)
        train_town(dsn, tmp_path, QUICK)
        kill_server(server)  # right after the commit: what was published is there
        server.start()
        before = contents(dsn)
        assert before["active"] == [(1, "active")]
        with training(dsn, tmp_path, "--epochs", "2") as run, locked(dsn, "change") as wait_until_held:
            wait_until_held()
            kill_server(server)
            assert run.end() == 1
        assert run.complaint.startswith("Error: The connection to the database was lost: ")
        assert run.complaint.count("\n") == 1
        server.start()
        assert contents(dsn) == before
        succeeds(dsn, tmp_path)
    finally:
        server.stop()


def copy_vectors(source: str, target: str) -> None:
    """The vectors of all texts, so that the encoder need not be loaded."""
    with psycopg.connect(source) as read, psycopg.connect(target) as write:
        for table, columns in (
            ("text_encoder", "name, revision, dim, arch"),
            ("text_vector", "text_encoder_id, text, vec"),
        ):
            copied = read.cursor().copy(f"COPY (SELECT {columns} FROM callipper.{table}) TO STDOUT")
            with copied as rows, write.cursor().copy(f"COPY callipper.{table} ({columns}) FROM STDIN") as into:
                for row in rows:
                    into.write(row)
