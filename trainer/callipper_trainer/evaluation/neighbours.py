"""The floor without features: the labels of the nearest labelled places."""

from __future__ import annotations

import numpy as np
import torch

from callipper_db.arrays import Array
from callipper_trainer.evaluation.splits import Split

NEIGHBOURS = {"classification": 5, "distribution": 10, "regression": 10}
SAME_PLACE = 1e-9  # distance, in the unit of the coordinates, below which two places count as one
PAIRS = 4_000_000  # distances held at once


def predict_neighbours(places: Array, targets: Array, task: str, splits: list[Split]) -> list[Array]:
    """For each split, (T, C): the mean of the targets (N, C) of the nearest training places, by coordinates (N, 2).

    The weights are 1 / distance, which makes the floor higher than equal weights do (London's land use: F1 0.43, not 0.37).
    The mean of one-hot classes is the share of votes. Validation rows serve as training rows, because no training is stopped.
    """
    return [_predict(places, targets, NEIGHBOURS[task], split) for split in splits]


def _predict(places: Array, targets: Array, neighbours: int, split: Split) -> Array:
    known = np.sort(np.concatenate([split.train, split.validation]))
    centred = torch.from_numpy(places - places.mean(axis=0))
    reference, asked = centred[known], centred[split.test]
    result = np.empty((len(split.test), targets.shape[1]))
    step = max(1, PAIRS // len(known))
    for start in range(0, len(asked), step):
        # Not by a matrix product, whose rounding error is as large as the distance of places some metres apart.
        every = torch.cdist(asked[start : start + step], reference, compute_mode="donot_use_mm_for_euclid_dist")
        distance, nearest = every.topk(min(neighbours, len(known)), dim=1, largest=False)
        weight = 1 / distance.clamp(min=SAME_PLACE)
        weight /= weight.sum(dim=1, keepdim=True)
        result[start : start + step] = np.einsum("tk,tkc->tc", weight.numpy(), targets[known[nearest.numpy()]])
    return result
