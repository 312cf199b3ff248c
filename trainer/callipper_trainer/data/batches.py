"""Where batches come from: rows that are all on the device, or, in streaming.py, rows on disk."""

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
    """What an epoch reads. Sizes are of whole batches; each process receives its share of their rows."""

    pyramid: Pyramid | None
    maker: BatchMaker
    training: int  # rows
    validation: int  # rows

    def standardise(self, features: ContextFeatures | None) -> None:
        """Fit the standardisation to the training rows; before the first batch."""

    def batches(self, epoch: int, size: int) -> Iterator[Batch]:
        """The training rows in an order that follows from seed and epoch, in whole batches."""

    def held_out(self, size: int) -> Iterator[Batch]:
        """The validation rows in whole batches, the same each time: of several processes each gets other batches, whole."""


class BatchMaker:
    """Turns rows as they are stored into what the model reads, the same way for data in memory and on disk."""

    def __init__(self, pyramid: Pyramid | None, text_vectors: Array, config: TrainConfig, device: torch.device) -> None:
        self.pyramid, self.config, self.device = pyramid, config, device
        self.codes = None if pyramid is None else pyramid.codes(text_vectors)
        self.text_vectors = torch.from_numpy(np.ascontiguousarray(text_vectors)).to(device)
        self.target_weights = None if pyramid is None else torch.from_numpy(target_weights(pyramid, config)).to(device)
        self.background: Columns = {}

    @property
    def target_width(self) -> int:
        """How many numbers of its context an embedding predicts."""
        return target_columns(self.pyramid, self.config.targets_from_m) if self.pyramid else 0

    def model(self) -> CaLLiPer:
        """An untrained model that reads such batches."""
        features = make_features(self.config, self.pyramid)
        return CaLLiPer(self.config, self.text_vectors.shape[1], features, self.target_width).to(self.device)

    def columns(self, metres: Array, text_id: Array | None = None, name_id: Array | None = None) -> Columns:
        """All that is computed per row, on the CPU: metres (N, 2) from the origin, and of POIs the (N,) texts and names.

        Most POIs do not see themselves.
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
        """Take mean and deviation of each feature, (C,); those of a rare kind's number are held to vary more than they do."""
        assert self.pyramid is not None
        least = torch.from_numpy(self.pyramid.counts_kinds * self.config.min_kind_deviation).to(deviation)
        features.set_standardisation(mean, torch.maximum(deviation, least))

    def standardised(self, columns: Columns, features: ContextFeatures | None) -> Columns:
        """The columns as batch() takes them."""
        if features is None:
            return columns
        return columns | {"context": features.standardise(columns["context"])}

    def prepare_background(self, features: ContextFeatures, pois: int) -> None:
        """Places to stand beside so many POIs, all of them on the device."""
        if self.pyramid is not None:
            columns = self.columns(draw_background(self.pyramid, pois, self.config))
            columns = {name: values.to(self.device) for name, values in columns.items()}
            self.background = self.standardised(columns, features)

    def sample_background(self, random: np.random.Generator, size: int, ranks: Ranks) -> Columns:
        """A quarter as many places as a batch has rows, at random; of several processes each takes its part."""
        count = int(size * self.config.background_share) // ranks.world_size * ranks.world_size
        if not self.background or not count:
            return {}
        rows = torch.from_numpy(random.integers(len(self.background["metres"]), size=count)[ranks.local_rows(count)])
        return {name: values[rows.to(self.device)] for name, values in self.background.items()}

    def batch(self, columns: Columns, background: Columns | None = None) -> Batch:
        """Rows whose columns are on the device and standardised."""
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
    """Whether each of some POIs, (N, 2) metres, finds itself among what lies around it.

    Were there none, a model would learn that next door to the only bakery there is no bakery: what asks for a place with a
    bakery would be led away from it. Were there all, it would read the bakery off the bakery, and learn nothing of the
    street. Which ones follows from their coordinates, so that it is the same in memory and on disk.
    """
    mixed = np.ascontiguousarray(metres, np.float64).view(np.uint64)
    mixed = (mixed[:, 0] * np.uint64(0x9E3779B97F4A7C15)) ^ (mixed[:, 1] * np.uint64(0xC2B2AE3D27D4EB4F))
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    sees: Array = (mixed >> np.uint64(40)).astype(np.float64) / 2**24 < share
    return sees


class Resident:
    """All rows on the device: an epoch reads them by their numbers."""

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
        """By all training rows; what is kept on the device is standardised once and for all."""
        if features is None:
            return
        # A part at a time, and in place: these are nearly all that a row takes.
        context, rows = self.columns["context"], torch.from_numpy(self.training_rows).to(self.device)
        parts = torch.split(rows, PART_ROWS)
        mean = sum((context[part].sum(dim=0) for part in parts), torch.zeros(1, device=self.device)) / len(rows)
        squares = sum(((context[part] - mean).square().sum(dim=0) for part in parts), torch.zeros_like(mean))
        self.maker.fit_standardisation(features, mean, (squares / (len(rows) - 1)).sqrt())
        for view in torch.split(context, PART_ROWS):
            view.copy_(features.standardise(view))
        self.maker.prepare_background(features, self.training)

    def batches(self, epoch: int, size: int) -> Iterator[Batch]:
        """In the order of one random permutation an epoch."""
        order = self.config.order_random(epoch).permutation(self.training_rows)
        random = self.config.background_random(epoch)
        for rows in batches(torch.from_numpy(order).to(self.device), size):
            yield self.take(rows[self.ranks.local_rows(size)], self.maker.sample_background(random, size, self.ranks))

    def held_out(self, size: int) -> Iterator[Batch]:
        """In an order of their own."""
        order = torch.from_numpy(np.random.default_rng(0).permutation(self.validation_rows)).to(self.device)
        for rows in self.ranks.shard(batches(order, size)):
            yield self.take(rows)

    def take(self, rows: Tensor, background: Columns | None = None) -> Batch:
        """Rows by their numbers, (B,) on the device."""
        return self.maker.batch({name: values[rows] for name, values in self.columns.items()}, background)


def split(count: int, config: TrainConfig) -> tuple[Array, Array]:
    """Row numbers for training and validation, disjoint, at random."""
    order = config.split_random().permutation(count)
    held_out = validation_rows(count, config.validation_share)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def validation_rows(count: int, validation_share: float) -> int:
    """How many of so many rows are held out."""
    return max(2, round(count * validation_share))


def batches(order: Tensor, size: int) -> Iterator[Tensor]:
    """Whole batches only: a smaller one has fewer negatives, hence another loss."""
    for start in range(0, len(order) - size + 1, size):
        yield order[start : start + size]
