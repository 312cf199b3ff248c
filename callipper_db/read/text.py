"""Text files: gzip or not, UTF-8 with bad bytes marked, lines of bounded length."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from callipper_db.errors import BadInput
from callipper_db.read.record import BAD_BYTE

MAX_LINE = 1_000_000  # characters
CHUNK = 262_144  # characters read at once

codecs.register_error(
    "callipper-mark",
    lambda error: (BAD_BYTE, error.end if isinstance(error, UnicodeDecodeError) else 0),
)


@contextmanager
def open_text(path: Path) -> Iterator[tuple[io.TextIOWrapper, BinaryIO]]:
    """The text of a file, and the file itself, whose position tells how much is read.

    Raises BadInput for a broken gzip stream, also while the text is read.
    """
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream = gzip.GzipFile(fileobj=file) if packed else file
            yield io.TextIOWrapper(cast(BinaryIO, stream), "utf-8-sig", errors="callipper-mark", newline=""), file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadInput(path=path, reason=f"the gzip stream is broken ({error}); fetch the file again") from error


class Lines:
    """Lines with their ends, one by one for csv.reader or many at once; what is taken can be given back."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._ready: deque[str] = deque()
        self._rest = ""
        self.number = 0  # of the last line given out
        self.taken: list[str] = []  # since the record began

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        if not self._ready and not self._refill():
            raise StopIteration
        line = self._ready.popleft()
        self.number += 1
        self.taken.append(line)
        return line

    def begin(self) -> None:
        """A new record starts with the next line."""
        self.taken = []

    def give_back_all_but_one(self) -> None:
        """Only the first line of the record is spoilt; the others get another chance."""
        self._ready.extendleft(reversed(self.taken[1:]))
        self.number -= len(self.taken) - 1

    def take_many(self) -> list[str]:
        """All lines at hand; none at the end of the file."""
        if not self._ready:
            self._refill()
        lines = list(self._ready)
        self._ready.clear()
        self.number += len(lines)
        return lines

    def give_back(self, lines: list[str]) -> None:
        self._ready.extendleft(reversed(lines))
        self.number -= len(lines)

    def _refill(self) -> bool:
        """Read on; False at the end. Of a line over MAX_LINE only the beginning is kept."""
        while not self._ready:
            chunk = self._text.read(CHUNK)
            if not chunk and not self._rest:
                return False
            self._ready.extend(io.StringIO(self._rest + chunk, newline=""))
            self._rest = self._ready.pop() if chunk else ""
            if not self._rest.endswith("\n"):
                self._rest = self._rest[:MAX_LINE]
        return True
