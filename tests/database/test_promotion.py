"""The primary dies in the middle of a command, and its standby is promoted: the command says so in one sentence, what was
active answers on the new primary, and the same command finishes there. The DSN names both servers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from callipper_db.server import EmbeddedServer
from deployments import allow_standbys, kill_server, multi_host_dsn, promote, start_standby, wait_for_replay
from locks import locked, locked_row
from processes import running
from torture import PLACES, Town, gate, settle

COMMIT = "commit"
# Where a command is held: at a relation that it locks, reads or writes, or when it commits.
HELD = {
    "train": COMMIT,
    "refresh": "context_cell",
    "embed": "own.place",
    "activate": COMMIT,
    "drop": "model",
    "load": COMMIT,
}


@dataclass
class Replicated:
    """A town on a primary with a hot standby. After a promotion the standby is the primary, and a new one follows it."""

    town: Town
    home: Path
    standbys: list[EmbeddedServer] = field(default_factory=list)

    def follow(self) -> None:
        """Start a standby of the server that the town is on, and name both in the town's DSN."""
        self.standbys.append(start_standby(self.town.server, self.home / f"standby{len(self.standbys)}"))
        self.town.dsn = multi_host_dsn([self.town.server, self.standbys[-1]])
        wait_for_replay(self.town.server, self.standbys[-1])

    def fail_over(self) -> None:
        """Kill the primary, and promote the standby."""
        wait_for_replay(self.town.server, self.standbys[-1])
        kill_server(self.town.server)
        promote(self.standbys[-1])
        self.town.server = self.standbys[-1]


@pytest.fixture(scope="module")
def replicated(module_folder: Path) -> Iterator[Replicated]:
    town = Town(module_folder)
    found = Replicated(town, module_folder)
    try:
        allow_standbys(town.server)
        yield found
    finally:
        for server in [town.server, *found.standbys]:
            server.stop()


@contextmanager
def held(dsn: str, at: str) -> Iterator[Callable[[], None]]:
    """Nobody gets on there until the server goes down with its locks. Yields what waits until somebody tries."""
    with suppress(psycopg.OperationalError):
        if at == COMMIT:
            with gate(dsn) as (wait_until_held, _):
                yield wait_until_held
        else:
            with locked_row(dsn, at, PLACES) if "." in at else locked(dsn, at) as wait_until_held:
                yield wait_until_held


@pytest.mark.parametrize("command", HELD)
def test_a_promotion_in_the_middle(replicated: Replicated, tmp_path: Path, command: str) -> None:
    replicated.follow()
    town = replicated.town
    arguments, take_back = town.prepare(command)
    before = town.state()
    with running(tmp_path, *arguments, "--dsn", town.dsn) as run:
        with held(town.server.dsn(), HELD[command]) as wait_until_held:
            wait_until_held()
            replicated.fail_over()
        assert run.end() == 1
    *notes, error = run.complaint.splitlines()
    assert error.startswith("Error: The connection to the database was lost: "), run.said
    assert error.endswith("What was active before still is; run the same command again.")
    assert not any(line.startswith(("Error", "Traceback")) for line in notes), run.said
    after = town.state()
    if command == "embed":  # the first of its two chunks is committed and has reached the standby, the second was held
        assert after != before and after[:6] == before[:6]
    else:
        assert after == before
    again = ["--resume"] if command == "train" else []
    with running(tmp_path, *arguments, *again, "--dsn", town.dsn) as run:
        assert run.end() == 0, run.said
    settle(town.dsn)
    assert town.state() != before
    take_back()
