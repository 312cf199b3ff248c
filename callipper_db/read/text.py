"""Text files: gzip or not, UTF-8 with bad bytes marked, lines of bounded length."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from callipper_db.errors import BadInput
from callipper_db.read.record import BAD_BYTE

MAX_LINE = 1_000_000  # characters
CHUNK = 262_144  # bytes read at once
HEAD = 65_536  # bytes from which the encoding is guessed
BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")
UNDEFINED_IN_1252 = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")

codecs.register_error(
    "callipper-mark", lambda error: (BAD_BYTE, error.end if isinstance(error, UnicodeDecodeError) else 0)
)


class Text:
    """The characters of a file, unpacked if it is gzip.

    Without `encoding`, the byte order mark decides, else the text is UTF-8. If the first bytes beyond ASCII are not UTF-8, the
    text is Windows-1252 (which includes Latin-1) from there on. Bytes that the encoding does not know become BAD_BYTE.
    """

    def __init__(self, file: BinaryIO, encoding: str | None = None, guess: bool = True) -> None:
        self.file = file
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        self._stream: BinaryIO = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file
        self._begun = self._stream.read(HEAD)
        self.encoding = encoding or _by_mark(self._begun)
        self._given = encoding is not None
        self._settled = encoding is not None or not guess or self.encoding != "utf-8-sig"
        self._decoder = codecs.getincrementaldecoder(self.encoding)("callipper-mark")

    def read(self, size: int = CHUNK) -> str:
        """About `size` characters; '' only at the end."""
        while True:
            data, self._begun = self._begun or self._stream.read(size), b""
            text = self._decode(data)
            if text or not data:
                return text

    @property
    def guessed(self) -> str | None:
        """The guessed encoding, if it is not UTF-8 and none was given."""
        names = {"cp1252": "Windows-1252", "utf-8-sig": None}
        return None if self._given else names.get(self.encoding, self.encoding.upper())

    def tell(self) -> int:
        """Bytes of the file on disk that have been read."""
        return self.file.tell()

    def _decode(self, data: bytes) -> str:
        if not self._settled and not data.isascii():
            self._settled = True
            if not data.startswith(codecs.BOM_UTF8) and is_windows_1252(data):
                self.encoding = "cp1252"
                self._decoder = codecs.getincrementaldecoder("cp1252")("callipper-mark")
        return self._decoder.decode(data, final=not data)


def is_windows_1252(data: bytes) -> bool:
    """Are most of the bytes beyond ASCII not UTF-8, and all of them characters of Windows-1252?"""
    # The last character may be incomplete.
    marked = codecs.getincrementaldecoder("utf-8")("callipper-mark").decode(data)
    bad = marked.count(BAD_BYTE)
    return 2 * bad > len(BEYOND_ASCII.findall(marked)) and not UNDEFINED_IN_1252.search(data)


def _by_mark(head: bytes) -> str:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    pairs = len(head) // 2
    if pairs > 4 and (head[1::2].count(0) > 0.4 * pairs) != (head[0::2].count(0) > 0.4 * pairs):
        return "utf-16-le" if head[1::2].count(0) > head[0::2].count(0) else "utf-16-be"
    return "utf-8-sig"


@contextmanager
def open_text(path: Path, encoding: str | None = None, guess: bool = True) -> Iterator[Text]:
    """The text of a file. Raises BadInput for a broken gzip stream, also while the text is read."""
    try:
        with open(path, "rb") as file:
            yield Text(file, encoding, guess)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadInput(path=path, reason=f"the gzip stream is broken ({error}); fetch the file again") from error


class Lines:
    """Lines with their ends, one by one for csv.reader or many at once. Lines that were taken can be given back."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._ready: deque[str] = deque()
        self._rest = ""
        self.number = 0  # of the last line that was taken
        self.taken: list[str] = []  # since the record began
        self._length = 0  # characters of these

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        if self._length > MAX_LINE:
            raise csv.Error("a record that is too long")  # its quotes could go on to the end of the file
        if not self._ready and not self._refill():
            raise StopIteration
        line = self._ready.popleft()
        self.number += 1
        self.taken.append(line)
        self._length += len(line)
        return line

    def begin(self) -> None:
        """A new record starts with the next line. It has MAX_LINE characters at most, and the rest of its last line."""
        self.taken, self._length = [], 0

    def give_back_all_but_one(self) -> None:
        """Keep only the first line of the record; the others are read again."""
        self._ready.extendleft(reversed(self.taken[1:]))
        self.number -= len(self.taken) - 1

    def take_many(self) -> list[str]:
        """All lines in memory; none at the end of the file."""
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
        """Read more; False at the end. Of a line longer than MAX_LINE, only the beginning is kept."""
        while not self._ready:
            chunk = self._text.read(CHUNK)
            if not chunk and not self._rest:
                return False
            self._ready.extend(io.StringIO(self._rest + chunk, newline=""))
            self._rest = self._ready.pop() if chunk else ""
            if not self._rest.endswith("\n"):
                self._rest = self._rest[:MAX_LINE]
        return True
