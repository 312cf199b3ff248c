"""Batches of sources larger than memory. The model's input is written to disk once and read from there in every epoch.

Memory holds only what grows with distinct texts and occupied lattice cells, a pool of rows, and a few batches.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch

from callipper_db.arrays import Array
from callipper_trainer.config import TrainConfig
from callipper_trainer.context import Level, Pyramid, build_level, cell_key, fit_pyramid
from callipper_trainer.data.batches import BatchMaker, Columns, validation_rows
from callipper_trainer.data.sample_file import StoredSamples, check_room, writing
from callipper_trainer.distributed import ALONE, Ranks
from callipper_trainer.features import ContextFeatures
from callipper_trainer.loss import Batch

T = TypeVar("T")
U = TypeVar("U")

BLOCK_ROWS = 2048  # rows read at once
POOL_BLOCKS = 32  # blocks whose rows are mixed before they are cut into batches
MOMENT_ROWS = 2**18  # rows for mean and deviation; the file is shuffled, so more would not change the figures
BATCHES_AHEAD = 4  # batches that a thread has ready


class Streaming:
    """Batches from a file of ready columns. Blocks are read in random order and mixed in a pool; threads prepare the batches.

    The first rows are held out, because the order of the file is random. The context of a row is looked up once, because that
    takes as long as a step of training. The file keeps it in half precision.
    """

    def __init__(
        self,
        stored: StoredSamples,
        text_vectors: Array,
        config: TrainConfig,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        """text_vectors: (V, T) of stored.texts."""
        self.stored, self.config, self.device, self.ranks = stored, config, device, ranks
        self.pyramid = pyramid_of(stored, text_vectors, config) if config.encoder == "contextual" else None
        self.maker = BatchMaker(self.pyramid, text_vectors, config, device)
        self.ready = stored.path.with_name("ready")  # the file of columns
        self.validation = validation_rows(len(stored), config.validation_share)
        self.training = len(stored) - self.validation

    def standardise(self, features: ContextFeatures | None) -> None:
        """Fit to a part of the training rows, then write the columns of all rows to the file."""
        if features is not None:
            self._fit_standardisation(features)
            self.maker.prepare_background(features, self.training)
        self._write(features)

    def _fit_standardisation(self, features: ContextFeatures) -> None:
        count, total, squares = 0, 0.0, 0.0
        starts = range(self.validation, min(len(self.stored), self.validation + MOMENT_ROWS), BLOCK_ROWS)
        for columns in prefetched(iter(starts), self._columns, self.threads):
            numbers = columns["context"].numpy().astype(np.float64)
            count += len(numbers)
            total = total + numbers.sum(axis=0)
            squares = squares + (numbers**2).sum(axis=0)
        mean = np.asarray(total) / count
        deviation = np.sqrt(np.maximum(squares - count * mean**2, 0) / (count - 1))
        self.maker.fit_standardisation(
            features, *(torch.from_numpy(part.astype(np.float32)) for part in (mean, deviation))
        )

    def _write(self, features: ContextFeatures | None) -> None:
        """Each process writes its share of the blocks in their places. After the barrier every process reads all of them."""
        self.row = _row_type(self._columns(0))
        if self.ranks.is_leader:
            check_room(self.stored.path.parent, len(self.stored) * self.row.itemsize)
            with writing(self.ready.parent), self.ready.open("wb") as file:
                file.truncate(len(self.stored) * self.row.itemsize)
        self.ranks.barrier()
        starts = self.ranks.shard(range(0, len(self.stored), BLOCK_ROWS))
        with writing(self.ready.parent), self.ready.open("r+b") as file:
            for start, columns in prefetched(starts, lambda start: (start, self._columns(start)), self.threads):
                on_device = {name: values.to(self.device) for name, values in columns.items()}
                columns = self.maker.standardised(on_device, features)
                file.seek(start * self.row.itemsize)
                file.write(_rows(columns, self.row).tobytes())
        self.ranks.barrier()

    def _columns(self, start: int) -> Columns:
        """The columns of a block of rows, not standardised."""
        rows = self.stored.read(start, start + BLOCK_ROWS)
        names = rows["name_id"] if self.stored.named and self.config.name_weight else None
        return self.maker.columns(rows["metres"] - self.stored.origin, rows["text_id"], names)

    @property
    def threads(self) -> int:
        """How many threads look up the context of rows."""
        return max(1, min(8, (os.cpu_count() or 1) // self.ranks.world_size))

    def batches(self, epoch: int, size: int) -> Iterator[Batch]:
        """As Resident.batches, from pools of blocks."""
        whole = self.shuffled(self.config.order_random(epoch), size)
        random = self.config.background_random(epoch)
        parts = (rows[self.ranks.local_rows(size)] for rows in whole)
        return self._made(parts, lambda: self.maker.sample_background(random, size, self.ranks))

    def held_out(self, size: int) -> Iterator[Batch]:
        """As Resident.held_out, in the order of the file."""
        starts = self.ranks.shard(range(0, self.validation - size + 1, size))
        return self._made(self._read(start, start + size) for start in starts)

    def shuffled(self, random: np.random.Generator, size: int) -> Iterator[Array]:
        """All training rows in batches. Rows left over from a pool go into the next one."""
        pool, held = np.empty(POOL_BLOCKS * BLOCK_ROWS + size, self.row), 0  # allocated once, because it is large
        starts = random.permutation(np.arange(self.validation, len(self.stored), BLOCK_ROWS))
        for chosen in np.split(starts, range(POOL_BLOCKS, len(starts), POOL_BLOCKS)):
            for start in chosen:
                block = self._read(start, start + BLOCK_ROWS)
                pool[held : held + len(block)] = block
                held += len(block)
            order = random.permutation(held)
            whole = held // size * size
            for first in range(0, whole, size):
                yield pool[order[first : first + size]]
            held -= whole
            pool[:held] = pool[order[whole:]]

    def _read(self, start: int, stop: int) -> Array:
        rows: Array = np.fromfile(
            self.ready, self.row, min(stop, len(self.stored)) - start, offset=start * self.row.itemsize
        )
        return rows

    def _made(self, batches: Iterator[Array], background: Callable[[], Columns] = dict) -> Iterator[Batch]:
        for columns in prefetched(batches, self._pinned, 1):
            sent = {name: values.to(self.device, non_blocking=True) for name, values in columns.items()}
            halves = {name: values.float() for name, values in sent.items() if values.dtype == torch.float16}
            yield self.maker.batch(sent | halves, background())

    def _pinned(self, rows: Array) -> Columns:
        """The columns of some rows; for a GPU in pinned memory, so that copying does not block the CPU."""
        columns = {name: torch.from_numpy(np.ascontiguousarray(rows[name])) for name in self.row.names or ()}
        if self.device.type == "cuda":
            columns = {name: values.pin_memory() for name, values in columns.items()}
        return columns


def _row_type(columns: Columns) -> np.dtype[Any]:
    """The type of a stored row: float32 columns in half precision, others as they are."""
    return np.dtype(
        [
            (name, np.float16 if values.dtype == torch.float32 else values.numpy().dtype, tuple(values.shape[1:]))
            for name, values in columns.items()
        ]
    )


def _rows(columns: Columns, kind: np.dtype[Any]) -> Array:
    rows = np.empty(len(columns["metres"]), kind)
    for name in kind.names or ():
        rows[name] = columns[name].cpu().numpy()
    return rows


def pyramid_of(stored: StoredSamples, text_vectors: Array, config: TrainConfig) -> Pyramid:
    """The pyramid over all stored rows."""
    empty = fit_pyramid(text_vectors, stored.text_count, config)
    codes = empty.codes(text_vectors)
    levels = [_count_level(stored, size_m, codes[:, : empty.sum_width(size_m)]) for size_m in config.lattice_sizes()]
    return replace(empty, levels=levels)


def _count_level(stored: StoredSamples, size_m: float, codes: Array) -> Level:
    """One lattice, in two passes: first which cells are occupied, then their sums, in float64."""
    places = (part.metres - stored.origin for part in stored.chunks())
    key = merged((np.unique(cell_key(np.floor(metres / size_m).astype(np.int64))) for metres in places), np.union1d)
    ij, count = np.empty((len(key), 2), np.int64), np.zeros(len(key), np.float32)
    code_sum = np.zeros((len(key), codes.shape[1]))
    for part in stored.chunks():
        level = build_level(size_m, part.metres - stored.origin, codes[part.text_id], np.float64)
        at = np.searchsorted(key, level.key)
        ij[at] = level.ij
        count[at] += level.count
        code_sum[at] += level.code_sum
    return Level(size_m, key, ij, count, code_sum.astype(np.float32))


def merged(arrays: Iterable[Array], join: Callable[[Array, Array], Array]) -> Array:
    """Join many arrays into one. Arrays of about equal size are joined first, so that each is copied about log N times."""
    waiting: list[tuple[int, Array]] = []
    for array in arrays:
        waiting.append((1, array))
        while len(waiting) > 1 and waiting[-2][0] <= waiting[-1][0]:
            _join_last(waiting, join)
    while len(waiting) > 1:
        _join_last(waiting, join)
    return waiting[0][1]


def _join_last(waiting: list[tuple[int, Array]], join: Callable[[Array, Array], Array]) -> None:
    (one, first), (other, second) = waiting[-2:]
    waiting[-2:] = [(one + other, join(first, second))]


def prefetched(items: Iterator[T], work: Callable[[T], U], threads: int) -> Iterator[U]:
    """work(item) for each item, in order, made ahead in threads. An error in a thread is raised here; none outlives it."""
    end = object()

    def finish(reading: Future[T | object]) -> U | object:
        item = reading.result()
        return end if item is end else work(item)  # type: ignore[arg-type]

    def ahead() -> Future[U | object]:
        return workers.submit(finish, reader.submit(next, items, end))

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(threads) as workers:
        waiting = deque(ahead() for _ in range(threads * BATCHES_AHEAD))
        try:
            while (result := waiting.popleft().result()) is not end:
                waiting.append(ahead())
                yield result  # type: ignore[misc]
        finally:
            workers.shutdown(wait=False, cancel_futures=True)
            reader.shutdown(wait=False, cancel_futures=True)
