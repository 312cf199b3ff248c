"""The towers as torch.onnx translates them, against what SQL computes. make compat runs the files themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from callipper_db import db
from callipper_db.arrays import Array
from callipper_db.place_words import vocabulary
from callipper_trainer.config import TrainConfig
from callipper_trainer.embed import embed_texts
from callipper_trainer.model import CaLLiPer, TrainedModel
from callipper_trainer.model_rows import load_model
from callipper_trainer.onnx_towers import PlaceTower, TextTower
from callipper_trainer.peaks import KindPeaks, PeakRule, PointKinds, Summary, shared_words
from callipper_trainer.text_encoder import TextEncoder
from sessions import user_session
from town import MIDDLE, SRID


def ask(connection: db.Connection, query: str, *values: object) -> Array:
    return np.array([row[0] for row in connection.execute(query.encode(), values)])


@torch.inference_mode()
def test_the_towers_are_those_of_the_database(shared_town: str, encoder: TextEncoder) -> None:
    # In the town, outside its lattices, and on the other side of the earth.
    lonlat = np.concatenate([np.random.default_rng(0).normal(MIDDLE, 0.01, (40, 2)), [(5.6, 52.3), (5.12, 10.0)]])
    words = ["cafe", "school", "park", "hospital", *vocabulary()[::10]]  # some of these ask for several kinds
    with user_session(shared_town, autocommit=True) as connection:
        trained = load_model(connection).trained
        where = "unnest(%s::float8[], %s::float8[]) WITH ORDINALITY AS q(lon, lat, n) ORDER BY n"
        point, axes = "ST_SetSRID(ST_Point(lon, lat), 4326)", lonlat.T.tolist()
        wanted = ask(connection, f"SELECT loc_embed({point})::real[] FROM {where}", *axes)
        metres = ask(
            connection,
            f"SELECT ARRAY[ST_X(m), ST_Y(m)] FROM (SELECT n, ST_Transform({point}, {SRID}) AS m FROM {where}) p",
            *axes,
        )
        texts = ask(
            connection, "SELECT text_embed(t)::real[] FROM unnest(%s::text[]) WITH ORDINALITY q(t, n) ORDER BY n", words
        )
        shared = shared_words(connection, 1, trained.peaks, words)
    assert shared is not None and shared.nnz > 20
    found = PlaceTower(trained)(torch.from_numpy(metres)).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    vectors = torch.from_numpy(encoder.encode(words))
    found = TextTower(trained)(vectors, torch.from_numpy(shared.toarray())).numpy()
    np.testing.assert_allclose(found, texts, atol=1e-5)
    assert np.abs(TextTower(trained)(vectors).numpy() - texts).max() > 0.01, "words count"
    # A text that asks for no kind of place has its second half alone.
    other = TextTower(trained)(torch.ones(1, encoder.dim))
    assert not other[0, :128].any()


@pytest.mark.parametrize(
    ("softness", "evenness", "is_older"), [(None, 0.5, True), (20.0, 0.0, True), (12.0, 0.5, True), (12.0, 0.5, False)]
)
def test_a_text_that_asks_for_several_kinds(softness: float | None, evenness: float, is_older: bool) -> None:
    random = np.random.default_rng(0)

    def rows(count: int, width: int) -> Array:
        drawn = random.normal(size=(count, width)).astype(np.float32)
        unit: Array = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        return unit

    of = np.repeat(np.arange(5), [1, 4, 2, 30, 12])  # kinds with different numbers of phrases
    phrases = rows(len(of), 24)
    none = PointKinds(*(np.zeros(0, int) for _ in range(3)), np.zeros((0, 2), int))
    summary = Summary(rows(128, 4), np.zeros(128, np.float32), rows(128, 128)) if is_older else None
    rule = PeakRule(softness=softness, evenness=evenness, width=0.6, summary=0.15)
    one = np.ones(5, np.float32)
    peaks = KindPeaks(rule, np.arange(5), rows(5, 128), one, one, of, phrases, none, summary)
    model = CaLLiPer(TrainConfig(hidden=8, blocks=1, frequencies=2), 24).eval()
    trained = TrainedModel(model, np.zeros(2), None, best_epoch=1, peaks=peaks)
    asked = np.concatenate([phrases[:-1] + phrases[1:], phrases, rows(5, 24)])
    with torch.inference_mode():
        found = TextTower(trained)(torch.from_numpy(asked)).numpy()
    np.testing.assert_allclose(found, embed_texts(trained, asked), atol=1e-6)
