"""The items of one large JSON document, one by one, in bounded memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from callipper_db.read.record import BAD_BYTE, BAD_JSON, BAD_UTF8, FEATURE_TOO_LONG, TOO_DEEP
from callipper_db.read.text import Text

MAX_ITEM = 1_000_000  # characters
ESCAPED = re.compile(r"\\.", re.DOTALL)
LOOK_AHEAD = 200  # characters
FIRST_PIECE = 1000  # characters in which the end of a value is looked for first
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
SPACE = re.compile(r"[ \t\r\n]*")

# A control character inside a text is no reason to refuse the file. Rows with NUL are refused later.
_raw_decode = json.JSONDecoder(strict=False).raw_decode


class NotJson(Exception):
    """The document is not JSON from this position on."""


class Item(NamedTuple):
    """A value of the document and its text."""

    value: Any
    raw: str
    problem: str | None = None  # why there is no value


class Stream:
    """A cursor in the text of a document."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._buffer = ""
        self._at = 0
        self._ended = False

    def peek(self) -> str:
        """The next character that is no white space; '' at the end."""
        while True:
            self._at = SPACE.match(self._buffer, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._buffer) or not self._more():
                return self._buffer[self._at : self._at + 1]

    def take(self, *characters: str) -> str:
        """Step over one of these. Raises NotJson."""
        found = self.peek()
        if found not in characters or not found:
            expected = " or ".join(f"'{character}'" for character in characters)
            raise NotJson(f"{expected} expected{f' and not {found!r}' if found else ', and the file ends'}")
        self._at += 1
        return found

    def item(self) -> Item:
        """The next value. A value that is too long, too deep or not JSON is skipped. Raises NotJson if its end is not found."""
        self.peek()
        while True:
            try:
                value, end = _raw_decode(self._buffer, self._at)
            except RecursionError:
                return self._step_over(TOO_DEEP)
            except ValueError as error:
                if len(self._buffer) - self._at <= MAX_ITEM and self._more():
                    continue
                if not self._buffer[self._at : self._at + 1]:
                    raise NotJson("the file ends too early") from error
                return self._step_over(BAD_JSON)
            if end == len(self._buffer) and self._more():  # the number may continue in the next piece
                continue
            raw = self._buffer[self._at : end]
            self._at = end
            if len(raw) > MAX_ITEM:
                return Item(None, raw[:MAX_ITEM], FEATURE_TOO_LONG)
            return Item(value, raw, BAD_UTF8 if BAD_BYTE in raw or _has_lone_surrogate(value, raw) else None)

    def members(self) -> Iterator[str]:
        """The keys of an object. After each key, the caller takes its value."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        while True:
            key = self.item().value
            self.take(":")
            yield str(key)
            if self.take(",", "}") == "}":
                return

    def elements(self) -> Iterator[None]:
        """Stops before each item of an array. There, the caller takes it."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield
            if self.take(",", "]") == "]":
                return

    def begins(self, pattern: re.Pattern[str]) -> bool:
        """Whether the next value begins so, in its first LOOK_AHEAD characters."""
        self.peek()
        while len(self._buffer) - self._at < LOOK_AHEAD and self._more():
            pass
        return pattern.match(self._buffer, self._at) is not None

    def _more(self) -> bool:
        """Read on."""
        chunk = "" if self._ended else self._text.read()
        self._ended = not chunk
        self._buffer = self._buffer[self._at :] + chunk
        self._at = 0
        return bool(chunk)

    def _step_over(self, problem: str) -> Item:
        """Skip the next value by its brackets and quotes alone. At most MAX_ITEM characters of it are kept."""
        kept, length, depth, in_string = "", 0, 0, False
        while True:
            end, depth, in_string = _end_of_value(self._buffer, self._at, depth, in_string)
            kept += self._buffer[self._at : min(end, self._at + MAX_ITEM - len(kept))]
            length += end - self._at
            done = depth == 0 and not in_string and length > 0
            self._at = end
            if done:
                return Item(None, kept, FEATURE_TOO_LONG if length > MAX_ITEM else problem)
            if not self._more():
                raise NotJson("the file ends inside a feature")


def _end_of_value(text: str, at: int, depth: int, in_string: bool) -> tuple[int, int, bool]:
    """Where a value ends, or the end of the text; the depth and whether a string is open there.

    The last character is left for the next piece if it may escape the one behind it.
    """
    size = FIRST_PIECE
    while at < len(text):
        piece = ESCAPED.sub("__", text[at : at + size]).removesuffix("\\")
        if not piece:
            break
        end, depth, in_string = _end_in(piece, depth, in_string)
        if end is not None:
            return at + end, depth, in_string
        at += len(piece)
        size *= 4
    return at, depth, in_string


def _end_in(piece: str, depth: int, in_string: bool) -> tuple[int | None, int, bool]:
    """The same for a piece without escaped characters; None if the value does not end there.

    All brackets are counted at once, because a hostile file may consist of them.
    """
    codes = np.frombuffer(piece.encode("utf-32-le", "surrogatepass"), "<u4")
    quote = codes == ord('"')
    inside = (np.cumsum(quote) + in_string) % 2 == 1  # behind an opening quote, up to the closing one
    lower = codes | (ord("{") - ord("["))  # brackets and braces count alike
    step = np.where(inside, 0, (lower == ord("{")).astype(np.int8) - (lower == ord("}")))
    levels = depth + np.cumsum(step, dtype=np.int64)
    ends = np.flatnonzero((levels <= 0) & ~inside & (quote | (step != 0)))
    if len(ends):
        return int(ends[0]) + 1, 0, False
    return None, int(levels[-1]), bool(inside[-1])


def _has_lone_surrogate(value: Any, raw: str) -> bool:
    if not SURROGATE.search(raw):
        return False
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return True
    return False
