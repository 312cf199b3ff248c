"""What every reader returns: records, and rows that it cannot read."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, NamedTuple

from callipper_db.errors import MissingExtra

# Stands for a byte that is not UTF-8; a noncharacter, so no text holds it. Rows with one are refused, not the file.
BAD_BYTE = "\U0010ffff"

BLOCK = 5000  # rows
BLOCK_CHARACTERS = 8_000_000  # in memory; fewer rows if they are long

HOPELESS = 200_000  # refused rows at the beginning of a file, after which no good one is expected

BAD_UTF8 = "not valid UTF-8"
BAD_CSV = "quotes that do not pair up"
BAD_JSON = "not valid JSON"
BAD_GEOMETRY = "a geometry that cannot be read or placed on the globe"
FIELD_TOO_LONG = "a field over 131,072 characters, or quotes that do not pair up"
LINE_TOO_LONG = "a line over 1,000,000 characters"
FEATURE_TOO_LONG = "a feature over 1,000,000 characters"
TOO_DEEP = "nested deeper than 100 levels"
WRONG_COLUMNS = "wrong number of columns"


class Record(NamedTuple):
    """A row as it is in the file."""

    row: int  # line number of text, else 1, 2, ...; ascends
    values: dict[Any, Any]  # column -> value
    shape: Any  # (x, y), WKT, hex WKB or GeoJSON; None: look in the columns
    raw: str | None  # as it stands in the file; None: show the values


class LeftOut(NamedTuple):
    """A valid row that is not wanted, such as a closed shop or a bench. It is counted by its reason, and not in the rejects."""

    reason: str


@dataclass(frozen=True)
class Block:
    """Many rows at once, by column. They are numbered from `first`, unless `numbers` holds their numbers."""

    first: int
    columns: Mapping[str, Sequence[Any]]
    shapes: Sequence[Any] | None = None
    raws: Sequence[str] | None = None
    numbers: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.shapes) if self.shapes is not None else len(next(iter(self.columns.values()), ()))

    @property
    def rows(self) -> Sequence[int]:
        """The rows' numbers in the file."""
        return range(self.first, self.first + len(self)) if self.numbers is None else self.numbers

    def records(self) -> Iterator[Record]:
        """The same rows one by one."""
        for i, row in enumerate(self.rows):
            values = {name: column[i] for name, column in self.columns.items()}
            yield Record(row, values, self.shapes[i] if self.shapes else None, self.raws[i] if self.raws else None)

    def keep(self, chosen: Sequence[bool]) -> Block:
        """Only the chosen rows."""
        keep = getattr(self.columns, "keep", None)  # Arrow's columns, of which most are not converted yet
        return Block(
            self.first,
            keep(chosen) if keep else {name: pick(column, chosen) for name, column in self.columns.items()},
            pick(self.shapes, chosen) if self.shapes else None,
            pick(self.raws, chosen) if self.raws else None,
            pick(self.rows, chosen),
        )


def pick(column: Sequence[Any], chosen: Sequence[bool]) -> Sequence[Any]:
    """The chosen values of a column. A column of Arrow stays one."""
    keep = getattr(column, "keep", None)
    return keep(chosen) if keep else list(compress(column, chosen))


def mapped(column: Sequence[Any], function: Callable[[Any], Any]) -> Sequence[Any]:
    """The function of each value, called once per distinct value; None stays None. A column of Arrow stays one."""
    of_arrow = getattr(column, "mapped", None)
    if of_arrow:
        made: Sequence[Any] = of_arrow(function)
        return made
    try:
        found = {value: None if value is None else function(value) for value in set(column)}
    except TypeError:  # lists among them
        return [None if value is None else function(value) for value in column]
    return [found[value] for value in column]


class Refused(NamedTuple):
    """A row that cannot be read."""

    row: int
    reason: str
    raw: str
    unless: Any = None  # the Place that it is if the file counts degrees in another way (other_degrees.py)


Rows = list[Record | Refused | LeftOut]


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
class ReadOptions:
    """The user's options for reading a file."""

    street_furniture: bool = False  # keep OpenStreetMap's benches, bins and the like
    encoding: str | None = None  # of delimited text and Shapefiles; None: UTF-8, UTF-16 by its mark, else Windows-1252
    decimal: str | None = None  # decimal sign of delimited text, "," or "."; None: learn it from the first rows
    layer: str | None = None  # the layer to read, of a file with several


@dataclass
class Reader:
    """An open file. Of JSON, which has no header, `look` must have been called before the blocks are read."""

    blocks: Iterator[Block | Rows]
    names: list[str]  # the names of the columns
    bytes_done: Callable[[], int] = field(default=lambda: 0)
    has_shape: bool = False  # the format has geometries of its own
    srid: Callable[[], int | None] = field(default=lambda: None)  # the file's own SRID
    columns: Columns | None = None  # the format fixes them; None: find them by name
    source: str | None = None  # the format's own name for the source
    provider: str | None = None  # the provider whose scheme the format is: "osm", "geonames"
    parts: Mapping[str, list[str]] = field(default_factory=dict)  # nested column -> paths inside it
    notes: list[str] = field(default_factory=list)  # what the user should know about how the file was read
    decimal: str | None = None  # the decimal sign in a text; None: a point
    in_arrow: bool = False  # the blocks' columns are Arrow's
    unread: set[str] = field(default_factory=set)  # columns that are not needed; set before the first block is read
    unreadable: str | None = None  # why no row can be read, if so; known after `look`
    survey: Callable[[Reader, Callable[[int], None]], None] | None = None  # reads the file once to learn its columns

    def may_hold(self, path: str) -> bool:
        """Can there be a value at this path of a nested column? For a list or a map, that is not known in advance."""
        column = path.split(".")[0].split("[")[0]
        return any(
            f"{part}.".startswith((f"{path}.", f"{path}[")) or path.startswith((f"{part}.", f"{part}["))
            for part in self.parts.get(column, [])
        )

    def look(self, advance: Callable[[int], None] = lambda bytes_read: None) -> None:
        """Learn the columns and the SRID of a file without a header. `advance` takes the bytes read since it was called."""
        if self.survey:
            self.survey(self, advance)


def in_blocks(records: Iterator[Record | Refused | LeftOut]) -> Iterator[Rows]:
    """Records in lists of some thousand, or fewer if they are long."""
    rows: Rows = []
    size = 0
    for record in records:
        rows.append(record)
        size += 0 if isinstance(record, LeftOut) else len(record.raw or "")
        if len(rows) == BLOCK or size > BLOCK_CHARACTERS:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def require(module: str, feature: str) -> Any:
    """Import a module of the extra `geo`. Raises MissingExtra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(feature=feature, module=module.split(".")[0], extra="geo") from error
