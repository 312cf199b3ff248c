"""Retrieval: does a text find the places that it fits, among POIs that the model has not seen?"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import psycopg
from psycopg import sql

from callipper_db import db, models
from callipper_db.arrays import Array
from callipper_db.errors import BadSource, NotEnoughData
from callipper_db.progress import Reporter
from callipper_trainer.config import TrainConfig
from callipper_trainer.data.samples import Samples
from callipper_trainer.data.source import read_samples, source_of_model
from callipper_trainer.data.template import TRIMMED
from callipper_trainer.device import choose_device
from callipper_trainer.embed import embed_places, embed_texts
from callipper_trainer.evaluation.scores import auc
from callipper_trainer.fit import Run, fit
from callipper_trainer.fit_peaks import find_peaks
from callipper_trainer.kinds import Encode
from callipper_trainer.model import TrainedModel
from callipper_trainer.model_rows import LoadedModel, load_model
from callipper_trainer.text_encoder import encode_cached, find_model_encoder

HOLD_OUT = 0.1
SEED = 42
MINIMUM_PLACES = 20  # held out, of a label
LABEL_COLUMN = "category"


@dataclass(frozen=True)
class Retrieval:
    """How well texts find held-out places, by the kind of text: the bare label, or the usual text of its POIs."""

    auc: dict[str, dict[str, float]]  # kind of text -> label -> AUC
    places: dict[str, int]  # label -> held-out places of its own
    held_out: int
    trained_on: int
    version: int = 0  # the version whose settings and source were used; 0 for none

    @property
    def macro_auc(self) -> dict[str, float]:
        """The mean over the labels, by kind of text."""
        return {asked: float(np.mean(list(values.values()))) for asked, values in self.auc.items()}

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON, with the labels of the highest AUC first."""
        first = next(iter(self.auc.values()))
        rows = [
            {
                "label": label,
                "places": self.places[label],
                "auc": {asked: round(values[label], 4) for asked, values in self.auc.items()},
            }
            for label in sorted(first, key=lambda label: -first[label])
        ]
        return {
            "version": self.version,
            "macro_auc": {asked: round(value, 4) for asked, value in self.macro_auc.items()},
            "held_out": self.held_out,
            "trained_on": self.trained_on,
            "labels": rows,
        }


def retrieval_auc(
    place_vectors: Array, text_vectors: Array, labels: Array, minimum: int = MINIMUM_PLACES
) -> dict[int, float]:
    """Label -> AUC of text . place, for the label's places against all others. The macro AUC is the mean of the values.

    place_vectors: (N, D) of places that the model has not seen; text_vectors: (L, D); labels: (N,) rows of text_vectors, -1 for
    none. Labels with fewer than `minimum` places, or with all places, are left out.
    """
    counts = np.bincount(labels[labels >= 0], minlength=len(text_vectors))
    result = {}
    for label in np.flatnonzero((counts >= minimum) & (counts < len(labels))).tolist():
        similarity = place_vectors.astype(np.float64) @ text_vectors[label].astype(np.float64)
        own = labels == label
        result[label] = auc(similarity[own], similarity[~own])
    return result


def hold_out(count: int, share: float = HOLD_OUT, seed: int = SEED) -> tuple[Array, Array]:
    """Row numbers of the kept and of the held-out rows: random, disjoint, sorted."""
    order = np.random.default_rng(seed).permutation(count)
    held_out = max(1, round(count * share))
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def evaluate_retrieval(
    dsn: str,
    version: int | None,
    reporter: Reporter,
    *,
    device: str = "auto",
    label_column: str | None = None,
    text_encoder: str | None = None,
) -> Retrieval:
    """Train a model on nine tenths of a version's source, test it on the other tenth, and keep the result with the version.

    A published model has seen all POIs, so it cannot be tested itself. The new one has the version's settings and seed. The
    label of a POI is its `label_column`: by default its category, or its whole text if the source has no such column.
    Raises UnknownModel, NoActiveModel, BadSource, NotEnoughData, TextEncoderMissing.
    """
    with db.session(dsn, autocommit=True) as connection:
        model = load_model(connection, version)
        reporter.stage("reading POIs")
        samples, labels = read_labelled(connection, model, label_column)
    seen = model.provenance.get("rows")
    if seen is not None and seen != len(samples):
        reporter.note(f"The source now has {len(samples):,} POIs; version {model.version} was trained on {seen:,}.")
    encoder = find_model_encoder(model.text_encoder, text_encoder, str(choose_device(device)))
    names, label_id = number_labels(labels, samples.text_id)
    distinct = list(dict.fromkeys([*samples.texts, *names]))
    reporter.stage("encoding texts", len(distinct))
    vectors = dict(zip(distinct, encode_cached(dsn, encoder, distinct, reporter.advance), strict=True))
    questions = {"label": names, "description": usual_texts(samples, label_id, len(names))}
    result = measure(
        samples,
        np.stack([vectors[text] for text in samples.texts]),
        label_id,
        names,
        {asked: np.stack([vectors[text] for text in texts]) for asked, texts in questions.items()},
        replace(model.config, device=device),
        reporter,
        partial(encode_cached, dsn, encoder),
    )
    result = replace(result, version=model.version)
    models.record_evaluation(dsn, model.version, "retrieval", result.to_dict(), reporter.note)
    return result


def measure(
    samples: Samples,
    text_vectors: Array,
    label_id: Array,
    names: list[str],
    questions: dict[str, Array],
    config: TrainConfig,
    reporter: Reporter,
    encode: Encode,
) -> Retrieval:
    """Hold out a tenth of the samples, train on the rest, and measure each label with enough held-out places.

    text_vectors: (V, T) of samples.texts; label_id: (N,) index into names, -1 for none; questions: kind of text -> (L, T), a
    vector for each name. The model is in no database, so the words that a text shares with kinds of places do not count, as
    they do in text_embed(). Raises NotEnoughData.
    """
    kept, held_out = hold_out(len(samples))
    asked = label_id[held_out]
    counts = np.bincount(asked[asked >= 0], minlength=len(names))
    if not ((counts >= MINIMUM_PLACES) & (counts < len(asked))).any():
        reason = (
            f"among the {len(asked):,} held-out places no label has {MINIMUM_PLACES}, with others to compare them to."
        )
        raise NotEnoughData(reason=reason)
    trained = fit_without(samples, text_vectors, kept, config, reporter, encode)
    places = embed_places(trained, samples.metres[held_out])
    found = {way: retrieval_auc(places, embed_texts(trained, vectors), asked) for way, vectors in questions.items()}
    return Retrieval(
        auc={way: {names[label]: value for label, value in values.items()} for way, values in found.items()},
        places={name: int(count) for name, count in zip(names, counts, strict=True) if count},
        held_out=len(held_out),
        trained_on=len(kept),
    )


def fit_without(
    samples: Samples, text_vectors: Array, kept: Array, config: TrainConfig, reporter: Reporter, encode: Encode
) -> TrainedModel:
    """A model of the kept rows, without the texts and names of other rows."""
    text_id, name_id = samples.text_id[kept], samples.name_id[kept]
    used = np.union1d(text_id, name_id[name_id >= 0])
    trained = fit(
        samples.metres[kept],
        np.searchsorted(used, text_id),
        text_vectors[used],
        samples.origin,
        config,
        Run(reporter=reporter),
        name_id=np.where(name_id >= 0, np.searchsorted(used, name_id), -1),
    )
    if config.encoder == "contextual":
        trained.peaks = find_peaks(samples.take(kept), text_vectors, encode)
    return trained


def number_labels(labels: list[str | None], text_id: Array) -> tuple[list[str], Array]:
    """The distinct labels (L,) of V texts, and the label number of each sample, (N,), -1 for none."""
    names = sorted({label for label in labels if label is not None})
    number = {name: place for place, name in enumerate(names)}
    return names, np.array([-1 if label is None else number[label] for label in labels])[text_id]


def usual_texts(samples: Samples, label_id: Array, labels: int) -> list[str]:
    """(L,) the most frequent text of each label's samples; the first of several."""
    known = label_id >= 0
    pairs, counts = np.unique(
        label_id[known].astype(np.int64) * len(samples.texts) + samples.text_id[known], return_counts=True
    )
    label, text = np.divmod(pairs, len(samples.texts))
    order = np.lexsort((text, -counts, label))
    first = order[np.searchsorted(label[order], np.arange(labels))]
    return [samples.texts[number] for number in text[first]]


def read_labelled(
    connection: db.Connection, model: LoadedModel, label_column: str | None
) -> tuple[Samples, list[str | None]]:
    """The samples of the model's source today, and the label of each of their texts, (V,).

    A text with several labels counts as several texts here. The text of a name has no label. The connection must be outside a
    transaction.
    """
    text = TRIMMED.format(model.provenance["text"])
    label = TRIMMED.format(sql.Identifier("s", label_column or LABEL_COLUMN).as_string())
    try:
        return _read_pairs(connection, model, text, label)
    except BadSource as error:
        missing = isinstance(error.__cause__, psycopg.errors.UndefinedColumn)
        if not missing or label_column is not None:
            raise
        return _read_pairs(connection, model, text, text)


def _read_pairs(
    connection: db.Connection, model: LoadedModel, text: str, label: str
) -> tuple[Samples, list[str | None]]:
    pair = f"CASE WHEN {text} IS NOT NULL THEN pg_catalog.jsonb_build_array({text}, {label})::text END"
    source = replace(source_of_model(model.provenance, model.srid), text=pair)
    samples = read_samples(connection, source).samples
    texts = list(samples.texts)
    labels: list[str | None] = [None] * len(texts)
    for number in np.unique(samples.text_id):  # the others are names
        texts[number], labels[number] = json.loads(samples.texts[number])
    named = np.flatnonzero(samples.name_id >= 0)
    numbers, first = np.unique(samples.name_id[named], return_index=True)
    for number, text_number in zip(numbers, samples.text_id[named[first]], strict=True):
        name = samples.texts[number].removesuffix(f", {samples.texts[text_number]}")
        texts[number] = f"{name}, {texts[text_number]}"
    return replace(samples, texts=texts), labels
