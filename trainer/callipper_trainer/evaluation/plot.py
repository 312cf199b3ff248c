"""The errors of a model as a PNG: the confusion of classes, or a map of the error at each place."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from callipper_db.arrays import Array
from callipper_trainer.evaluation.evaluate import Assessment
from callipper_trainer.evaluation.protocol import Score, Targets, confusion
from callipper_trainer.evaluation.scores import kl_divergence

matplotlib.use("Agg")

LONGEST_NAME = 40  # characters of a class next to the matrix
MOST = 0.98  # share of the errors within the colour scale; larger ones get the last colour


def draw(assessment: Assessment, path: Path) -> None:
    """Draw the model's errors on held-out places into a PNG file: by blocks if that split was measured, else at random."""
    split = "blocks" if "blocks" in assessment.splits else assessment.splits[0]
    score = assessment.lines(split)[0]
    targets = assessment.labels.targets
    figure = Figure(figsize=(10, 9), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    if targets.task == "classification":
        _draw_confusion(axes, score, targets)
    else:
        _draw_errors(figure, axes, assessment, score)
    held_out = "by blocks" if split == "blocks" else "at random"
    axes.set_title(f"{assessment.labels.name}, model version {assessment.version}, held out {held_out}")
    figure.savefig(path)


def _draw_confusion(axes: Axes, score: Score, targets: Targets) -> None:
    matrix = np.sum([confusion(targets, prediction) for prediction in score.predictions], axis=0)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="magma", vmin=0, vmax=1)
    names = [name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…" for name in targets.names]
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    for row, column in np.ndindex(share.shape):
        colour = "black" if share[row, column] > 0.6 else "white"
        axes.text(column, row, f"{share[row, column]:.0%}", ha="center", va="center", color=colour, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true (rows sum to 100 %)")


def _draw_errors(figure: Figure, axes: Axes, assessment: Assessment, score: Score) -> None:
    rows, error = place_errors(score, assessment.labels.targets)
    lonlat = assessment.labels.lonlat
    never = np.setdiff1d(np.arange(len(lonlat)), rows)
    if len(never):
        label = f"{len(never):,} labels never held out"
        axes.scatter(lonlat[never, 0], lonlat[never, 1], s=2, c="#bbbbbb", linewidths=0, label=label)
        axes.legend(loc="lower right")
    signed = assessment.labels.targets.task == "regression"
    bound = float(np.quantile(np.abs(error), MOST)) or 1.0
    dots = axes.scatter(
        lonlat[rows, 0],
        lonlat[rows, 1],
        s=float(np.clip(4e4 / max(len(rows), 1), 2, 30)),
        c=error,
        cmap="coolwarm" if signed else "magma_r",
        vmin=-bound if signed else 0,
        vmax=bound,
        linewidths=0,
    )
    axes.set_aspect(float(1 / np.cos(np.deg2rad(lonlat[:, 1].mean()))))
    axes.ticklabel_format(useOffset=False)
    axes.set(xlabel="longitude", ylabel="latitude")
    axes.set_facecolor("#f2f2f2")
    bar = figure.colorbar(dots, ax=axes, shrink=0.8, extend="both" if signed else "max")
    bar.set_label("predicted minus true" if signed else "Kullback-Leibler divergence")


def place_errors(score: Score, targets: Targets) -> tuple[Array, Array]:
    """The rows that a seed has held out, and their mean error over these seeds.

    The error is prediction minus truth (mean over the columns), or the divergence of a distribution.
    """
    total, times = np.zeros(len(targets)), np.zeros(len(targets))
    for rows, predicted in score.predictions:
        truth = targets.values[rows]
        if targets.task == "distribution":
            total[rows] += kl_divergence(truth, predicted)
        else:
            total[rows] += (predicted - truth).mean(axis=1)
        times[rows] += 1
    seen = np.flatnonzero(times)
    return seen, total[seen] / times[seen]
