"""What every reader gives: records, and the rows that it cannot read."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from callipper_db.errors import MissingExtra

# Stands for a byte that is not UTF-8; a noncharacter, so no text holds it. Rows with one are refused, not the file.
BAD_BYTE = "\U0010ffff"

BLOCK = 5000  # rows

BAD_UTF8 = "not valid UTF-8"
BAD_CSV = "quotes that do not pair up"
BAD_JSON = "not valid JSON"
BAD_GEOMETRY = "a geometry that cannot be read or placed on the globe"
FIELD_TOO_LONG = "a field over 131,072 characters, or quotes that do not pair up"
LINE_TOO_LONG = "a line over 1,000,000 characters"
WRONG_COLUMNS = "wrong number of columns"


class Record(NamedTuple):
    """A row as it stands in the file."""

    row: int  # line number of text, else 1, 2, ...; ascends
    values: dict[Any, Any]  # column -> value
    shape: Any  # (x, y), WKT, hex WKB or GeoJSON; None: look in the columns
    raw: str | None  # as it stands in the file; None: show the values


@dataclass(frozen=True)
class Block:
    """Many rows at once, by column; their numbers run on from `first`."""

    first: int
    columns: Mapping[str, Sequence[Any]]
    shapes: Sequence[Any] | None = None
    raws: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), self.shapes or ()))

    def records(self) -> Iterator[Record]:
        for i in range(len(self)):
            values = {name: column[i] for name, column in self.columns.items()}
            yield Record(
                self.first + i, values, self.shapes[i] if self.shapes else None, self.raws[i] if self.raws else None
            )


class Refused(NamedTuple):
    """A row that cannot be read."""

    row: int
    reason: str
    raw: str


Rows = list[Record | Refused | None]  # None: a row that the reader's own filter left out


@dataclass(frozen=True)
class Columns:
    """Which column plays which part; None: no column does."""

    id: str | None = None
    name: str | None = None
    category: str | None = None
    group: str | None = None
    description: str | None = None
    lon: str | None = None
    lat: str | None = None
    geometry: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class Reader:
    """An open file."""

    blocks: Iterator[Block | Rows]
    names: list[str]  # of the columns; of JSON, those of the first features
    bytes_done: Callable[[], int] = field(default=lambda: 0)
    has_shape: bool = False  # the format has geometries of its own
    srid: Callable[[], int | None] = field(default=lambda: None)  # what the file says
    columns: Columns | None = None  # the format fixes them; None: find them by name
    source: str | None = None  # the format's own name for the source


def in_blocks(records: Iterator[Record | Refused | None]) -> Iterator[Rows]:
    """Records by the thousand."""
    while rows := list(islice(records, BLOCK)):
        yield rows


def require(module: str, feature: str) -> Any:
    """A module of the extra `geo`, or MissingExtra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(feature=feature, module=module.split(".")[0], extra="geo") from error
