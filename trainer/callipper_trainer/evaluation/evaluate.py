"""`callipper-db evaluate`: how well a published model's embeddings predict labels, next to floors."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from callipper_db import db, models
from callipper_db.arrays import Array
from callipper_db.figures import LOWER_IS_BETTER
from callipper_db.progress import Reporter
from callipper_trainer.embed import embed_places
from callipper_trainer.evaluation.labels import Labels, LabelSource, read_labels
from callipper_trainer.evaluation.protocol import MAIN, Score, evaluate_embeddings, evaluate_floors
from callipper_trainer.model import TrainedModel
from callipper_trainer.model_rows import load_model

DECIMALS = 5  # of the figures in the database


@dataclass(frozen=True)
class Verdict:
    """The model compared with the best floor, on one kind of split."""

    split: str
    figure: str
    model: float
    floor: str
    floor_value: float
    gain: float  # of the model over the floor; positive is better, also for figures where lower is better
    spread: float  # standard deviation of the gain over the seeds; both use the same splits

    def __str__(self) -> str:
        better = "better" if self.gain > 0 else "worse"
        how = "by blocks" if self.split == "blocks" else "at random"
        return (
            f"Held out {how}, the model's {self.figure} of {self.model:.4f} is"
            f" {abs(self.gain):.4f} ± {self.spread:.4f} {better} than the best floor's {self.floor_value:.4f} ({self.floor})."
        )


@dataclass(frozen=True)
class Assessment:
    """A model's scores on some labels, next to those of the floors."""

    version: int
    labels: Labels
    seeds: int
    scores: list[Score]  # of the model and of the floors, one for each kind of split

    def lines(self, split: str) -> list[Score]:
        """The scores on one kind of split, with the model's first."""
        return [score for score in self.scores if score.split == split]

    @property
    def splits(self) -> list[str]:
        """The kinds of split."""
        return list(dict.fromkeys(score.split for score in self.scores))

    def verdicts(self) -> list[Verdict]:
        """The model compared with the best floor, on each kind of split."""
        figure = MAIN[self.labels.targets.task]
        sign = -1 if figure in LOWER_IS_BETTER else 1
        result = []
        for split in self.splits:
            model, *floors = self.lines(split)
            best = max(floors, key=lambda score: sign * score.mean[figure])
            gains = [sign * (ours[figure] - theirs[figure]) for ours, theirs in zip(model.runs, best.runs, strict=True)]
            spread = float(np.std(gains, ddof=1)) if len(gains) > 1 else 0.0
            here, there = model.mean[figure], best.mean[figure]
            result.append(Verdict(split, figure, here, best.name, there, float(np.mean(gains)), spread))
        return result

    def to_dict(self) -> dict[str, Any]:
        """The assessment as JSON."""
        return {
            "version": self.version,
            "name": self.labels.name,
            "task": self.labels.targets.task,
            "guessed": self.labels.guessed,
            "labels": len(self.labels),
            "targets": self.labels.targets.names,
            "seeds": self.seeds,
            "notes": self.labels.notes,
            "scores": [score.to_dict() for score in self.scores],
            "verdicts": [{**asdict(verdict), "says": str(verdict)} for verdict in self.verdicts()],
        }

    def record(self) -> dict[str, Any]:
        """What the database keeps: split -> figures of the model and of the floors, means over the seeds."""
        common = {
            "task": self.labels.targets.task,
            "labels": len(self.labels),
            "seeds": self.seeds,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        return {split: common | _figures(self.lines(split)) for split in self.splits}


def _figures(lines: list[Score]) -> dict[str, Any]:
    model, *floors = lines
    return {
        "model": _rounded(model.mean),
        "spread": _rounded(model.spread),
        "floors": {floor.name: _rounded(floor.mean) for floor in floors},
    }


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(value, DECIMALS) for name, value in figures.items()}


def assess(
    dsn: str, source: LabelSource, version: int | None, reporter: Reporter, *, split: str = "both", seeds: int = 5
) -> Assessment:
    """Score a version (None: the active one) on labelled places, and keep the figures in its metrics.

    Raises UnknownModel, NoActiveModel, ModelUnreadable, BadLabels, BadInput, NotEnoughData.
    """
    with db.session(dsn, autocommit=True) as connection:
        model = load_model(connection, version)
        reporter.stage("reading labels")
        labels = read_labels(connection, source, model)
    for note in labels.notes:
        reporter.note(note)
    embeddings = embed_places(model.trained, labels.metres)
    features = floor_features(model.trained, labels.metres)
    reporter.stage("probing", 3 + len(features))
    result = evaluate_embeddings(embeddings, labels.metres, labels.targets, split=split, seeds=seeds)
    reporter.advance(1)
    result += evaluate_floors(
        labels.metres, labels.targets, split=split, seeds=seeds, features=features, advance=reporter.advance
    )
    assessment = Assessment(model.version, labels, seeds, result)
    models.record_evaluation(dsn, model.version, labels.name, assessment.record(), reporter.note)
    return assessment


def floor_features(trained: TrainedModel, metres: Array) -> dict[str, Array]:
    """The inputs of the model for N places, (N, ...): the position encoding and, for a contextual model, the context."""
    inside = metres - trained.origin
    with torch.inference_mode():
        position = trained.model.location.encoding(torch.from_numpy(inside)).numpy()
    features = {"position encoding": position}
    if trained.pyramid is not None:
        features["context features"] = trained.pyramid.features(inside)
    return features
