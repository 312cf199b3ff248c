"""London as arrays: POIs, the labels of the two tasks, and the sentence encoder's vectors, kept on disk between runs."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import platformdirs

from benchmarks.city import ENCODER, LONDON
from benchmarks.national_grid import to_national_grid
from callipper_db.arrays import Array
from callipper_db.progress import Reporter
from callipper_trainer.config import POI_TEMPLATE
from callipper_trainer.evaluation.protocol import Targets, make_targets
from callipper_trainer.text_encoder import TextEncoder, find_encoder

LANDUSE = LONDON.with_name("london_landuse.geojson.gz")
NSSEC = LONDON.with_name("london_nssec.geojson.gz")
SHARES = [f"ns-sec_{number}" for number in range(1, 10)]
CACHE = platformdirs.user_cache_path("callipper-db") / "benchmarks"
CHUNK = 4096  # texts between two moves of the progress bar
NAME_PART = re.compile(r"\[[^\]]*\{name\}[^\]]*\]")


@dataclass(frozen=True)
class Labelled:
    """Places (N, 2) in metres of EPSG:27700, and what is to be read off them."""

    metres: Array
    targets: Targets


@dataclass(frozen=True)
class Pois:
    """N POIs in the order of the file, and their texts by number; -1 for one without a name."""

    metres: Array  # (N, 2) float64, EPSG:27700
    text_id: Array  # (N,) int32, into texts
    texts: list[str]  # as the model reads a category
    name_id: Array  # (N,) int32, into names
    names: list[str]
    label_id: Array  # (N,) int32, into labels
    labels: list[str]  # the bare categories

    def __len__(self) -> int:
        return len(self.metres)

    @property
    def origin(self) -> Array:
        """(2,) the middle of the extent, as training takes it."""
        middle: Array = np.round((self.metres.min(axis=0) + self.metres.max(axis=0)) / 2)
        return middle

    def first(self, count: int | None) -> Pois:
        """So many of them, evenly out of the file, for a quick look; all for None."""
        if count is None or count >= len(self):
            return self
        rows = np.linspace(0, len(self) - 1, count).astype(np.int64)
        return Pois(
            self.metres[rows],
            *_used(self.text_id[rows], self.texts),
            *_used(self.name_id[rows], self.names),
            *_used(self.label_id[rows], self.labels),
        )


def read_pois() -> Pois:
    """All POIs but likely duplicates."""
    with gzip.open(LONDON, "rt", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["dup"] == "0"]
    template = NAME_PART.sub("", POI_TEMPLATE).replace("[", "").replace("]", "")
    texts = [template.format(category=row["label"], category_group=row["group"]) for row in rows]
    return Pois(
        to_national_grid(np.array([(float(row["lon"]), float(row["lat"])) for row in rows])),
        *_number(texts),
        *_number([row["name"].strip() for row in rows]),
        *_number([row["label"] for row in rows]),
    )


def _number(values: list[str]) -> tuple[Array, list[str]]:
    """(N,) number of each text among the distinct ones, sorted, and those; -1 for an empty one."""
    distinct = sorted(set(values) - {""})
    number = {value: place for place, value in enumerate(distinct)} | {"": -1}
    return np.array([number[value] for value in values], np.int32), distinct


def _used(number: Array, values: list[str]) -> tuple[Array, list[str]]:
    """The same without the values that no row has."""
    return _number(["" if place < 0 else values[place] for place in number.tolist()])


def read_landuse() -> Labelled:
    """6,697 points of ten land-use classes."""
    metres, properties = _read_geojson(LANDUSE)
    return Labelled(metres, make_targets(np.array([row["landuse"] for row in properties])))


def read_nssec() -> Labelled:
    """4,994 small areas with their shares of nine socio-economic classes."""
    metres, properties = _read_geojson(NSSEC)
    shares = np.array([[row[name] for name in SHARES] for row in properties], np.float64)
    return Labelled(metres, make_targets(shares, names=SHARES))


def _read_geojson(path: Path) -> tuple[Array, list[dict[str, str]]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        features = json.load(file)["features"]
    metres = np.array([feature["geometry"]["coordinates"][:2] for feature in features], np.float64)
    return metres, [feature["properties"] for feature in features]


class Vectors:
    """The sentence encoder's vectors of lists of texts; a list that was encoded before comes from the disk."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter

    @cached_property
    def encoder(self) -> TextEncoder:
        """The sentence encoder, loaded when a list is not on the disk."""
        return find_encoder(ENCODER)

    def __call__(self, texts: list[str], what: str) -> Array:
        """(V,) texts -> (V, T) float32."""
        key = hashlib.sha256("\0".join([self.encoder.revision, *texts]).encode()).hexdigest()
        path = CACHE / f"{what}-{key[:16]}.npy"
        if path.exists():
            kept: Array = np.load(path)
            return kept
        self.reporter.stage(f"encoding {what}", len(texts))
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # texts of like length together
        vectors = np.empty((len(texts), self.encoder.dim), np.float32)
        for start in range(0, len(texts), CHUNK):
            rows = order[start : start + CHUNK]
            vectors[rows] = self.encoder.encode([texts[row] for row in rows])
            self.reporter.advance(len(rows))
        CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".tmp")
        with unfinished.open("wb") as file:
            np.save(file, vectors)
        unfinished.replace(path)
        return vectors
