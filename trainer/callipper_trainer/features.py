"""The kinds of features that the location encoder reads. A kind is one class here and one function in sql/030_loc_embed.sql.

The class holds everything about the kind: its numbers in torch, its entry in model.arch, and how its rows are written and read.
docs/feature-kinds.md says how to add a kind. Stored models must stay readable. So never change what the numbers of a kind mean:
add a new kind and keep the old one (tests/database/test_upgrade.py).

Shapes: B places per batch, F frequencies, C context features.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from callipper_db.binary_copy import Columns
from callipper_trainer.config import TrainConfig
from callipper_trainer.context import KindCode, Level, Pyramid, TextCode, cell_key
from callipper_trainer.weight_rows import WeightRows

MINIMUM_DEVIATION = 1e-6  # a feature that varies less is constant; standardised, it is 0


class Feature(nn.Module):
    """One kind of features of a place."""

    kind: ClassVar[str]  # its name in model.arch
    keys: ClassVar[frozenset[str]]  # the keys of its entry in model.arch, without `kind`
    looked_up: ClassVar[bool] = False  # True: the batch brings the numbers; False: forward() computes them
    width: int  # numbers per place

    def forward(self, metres: Tensor, context: Tensor | None) -> Tensor:
        """(B, 2) float64 metres from the model's origin, (B, C) looked-up numbers -> (B, width) float32."""
        raise NotImplementedError

    def entry(self) -> dict[str, Any]:
        """Its entry in model.arch: what its SQL function needs in addition to its rows."""
        raise NotImplementedError

    def write(self, rows: WeightRows) -> None:
        """Write its rows, if it has any."""

    @classmethod
    def read(cls, entry: dict[str, Any], rows: WeightRows) -> Feature:
        """The feature from its entry and its rows."""
        raise NotImplementedError


class GridEncoding(Feature):
    """Space2Vec's "grid" encoding (Mai et al. 2020): sines and cosines of easting and northing at F wavelengths.

    The divisors of the metres are spaced geometrically. The angles are reduced to one turn in float64: in float32, the angle of
    a northing at the shortest wavelength would be off by 1e-3. The rest is float32.
    """

    kind = "grid"
    keys = frozenset({"divisors_m"})
    divisors: Tensor

    def __init__(self, frequencies: int, shortest_m: float, longest_m: float) -> None:
        super().__init__()
        ratio = math.log(longest_m / shortest_m) / max(frequencies - 1, 1)
        steps = torch.arange(frequencies, dtype=torch.float64)
        self.register_buffer("divisors", shortest_m * torch.exp(ratio * steps), persistent=False)
        self.width = 4 * frequencies

    def forward(self, metres: Tensor, context: Tensor | None = None) -> Tensor:
        """-> (B, 4F): sin e, cos e, sin n, cos n."""
        turns = metres.unsqueeze(2) / (2 * math.pi * self.divisors)  # (B, 2, F)
        angles = ((turns - turns.floor()) * (2 * math.pi)).float()
        return torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1)

    def entry(self) -> dict[str, Any]:
        """The divisors."""
        return {"kind": self.kind, "divisors_m": self.divisors.tolist()}

    @classmethod
    def read(cls, entry: dict[str, Any], rows: WeightRows) -> GridEncoding:
        """From the entry alone; this kind has no rows."""
        divisors = torch.tensor(entry["divisors_m"], dtype=torch.float64)
        encoding = cls(len(divisors), 1.0, 1.0)
        encoding.divisors.copy_(divisors)
        return encoding


class ContextFeatures(Feature):
    """The POIs around a place, from a pyramid of lattices (context.py), standardised: (feature - mean) * scale."""

    kind = "context"
    keys = frozenset({"sizes_m", "code", "prior", "kinds", "kinds_from_m"})
    looked_up = True
    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, pyramid: Pyramid | None = None) -> None:
        """width: C. Without a pyramid it can run, but has no entry and no rows."""
        super().__init__()
        self.width, self.pyramid = width, pyramid
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def forward(self, metres: Tensor, context: Tensor | None) -> Tensor:
        """The batch's context, (B, C), as it is."""
        assert context is not None, "the context comes with the batch"
        return context

    def set_standardisation(self, mean: Tensor, deviation: Tensor) -> None:
        """Set mean and deviation of each feature, (C,)."""
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(deviation > MINIMUM_DEVIATION, 1 / deviation, 0))

    def standardise(self, context: Tensor) -> Tensor:
        """(B, C) raw features -> (B, C) standardised. Done once per place, before training, not in each step."""
        return (context - self.mean) * self.scale

    def entry(self) -> dict[str, Any]:
        """The sizes of the pyramid."""
        assert self.pyramid is not None
        return {
            "kind": self.kind,
            "sizes_m": [level.size_m for level in self.pyramid.levels],
            "code": self.pyramid.code_size,
            "prior": self.pyramid.prior,
            # Lattices with cells of kinds_from_m or more count the POIs of this many kinds.
            "kinds": len(self.pyramid.kind_code.weight),
            "kinds_from_m": self.pyramid.kinds_from_m,
        }

    def write(self, rows: WeightRows) -> None:
        """Write the codes as layers and the lattices into context_cell."""
        assert self.pyramid is not None
        rows.write_layer("text_code", self.pyramid.text_code.weight, self.pyramid.text_code.bias)
        rows.write_layer("kind_code", self.pyramid.kind_code.weight, self.pyramid.kind_code.bias)
        for number, level in enumerate(self.pyramid.levels):
            rows.write("context_cell", lattice_columns(number, level))

    @classmethod
    def read(cls, entry: dict[str, Any], rows: WeightRows) -> ContextFeatures:
        """From entry and rows, with the sizes of the stored model."""
        codes = TextCode(*rows.read_layer("text_code")), KindCode(*rows.read_layer("kind_code"))
        empty = Pyramid(*codes, [], entry["prior"], entry["kinds_from_m"])
        levels = [
            _read_lattice(rows, number, size_m, empty.sum_width(size_m))
            for number, size_m in enumerate(entry["sizes_m"])
        ]
        pyramid = replace(empty, levels=levels)
        return cls(pyramid.width, pyramid)


KINDS: tuple[type[Feature], ...] = (GridEncoding, ContextFeatures)


def make_features(config: TrainConfig, pyramid: Pyramid | None = None) -> list[Feature]:
    """The features of an untrained model, in the order in which its input layer reads them."""
    features: list[Feature] = [GridEncoding(config.frequencies, config.wavelength_min_m, config.wavelength_max_m)]
    if pyramid is not None:
        features.append(ContextFeatures(pyramid.width, pyramid))
    return features


def lattice_columns(number: int, level: Level) -> Columns:
    """One lattice as columns of context_cell, except `version`."""
    return {
        "level": ("int4", number),
        "i": ("int4", level.ij[:, 0]),
        "j": ("int4", level.ij[:, 1]),
        "n": ("float4", level.count),
        "code_sum": ("vector", level.code_sum),
    }


def _read_lattice(rows: WeightRows, number: int, size_m: float, width: int) -> Level:
    """A lattice from context_cell. width: the length of a cell's sum."""
    columns = {"i": "int4", "j": "int4", "n": "float4", "code_sum": "vector"}
    i, j, count, code_sum = rows.read("context_cell", columns, {"level": number}, width)
    ij = np.column_stack([i, j]).astype(np.int64)
    return Level(size_m, cell_key(ij), ij, count, code_sum)
