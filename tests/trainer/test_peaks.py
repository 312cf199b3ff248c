"""Where kinds of places peak: the first half of an embedding, against sums over the POIs themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from callipper_db.arrays import Array
from callipper_trainer.data.samples import Samples
from callipper_trainer.fit_peaks import fit_peaks, point_kinds
from callipper_trainer.kinds import KindRows, Kinds
from callipper_trainer.peaks import KindPeaks, PeakRule, PointKinds

KINDS = 200  # more than the first half has numbers
TEXT_DIM = 96
SIDE_M = 8_000.0


def make_peaks(kinds: int = KINDS, pois: int = 6_000, rule: PeakRule | None = None) -> KindPeaks:
    """POIs at random; of each kind a dozen stand close together."""
    random = np.random.default_rng(0)
    kind = np.concatenate([np.repeat(np.arange(kinds), 12), random.integers(0, kinds, pois)])
    quarter = random.uniform(0, SIDE_M, (kinds, 2))
    metres = np.where(
        np.arange(len(kind))[:, None] < 12 * kinds,
        quarter[kind] + random.normal(0, 60, (len(kind), 2)),
        random.uniform(0, SIDE_M, (len(kind), 2)),
    )
    texts = [f"kind of place {number}" for number in range(kinds)]
    count = len(kind)
    samples = Samples(np.arange(count), metres, metres, kind, texts, 32631, np.full(count, -1))
    found = Kinds()
    found.read_texts(texts)
    rows = KindRows.of(found, 0, lambda phrases: random.normal(size=(len(phrases), TEXT_DIM)).astype(np.float32))
    result = fit_peaks(found, rows, point_kinds(found, samples.chunks(1_000)), rule)
    assert result is not None
    return result


def second_half(metres: Array) -> Array:
    """(N, 2) -> (N, 128) of unit length, a location encoder of waves."""
    waves = np.sin(metres[:, :1] / np.arange(500, 1780, 10)).astype(np.float32)
    return np.asarray(waves / np.linalg.norm(waves, axis=1, keepdims=True))


@pytest.fixture(scope="module")
def peaks() -> KindPeaks:
    return make_peaks()


def test_evidence_is_the_weighted_sum_over_the_pois(peaks: KindPeaks) -> None:
    rule, points = peaks.rule, peaks.points
    here = np.random.default_rng(1).uniform(0, SIDE_M, (50, 2))
    found = peaks.evidence(here).toarray()
    centres = (points.ij + 0.5) * 100
    for place, row in zip(here, found, strict=True):
        share = np.prod(np.maximum(0, 1 - np.abs(centres - place) / rule.reach_m), axis=1)
        expected = np.bincount(points.kind, weights=share, minlength=KINDS) / (share.sum() + rule.prior) ** rule.power
        np.testing.assert_allclose(row, expected[peaks.kind_id], atol=1e-12)


def test_only_the_best_squares_of_a_kind_count(peaks: KindPeaks) -> None:
    squares = (np.unique(peaks.points.ij, axis=0) + 0.5) * 100
    evidence = peaks.evidence(squares).toarray()
    above = (evidence > peaks.threshold.astype(np.float64)).sum(axis=0)
    most = max(round(peaks.rule.tail * len(squares)), peaks.rule.fewest)
    assert (np.abs(above - most) <= 1).all()  # the threshold is rounded to float32


def test_directions_are_almost_at_right_angles(peaks: KindPeaks) -> None:
    cosines = peaks.code.astype(np.float64) @ peaks.code.T
    assert np.diag(cosines) == pytest.approx(1, abs=1e-5)
    np.fill_diagonal(cosines, 0)
    random = np.random.default_rng(2).normal(size=peaks.code.shape)
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    by_chance = random @ random.T - np.eye(KINDS)
    lowest = (KINDS - 128) / 128 / (KINDS - 1)  # mean square that no vectors in 128 dimensions stay below (Welch 1974)
    mean_square = (cosines**2).sum() / KINDS / (KINDS - 1)
    assert lowest < mean_square < 1.05 * lowest < 0.5 * (by_chance**2).mean()


def test_few_kinds_disturb_each_other_not_at_all() -> None:
    few = make_peaks(kinds=20, pois=500)
    np.testing.assert_array_equal(few.code @ few.code.T, np.eye(20))


def test_a_text_finds_where_its_kind_stands_together(peaks: KindPeaks) -> None:
    random = np.random.default_rng(0)
    random.integers(0, KINDS, 6_000)
    quarter = random.uniform(0, SIDE_M, (KINDS, 2))  # as make_peaks draws them
    places = peaks.embed_places(quarter, np.empty((KINDS, 0)), second_half(quarter))
    starts = np.searchsorted(peaks.phrase_kind, np.arange(KINDS))
    texts = peaks.embed_texts(peaks.phrases[starts])
    best = (places @ texts.T).argmax(axis=0)
    assert (best == np.arange(KINDS)).mean() > 0.95
    assert np.linalg.norm(places, axis=1).max() <= 1 + 1e-12


def test_a_text_that_is_near_no_kind_has_no_first_half(peaks: KindPeaks) -> None:
    far = np.linalg.svd(peaks.phrases.astype(np.float64))[2][-1:]  # the direction that the phrases know least
    assert np.abs(peaks.phrases @ far[0]).max() < peaks.rule.floor
    first = peaks.embed_texts(far)
    assert not first.any()
    second = np.eye(1, 128)
    np.testing.assert_allclose(peaks.join_text(first, second), np.eye(1, 256, 128))


def test_a_text_does_not_hear_the_echo_where_nothing_stands_out(peaks: KindPeaks) -> None:
    far = np.array([[-1e6, -1e6], [2e6, 1e6], [5e6, 0]])
    second, context = second_half(far), np.empty((3, 0))
    first = peaks.embed_places(far, context, second)
    assert np.abs(first).max() > 0.01, "it is there"
    places = np.hstack([first, second * np.sqrt(1 - (first**2).sum(axis=1, keepdims=True))])
    wanted = np.random.default_rng(4).normal(size=128)
    wanted /= np.linalg.norm(wanted)
    asked = peaks.embed_texts(peaks.phrases[:1])
    text = peaks.join_text(asked, wanted[None])[0]
    scale = text[:128] @ asked[0]  # a text has length 1
    expected = scale * peaks.rule.text_context * np.sqrt(1 - peaks.rule.echo**2) * (second @ wanted)
    np.testing.assert_allclose(places @ text, expected, atol=1e-9)


def test_squares_that_differ_and_the_places_that_read_them(peaks: KindPeaks) -> None:
    points = peaks.points
    gone, added = points.point_id[:3], PointKinds(*(column[5:6] for column in points.columns))
    now = points.without(gone).plus(replace(added, point_id=np.array([-1])))
    changed = points.changed_squares(now)
    expected = np.unique(np.concatenate([points.ij[:3], added.ij]), axis=0)
    np.testing.assert_array_equal(changed, expected)
    here = np.random.default_rng(3).uniform(0, SIDE_M, (3_000, 2))
    differ = (peaks.evidence(here) != peaks.over(now).evidence(here)).sum(axis=1) > 0
    reads = peaks.reads(here, changed)
    assert differ.any() and not (differ & ~reads).any()
    assert not peaks.reads(here, changed[:0]).any()
