"""All settings of a training run, and where its random numbers come from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

POI_TEMPLATE = "{category}"  # bare, as people ask: the AUC of a bare category is 83.4, and 75.1 after "A place of ..."

# Where the paper's settings differ: it learns no names, and all pairs weigh the same.
PAPERS: dict[str, Any] = {
    "hidden": 256,
    "blocks": 4,
    "name_weight": 0.0,
    "balance": 0.0,
    "batch_size": 1024,
    "learning_rate": 1e-3,
    "weight_decay": 1e-4,
}


@dataclass(frozen=True)
class TrainConfig:
    """The model, its data and its optimisation. of() gives the usual settings of an encoder.

    What stands in quotes is the line of docs/experiments.md that chose the value; the rest is the paper's or was not varied.
    """

    # Location encoder
    encoder: str = "contextual"  # or coordinate, the paper's, which reads no context
    frequencies: int = 32  # wavelengths of the position encoding
    wavelength_min_m: float = 100.0  # metres a radian: a full period is 2 pi times as long
    wavelength_max_m: float = 10_000.0  # metres a radian
    hidden: int = 192  # width of the network: "two blocks, hidden 192 in place of 256"
    blocks: int = 2  # residual blocks: the same line
    dropout: float = 0.0  # share of the hidden values that a step leaves out: "no dropout in place of 0.1"

    # Context: square lattices that hold, per cell, how many POIs there are and the sum of their texts' codes
    lattices: int = 11  # number; the coarsest has cells of 12,800 m: "raw, lattices of 100 to 12,800 m"
    finest_lattice_m: float = (
        12.5  # metres a cell side; each next one is twice as wide: "lattices from 12.5 m, weight 4"
    )
    code_size: int = 32  # numbers that a text's code has: "64 or 16 numbers in the code in place of 32"
    prior: float = 0.25  # POIs without a code in every mean, so that a mean over few is drawn to zero
    kinds: int = 96  # groups of like texts, at most: "up to 128 kinds are told, so each category is one"
    kinds_from_m: float = (
        100.0  # metres a cell side, from which kinds are counted: "kinds counted from 50 m; from 25 m"
    )
    min_kind_deviation: float = 0.05  # of log(1 + POIs of a kind): "at least 0.05, weight 8, kinds count four times"
    self_visible: float = 0.1  # share of the POIs that see themselves in their context: "A tenth it is"

    # What the context head predicts from an embedding; the head is dropped after training
    context_weight: float = 8.0  # in the loss, next to the contrast's 1: "weight 8, kinds count four times"
    targets_from_m: float = (
        100.0  # metres a cell side; finer lattices change from house to house and would take all the room
    )
    kind_weight: float = (
        4.0  # of a kind's number in the error, next to 1 of a code's: "weight 8, kinds count four times"
    )
    max_deviations: float = 10.0  # larger targets are cut: the only POI of its kind lies hundreds of deviations out
    background_m: float = (
        800.0  # metres a cell side: places without POIs are drawn in lattice cells of this size that hold one
    )
    background_per_poi: float = 0.5  # such places for each POI: "half of the background"
    background_least: int = 4096  # of them
    background_most: int = 65_536  # of them
    background_share: float = 0.25  # such places in a step for each of its POIs: the same line

    # Contrast
    name_weight: float = (
        0.15  # of the contrast with names, next to 1 of that with texts: "With names at 0.3 in place of 0.15"
    )
    balance: float = 0.25  # a pair weighs as (rows with its text)^-balance: "batches of 512, ^0; ^-0.25; ^-0.5"
    initial_temperature: float = 0.07  # CLIP's
    logit_scale_max: float = 100.0  # CLIP's

    # Optimisation
    epochs: int | None = None  # passes over the POIs; None: `least_epochs`, or more to reach `min_steps`
    least_epochs: int = 6  # "6 epochs to a rate of 2e-3"
    min_steps: int = 300  # "Small sources": 300 in place of 600 or 150
    batch_size: int = 512  # POIs a step: "batches of 2048; 512; 256"
    least_batches: int = 8  # an epoch; a small source has smaller batches, so that it is shuffled too
    learning_rate: float = 2e-3  # peak of the one-cycle schedule: "6 epochs to a rate of 2e-3"
    weight_decay: float = 0.02  # "at least 0.05, weight 8, kinds count four times, weight decay 0.02"
    validation_share: float = 0.1  # share of the POIs that is held out to choose the best epoch

    # The run
    seed: int = 42  # the same seed and data give the same model
    device: str = "auto"  # auto, cpu, cuda, cuda:1, ...
    precision: str = "auto"  # of the network in training: bf16 or float32; auto: bf16 on a GPU that has it

    @classmethod
    def of(cls, encoder: str, **options: Any) -> TrainConfig:
        """The usual settings of an encoder, those of `coordinate` being the paper's. Options that are None change nothing."""
        usual = PAPERS if encoder == "coordinate" else {}
        return cls(encoder=encoder, **(usual | {name: value for name, value in options.items() if value is not None}))

    def to_dict(self) -> dict[str, Any]:
        """As JSON for provenance and checkpoints."""
        return asdict(self)

    def lattice_sizes(self) -> list[float]:
        """The lattices' cell sides in metres, the finest first."""
        return [self.finest_lattice_m * 2**number for number in range(self.lattices)]

    def batch_for(self, count: int) -> int:
        """Rows a batch for `count` training POIs."""
        return max(2, min(self.batch_size, count // self.least_batches))

    def epochs_for(self, count: int) -> int:
        """Epochs for `count` training POIs."""
        if self.epochs is not None:
            return self.epochs
        steps_per_epoch = max(1, count // self.batch_for(count))
        return max(self.least_epochs, -(-self.min_steps // steps_per_epoch))

    def background_for(self, count: int) -> int:
        """Places without POIs for `count` training POIs."""
        return min(self.background_most, max(self.background_least, int(count * self.background_per_poi)))

    # Random numbers. Each use has a stream of its own, so that one that is added leaves the others as they are.

    def split_random(self) -> np.random.Generator:
        """Decides which rows are held out."""
        return np.random.default_rng(self.seed)

    def order_random(self, epoch: int) -> np.random.Generator:
        """Decides the order of an epoch's rows."""
        return np.random.default_rng([self.seed, epoch])

    def background_random(self, epoch: int) -> np.random.Generator:
        """Decides which background places an epoch's steps take."""
        return np.random.default_rng([self.seed, epoch, 1])

    def background_places_random(self) -> np.random.Generator:
        """Decides where the background places are."""
        return np.random.default_rng([self.seed, 800])

    def torch_seed(self, epoch: int, rank: int) -> int:
        """Decides an epoch's dropout, in each process another; a resumed run takes the same steps."""
        return self.seed * 1_000_003 + epoch + rank * 7_368_787
