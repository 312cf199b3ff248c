"""Small cities to fit a model to, and runs that stop."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from callipper_db.arrays import Array
from callipper_db.progress import Silent
from callipper_trainer.model import TrainedModel

ORIGIN = np.array([500_000.0, 5_700_000.0])


TEXTS = 12


class Interrupted(Exception):
    pass


class StopAfter(Silent):
    """Interrupts the run after this many epochs."""

    def __init__(self, epoch: int) -> None:
        self.last = epoch

    def epoch(self, figures: dict[str, Any]) -> None:
        if figures["epoch"] == self.last:
            raise Interrupted


def city(count: int = 200, seed: int = 0) -> tuple[Array, Array, Array, Array]:
    """Places around one centre per text, in metres: the arguments of fit()."""
    random = np.random.default_rng(seed)
    text_id = random.integers(0, TEXTS, count).astype(np.int32)
    centres = random.uniform(-3000, 3000, (TEXTS, 2))
    metres = ORIGIN + centres[text_id] + random.normal(0, 200, (count, 2))
    vectors = random.normal(0, 1, (TEXTS, 24)).astype(np.float32)
    return metres, text_id, vectors, ORIGIN


def without_time(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in figures.items() if name != "rows_per_s"} for figures in history]


def assert_same(one: TrainedModel, other: TrainedModel) -> None:
    """Bit for bit."""
    assert without_time(one.history) == without_time(other.history)
    assert one.best_epoch == other.best_epoch
    left, right = one.model.state_dict(), other.model.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
