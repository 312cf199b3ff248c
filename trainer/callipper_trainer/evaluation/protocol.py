"""How good embeddings are: a probe predicts targets from them, next to floors that an embedding must beat.

It works on arrays, without a database. The protocol is that of the paper (Wang et al. 2025), plus spatial hold-out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from callipper_db.arrays import Array
from callipper_db.errors import NotEnoughData
from callipper_db.figures import SPLITS
from callipper_db.progress import Advance, silent
from callipper_trainer.evaluation import scores
from callipper_trainer.evaluation.neighbours import NEIGHBOURS, predict_neighbours
from callipper_trainer.evaluation.probe import fit_probes
from callipper_trainer.evaluation.splits import Split, make_splits

MINIMUM_LABELS = 50
MOST_CLASSES = 30  # whole numbers with more distinct values count as quantities

MAIN = {"classification": "macro_f1", "regression": "r2", "distribution": "kl"}  # the main figure of a task


@dataclass(frozen=True)
class Targets:
    """What a probe predicts: (N, C) numbers, and the names of the columns."""

    task: str
    values: Array  # (N, C): one-hot classes, shares, or numbers
    names: list[str]  # (C,) of the classes, the shares or the columns

    def __len__(self) -> int:
        return len(self.values)


class Prediction(NamedTuple):
    """The prediction of one seed's probe for its test rows."""

    rows: Array  # (T,)
    values: Array  # (T, C) probabilities, shares or numbers


@dataclass(frozen=True)
class Score:
    """One line of the result: the figures of one set of features on one kind of split."""

    name: str
    split: str
    mean: dict[str, float]  # over the seeds
    spread: dict[str, float]  # standard deviation over the seeds
    runs: list[dict[str, float]]  # each seed's figures
    classes: list[dict[str, Any]] = field(default_factory=list)  # classification: mean figures of each class
    predictions: list[Prediction] = field(default_factory=list, repr=False, compare=False)  # each seed's

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON, without the predictions."""
        figures = {"name": self.name, "split": self.split, "mean": self.mean, "spread": self.spread}
        return figures | ({"classes": self.classes} if self.classes else {})


def make_targets(targets: Any, task: str | None = None, names: list[str] | None = None) -> Targets:
    """Targets from an array: (N,) classes (text or whole numbers) or numbers, or (N, C) shares or numbers.

    Without a task it is guessed, see guess_task(). Raises NotEnoughData for a single class, or too few rows.
    """
    values = np.asarray(targets)
    if len(values) < MINIMUM_LABELS:
        raise NotEnoughData(reason=f"{len(values)} labels, and at least {MINIMUM_LABELS} are needed.")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        missing = len(values) - int(np.isfinite(values.reshape(len(values), -1)).all(axis=1).sum())
        raise NotEnoughData(reason=f"{missing} of the labels are missing or not finite; leave those rows out.")
    task = task or guess_task(values)
    if task == "classification":
        classes, number = np.unique(values, return_inverse=True)
        if len(classes) < 2:
            raise NotEnoughData(
                reason=f"all labels are {str(classes[0])!r}, and a classification needs at least two classes."
            )
        return Targets(task, np.eye(len(classes), dtype=np.float32)[number], [str(name) for name in classes])
    columns = values.reshape(len(values), -1).astype(np.float64)
    if task == "distribution":
        columns = columns / columns.sum(axis=1, keepdims=True)
    elif (columns.max(axis=0) == columns.min(axis=0)).all():
        raise NotEnoughData(reason="all labels are the same number, so there is nothing to explain.")
    return Targets(task, columns, names or [f"column {number}" for number in range(columns.shape[1])])


def guess_task(values: Array) -> str:
    """Several columns that sum to 1 or 100 are a distribution; text or few whole numbers are classes; else regression."""
    if values.ndim == 2 and values.shape[1] > 1:
        share = values.sum(axis=1) / (100 if np.mean(values.sum(axis=1)) > 10 else 1)
        return "distribution" if (values >= 0).all() and np.allclose(share, 1, atol=0.02) else "regression"
    if values.dtype.kind not in "iuf":
        return "classification"
    distinct = np.unique(values)
    few = len(distinct) <= min(MOST_CLASSES, max(2, len(values) // 20))
    return "classification" if few and (distinct == np.round(distinct)).all() else "regression"


def evaluate_embeddings(
    embeddings: Array,
    places: Array,
    targets: Any,
    task: str | None = None,
    split: str = "both",
    seeds: int = 5,
    name: str = "model",
) -> list[Score]:
    """Predict targets of places with a probe on their embeddings; returns a Score for each kind of split.

    embeddings: (N, D); places: (N, 2) in metres or other plane coordinates; targets: a Targets, or what make_targets() takes.
    Raises NotEnoughData.
    """
    made = targets if isinstance(targets, Targets) else make_targets(targets, task)
    if not np.isfinite(embeddings).all():
        raise ValueError("the features have values that are not finite")
    # Centred in float64: in float32 the metres of a national grid would lose their centimetres.
    features = np.ascontiguousarray(embeddings - embeddings.mean(axis=0, dtype=np.float64), np.float32)
    return _scores(name, split, places, made, seeds, partial(fit_probes, features))


def evaluate_floors(
    places: Array,
    targets: Any,
    task: str | None = None,
    split: str = "both",
    seeds: int = 5,
    features: dict[str, Array] | None = None,
    advance: Advance = silent,
) -> list[Score]:
    """The scores that a model must beat: of nearest neighbours, of a probe on coordinates, and of probes on other `features`.

    Calls `advance(1)` after each of them.
    """
    made = targets if isinstance(targets, Targets) else make_targets(targets, task)
    neighbours = partial(predict_neighbours, places)
    result = _scores(f"{NEIGHBOURS[made.task]} nearest neighbours", split, places, made, seeds, neighbours)
    advance(1)
    for name, array in ({"coordinates": places} | (features or {})).items():
        result += evaluate_embeddings(array, places, made, split=split, seeds=seeds, name=name)
        advance(1)
    return result


def _scores(
    name: str,
    split: str,
    places: Array,
    targets: Targets,
    seeds: int,
    predict: Callable[[Array, str, list[Split]], list[Array]],
) -> list[Score]:
    """Predict for all splits and seeds in one call, which trains their probes in one batch."""
    kinds = SPLITS if split == "both" else (split,)
    splits = {kind: make_splits(kind, places, seeds) for kind in kinds}
    every = [part for kind in kinds for part in splits[kind]]
    predictions = predict(targets.values, targets.task, every)
    result = []
    for number, kind in enumerate(kinds):
        mine = predictions[number * seeds : (number + 1) * seeds]
        result.append(_score(name, kind, targets, splits[kind], mine))
    return result


def _score(name: str, kind: str, targets: Targets, splits: list[Split], predictions: list[Array]) -> Score:
    found = [Prediction(split.test, values) for split, values in zip(splits, predictions, strict=True)]
    if targets.task == "classification":
        matrices = [confusion(targets, prediction) for prediction in found]
        runs = [scores.classification_scores(matrix) for matrix in matrices]
        return Score(name, kind, *scores.summary(runs), runs, _class_table(targets.names, matrices), found)
    measure = scores.distribution_scores if targets.task == "distribution" else scores.regression_scores
    runs = [measure(targets.values[prediction.rows], prediction.values) for prediction in found]
    return Score(name, kind, *scores.summary(runs), runs, [], found)


def confusion(targets: Targets, prediction: Prediction) -> Array:
    """(classes, classes) counts of one seed's test rows, a row for each true class."""
    truth = targets.values[prediction.rows].argmax(axis=1)
    return scores.confusion(truth, prediction.values.argmax(axis=1), len(targets.names))


def _class_table(names: list[str], matrices: list[Array]) -> list[dict[str, Any]]:
    figures = [scores.per_class(matrix) for matrix in matrices]
    columns = {name: np.mean([figure[name] for figure in figures], axis=0) for name in figures[0]}
    return [
        {"class": name} | {column: round(float(values[number]), 4) for column, values in columns.items()}
        for number, name in enumerate(names)
    ]
