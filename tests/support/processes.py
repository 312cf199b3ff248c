"""The command line in processes of its own, to be killed.

They are forked from a server that has imported torch already, which alone takes seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["callipper_trainer.train", "callipper_db.cli.main", "torch._dynamo"])


def wait_for(condition: Callable[[], Any], seconds: float = 180) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


class Command:
    """A running callipper-db; what it says goes to a file in its home."""

    def __init__(self, home: Path, *arguments: str) -> None:
        home.mkdir(exist_ok=True)
        self.log = home / "said.txt"
        self.log.write_text("")
        self.process = CONTEXT.Process(target=_main, args=(arguments, home, self.log))
        self.process.start()

    @property
    def said(self) -> list[str]:
        return self.log.read_text().splitlines(keepends=True)

    @property
    def complaint(self) -> str:
        """All that it said but its progress."""
        progress = (
            "reading ",
            "encoding ",
            "finding ",
            "summing ",
            "counting ",
            "training",
            "epoch ",
            "cutting ",
            "embedding ",
            "writing ",
            "activating",
            "{",
        )
        return "".join(line for line in self.said if not line.startswith(progress))

    def hear(self, beginning: str) -> None:
        """Wait until it says a line."""

        def heard() -> bool:
            assert self.process.is_alive(), self.said
            return any(line.startswith(beginning) for line in self.said)

        wait_for(heard)

    def end(self, number: signal.Signals | None = None) -> int | None:
        """Send a signal and wait for the end; the exit code."""
        if number is not None and self.process.pid is not None:
            os.kill(self.process.pid, number)
        self.process.join(60)
        return self.process.exitcode


@contextmanager
def running(home: Path, *arguments: str) -> Iterator[Command]:
    """A command that is killed at the end unless it has ended itself."""
    command = Command(home, *arguments)
    try:
        yield command
    finally:
        command.process.kill()
        command.process.join()


def _main(arguments: tuple[str, ...], home: Path, log: Path) -> None:
    from callipper_db.cli.main import main

    os.environ["CALLIPPER_HOME"] = str(home)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["callipper-db", *arguments]
    main(arguments)
