"""CSV and its relatives."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from callipper_db.errors import BadInput
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
from callipper_db.read.text import MAX_LINE, Lines, open_text

DELIMITERS = ",;\t|"


@contextmanager
def open_delimited(path: Path) -> Iterator[Reader]:
    with open_text(path) as (text, file):
        lines = Lines(text)
        delimiter, names = _read_header(path, lines)
        yield Reader(_blocks(lines, delimiter, names), names, file.tell)


def sniff_delimiter(path: Path, header: str) -> str:
    """The delimiter that the suffix promises, else the one that the header has most of."""
    if any(suffix.lower() in {".tsv", ".tab"} for suffix in path.suffixes[-2:]):
        return "\t"
    outside_quotes = "".join(header.split('"')[::2])
    return max(DELIMITERS, key=outside_quotes.count)


def _read_header(path: Path, lines: Lines) -> tuple[str, list[str]]:
    first = next((line for line in lines if line.strip()), "")
    if not first:
        raise BadInput(path=path, reason="the file is empty")
    if "\0" in first or BAD_BYTE in first:
        raise BadInput(path=path, reason="the first line is not UTF-8 text; save the file as CSV in UTF-8")
    delimiter = sniff_delimiter(path, first)
    try:
        names = next(csv.reader(_with_first(first, lines), delimiter=delimiter, strict=True))
    except (csv.Error, StopIteration) as error:
        raise BadInput(path=path, reason=f"the header line is not CSV ({error})") from error
    names = [name.strip() or f"column_{number}" for number, name in enumerate(names, 1)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadInput(path=path, reason=f"the header has {', '.join(twice)} more than once; rename the columns")
    return delimiter, names


def _with_first(first: str, lines: Lines) -> Iterator[str]:
    yield first
    yield from lines


def _blocks(lines: Lines, delimiter: str, names: list[str]) -> Iterator[Block | Rows]:
    while taken := lines.take_many():
        first = lines.number - len(taken) + 1
        if columns := _in_bulk(taken, delimiter, names):
            yield Block(first, columns, raws=taken)
        else:
            lines.give_back(taken)
            yield list(_one_by_one(lines, delimiter, len(taken), names))


def _in_bulk(lines: list[str], delimiter: str, names: list[str]) -> dict[str, Sequence[str]] | None:
    """The columns, if each line is one sound row."""
    try:
        rows = list(csv.reader(lines, delimiter=delimiter, strict=True))
    except csv.Error:
        return None
    if len(rows) != len(lines) or set(map(len, rows)) != {len(names)} or max(map(len, lines)) >= MAX_LINE:
        return None
    return dict(zip(names, zip(*rows, strict=True), strict=True))


def _one_by_one(lines: Lines, delimiter: str, count: int, names: list[str]) -> Iterator[Record | Refused]:
    """The records that begin on the next `count` lines.

    Where quotes do not pair up, the parser swallows the lines up to the next quote: then only the first of them is
    refused and the others are read again. Empty lines are no rows.
    """
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    last = lines.number + count
    while lines.number < last:
        lines.begin()
        row = lines.number + 1
        values, reason = _next_row(rows, lines)
        if reason is None and len(values) == len(names):
            yield Record(row, dict(zip(names, values, strict=True)), None, "".join(lines.taken))
        elif reason or values:
            yield Refused(row, reason or WRONG_COLUMNS, lines.taken[0])
            lines.give_back_all_but_one()


def _next_row(rows: Iterator[list[str]], lines: Lines) -> tuple[list[str], str | None]:
    reason = None
    try:
        values = next(rows, [])
    except csv.Error as error:
        values, reason = [], FIELD_TOO_LONG if "field limit" in str(error) else BAD_CSV
    return values, LINE_TOO_LONG if max(map(len, lines.taken), default=0) >= MAX_LINE else reason


def is_delimited(head: str) -> bool:
    """Does the beginning of a file look like a table: text whose first line has a delimiter?"""
    first = next(iter(io.StringIO(head)), "")
    return "\0" not in head and BAD_BYTE not in first and any(delimiter in first for delimiter in DELIMITERS)
