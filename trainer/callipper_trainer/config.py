"""All settings of a training run, and the sources of its random numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

POI_TEMPLATE = "{category}"  # bare, as people ask: its retrieval AUC is 83.4; that of "A place of {category}" is 75.1

# The paper's settings where they differ. It does not learn names, and gives all pairs the same weight.
PAPER_SETTINGS: dict[str, Any] = {
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

    A quotation is the line of docs/experiments.md that chose the value. A value without one is the paper's or was not varied.
    """

    # Location encoder
    encoder: str = "contextual"  # or coordinate, the paper's, which reads no context
    frequencies: int = 32  # wavelengths of the position encoding
    wavelength_min_m: float = 100.0  # metres per radian; a full period is 2 pi times as long
    wavelength_max_m: float = 10_000.0  # metres per radian
    hidden: int = 192  # width of the network: "two blocks, hidden 192 in place of 256"
    blocks: int = 2  # residual blocks: the same line
    dropout: float = 0.0  # share of hidden values that a step drops: "no dropout in place of 0.1"

    # Context: square lattices hold, per cell, the number of POIs and the sum of their text codes
    lattices: int = 11  # number of lattices; the coarsest has cells of 12,800 m: "raw, lattices of 100 to 12,800 m"
    # Metres per cell side; each next lattice doubles it: "lattices from 12.5 m, weight 4"
    finest_lattice_m: float = 12.5
    code_size: int = 32  # length of a text code: "64 or 16 numbers in the code in place of 32"
    prior: float = 0.25  # POIs with code 0 added to every mean, which pulls a mean over few POIs towards 0
    kinds: int = 96  # groups of similar texts, at most: "the head predicts up to 128 kinds"
    # Metres per cell side; lattices from this size up count kinds: "kinds counted from 50 m; from 25 m"
    kinds_from_m: float = 100.0
    # Least standard deviation of log(1 + POIs of a kind): "at least 0.05, weight 8, kinds count four times"
    min_kind_deviation: float = 0.05
    self_visible: float = 0.1  # share of POIs that see themselves in their context: "a tenth of the POIs sees itself"

    # The context head predicts context from an embedding; it is dropped after training
    context_weight: float = 8.0  # in the loss; the contrast with texts has 1: "weight 8, kinds count four times"
    # Metres per cell side; finer lattices are no targets: they differ from house to house and would dominate
    targets_from_m: float = 100.0
    # Weight of a kind's count in the error; a number of the code has 1: "weight 8, kinds count four times"
    kind_weight: float = 4.0
    # Standard deviations at which a target is clipped; the only POI of a kind would be hundreds out
    max_deviations: float = 10.0
    # Metres per cell side; background places, which have no text, are drawn in cells of this size that hold a POI
    background_m: float = 800.0
    background_per_poi: float = 0.5  # background places per POI: "half of the background"
    background_least: int = 4096  # background places at least
    background_most: int = 65_536  # background places at most
    background_share: float = 0.25  # background places in a step per POI of the step: the same line

    # Contrast
    # Of the contrast with names in the loss; that with texts has 1: "a weight of 0.3 in place of 0.15 for names"
    name_weight: float = 0.15
    balance: float = 0.25  # a pair has the weight (rows with its text)^-balance: "batches of 512, ^0; ^-0.25; ^-0.5"
    initial_temperature: float = 0.07  # CLIP's
    logit_scale_max: float = 100.0  # CLIP's

    # Optimisation
    epochs: int | None = None  # passes over the POIs; None: `least_epochs`, or more to reach `min_steps`
    least_epochs: int = 6  # "6 epochs to a rate of 2e-3"
    min_steps: int = 300  # "Small sources": 300 in place of 600 or 150
    batch_size: int = 512  # POIs per step: "batches of 2048; 512; 256"
    least_batches: int = 8  # per epoch; a small source gets smaller batches, so that shuffling has an effect
    learning_rate: float = 2e-3  # peak of the one-cycle schedule: "6 epochs to a rate of 2e-3"
    weight_decay: float = 0.02  # "at least 0.05, weight 8, kinds count four times, weight decay 0.02"
    validation_share: float = 0.1  # share of POIs held out to choose the best epoch

    # The run
    seed: int = 42  # the same seed and data give the same model
    device: str = "auto"  # auto, cpu, cuda, cuda:1, ...
    precision: str = "auto"  # of the network in training: bf16 or float32; auto: bf16 on a GPU that supports it

    @classmethod
    def of(cls, encoder: str, **options: Any) -> TrainConfig:
        """The usual settings of an encoder; `coordinate` has the paper's. An option that is None changes nothing."""
        usual = PAPER_SETTINGS if encoder == "coordinate" else {}
        return cls(encoder=encoder, **(usual | {name: value for name, value in options.items() if value is not None}))

    def to_dict(self) -> dict[str, Any]:
        """As JSON for provenance and checkpoints."""
        return asdict(self)

    def lattice_sizes(self) -> list[float]:
        """The cell sides of the lattices in metres, the finest first."""
        return [self.finest_lattice_m * 2**number for number in range(self.lattices)]

    def batch_for(self, count: int) -> int:
        """Rows per batch for `count` training POIs."""
        return max(2, min(self.batch_size, count // self.least_batches))

    def epochs_for(self, count: int) -> int:
        """Epochs for `count` training POIs."""
        if self.epochs is not None:
            return self.epochs
        steps_per_epoch = max(1, count // self.batch_for(count))
        return max(self.least_epochs, -(-self.min_steps // steps_per_epoch))

    def background_for(self, count: int) -> int:
        """Background places for `count` training POIs."""
        return min(self.background_most, max(self.background_least, int(count * self.background_per_poi)))

    # Random numbers. Each use has a stream of its own, so that a new use does not change the others.

    def split_random(self) -> np.random.Generator:
        """For the choice of the held-out rows."""
        return np.random.default_rng(self.seed)

    def order_random(self, epoch: int) -> np.random.Generator:
        """For the order of an epoch's rows."""
        return np.random.default_rng([self.seed, epoch])

    def background_random(self, epoch: int) -> np.random.Generator:
        """For the background places of an epoch's steps."""
        return np.random.default_rng([self.seed, epoch, 1])

    def background_places_random(self) -> np.random.Generator:
        """For the positions of all background places."""
        return np.random.default_rng([self.seed, 800])

    def torch_seed(self, epoch: int, rank: int) -> int:
        """Torch's seed in an epoch, for dropout. It differs by process; a resumed run has the same."""
        return self.seed * 1_000_003 + epoch + rank * 7_368_787
