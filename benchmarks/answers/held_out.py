"""POIs that the training has not seen: does their own category find them, and do the words of their own name?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse import csr_array
from scipy.spatial import KDTree

from benchmarks.answers.baselines import SIGMA_M
from benchmarks.answers.cities import AnswerCity
from benchmarks.answers.product import Product
from benchmarks.answers.score import AROUND_M
from callipper_db.arrays import Array

PLACES = 4000  # held-out POIs that are ranked
NAMES = 300  # of them that are asked for by name
LEAST = 20  # of them that a category has, for it to count
BEST = 100  # of lift


def measure(product: Product, encode: Callable[[list[str]], Array]) -> dict[str, dict[str, float]]:
    """AUC and lift by category, and AUC by name, of the product and of the mean sentence vector of the POIs around."""
    city = product.city
    held_out = np.flatnonzero(city.poi_id % 10 == 0)
    rows = np.sort(np.random.default_rng(0).permutation(held_out)[:PLACES])
    categories = [city.categories[row] for row in rows]
    kinds, count = np.unique(categories, return_counts=True)
    asked = [str(kind) for kind in kinds[count >= LEAST]]
    named = [number for number, row in enumerate(rows) if city.names[row]]
    named = sorted(np.random.default_rng(1).permutation(named)[:NAMES].tolist())
    texts = [*asked, *(city.names[rows[number]] for number in named)]
    rated = {
        "callipper-db": product.place_vectors(city.lonlat[rows]) @ product.text_vectors(texts).T,
        "mean sentence vector within 250 m": _mean_vectors(city, rows, encode(city.texts)) @ encode(texts).T,
    }
    return {name: _figures(scores, asked, categories, named) for name, scores in rated.items()}


def _mean_vectors(city: AnswerCity, rows: Array, vectors: Array) -> Array:
    """(R, T) unit vectors of the Gaussian mean of the POIs around that are not held out; zeros where there is none."""
    kept = np.flatnonzero(city.poi_id % 10 != 0)
    pairs = KDTree(city.metres[rows]).sparse_distance_matrix(KDTree(city.metres[kept]), AROUND_M, output_type="ndarray")
    weights = np.exp(-(pairs["v"] ** 2) / (2 * SIGMA_M**2)).astype(np.float32)
    near = csr_array((weights, (pairs["i"], city.text_id[kept][pairs["j"]])), shape=(len(rows), len(vectors)))
    means = near @ vectors
    unit: Array = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-9)
    return unit


def _figures(scores: Array, asked: Sequence[str], categories: Sequence[str], named: Sequence[int]) -> dict[str, float]:
    """scores (R, categories, then names)."""
    own = np.array(categories)
    aucs, lifts = [], []
    for column, kind in enumerate(asked):
        hit = own == kind
        aucs.append(auc(scores[:, column], hit))
        lifts.append(hit[np.argsort(-scores[:, column], kind="stable")[:BEST]].mean() / hit.mean())
    by_name = []
    for column, number in enumerate(named, start=len(asked)):
        hit = np.zeros(len(scores), bool)
        hit[number] = True
        by_name.append(auc(scores[:, column], hit))
    return {
        "category_auc": round(float(np.mean(aucs)), 3),
        f"category_lift_{BEST}": round(float(np.median(lifts)), 1),
        "name_auc": round(float(np.mean(by_name)), 3),
    }


def auc(scores: Array, hit: Array) -> float:
    """The chance that a hit is rated above another; ties count half."""
    distinct, rank = np.unique(scores, return_inverse=True)
    count = np.bincount(rank, minlength=len(distinct))
    below = np.cumsum(count) - count
    middle = below + (count - 1) / 2  # mean number of rows that are rated lower, within ties by half
    hits, others = int(hit.sum()), int((~hit).sum())
    return float((middle[rank][hit].sum() - hits * (hits - 1) / 2) / (hits * others))
