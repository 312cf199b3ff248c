"""A city within a model of the globe against a model of its own, by the questions that are asked of other cities.

It needs what `python -m benchmarks scale --home build/scale` has left: a database with a model of the globe's amenities. Each
city is cut from the same data and trained on alone, with the same text encoder. Both models then embed the city's own cells
of 100 m, and the ten cells nearest to a question are judged by benchmarks/answers/score.py. Cells of the globe's own grid are
too large for that. No bar: docs/scale.md says what the figures mean.

    make bench ARGS="globe --home build/scale --size 1380538 --cities london,tokyo"
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.answers.score import Judge, Score, summarise
from benchmarks.city import City
from benchmarks.city_languages import FEWEST, questions, train
from benchmarks.other_city import AMENITIES, CITIES, cut, new_database
from benchmarks.sessions import user_session
from callipper_db import db
from callipper_db.arrays import Array
from callipper_db.languages import ENGLISH
from callipper_db.load import LoadOptions, load
from callipper_db.server import EmbeddedServer
from callipper_trainer.embed import embed_places
from callipper_trainer.model_rows import load_model
from callipper_trainer.text_encoder import NGRAMS

BOXES = CITIES | {"london": (-0.51, 51.28, 0.33, 51.69)}
BEST = 10
TEXTS = "SELECT text_embed(t)::real[] FROM unnest(%s::text[]) WITH ORDINALITY AS q(t, n) ORDER BY n"
PLACES = (
    "SELECT ST_X(m), ST_Y(m) FROM unnest(%s::float8[], %s::float8[]) WITH ORDINALITY AS p(lon, lat, n), LATERAL"
    " (SELECT ST_Transform(ST_SetSRID(ST_MakePoint(lon, lat), 4326), %s::int4) AS m OFFSET 0) AS t ORDER BY n"
)


def run(city: City, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """G of both models in each city."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks globe", description=str(__doc__).splitlines()[0])
    parser.add_argument("--home", type=Path, required=True, help="the folder that the benchmark of scale has filled")
    parser.add_argument("--size", type=int, default=1_380_538, help="the points of its model")
    parser.add_argument("--cities", default="london,tokyo", help=f"some of {','.join(BOXES)}")
    options = parser.parse_args(arguments)
    names = options.cities.split(",")
    if unknown := set(names) - set(BOXES):
        parser.error(f"there is no city {', '.join(sorted(unknown))}; there are {', '.join(BOXES)}")
    if not AMENITIES.exists():
        print(f"Skipped: {AMENITIES.name} is not there.", file=sys.stderr)
        return {"skipped": AMENITIES.name}
    server = EmbeddedServer(options.home.resolve())
    server.start()
    try:
        globe = server.administrator_dsn(f"scale_{options.size}")
        return {"points": options.size, "cities": {name: measure(server, globe, name) for name in names}}
    finally:
        server.stop()


def measure(server: EmbeddedServer, globe: str, name: str) -> dict[str, Any]:
    """Load a city, train on it, and ask both models."""
    dsn = new_database(server, f"globe_{name}")
    with tempfile.TemporaryDirectory(prefix="callipper-globe-") as folder:
        pois = cut(BOXES[name], Path(folder) / f"{name}.csv")
        load(dsn, [pois], LoadOptions(source="osm", rejects=Path(folder) / "rejects.csv"))
        train(dsn, Path(folder), NGRAMS, ENGLISH, None)
    with user_session(dsn, autocommit=True) as connection:
        (srid,) = connection.one("SELECT srid FROM callipper.model ORDER BY version DESC LIMIT 1")
        cells = _columns(connection, "SELECT ST_X(p), ST_Y(p) FROM callipper.cells, ST_Centroid(geom) AS p")
        rows = connection.execute("SELECT ST_X(geom), ST_Y(geom), category FROM callipper.poi").fetchall()
        places = np.array([row[:2] for row in rows])
        judge = Judge(*(_metres(connection, lonlat, srid) for lonlat in (places, cells)))
        categories = np.array([category for _, _, category in rows])
    found = {what: _nearest(of, cells) for what, of in {"city": dsn, "globe": globe}.items()}
    scores: dict[str, list[Score]] = {what: [] for what in found}
    for number, question in enumerate(questions()):
        relevant: Array = np.isin(categories, list(question.categories))
        if relevant.sum() >= FEWEST:
            for what, nearest in found.items():
                scores[what].append(judge.score(judge.cells[nearest[number]], relevant))
    return {"pois": len(places), "cells": len(cells)} | {
        what: {
            "questions": whole.questions,
            "g": round(whole.g, 2),
            "lift": round(whole.lift, 1),
            "below_1": whole.below_1,
        }
        for what, whole in ((what, summarise(of)) for what, of in scores.items())
    }


def _nearest(dsn: str, cells: Array) -> Array:
    """(C, 2) degrees -> (Q, 10) the cells nearest to each question, by the active model of a database."""
    with user_session(dsn, autocommit=True) as connection:
        model = load_model(connection)
        (srid,) = connection.one("SELECT srid FROM callipper.model WHERE version = %s", [model.version])
        metres = _metres(connection, cells, srid)
        asked = connection.execute(TEXTS, [[question.said[ENGLISH] for question in questions()]]).fetchall()
    texts = np.array([row[0] for row in asked], np.float32)
    likeness = embed_places(model.trained, metres) @ texts.T
    nearest: Array = np.argsort(-likeness, axis=0, kind="stable")[:BEST].T
    return nearest


def _metres(connection: db.Connection, lonlat: Array, srid: int) -> Array:
    """(N, 2) degrees -> (N, 2) easting and northing."""
    return _columns(connection, PLACES, [*lonlat.T.tolist(), srid])


def _columns(connection: db.Connection, query: str, values: Sequence[Any] = ()) -> Array:
    return np.array(connection.execute(query.encode(), values).fetchall(), np.float64)
