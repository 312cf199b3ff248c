"""Sources at the edge of what can be learnt from: each trains to a model that answers, or is refused with a reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from callipper_db import search
from callipper_db.arrays import Array
from callipper_db.errors import NotEnoughData
from callipper_trainer.config import TrainConfig
from callipper_trainer.train import TrainSummary
from sessions import user_session
from town import train_town

QUICK = TrainConfig(hidden=32, blocks=1, frequencies=8, epochs=3, device="cpu")
KINDS = ("school", "park", "cafe", "factory")
MIDDLE = (5.12, 52.09)
SPREAD_DEGREES = 0.01


@pytest.fixture
def database(town: str) -> str:
    """A database without POIs and models, whose text_vector knows the place words already: encoding them takes seconds."""
    with user_session(town) as connection:
        connection.execute("SELECT callipper.drop_model(1, true)")
        connection.execute("TRUNCATE callipper.poi, callipper.grid CASCADE")
    return town


def scattered(count: int, middle: tuple[float, float] = MIDDLE, seed: int = 0) -> Array:
    """(count, 2) longitude and latitude around a place."""
    return np.random.default_rng(seed).normal(middle, SPREAD_DEGREES, (count, 2))


def in_turn(count: int, kinds: tuple[str, ...] = KINDS) -> list[str]:
    """A kind for each."""
    return [kinds[number % len(kinds)] for number in range(count)]


def fill(dsn: str, lonlat: Array, kinds: list[str]) -> None:
    """POIs without names."""
    with user_session(dsn) as connection:
        connection.execute(
            "INSERT INTO callipper.poi (source, source_id, category, geom)"
            " SELECT 'test', n::text, kind, ST_SetSRID(ST_Point(x, y), 4326)"
            " FROM unnest(%s::float8[], %s::float8[], %s::text[]) WITH ORDINALITY AS p(x, y, kind, n)",
            [*lonlat.T.tolist(), kinds],
        )


def learn(dsn: str, folder: Path, **changes: Any) -> TrainSummary:
    """Train with few and small steps."""
    return train_town(dsn, folder, replace(QUICK, **changes))


def assert_answers(dsn: str, question: str = "school") -> list[dict[str, Any]]:
    """It answers with cells, and SQL computes of every POI's place what torch has published of it."""
    with user_session(dsn) as connection:
        unit, difference = connection.execute(
            "SELECT bool_and(abs(vector_norm(emb) - 1) < 1e-4), max(loc_embed(geom) <-> emb)::float8 FROM"
            " (SELECT emb, geom FROM callipper.points ORDER BY point_id LIMIT 50) AS p"
        ).fetchone() or (None, None)
        sound = connection.execute("SELECT bool_and(abs(vector_norm(emb) - 1) < 1e-4) FROM callipper.cells").fetchone()
    assert unit
    assert sound == (True,)
    assert difference < 1e-4
    found = search.nearest_cells(dsn, question, 3)
    assert len(found) == 3
    return found


def assert_untouched(dsn: str) -> None:
    """Nothing of the refused run is left."""
    with user_session(dsn) as connection:
        left = connection.execute(
            "SELECT (SELECT count(*) FROM callipper.model) + (SELECT count(*) FROM callipper.cell)"
        ).fetchone()
    assert left == (0,)


# Too little


def test_one_poi_is_refused(database: str, tmp_path: Path) -> None:
    fill(database, scattered(1), ["school"])
    with pytest.raises(NotEnoughData, match=r"1 POIs with a text were found, and at least 20 are needed\."):
        learn(database, tmp_path)
    assert_untouched(database)


def test_one_category_is_refused(database: str, tmp_path: Path) -> None:
    fill(database, scattered(60), ["school"] * 60)
    with pytest.raises(NotEnoughData, match="all POIs have the same text, and a contrast needs at least two"):
        learn(database, tmp_path)
    assert_untouched(database)


@pytest.mark.parametrize("kind", ["coordinate", "contextual"])
def test_twenty_pois_train(database: str, tmp_path: Path, kind: str) -> None:
    fill(database, scattered(20), in_turn(20))
    assert learn(database, tmp_path, encoder=kind).rows == 20
    assert_answers(database)


# Too much of the same


@pytest.mark.parametrize("kind", ["coordinate", "contextual"])
def test_all_pois_at_one_spot(database: str, tmp_path: Path, kind: str) -> None:
    fill(database, np.tile(MIDDLE, (60, 1)), in_turn(60))
    summary = learn(database, tmp_path, encoder=kind)
    assert summary.cells == 25  # a block of the grid
    assert_answers(database)


def test_twenty_thousand_duplicates(database: str, tmp_path: Path) -> None:
    distinct = 10
    lonlat = np.tile(scattered(distinct), (2_000, 1))
    fill(database, lonlat, in_turn(distinct) * 2_000)
    assert learn(database, tmp_path, epochs=1).rows == 20_000
    assert_answers(database)


def test_categories_that_differ_in_case_and_space_alone(database: str, tmp_path: Path) -> None:
    spellings = ("school", "School", "SCHOOL", " school ", "school\t", "park", "PARK ")
    fill(database, scattered(70), in_turn(70, spellings))
    learn(database, tmp_path)
    assert_answers(database)
    with user_session(database) as connection:
        apart = connection.execute("SELECT text_embed('school') <-> text_embed(' SCHOOL ')").fetchone()
    assert apart == (0.0,)


def test_categories_that_are_one_but_for_space(database: str, tmp_path: Path) -> None:
    fill(database, scattered(60), in_turn(60, ("school", " school", "school\t\n")))
    with pytest.raises(NotEnoughData, match="all POIs have the same text"):
        learn(database, tmp_path)
    assert_untouched(database)


# Too far apart


@pytest.mark.parametrize("edge", [6.0, 180.0])  # between the UTM zones 31 and 32, and 60 and 1
def test_a_city_on_both_sides_of_a_utm_zone_edge(database: str, tmp_path: Path, edge: float) -> None:
    west, east = (scattered(60, (edge + side * 0.05, -16.5)) for side in (-1, 1))
    lonlat = np.concatenate([west, east])
    lonlat[:, 0] = (lonlat[:, 0] + 180) % 360 - 180
    fill(database, lonlat, ["school"] * 60 + ["park"] * 60)
    summary = learn(database, tmp_path, epochs=20)
    assert summary.cells < 5_000  # of the city, not of the way around the globe
    for question, is_there in (("school", lambda lon: lon < 0), ("park", lambda lon: lon > 0)):
        found = assert_answers(database, question)
        offsets = [(cell["lon"] - edge + 180) % 360 - 180 for cell in found]
        assert all(is_there(offset) and abs(offset) < 0.1 for offset in offsets)


def test_a_far_outlier_trains(database: str, tmp_path: Path) -> None:
    lonlat = np.concatenate([scattered(80), [[MIDDLE[0] + 6, MIDDLE[1] + 3]]])
    fill(database, lonlat, in_turn(81))
    summary = learn(database, tmp_path)
    assert summary.cells < 5_000  # not the country between
    assert_answers(database)


def test_an_outlier_on_another_continent_is_left_out(database: str, tmp_path: Path) -> None:
    fill(database, np.concatenate([scattered(80), [[139.7, 35.7]]]), in_turn(81))
    summary = learn(database, tmp_path)
    assert summary.rows == 80 and summary.cells < 5_000
    assert_answers(database)
