"""Labelled places to evaluate on: from a file, or from a table or query in the database."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from psycopg import sql

from callipper_db import db
from callipper_db.arrays import Array
from callipper_db.errors import BadExtent, BadLabels, BadSource, NotEnoughData
from callipper_db.points import TO_POINT, unknown_srid
from callipper_db.read import SOURCE_SUFFIXES, Block, LeftOut, Reader, Record, Refused, open_reader
from callipper_db.read.columns import find_usual
from callipper_db.read.place import text_of
from callipper_db.read.record import BAD_BYTE
from callipper_trainer.data.samples import Samples
from callipper_trainer.data.source import QUERY, Source, read_samples
from callipper_trainer.evaluation.protocol import Targets, guess_task, make_targets
from callipper_trainer.model_rows import LoadedModel

LABELS_A_CLASS = 5  # on average, at least; with fewer a column holds names rather than classes
NAME_LENGTH = 60  # characters of the name under which figures are kept

LABEL_ROW = "CREATE TEMPORARY TABLE label_row (number int8, x float8, y float8, shape text, answer text)"


@dataclass(frozen=True)
class LabelSource:
    """What the user says about the labels."""

    labels: str  # a file, or a table, view or query
    columns: list[str]
    task: str | None = None
    srid: int | None = None  # of a file's coordinates; None: what the file says, else 4326

    @property
    def path(self) -> Path | None:
        """The file, if it is one: it is there, or it is named like one."""
        if QUERY.match(self.labels):
            return None
        path = Path(self.labels)
        return path if path.suffix.lower() in SOURCE_SUFFIXES or path.is_file() else None

    @property
    def name(self) -> str:
        """Short: the file's name without its endings, or the table, and the columns."""
        stem = self.path.name.split(".")[0] if self.path else " ".join(self.labels.split())
        columns = self.columns[0] if len(self.columns) == 1 else f"{self.columns[0]} and {len(self.columns) - 1} more"
        return f"{stem[:NAME_LENGTH]}: {columns}"


@dataclass(frozen=True)
class Labels:
    """N labelled places within the extent of a model."""

    name: str
    lonlat: Array  # (N, 2) degrees
    metres: Array  # (N, 2) in the model's CRS
    targets: Targets
    guessed: bool  # the task was not given
    notes: list[str]  # what was left out

    def __len__(self) -> int:
        return len(self.metres)


def read_labels(connection: db.Connection, source: LabelSource, model: LoadedModel) -> Labels:
    """The labels that are within the model's extent and have a target.

    The connection must be outside a transaction. Raises BadLabels, BadInput for a file that cannot be read, NotEnoughData.
    """
    relation, refused = source.labels, 0
    text, identifier = _answer(source.columns), "row_number() OVER ()"
    if source.path is not None:
        relation = _stage_file(connection, source, source.path)
        (refused,) = connection.one("SELECT count(*) FROM pg_temp.label_row WHERE answer IS NULL")
        text, identifier = "s.answer", "s.number"
    try:
        asked = Source(relation, text, identifier=identifier, srid=model.srid, keep_outliers=True, force_srid=True)
        snapshot = read_samples(connection, asked)
    except (BadSource, BadExtent, NotEnoughData) as error:
        raise BadLabels(source=source.labels, reason=_reason(error, model.srid)) from error
    notes = [f"{refused:,} rows of the file cannot be read and were left out."] if refused else []
    if snapshot.without_geometry:
        notes.append(f"{snapshot.without_geometry:,} labels without a usable place were left out.")
    return _choose(source, snapshot.samples, model, notes)


def _answer(columns: list[str]) -> str:
    """SQL for the targets of a row, as JSON."""
    names = sql.SQL(", ").join(sql.Identifier("s", column) for column in columns)
    return sql.SQL("pg_catalog.jsonb_build_array({})::text").format(names).as_string()


def _reason(error: BadSource | BadExtent | NotEnoughData, srid: int) -> str:
    if isinstance(error, BadExtent):
        return f"some labels lie where the model's CRS, EPSG:{srid}, does not reach. Leave those out."
    if isinstance(error, NotEnoughData):
        return "it has no row with a usable place."
    if isinstance(error.__cause__, psycopg.errors.UndefinedColumn):
        return f"{error.fields['reason']}; name the target with --target"
    return str(error.fields["reason"])


# From a file


def _stage_file(connection: db.Connection, source: LabelSource, path: Path) -> str:
    """Copy the file's rows into a temporary table; returns a query for number, answer and geom."""
    connection.execute(LABEL_ROW)
    connection.execute(connection.named(TO_POINT))
    with open_reader(path) as reader:
        reader.look()
        columns = [_named(source, reader, column) for column in source.columns]
        place = _place_columns(source, reader)
        with connection.cursor() as cursor, cursor.copy("COPY pg_temp.label_row FROM STDIN") as copy:
            for record in _records(reader):
                copy.write_row(_row(record, place, columns))
        srid = source.srid or reader.srid() or 4326
    if (reason := unknown_srid(connection, srid)) is not None:
        raise BadLabels(source=source.labels, reason=reason)
    query = sql.SQL(
        "SELECT number, answer, pg_temp.callipper_point(x, y, shape, {}) AS geom FROM pg_temp.label_row"
        " WHERE answer IS NOT NULL"
    )
    return query.format(sql.Literal(srid)).as_string()


def _records(reader: Reader) -> Iterator[Record | Refused]:
    for block in reader.blocks:
        for record in block.records() if isinstance(block, Block) else block:
            if not isinstance(record, LeftOut):
                yield record


def _row(record: Record | Refused, place: tuple[str, ...], columns: list[str]) -> tuple[Any, ...]:
    """number, x, y, shape, answer; no answer if the row cannot be read."""
    if isinstance(record, Refused):
        return record.row, None, None, None, None
    targets = [_plain(record.values.get(column)) for column in columns]
    answer = None if any(isinstance(value, str) and BAD_BYTE in value for value in targets) else json.dumps(targets)
    values = [record.values.get(column) for column in place]
    shape: Any = record.shape if not place else values[0] if len(place) == 1 else tuple(values)
    if isinstance(shape, (tuple, list)):
        return record.row, _number(shape[0]), _number(shape[1]), None, answer
    text = shape.hex() if isinstance(shape, bytes) else text_of(shape)
    return record.row, None, None, text and text.replace("\0", ""), answer


def _plain(value: Any) -> Any:
    """A value that JSON can hold; a timestamp or a decimal becomes text."""
    return value if value is None or isinstance(value, (str, int, float, bool)) else text_of(value)


def _number(value: Any) -> float | None:
    """None for a value that is no finite number; its row then has no place."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _named(source: LabelSource, reader: Reader, column: str) -> str:
    found = [name for name in reader.names if name == column] or [
        name for name in reader.names if name.lower() == column.lower()
    ]
    if not found:
        listed = ", ".join(reader.names[:40]) or "none"
        raise BadLabels(source=source.labels, reason=f"there is no column {column!r}. The columns are: {listed}")
    return found[0]


def _place_columns(source: LabelSource, reader: Reader) -> tuple[str, ...]:
    """The columns that hold the place: none if the format has geometries, two of coordinates, or one of geometries."""
    if reader.has_shape:
        return ()
    lon, lat, geometry = (find_usual(reader, part) for part in ("lon", "lat", "geometry"))
    if lon and lat:
        return lon, lat
    if geometry:
        return (geometry,)
    listed = ", ".join(reader.names[:40])
    reason = (
        f"no columns of coordinates, such as lon and lat, easting and northing, or geometry. The columns are: {listed}"
    )
    raise BadLabels(source=source.labels, reason=reason)


# From rows to targets


def _choose(source: LabelSource, samples: Samples, model: LoadedModel, notes: list[str]) -> Labels:
    """Leave out rows without a target or outside the model's extent. The order depends on the rows only."""
    order = np.lexsort((samples.text_id, samples.metres[:, 1], samples.metres[:, 0]))
    values, usable = _target_values(source, samples.texts, samples.text_id[order])
    listed = ", ".join(source.columns)
    if not usable.any():
        raise BadLabels(source=source.labels, reason=f"no row has a value in {listed}.")
    if not usable.all():
        notes = [*notes, f"{(~usable).sum():,} labels without a value in {listed} were left out."]
    west, south, east, north = model.extent
    lonlat = samples.lonlat[order]
    outside = usable & ((lonlat < [west, south]) | (lonlat > [east, north])).any(axis=1)
    if (outside == usable).all():
        raise BadLabels(source=source.labels, reason=_outside(lonlat[usable], model))
    if outside.any():
        notes = [*notes, f"{outside.sum():,} labels outside the extent of model version {model.version} were left out."]
    kept = usable & ~outside
    targets = make_targets(values[kept], source.task, source.columns)
    _check_classes(source, targets)
    rows = order[kept]
    return Labels(source.name, samples.lonlat[rows], samples.metres[rows], targets, source.task is None, notes)


def _check_classes(source: LabelSource, targets: Targets) -> None:
    if targets.task == "classification" and len(targets.names) * LABELS_A_CLASS > len(targets):
        reason = (
            f"{source.columns[0]} has {len(targets.names):,} different values in {len(targets):,} labels, so it holds names or"
            " numbers rather than classes. Choose another column, or --task regression for numbers."
        )
        raise BadLabels(source=source.labels, reason=reason)


def _outside(lonlat: Array, model: LoadedModel) -> str:
    theirs = ", ".join(f"{value:.3f}" for value in (*lonlat.min(axis=0), *lonlat.max(axis=0)))
    ours = ", ".join(f"{value:.3f}" for value in model.extent)
    return (
        f"no label lies within the extent of model version {model.version} (west, south, east, north: {ours}; the labels:"
        f" {theirs}). If the file's coordinates are in another CRS, name it with --srid."
    )


def _target_values(source: LabelSource, answers: list[str], answer_id: Array) -> tuple[Array, Array]:
    """(N,) classes or numbers, or (N, C) numbers, and whether each row has one, (N,). answer_id: (N,) into the answers."""
    decoded = [json.loads(answer) for answer in answers]
    texts = [[text_of(row[number]) for row in decoded] for number in range(len(source.columns))]
    numbers = [_as_numbers(column) for column in texts]
    if len(texts) > 1 or source.task in ("regression", "distribution"):
        return _numeric(source, texts, numbers, answer_id)
    if numbers[0] is not None:
        values = numbers[0][answer_id]
        present = np.isfinite(values)
        if present.any() and (source.task or guess_task(values[present])) == "regression":
            return values, present
    classes = np.array([text or "" for text in texts[0]])[answer_id]
    return classes, classes != ""


def _numeric(
    source: LabelSource, texts: list[list[str | None]], numbers: list[Array | None], answer_id: Array
) -> tuple[Array, Array]:
    if source.task == "classification":
        raise BadLabels(source=source.labels, reason="classification takes one --target column, not several.")
    if source.task == "distribution" and len(numbers) < 2:
        raise BadLabels(source=source.labels, reason="a distribution takes several --target columns: NAME,NAME,...")
    for column, text, values in zip(source.columns, texts, numbers, strict=True):
        if values is None:
            wrong = next(value for value in text if value is not None and _as_numbers([value]) is None)
            wanted = f"a {source.task}" if source.task else "several --target columns together"
            raise BadLabels(
                source=source.labels, reason=f"{column} holds text ({wrong[:40]!r}), and {wanted} needs numbers."
            )
    table = np.column_stack([values for values in numbers if values is not None])[answer_id]
    usable = np.isfinite(table).all(axis=1)
    if source.task == "distribution":
        if (table[usable] < 0).any():
            raise BadLabels(source=source.labels, reason="some shares are negative, which no distribution has.")
        usable &= np.nan_to_num(table).sum(axis=1) > 0
    return table, usable


def _as_numbers(texts: Sequence[str | None]) -> Array | None:
    """The texts as numbers, NaN for None; None if a text is no number."""
    try:
        values = np.array([math.nan if text is None else float(text) for text in texts])
    except ValueError:
        return None
    return None if any(text is not None and "_" in text for text in texts) else values
