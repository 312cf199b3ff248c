"""The product as a user runs it: `callipper-db train` in a process of its own, then SQL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from benchmarks.answers.cities import CELL_M, SRID, AnswerCity
from benchmarks.answers.score import PLACES
from benchmarks.sessions import user_session
from callipper_db import db, models
from callipper_db.arrays import Array

# Columns are taken by name, so that a function may return more of them.
BY_EMBEDDING = "SELECT geom FROM callipper.cells ORDER BY emb <-> callipper.text_embed(%(text)s) LIMIT %(k)s"
BY_SEARCH = "SELECT geom FROM callipper.search(%(text)s, %(k)s)"
CENTRES = (
    "SELECT ST_X(m), ST_Y(m) FROM ({}) AS a, LATERAL (SELECT ST_Transform(ST_Centroid(a.geom), %(srid)s) AS m) AS t"
)

# Every tenth POI is left out of the training, and looked for afterwards.
KEPT = "SELECT * FROM callipper.poi WHERE poi_id % 10 <> 0"
KEPT_OPTIONS = ("--source", KEPT, "--template", "{category}", "--name", "name", "--id", "poi_id")


@dataclass(frozen=True)
class Product:
    """The active model of a city's database."""

    connection: db.Connection
    city: AnswerCity

    def by_embedding(self, text: str) -> Array:
        """(10, 2) metres of the cells that are nearest to the text's embedding."""
        return self._places(BY_EMBEDDING, text)

    def by_search(self, text: str) -> Array:
        """(K, 2) metres of the cells that search() returns, at most ten."""
        return self._places(BY_SEARCH, text)

    def search_ms(self, text: str) -> float:
        """Milliseconds of search(), the second time that it is asked."""
        self._places(BY_SEARCH, text)
        started = time.perf_counter()
        self._places(BY_SEARCH, text)
        return (time.perf_counter() - started) * 1000

    def describe(self, lon: float, lat: float, k: int) -> list[str]:
        """At most k words for a place, best first."""
        query = "SELECT text FROM callipper.describe(ST_SetSRID(ST_Point(%s, %s), 4326), %s)"
        return [row[0] for row in self.connection.execute(query, [lon, lat, k]).fetchall()]

    def lonlat(self, metres: Array) -> list[tuple[float, float]]:
        """(N, 2) metres of the city's CRS as degrees."""
        query = (
            "SELECT ST_X(p), ST_Y(p) FROM unnest(%s::float8[], %s::float8[]) WITH ORDINALITY AS a(x, y, n),"
            " LATERAL (SELECT ST_Transform(ST_SetSRID(ST_Point(x, y), %s), 4326) AS p) AS t ORDER BY n"
        )
        values = [metres[:, 0].tolist(), metres[:, 1].tolist(), SRID[self.city.name]]
        return [(lon, lat) for lon, lat in self.connection.execute(query, values).fetchall()]

    def search_points(self, text: str, k: int = PLACES) -> list[tuple[str, str]]:
        """Name and category of at most k POIs, best first."""
        query = "SELECT coalesce(name, ''), coalesce(category, '') FROM callipper.search_points(%s, %s)"
        return [(name, category) for name, category in self.connection.execute(query, [text, k]).fetchall()]

    def text_vectors(self, texts: Sequence[str]) -> Array:
        """(Q, D) of text_embed()."""
        query = "SELECT callipper.text_embed(t)::real[] FROM unnest(%s::text[]) WITH ORDINALITY AS a(t, n) ORDER BY n"
        return np.array([row[0] for row in self.connection.execute(query, [list(texts)]).fetchall()], np.float32)

    def place_vectors(self, lonlat: Array) -> Array:
        """(N, D) of loc_embed()."""
        query = (
            "SELECT callipper.loc_embed(ST_SetSRID(ST_Point(x, y), 4326))::real[]"
            " FROM unnest(%s::float8[], %s::float8[]) WITH ORDINALITY AS a(x, y, n) ORDER BY n"
        )
        columns = [lonlat[:, 0].tolist(), lonlat[:, 1].tolist()]
        return np.array([row[0] for row in self.connection.execute(query, columns).fetchall()], np.float32)

    def _places(self, query: str, text: str) -> Array:
        values = {"text": text, "k": PLACES, "srid": SRID[self.city.name]}
        rows = self.connection.execute(CENTRES.format(query).encode(), values).fetchall()
        return np.array(rows, np.float64).reshape(-1, 2)


@contextmanager
def ask(city: AnswerCity, options: Sequence[str] = (), *, again: bool = False) -> Iterator[tuple[Product, float]]:
    """The product with a model of the default recipe, and the seconds of its training.

    `options` are more of `callipper-db train`. A model that was trained with them before answers again, in 0 seconds, unless
    `again` asks for a new one.
    """
    source = options[options.index("--source") + 1] if "--source" in options else "callipper.poi"
    found = [m["version"] for m in models.list_models(city.dsn) if m["provenance"].get("source") == source]
    seconds = 0.0
    if again or not found:
        seconds = _train(city, options)
    else:
        models.activate_model(city.dsn, found[0])
    with user_session(city.dsn, autocommit=True) as connection:
        yield Product(connection, city), seconds


def _train(city: AnswerCity, options: Sequence[str]) -> float:
    command = [sys.executable, "-m", "callipper_db", "train", "--dsn", city.dsn, "--srid", str(SRID[city.name])]
    command += ["--grid-size", f"{CELL_M:g}", "--json", *options]
    with tempfile.TemporaryDirectory(prefix="callipper-train-") as home:
        environment = os.environ | {"CALLIPPER_HOME": home}
        finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return float(sum(json.loads(finished.stdout.splitlines()[-1])["seconds"].values()))
