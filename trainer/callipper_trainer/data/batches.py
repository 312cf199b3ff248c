"""Batches of rows that are all on the device. batch_file.py makes the same batches of rows on disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from callipper_db.arrays import Array
from callipper_trainer.config import TrainConfig
from callipper_trainer.context import Pyramid, build_pyramid
from callipper_trainer.context_targets import draw_background, target_columns, target_weights
from callipper_trainer.distributed import ALONE, Ranks
from callipper_trainer.features import ContextFeatures, make_features
from callipper_trainer.loss import Batch, Places
from callipper_trainer.model import CaLLiPer

PART_ROWS = 16_384  # standardised at once
Columns = dict[str, Tensor]  # of N rows each, by name


class Data(Protocol):
    """What an epoch reads. `size` is that of a whole batch; each process gets its share of the rows."""

    pyramid: Pyramid | None
    maker: BatchMaker
    training: int  # rows
    validation: int  # rows

    def standardise(self, features: ContextFeatures | None) -> None:
        """Fit the standardisation to the training rows. To be called before the first batch."""

    def batches(self, epoch: int, size: int) -> Iterator[Batch]:
        """The training rows in whole batches, in an order that depends on seed and epoch only."""

    def held_out(self, size: int) -> Iterator[Batch]:
        """The validation rows in whole batches, the same each time. Several processes share the batches among them."""


class BatchMaker:
    """Makes batches of the stored rows, in the same way for rows in memory and on disk."""

    def __init__(self, pyramid: Pyramid | None, text_vectors: Array, config: TrainConfig, device: torch.device) -> None:
        self.pyramid, self.config, self.device = pyramid, config, device
        self.codes = None if pyramid is None else pyramid.codes(text_vectors)
        self.text_vectors = torch.from_numpy(np.ascontiguousarray(text_vectors)).to(device)
        self.target_weights = None if pyramid is None else torch.from_numpy(target_weights(pyramid, config)).to(device)
        self.background: Columns = {}

    @property
    def target_width(self) -> int:
        """W, how many context features an embedding predicts."""
        return target_columns(self.pyramid, self.config.targets_from_m) if self.pyramid else 0

    def model(self) -> CaLLiPer:
        """An untrained model for these batches."""
        features = make_features(self.config, self.pyramid)
        return CaLLiPer(self.config, self.text_vectors.shape[1], features, self.target_width).to(self.device)

    def columns(self, metres: Array, text_id: Array | None = None, name_id: Array | None = None) -> Columns:
        """What is computed once per row, on the CPU. metres: (N, 2) from the origin; for POIs also (N,) text and name ids.

        A POI's own part of the context is subtracted, except for a share of POIs (is_self_visible).
        """
        columns = {"metres": torch.from_numpy(np.ascontiguousarray(metres))}
        if text_id is not None:
            columns["text_id"] = torch.from_numpy(text_id.astype(np.int64))
        if name_id is not None:
            columns["name_id"] = torch.from_numpy(name_id.astype(np.int64))
        if self.pyramid is not None and self.codes is not None:
            own = () if text_id is None else (self.codes[text_id], ~is_self_visible(metres, self.config.self_visible))
            columns["context"] = torch.from_numpy(self.pyramid.features(metres, *own))
        return columns

    def fit_standardisation(self, features: ContextFeatures, mean: Tensor, deviation: Tensor) -> None:
        """Set mean and deviation, (C,). The deviation of a kind's count is raised to `min_kind_deviation`, for rare kinds."""
        assert self.pyramid is not None
        least = torch.from_numpy(self.pyramid.counts_kinds * self.config.min_kind_deviation).to(deviation)
        features.set_standardisation(mean, torch.maximum(deviation, least))

    def standardised(self, columns: Columns, features: ContextFeatures | None) -> Columns:
        """The columns with standardised context, as batch() takes them."""
        if features is None:
            return columns
        return columns | {"context": features.standardise(columns["context"])}

    def prepare_background(self, features: ContextFeatures, pois: int) -> None:
        """Draw the background places for this many POIs and keep them on the device."""
        if self.pyramid is not None:
            columns = self.columns(draw_background(self.pyramid, pois, self.config))
            columns = {name: values.to(self.device) for name, values in columns.items()}
            self.background = self.standardised(columns, features)

    def sample_background(self, random: np.random.Generator, size: int, ranks: Ranks) -> Columns:
        """Random background places for a batch of `size` POIs; each process takes its share."""
        count = int(size * self.config.background_share) // ranks.world_size * ranks.world_size
        if not self.background or not count:
            return {}
        rows = torch.from_numpy(random.integers(len(self.background["metres"]), size=count)[ranks.local_rows(count)])
        return {name: values[rows.to(self.device)] for name, values in self.background.items()}

    def batch(self, columns: Columns, background: Columns | None = None) -> Batch:
        """The batch of some rows. The columns are on the device and standardised."""
        name_id = columns.get("name_id")
        return Batch(
            pois=self._places(columns),
            text_id=columns["text_id"],
            text=self.text_vectors[columns["text_id"]],
            name_id=name_id,
            name=None if name_id is None else self.text_vectors[name_id.clamp(min=0)],
            background=self._places(background) if background else None,
        )

    def _places(self, columns: Columns) -> Places:
        if self.pyramid is None or self.target_weights is None:
            return Places(columns["metres"])
        target = columns["context"][:, -self.target_width :].clamp(
            -self.config.max_deviations, self.config.max_deviations
        )
        return Places(columns["metres"], columns["context"], target * self.target_weights)


def is_self_visible(metres: Array, share: float) -> Array:
    """(N,) whether each POI, (N, 2) metres, sees itself in its context.

    If none did, the model would learn that there is no bakery where the only bakery is, and a search for bakeries would avoid
    that place. If all did, the model would read "bakery" from the bakery itself and learn nothing about its street. The
    coordinates decide, so that the choice is the same in memory and on disk.
    """
    mixed = np.ascontiguousarray(metres, np.float64).view(np.uint64)
    mixed = (mixed[:, 0] * np.uint64(0x9E3779B97F4A7C15)) ^ (mixed[:, 1] * np.uint64(0xC2B2AE3D27D4EB4F))
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    sees: Array = (mixed >> np.uint64(40)).astype(np.float64) / 2**24 < share
    return sees


class Resident:
    """All rows on the device; an epoch reads them by number."""

    def __init__(
        self,
        metres: Array,
        text_id: Array,
        text_vectors: Array,
        config: TrainConfig,
        device: torch.device,
        ranks: Ranks = ALONE,
        name_id: Array | None = None,
    ) -> None:
        """metres: (N, 2) from the origin; text_id and name_id: (N,) into text_vectors (V, T), -1 for no name."""
        self.config, self.device, self.ranks = config, device, ranks
        self.pyramid = build_pyramid(metres, text_id, text_vectors, config) if config.encoder == "contextual" else None
        self.maker = BatchMaker(self.pyramid, text_vectors, config, device)
        columns = self.maker.columns(metres, text_id, name_id if config.name_weight else None)
        self.columns = {name: values.to(device) for name, values in columns.items()}
        self.training_rows, self.validation_rows = split(len(metres), config)
        self.training, self.validation = len(self.training_rows), len(self.validation_rows)

    def standardise(self, features: ContextFeatures | None) -> None:
        """Fit to all training rows, then standardise the rows on the device."""
        if features is None:
            return
        # In parts and in place, because the context is nearly all of a row's memory.
        context, rows = self.columns["context"], torch.from_numpy(self.training_rows).to(self.device)
        parts = torch.split(rows, PART_ROWS)
        mean = sum((context[part].sum(dim=0) for part in parts), torch.zeros(1, device=self.device)) / len(rows)
        squares = sum(((context[part] - mean).square().sum(dim=0) for part in parts), torch.zeros_like(mean))
        self.maker.fit_standardisation(features, mean, (squares / (len(rows) - 1)).sqrt())
        for view in torch.split(context, PART_ROWS):
            view.copy_(features.standardise(view))
        self.maker.prepare_background(features, self.training)

    def batches(self, epoch: int, size: int) -> Iterator[Batch]:
        """In the order of one random permutation per epoch."""
        order = self.config.order_random(epoch).permutation(self.training_rows)
        random = self.config.background_random(epoch)
        for rows in batches(torch.from_numpy(order).to(self.device), size):
            yield self.take(rows[self.ranks.local_rows(size)], self.maker.sample_background(random, size, self.ranks))

    def held_out(self, size: int) -> Iterator[Batch]:
        """In a fixed random order."""
        order = torch.from_numpy(np.random.default_rng(0).permutation(self.validation_rows)).to(self.device)
        for rows in self.ranks.shard(batches(order, size)):
            yield self.take(rows)

    def take(self, rows: Tensor, background: Columns | None = None) -> Batch:
        """Rows by their numbers, (B,) on the device."""
        return self.maker.batch({name: values[rows] for name, values in self.columns.items()}, background)


def split(count: int, config: TrainConfig) -> tuple[Array, Array]:
    """Row numbers for training and for validation: random, disjoint, sorted."""
    order = config.split_random().permutation(count)
    held_out = validation_rows(count, config.validation_share)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def validation_rows(count: int, validation_share: float) -> int:
    """How many of `count` rows are held out."""
    return max(2, round(count * validation_share))


def batches(order: Tensor, size: int) -> Iterator[Tensor]:
    """Whole batches only: a smaller one has fewer negatives and so another loss."""
    for start in range(0, len(order) - size + 1, size):
        yield order[start : start + size]
