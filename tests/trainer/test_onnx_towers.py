"""The towers as torch.onnx translates them, against what SQL computes. make compat runs the files themselves."""

from __future__ import annotations

import numpy as np
import torch

from callipper_db import db
from callipper_db.arrays import Array
from callipper_trainer.model_rows import load_model
from callipper_trainer.onnx_towers import PlaceTower, TextTower
from callipper_trainer.text_encoder import TextEncoder
from sessions import user_session
from town import MIDDLE, SRID


def ask(connection: db.Connection, query: str, *values: object) -> Array:
    return np.array([row[0] for row in connection.execute(query.encode(), values)])


@torch.inference_mode()
def test_the_towers_are_those_of_the_database(shared_town: str, encoder: TextEncoder) -> None:
    # In the town, outside its lattices, and on the other side of the earth.
    lonlat = np.concatenate([np.random.default_rng(0).normal(MIDDLE, 0.01, (40, 2)), [(5.6, 52.3), (5.12, 10.0)]])
    words = ["cafe", "school", "park", "hospital"]
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
    found = PlaceTower(trained)(torch.from_numpy(metres)).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(TextTower(trained)(torch.from_numpy(encoder.encode(words))).numpy(), texts, atol=1e-5)
    # A text that asks for no kind of place has its second half alone.
    other = TextTower(trained)(torch.ones(1, encoder.dim))
    assert not other[0, :128].any()
