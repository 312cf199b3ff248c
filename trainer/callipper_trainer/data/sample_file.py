"""The rows of a source larger than memory, in a file. They are shuffled once, while it is written."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from callipper_db.arrays import Array
from callipper_db.errors import RowsUnwritable
from callipper_trainer.data.samples import CHUNK, ContentHash, Samples, middle

ROW = np.dtype(
    [("metres", "<f8", (2,)), ("lonlat", "<f8", (2,)), ("point_id", "<i8"), ("text_id", "<i4"), ("name_id", "<i4")]
)
BUCKET_ROWS = 2**20  # rows shuffled at once in memory: 48 MiB
MAX_BUCKETS = 256  # files open at once


@dataclass(frozen=True)
class StoredSamples:
    """N POIs and their texts, in a file, in random order."""

    path: Path
    count: int
    texts: list[str]
    text_count: Array  # (V,) int64, POIs with each text
    srid: int
    origin: Array  # (2,) whole metres, the middle of the extent
    extent: tuple[float, float, float, float]  # west, south, east, north in degrees
    content_sha256: str
    named: bool = False  # whether any row has a name

    def __len__(self) -> int:
        return self.count

    def content_hash(self) -> str:
        """The same hash as Samples with these rows has."""
        return self.content_sha256

    def read(self, start: int, stop: int) -> Array:
        """Some consecutive rows, of type ROW."""
        # Not memory-mapped: so the rows are in the system's cache, which gives way, and read errors are exceptions.
        rows: Array = np.fromfile(self.path, ROW, min(stop, self.count) - start, offset=start * ROW.itemsize)
        return rows

    def chunks(self, rows: int = CHUNK) -> Iterator[Samples]:
        """All rows in parts of `rows`."""
        for start in range(0, self.count, rows):
            part = self.read(start, start + rows)
            columns = {name: part[name] for name in ROW.names or ()}
            yield Samples(**columns, texts=self.texts, srid=self.srid)


@contextmanager
def stored_samples(folder: Path, parts: Iterable[Samples], count: int, seed: int) -> Iterator[StoredSamples]:
    """Store rows that come in parts, `count` in all, in a folder that is removed at the end.

    Their shuffled order depends on their first order and the seed only. Raises RowsUnwritable when the disk is full.
    """
    try:
        shutil.rmtree(folder, ignore_errors=True)  # left by a killed run
        folder.mkdir(parents=True)
        check_room(folder, (count + BUCKET_ROWS) * ROW.itemsize)
        with writing(folder):
            stored = _write(folder, parts, count, np.random.default_rng(seed))
        yield stored
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn the system's errors into RowsUnwritable."""
    try:
        yield
    except OSError as error:
        raise RowsUnwritable(path=folder, reason=error.strerror or str(error)) from error


def check_room(folder: Path, needed: int) -> None:
    """Raises RowsUnwritable when fewer bytes are free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        reason = f"they take {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} are free"
        raise RowsUnwritable(path=folder, reason=reason)


def _write(folder: Path, parts: Iterable[Samples], count: int, random: np.random.Generator) -> StoredSamples:
    """Put each row into a random bucket, then append the buckets, each shuffled. So all orders are equally likely."""
    content, seen = ContentHash(), _Seen()
    paths = [folder / f"bucket{number}" for number in range(min(MAX_BUCKETS, -(-count // BUCKET_ROWS)))]
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for part in parts:
            content.add(part)
            seen.add(part)
            bucket = random.integers(len(files), size=len(part))
            order = np.argsort(bucket, kind="stable")
            pieces = np.split(_rows(part)[order], np.searchsorted(bucket[order], np.arange(1, len(files))))
            for file, rows in zip(files, pieces, strict=True):
                file.write(rows.tobytes())
    with (folder / "rows").open("wb") as file:
        for path in paths:
            rows = np.fromfile(path, ROW)
            path.unlink()
            file.write(rows[random.permutation(len(rows))].tobytes())
    assert seen.texts is not None and seen.rows == count, f"{seen.rows} rows came, not {count}"
    return StoredSamples(
        path=folder / "rows",
        count=count,
        texts=seen.texts,
        text_count=seen.text_count,
        srid=seen.srid,
        origin=middle(seen.low, seen.high),
        extent=(*seen.southwest.tolist(), *seen.northeast.tolist()),
        content_sha256=content.result(seen.srid, seen.texts),
        named=seen.named,
    )


def _rows(part: Samples) -> Array:
    rows = np.empty(len(part), ROW)
    for name in ROW.names or ():
        rows[name] = getattr(part, name)
    return rows


class _Seen:
    """Figures over all rows, collected from parts."""

    def __init__(self) -> None:
        self.low, self.high = np.full(2, np.inf), np.full(2, -np.inf)  # metres
        self.southwest, self.northeast = np.full(2, np.inf), np.full(2, -np.inf)  # degrees
        self.texts: list[str] | None = None
        self.text_count = np.zeros(0, np.int64)
        self.srid = self.rows = 0
        self.named = False

    def add(self, part: Samples) -> None:
        """The next rows."""
        if self.texts is None:
            self.texts, self.srid, self.text_count = part.texts, part.srid, np.zeros(len(part.texts), np.int64)
        self.rows += len(part)
        self.low = np.minimum(self.low, part.metres.min(axis=0))
        self.high = np.maximum(self.high, part.metres.max(axis=0))
        self.southwest = np.minimum(self.southwest, part.lonlat.min(axis=0))
        self.northeast = np.maximum(self.northeast, part.lonlat.max(axis=0))
        self.text_count += np.bincount(part.text_id, minlength=len(part.texts))
        self.named |= bool((part.name_id >= 0).any())
