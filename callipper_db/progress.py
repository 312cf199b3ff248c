"""Progress of long work. A job gets a Reporter; a function that only copies rows gets its method `advance`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

Advance = Callable[[int], None]  # called with the units of work done since the last call


class Reporter(Protocol):
    """Receives the progress of one job."""

    def stage(self, name: str, total: int | None = None) -> None:
        """A stage begins; total: its units of work, if known."""

    def advance(self, units: int, **figures: float) -> None:
        """`units` of work are done; figures such as loss=1.2 are shown next to the bar."""

    def epoch(self, figures: dict[str, Any]) -> None:
        """An epoch of training has ended."""

    def note(self, message: str) -> None:
        """Something that the user should know."""


class Silent:
    """A reporter that ignores all progress."""

    def stage(self, name: str, total: int | None = None) -> None:
        """Say nothing."""

    def advance(self, units: int, **figures: float) -> None:
        """Say nothing."""

    def epoch(self, figures: dict[str, Any]) -> None:
        """Say nothing."""

    def note(self, message: str) -> None:
        """Say nothing."""


def silent(units: int) -> None:
    """An Advance that ignores all progress."""
