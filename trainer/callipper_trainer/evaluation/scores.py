"""How good predictions are: one function per figure, from arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from callipper_db.arrays import Array

FLOOR = 1e-12  # least probability in a logarithm, so that a predicted zero does not make the divergence infinite


def confusion(truth: Array, predicted: Array, classes: int) -> Array:
    """(T,) and (T,) class numbers -> (classes, classes) counts, a row for each true class."""
    counts = np.bincount(truth * classes + predicted, minlength=classes * classes)
    matrix: Array = counts.reshape(classes, classes)
    return matrix


def per_class(matrix: Array) -> dict[str, Array]:
    """Precision, recall, F1 and support of each class, (classes,); 0 in place of 0 / 0."""
    hits = np.diag(matrix).astype(np.float64)
    asked, support = matrix.sum(axis=0), matrix.sum(axis=1)
    return {
        "precision": _ratio(hits, asked),
        "recall": _ratio(hits, support),
        "f1": _ratio(2 * hits, asked + support),
        "support": support,
    }


def classification_scores(matrix: Array) -> dict[str, float]:
    """Macro F1 over the classes that occur in the truth or the predictions, and accuracy."""
    present = (matrix.sum(axis=0) + matrix.sum(axis=1)) > 0
    accuracy = float(np.trace(matrix) / matrix.sum())
    return {"macro_f1": float(per_class(matrix)["f1"][present].mean()), "accuracy": accuracy}


def distribution_scores(truth: Array, predicted: Array) -> dict[str, float]:
    """Shares (T, C): mean Kullback-Leibler divergence of the prediction from the truth (nats), and mean L1 distance."""
    return {
        "kl": float(kl_divergence(truth, predicted).mean()),
        "l1": float(np.abs(truth - predicted).sum(axis=1).mean()),
    }


def kl_divergence(truth: Array, predicted: Array) -> Array:
    """(T, C) and (T, C) -> (T,) sum of p log(p / q); a share of zero in the truth adds nothing."""
    logarithm = np.log(np.maximum(truth, FLOOR)) - np.log(np.maximum(predicted, FLOOR))
    divergence: Array = np.where(truth > 0, truth * logarithm, 0).sum(axis=1)
    return divergence


def regression_scores(truth: Array, predicted: Array) -> dict[str, float]:
    """(T, C) numbers: R2 (mean of the columns'), and RMSE and MAE over all, in the target's units."""
    error = predicted - truth
    spread = np.square(truth - truth.mean(axis=0)).sum(axis=0)
    explained = 1 - _ratio(np.square(error).sum(axis=0), spread)
    return {
        "r2": float(np.where(spread > 0, explained, 0).mean()),
        "rmse": float(np.sqrt(np.square(error).mean())),
        "mae": float(np.abs(error).mean()),
    }


def auc(own: Array, others: Array) -> float:
    """Probability that one of `own` has a higher score than one of `others`; a tie counts half (Mann and Whitney 1947)."""
    _, inverse, counts = np.unique(np.concatenate([own, others]), return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # from 1; equal scores share their mean rank
    above = rank[: len(own)].sum() - len(own) * (len(own) + 1) / 2
    return float(above / (len(own) * len(others)))


def summary(runs: list[dict[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and standard deviation over the seeds of each figure; the latter is 0 for a single seed."""
    mean = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
    spread = {name: float(np.std([run[name] for run in runs], ddof=1)) if len(runs) > 1 else 0.0 for name in runs[0]}
    return mean, spread


def _ratio(above: Any, below: Any) -> Array:
    result: Array = np.divide(above, below, out=np.zeros(np.shape(above), np.float64), where=np.asarray(below) > 0)
    return result
