"""CSV, TSV and other delimited text."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from callipper_db.errors import BadInput
from callipper_db.read import geonames
from callipper_db.read.record import (
    BAD_BYTE,
    BAD_CSV,
    FIELD_TOO_LONG,
    LINE_TOO_LONG,
    WRONG_COLUMNS,
    Block,
    Reader,
    Record,
    Refused,
    Rows,
)
from callipper_db.read.text import MAX_LINE, Lines, Text, open_text

DELIMITERS = ",;\t|"
DECIMAL_COMMA = re.compile(r"\s*[-+]?(\d{1,3}(\.\d{3})+|\d+),\d+\s*")
COORDINATE = re.compile(r"[-+]?\d+[.,]\d+")  # a cell like this is no name in a header
SEPARATOR_LINE = re.compile(r'"?sep=.?"?\s*', re.IGNORECASE)  # a line that Excel puts before the header
COLUMNS_LIMIT = 10_000
LOOKED_AT = 200  # lines from which the decimal sign is learnt
SWALLOWED = 50_000_000  # characters that may be read twice in search of the end of a quoted field


@dataclass(frozen=True)
class Dialect:
    """How a line is divided into cells."""

    delimiter: str
    quoting: bool = True
    spaced: bool = False  # a space follows each delimiter, before the quotes

    def rows(self, lines: Iterator[str] | Sequence[str]) -> Iterator[list[str]]:
        """The cells of each row. Raises csv.Error where quotes do not pair up."""
        if self.quoting:
            return csv.reader(lines, delimiter=self.delimiter, strict=True, skipinitialspace=self.spaced)
        return csv.reader(lines, delimiter=self.delimiter, strict=True, quoting=csv.QUOTE_NONE)

    def literally(self, line: str) -> list[str]:
        """The cells of one line whose quotes are characters like others; none if one of them is too long."""
        try:
            return next(csv.reader([line], delimiter=self.delimiter, quoting=csv.QUOTE_NONE), [])
        except csv.Error:
            return []


@contextmanager
def open_delimited(path: Path, encoding: str | None = None, decimal: str | None = None) -> Iterator[Reader]:
    """A table with a header, or a dump of GeoNames, which has none.

    `decimal` is the user's decimal sign, "," or "."; without one, the first lines show it.
    """
    with open_text(path, encoding) as text:
        lines = Lines(text)
        first = _first_line(path, lines)
        delimiter = sniff_delimiter(path, first)
        dialect = Dialect(delimiter, spaced=all(cell.startswith(" ") for cell in first.split(delimiter)[1:]))
        if geonames.is_line(first):
            lines.give_back([first])
            reader = Reader(iter(()), geonames.NAMES, text.tell, provider="geonames")
            dialect = Dialect("\t", quoting=False)
        else:
            reader = Reader(iter(()), _header(path, dialect, first, lines), text.tell)
            reader.decimal = decimal or _decimal(dialect, lines)
        reader.blocks = _blocks(lines, dialect, reader, text)
        yield reader


def sniff_delimiter(path: Path, header: str) -> str:
    """The delimiter that the suffix implies, else the most frequent one in the header."""
    if any(suffix.lower() in {".tsv", ".tab"} for suffix in path.suffixes[-2:]):
        return "\t"
    outside_quotes = "".join(header.split('"')[::2])
    return max(DELIMITERS, key=outside_quotes.count)


def is_delimited(head: str) -> bool:
    """Does the beginning of a file look like a table: text whose first line has a delimiter?"""
    first = next(iter(io.StringIO(head)), "")
    return "\0" not in head and BAD_BYTE not in first and any(delimiter in first for delimiter in DELIMITERS)


def _first_line(path: Path, lines: Lines) -> str:
    first = _filled_line(lines)
    if SEPARATOR_LINE.fullmatch(first):
        first = _filled_line(lines)
    if not first:
        raise BadInput(path=path, reason="the file is empty")
    if "\0" in first or BAD_BYTE in first:
        reason = "the first line is not text in a known encoding; name it with --encoding, or save the file as UTF-8"
        raise BadInput(path=path, reason=reason)
    return first


def _filled_line(lines: Lines) -> str:
    """The next line that is not blank; "" at the end of the file."""
    for line in lines:
        lines.begin()
        if line.strip():
            return line
    return ""


def _header(path: Path, dialect: Dialect, first: str, lines: Lines) -> list[str]:
    """The names of the columns; column_1, column_2, ... where the first line is a row already."""
    try:
        names = next(iter(dialect.rows(_with_first(first, lines))))
    except (csv.Error, StopIteration) as error:
        raise BadInput(path=path, reason=f"the header line is not CSV ({error})") from error
    if sum(COORDINATE.fullmatch(name.strip()) is not None for name in names) >= 2:
        lines.give_back([first])
        return [f"column_{number}" for number in range(1, len(names) + 1)]
    names = [name.strip() or f"column_{number}" for number, name in enumerate(names, 1)]
    if len(names) > COLUMNS_LIMIT:
        raise BadInput(path=path, reason=f"the header has {len(names):,} columns, and {COLUMNS_LIMIT:,} can be read")
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        raise BadInput(path=path, reason=f"the header has {', '.join(twice)} more than once; rename the columns")
    return names


def _with_first(first: str, lines: Lines) -> Iterator[str]:
    yield first
    yield from lines


def _decimal(dialect: Dialect, lines: Lines) -> str:
    """The decimal sign: a comma if some column of the first rows has only commas."""
    taken = lines.take_many()
    lines.give_back(taken)
    try:
        rows = list(filter(None, dialect.rows(taken[:LOOKED_AT])))
    except csv.Error:
        rows = [dialect.literally(line) for line in taken[:LOOKED_AT]]
    for column in zip(*rows, strict=False):
        cells = [cell for cell in map(str.strip, column) if cell]
        if cells and all(map(_is_decimal_comma, cells)):
            return ","
    return "."


def _is_decimal_comma(cell: str) -> bool:
    """4,873375 and 1.234,5 are. 651,409 may be thousands, unless they would be no degrees."""
    if not DECIMAL_COMMA.fullmatch(cell):
        return False
    return not re.fullmatch(r"[-+]?\d{1,3},\d{3}", cell) or abs(float(cell.replace(",", "."))) <= 180


def _blocks(lines: Lines, dialect: Dialect, reader: Reader, text: Text) -> Iterator[Block | Rows]:
    spare = Spare(SWALLOWED)
    while taken := lines.take_many():
        first = lines.number - len(taken) + 1
        if columns := _in_bulk(taken, dialect, reader.names):
            yield Block(first, columns, raws=taken)
        else:
            lines.give_back(taken)
            yield list(_one_by_one(lines, dialect, len(taken), reader.names, spare))
    if text.guessed:
        reader.notes.append(f"read as {text.guessed}; --encoding names another")


def _in_bulk(lines: list[str], dialect: Dialect, names: list[str]) -> dict[str, Sequence[str]] | None:
    """The columns, if each line is one valid row."""
    try:
        rows = list(dialect.rows(lines))
    except csv.Error:
        return None
    if len(rows) != len(lines) or set(map(len, rows)) != {len(names)} or max(map(len, lines)) >= MAX_LINE:
        return None
    return dict(zip(names, zip(*rows, strict=True), strict=True))


@dataclass
class Spare:
    """How many characters may still be read twice."""

    characters: int


def _one_by_one(
    lines: Lines, dialect: Dialect, count: int, names: list[str], spare: Spare
) -> Iterator[Record | Refused]:
    """The records that begin on the next `count` lines.

    If quotes do not pair up, the parser takes all lines up to the next quote as one field. Then the first line is read again
    with its quotes as plain characters, or refused, and the other lines are read again. When this has happened too often, each
    line is a row. Empty lines are no rows.
    """
    rows = dialect.rows(lines)
    last = lines.number + count
    while lines.number < last:
        lines.begin()
        row = lines.number + 1
        if spare.characters > 0:
            values, reason = _next_row(rows, lines)
        else:
            values, reason = _next_row(dialect.rows([next(lines)]), lines)
        if reason is None and len(values) == len(names):
            yield Record(row, dict(zip(names, values, strict=True)), None, "".join(lines.taken))
        elif reason or values:
            yield _line(row, lines.taken[0], dialect, names, reason or WRONG_COLUMNS)
            spare.characters -= sum(map(len, lines.taken[1:]))
            lines.give_back_all_but_one()


def _line(row: int, line: str, dialect: Dialect, names: list[str], reason: str) -> Record | Refused:
    """A line whose quotes are plain characters, as in: 7,"Au Petit Cochon" Bistro,Cafe."""
    paired = line.count('"') % 2 == 0 and '""' not in line
    if reason == BAD_CSV and (paired or dialect.delimiter == "\t") and len(line) < MAX_LINE:
        values = dialect.literally(line)
        if len(values) == len(names):
            return Record(row, dict(zip(names, values, strict=True)), None, line)
    return Refused(row, reason, line)


def _next_row(rows: Iterator[list[str]], lines: Lines) -> tuple[list[str], str | None]:
    reason = None
    try:
        values = next(rows, [])
    except csv.Error as error:
        values, reason = [], FIELD_TOO_LONG if "field limit" in str(error) else BAD_CSV
    return values, LINE_TOO_LONG if max(map(len, lines.taken), default=0) >= MAX_LINE else reason
