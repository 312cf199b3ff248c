"""The context of a place: the pyramid against direct sums over POIs, its text code against scipy's SVD, its kinds against
distances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import svd
from scipy.spatial.distance import cdist

from callipper_db.arrays import Array
from callipper_trainer.config import TrainConfig
from callipper_trainer.context import build_pyramid, fit_kinds, fit_text_code

CONFIG = TrainConfig()
CODE = CONFIG.code_size


def places(count: int, texts: int, seed: int = 0, reach_m: float = 1500) -> tuple[Array, Array, Array]:
    """metres (N, 2), text_id (N,), text_vectors (V, 48)."""
    random = np.random.default_rng(seed)
    metres = random.uniform(-reach_m, reach_m, (count, 2))
    return metres, random.integers(0, texts, count), random.normal(0, 1, (texts, 48)).astype(np.float32)


def reference_features(metres: Array, codes: Array, place: Array) -> Array:
    """Each POI counts by how near its cell's centre lies: (1 - |dx|)(1 - |dy|) in cells, and not at all beyond one."""
    parts = []
    for size_m in CONFIG.lattice_sizes():
        centre = np.floor(metres / size_m) + 0.5
        share = np.prod(np.maximum(1 - np.abs(place / size_m - centre), 0), axis=1)
        sums = share @ codes
        parts.append([*(sums[:CODE] / (share.sum() + CONFIG.prior)), np.log1p(share.sum())])
        if size_m >= 100:
            parts.append(np.log1p(sums[CODE:]))
    return np.concatenate(parts)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 40), st.integers(0, 2**31))
def test_features_are_shares_of_the_cells_around(count: int, texts: int, seed: int) -> None:
    metres, text_id, vectors = places(count, texts, seed)
    pyramid = build_pyramid(metres, text_id, vectors, CONFIG)
    codes = pyramid.codes(vectors)[text_id].astype(np.float64)
    kinds = len(np.unique(text_id))  # as few texts as there are here are a kind each
    asked = np.vstack([metres[:5], places(5, 1, seed + 1, reach_m=6000)[0], [[0.0, 0.0]]])
    found = pyramid.features(asked)
    assert found.shape == (len(asked), pyramid.width) == (len(asked), CONFIG.lattices * (CODE + 1) + 8 * kinds)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [reference_features(metres, codes, place) for place in asked], atol=2e-5)


@pytest.mark.parametrize("count", [2, 300])
def test_a_pois_own_part_is_taken_out_exactly(count: int) -> None:
    metres, text_id, vectors = places(count, 30)
    pyramid = build_pyramid(metres, text_id, vectors, CONFIG)
    codes = pyramid.codes(vectors)[text_id]
    found = pyramid.features(metres, own_code=codes)
    for row in range(0, count, max(1, count // 20)):
        others = np.arange(count) != row
        expected = reference_features(metres[others], codes[others].astype(np.float64), metres[row])
        np.testing.assert_allclose(found[row], expected, atol=2e-5)


def test_far_from_everything_there_is_nothing() -> None:
    pyramid = build_pyramid(*places(50, 10), CONFIG)
    assert not pyramid.features(np.array([[1e6, -1e6], [-2e7, 2e7]])).any()


def test_the_order_of_the_pois_hardly_matters() -> None:
    metres, text_id, vectors = places(300, 30)
    order = np.random.default_rng(1).permutation(300)
    one, other = (build_pyramid(metres[rows], text_id[rows], vectors, CONFIG) for rows in (np.arange(300), order))
    np.testing.assert_allclose(one.features(metres), other.features(metres), atol=1e-5)


def test_text_code_is_the_principal_components() -> None:
    _, text_id, vectors = places(500, 60)
    rows = vectors[text_id].astype(np.float64)
    centred = rows - rows.mean(axis=0)
    _, _, components = svd(centred, full_matrices=False)
    code = fit_text_code(vectors, np.bincount(text_id, minlength=len(vectors)), CODE)
    found = code(vectors)[text_id]
    expected = centred @ components[:CODE].T
    expected *= np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-5)


def test_few_texts_leave_the_rest_of_the_code_empty() -> None:
    _, text_id, vectors = places(100, 3)
    found = fit_text_code(vectors, np.bincount(text_id, minlength=len(vectors)), CODE)(vectors)
    assert np.isfinite(found).all()
    assert np.abs(found[:, :2]).min(axis=0).max() > 0.1
    np.testing.assert_allclose(found[:, 2:], 0, atol=1e-4)


def test_few_texts_are_a_kind_each() -> None:
    _, text_id, vectors = places(500, 40)
    kinds = fit_kinds(vectors, np.bincount(text_id, minlength=len(vectors)), CONFIG.kinds)(vectors)
    assert kinds.dtype == np.float32
    assert np.array_equal(kinds.sum(axis=0), np.ones(40))
    assert np.array_equal(kinds.sum(axis=1), np.ones(40))


def test_a_text_is_of_the_nearest_kind() -> None:
    random = np.random.default_rng(3)
    most = CONFIG.kinds
    centres = random.normal(0, 3, (most, 48))
    vectors = np.repeat(centres, 5, axis=0) + random.normal(0, 0.3, (5 * most, 48))
    vectors = np.vstack([vectors, np.full((1, 48), 50.0)]).astype(np.float32)
    carried = np.append(np.ones(5 * most, np.int64), 0)  # nobody carries the last, so no centre is spent on it
    found = fit_kinds(vectors, carried, most)
    assert np.abs(found.weight).max() < 20
    nearest = cdist(vectors, found.weight).argmin(axis=1)
    assert found(vectors).argmax(axis=1).tolist() == nearest.tolist()
