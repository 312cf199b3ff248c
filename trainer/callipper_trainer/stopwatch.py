"""The time that each stage of a run takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Stopwatch:
    """Wall-clock seconds by stage. Repeated stages are added up."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Add the seconds of the block."""
        started = time.monotonic()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - started

    def rounded(self) -> dict[str, float]:
        """The seconds, rounded to hundredths."""
        return {part: round(seconds, 2) for part, seconds in self.seconds.items()}
