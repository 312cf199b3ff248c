"""How long each part of a run takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Stopwatch:
    """Seconds of wall clock by the name of the part; what comes back to a part is added."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Add the seconds of the block."""
        started = time.monotonic()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - started

    def rounded(self) -> dict[str, float]:
        """To hundredths, for people and for JSON."""
        return {part: round(seconds, 2) for part, seconds in self.seconds.items()}
