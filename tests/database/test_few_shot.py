"""More like these: examples that are places, and cells labelled from a few places."""

from __future__ import annotations

import numpy as np
import pytest

import callipper_db
from callipper_db import db
from callipper_db.arrays import Array
from callipper_db.city import City
from callipper_db.errors import LabelsUnusable
from published import read_vectors
from sessions import user_session
from town import places

AT = "ST_SetSRID(ST_Point({}, {}), 4326)"


def points(lonlat: Array) -> str:
    return "ARRAY[" + ", ".join(AT.format(*place) for place in lonlat.tolist()) + "]::geometry[]"


def test_places_and_texts_rank_by_their_mean(reading: db.Connection) -> None:
    likes, dislikes = places("park")[:3], places("factory")[:2]
    area = "ST_Buffer(ST_SetSRID(ST_Point(5.12, 52.09), 4326), 0.003)"
    found = reading.execute(
        f"SELECT cell_id, similarity FROM search_by_examples(ARRAY['cafe'], ARRAY['school'], 20,"
        f" like_places => {points(likes)} || {area}, dislike_places => {points(dislikes)})".encode()
    ).fetchall()

    def vectors(query: str) -> Array:
        return read_vectors(reading, query)

    liked = np.concatenate(
        [
            vectors("SELECT text_embed('cafe')::text"),
            vectors(f"SELECT loc_embed(p)::text FROM unnest({points(likes)}) p"),
            vectors(f"SELECT area_embed({area})::text"),
        ]
    ).mean(axis=0)
    disliked = np.concatenate(
        [
            vectors("SELECT text_embed('school')::text"),
            vectors(f"SELECT loc_embed(p)::text FROM unnest({points(dislikes)}) p"),
        ]
    ).mean(axis=0)
    wanted = liked - disliked / 2
    emb = vectors("SELECT emb::text FROM cells ORDER BY cell_id")
    keys = [key for (key,) in reading.execute("SELECT cell_id FROM cells ORDER BY cell_id")]
    similarity = emb @ (wanted / np.linalg.norm(wanted))
    best = np.argsort(-similarity)[:20]
    np.testing.assert_allclose([value for _, value in found], similarity[best], atol=1e-5)
    assert [key for key, _ in found[:5]] == [keys[row] for row in best[:5]]


def test_places_alone_find_more_like_them(reading: db.Connection) -> None:
    found = reading.execute(
        f"SELECT DISTINCT p.kind FROM search_by_examples(like_places => {points(places('hospital')[:5])}, k => 5) s,"
        " LATERAL (SELECT kind FROM callipper_map.place m ORDER BY m.geom <-> s.geom LIMIT 1) p".encode()
    ).fetchall()
    assert found == [("hospital",)]


def test_cells_are_labelled_from_few_places(shared_town: str) -> None:
    city = callipper_db.connect(shared_town)
    few = {kind: places(kind)[:3] for kind in ("park", "factory", "hospital")}
    lonlat = np.concatenate(list(few.values()))
    labels = [kind for kind, group in few.items() for _ in group]
    chance = city.label_cells(lonlat[:, 0], lonlat[:, 1], labels)
    assert list(chance.columns) == ["factory", "hospital", "park", "unsure"]
    np.testing.assert_allclose(chance[["factory", "hospital", "park"]].sum(axis=1), 1, atol=1e-6)
    assert chance["unsure"].between(0, 1).all()
    # Held-out places of each kind lie in cells that get its label.
    with user_session(shared_town) as connection:
        for kind in few:
            rows = connection.execute(
                "SELECT m.cell_id FROM callipper_map.place p JOIN callipper_map.cell m ON ST_Intersects(m.geom, p.geom)"
                " WHERE p.kind = %s",
                [kind],
            ).fetchall()
            said = chance.loc[[key for (key,) in rows], ["factory", "hospital", "park"]].idxmax(axis=1)
            assert (said == kind).mean() > 0.8


def test_too_few_labels(shared_town: str) -> None:
    city = City(shared_town, torch=False)
    with pytest.raises(LabelsUnusable, match="2 places with 2 different labels are too few"):
        city.label_cells([5.1, 5.2], [52, 52], ["a", "b"])
