"""Progress for a person: a bar on a terminal, plain lines elsewhere, JSON lines on request."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from callipper_db.progress import Reporter

PLAIN_LINE_EVERY_S = 10.0
EPOCH_LINE_EVERY_S = 2.0


class TerminalReporter:
    """Bars on stderr. Each finished stage leaves a line. To be used as a context manager."""

    def __init__(self) -> None:
        self.progress = Progress(
            TextColumn("{task.description:<26}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.task: Any = None
        self.started = 0.0
        self.units = 0

    def __enter__(self) -> TerminalReporter:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finish()
        self.progress.stop()

    def stage(self, name: str, total: int | None = None) -> None:
        """Begin a bar."""
        self._finish()
        self.task = self.progress.add_task(name, total=total, figures="")
        self.started, self.units = time.monotonic(), 0

    def advance(self, units: int, **figures: float) -> None:
        """Move the bar."""
        self.units += units
        rate = self.units / max(time.monotonic() - self.started, 1e-3)
        shown = "  ".join([*(f"{name} {value:.3f}" for name, value in figures.items()), f"{rate:,.0f}/s"])
        self.progress.update(self.task, advance=units, figures=shown)

    def epoch(self, figures: dict[str, Any]) -> None:
        """Show the epoch in the bar's name."""
        self.progress.update(self.task, description=f"epoch {figures['epoch']}/{figures['epochs']}")

    def note(self, message: str) -> None:
        """Print above the bar."""
        self.progress.console.print(message, highlight=False)

    def _finish(self) -> None:
        if self.task is not None:
            task = self.progress.tasks[self.task]
            total = task.total or max(task.completed, 1)
            self.progress.update(self.task, total=total, completed=total)
            self.task = None


class PlainReporter:
    """Lines on stderr, for logs and pipes: one per stage, one per epoch, one every ten seconds."""

    def __init__(self) -> None:
        self.name, self.total, self.units = "", 0, 0
        self.started = self.spoken = time.monotonic()
        self.epoch_printed = 0.0

    def stage(self, name: str, total: int | None = None) -> None:
        """Print the stage's name."""
        self.name, self.total, self.units = name, total or 0, 0
        self.started = self.spoken = time.monotonic()
        click.echo(name + (f" ({total:,})" if total else ""), err=True)

    def advance(self, units: int, **figures: float) -> None:
        """Print the progress every ten seconds."""
        self.units += units
        now = time.monotonic()
        if now - self.spoken < PLAIN_LINE_EVERY_S:
            return
        self.spoken = now
        rate = self.units / max(now - self.started, 1e-3)
        left = f", {(self.total - self.units) / rate:.0f} s left" if self.total and rate else ""
        click.echo(
            f"{self.name}: {self.units:,}{f' of {self.total:,}' if self.total else ''}, {rate:,.0f}/s{left}", err=True
        )

    def epoch(self, figures: dict[str, Any]) -> None:
        """Print the figures of an epoch; not each when epochs are short."""
        now = time.monotonic()
        if now - self.epoch_printed < EPOCH_LINE_EVERY_S and figures["epoch"] not in (1, figures["epochs"]):
            return
        self.epoch_printed = now
        click.echo(
            f"epoch {figures['epoch']}/{figures['epochs']}: loss {figures['loss']:.3f}, validation"
            f" {figures['validation_loss']:.3f}, {figures['rows_per_s']:,} rows/s",
            err=True,
        )

    def note(self, message: str) -> None:
        """Print it."""
        click.echo(message, err=True)


class JsonReporter(PlainReporter):
    """JSON lines on stdout: one per stage, one per epoch, and the progress of a stage every ten seconds. Notes go to stderr."""

    def stage(self, name: str, total: int | None = None) -> None:
        """Print the stage's name."""
        self.name, self.total, self.units = name, total or 0, 0
        self._say()

    def advance(self, units: int, **figures: float) -> None:
        """Print the progress every ten seconds."""
        self.units += units
        if time.monotonic() - self.spoken >= PLAIN_LINE_EVERY_S:
            self._say(done=self.units)

    def epoch(self, figures: dict[str, Any]) -> None:
        """Print the line."""
        click.echo(json.dumps(figures))

    def _say(self, **figures: int) -> None:
        self.spoken = time.monotonic()
        click.echo(json.dumps({"stage": self.name, **figures} | ({"total": self.total} if self.total else {})))


def make_reporter(as_json: bool) -> AbstractContextManager[Reporter]:
    """The reporter for the present output: terminal, pipe or JSON."""
    if as_json:
        return nullcontext(JsonReporter())
    return TerminalReporter() if sys.stderr.isatty() else nullcontext(PlainReporter())


def print_note(message: str) -> None:
    """A sentence for a person, apart from the result."""
    click.echo(message, err=True)


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, default=str, ensure_ascii=False))


def print_list(
    found: Sequence[object], as_json: bool, nothing: str, columns: list[str], rows: Iterable[Iterable[object]]
) -> None:
    """What a command lists, as JSON or as a table; `nothing` says what to do where there is none."""
    if as_json:
        print_json(found)
    elif not found:
        click.echo(nothing)
    else:
        print_table(columns, rows)


def print_table(columns: list[str], rows: Iterable[Iterable[object]]) -> None:
    """A table on stdout. Without a terminal it is as wide as its content."""
    console = Console() if sys.stdout.isatty() else Console(width=120)
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text("" if value is None else str(value)) for value in row))  # names may hold [brackets]
    console.print(table)
