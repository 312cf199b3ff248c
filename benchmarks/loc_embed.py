"""Places embedded in SQL: a set of points in London by both location encoders, in one backend.

The weights are random, since training changes no time. The baseline is the network alone, read from its table layer by layer
as a plain PL/pgSQL loop does it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from psycopg import sql

from benchmarks.city import SRID, City, kinds_of, median_ratio
from benchmarks.sessions import user_session
from callipper_db import db
from callipper_db.binary_copy import read_rows
from callipper_db.progress import Silent
from callipper_db.tables import DIMENSIONS
from callipper_trainer.config import TrainConfig
from callipper_trainer.context import build_pyramid
from callipper_trainer.embed import embed_places
from callipper_trainer.features import make_features
from callipper_trainer.fit_peaks import fit_peaks, point_kinds
from callipper_trainer.model import CaLLiPer, TrainedModel
from callipper_trainer.publish import Encoded, Publication, publish

POINTS = 10_000
FEW = 1_000  # calls of what is slower, and of the baselines
ROUNDS = 3
BARS_MS = {"coordinate": 1.5, "contextual": 3.0}
BAR_DIFFERENCE = 1e-5

BASELINE = """
CREATE FUNCTION pg_temp.plain(version integer, layers text[], joins boolean, x vector) RETURNS vector LANGUAGE plpgsql AS $$
DECLARE
    name text;
    features vector := x;
BEGIN
    FOREACH name IN ARRAY layers LOOP
        IF name = 'output' AND joins THEN
            x := x || features;
        END IF;
        x := ARRAY(
            SELECT greatest(inner_product(w.weight, x) + w.bias, 0) FROM callipper.location_weight w
            WHERE w.version = plain.version AND w.layer = name ORDER BY w.neuron
        )::vector;
    END LOOP;
    RETURN x;
END
$$
"""


@dataclass(frozen=True)
class Untrained:
    """A model with random weights, in torch and in the database."""

    trained: TrainedModel
    version: int


def run(city: City) -> dict[str, Any]:
    """Milliseconds a point and what is behind them, by encoder. The models are dropped again."""
    models = {encoder: publish_untrained(city, encoder) for encoder in BARS_MS}
    try:
        figures = {encoder: _measure(city, model) for encoder, model in models.items()}
    finally:
        with user_session(city.dsn) as connection:
            for model in models.values():
                connection.execute("SELECT callipper.drop_model(%s, true)", [model.version])
    kept = (
        figures[encoder]["ms"] <= bar and figures[encoder]["difference_to_torch"] <= BAR_DIFFERENCE
        for encoder, bar in BARS_MS.items()
    )
    return {"points": POINTS, **figures, "bars_ms": BARS_MS, "bar_difference": BAR_DIFFERENCE, "holds": all(kept)}


def publish_untrained(city: City, encoder: str, grid_size_m: float = 1000.0) -> Untrained:
    """A version with random weights, active."""
    samples, config = city.samples, TrainConfig.of(encoder, device="cpu")
    pyramid = None
    if encoder == "contextual":
        pyramid = build_pyramid(samples.metres - samples.origin, samples.text_id, city.text_vectors, config)
    torch.manual_seed(0)
    model = CaLLiPer(config, city.text_vectors.shape[1], make_features(config, pyramid)).eval()
    if pyramid and model.location.context:
        context = torch.from_numpy(pyramid.features(samples.metres - samples.origin))
        model.location.context.set_standardisation(context.mean(dim=0), context.std(dim=0))
    trained = TrainedModel(model, samples.origin, pyramid, best_epoch=1)
    kinds, kind_rows = kinds_of(samples, city.text_vectors.shape[1])
    if pyramid is not None:
        trained.peaks = fit_peaks(kinds, kind_rows, point_kinds(kinds, samples.chunks()))
    with user_session(city.dsn) as connection:
        (encoder_id,) = connection.one(
            "INSERT INTO callipper.text_encoder (name, revision, dim) VALUES ('benchmark', 'r1', %s)"
            " ON CONFLICT (name, revision) DO UPDATE SET dim = excluded.dim RETURNING text_encoder_id",
            [city.text_vectors.shape[1]],
        )
        encoded = Encoded(city.text_vectors, kinds, kind_rows, [], city.text_vectors[:0])
        publication = Publication(encoder_id, encoded, grid_size_m, "square", "none", metrics={}, provenance={})
        version, _ = publish(connection, trained, samples, config, publication, Silent())
    return Untrained(trained, version)


def _measure(city: City, model: Untrained) -> dict[str, Any]:
    """One model's figures. Its version is asked by name first, while the other model is the active one."""
    with user_session(city.dsn) as connection:
        connection.execute(sql.SQL(BASELINE))
        connection.execute("SET LOCAL max_parallel_workers_per_gather = 0")
        _ask(connection, city)
        few = f"FROM pg_temp.asked WHERE number <= {FEW}"
        named = [_ms(connection, f"SELECT count(loc_embed(geom, {model.version})) {few}") / FEW for _ in range(ROUNDS)]
        connection.execute("SELECT callipper.activate(%s)", [model.version])
        first_ms = _ms(connection, "SELECT loc_embed(geom) FROM pg_temp.asked LIMIT 1")
        layers = list(model.trained.model.location.linear_layers())
        width = model.trained.model.location.input.in_features
        plain_query = sql.SQL(
            "SELECT count(pg_temp.plain({}, {}, {}, array_fill(number, ARRAY[{}])::vector)) FROM pg_temp.asked"
            " WHERE number <= {}"
        ).format(model.version, layers, model.trained.model.location.joins, width, FEW)
        ours, plain, support = [], [], []
        for _ in range(ROUNDS):
            plain.append(_ms(connection, plain_query) / FEW)
            ours.append(_ms(connection, "SELECT count(loc_embed(geom)) FROM pg_temp.asked") / POINTS)
            support.append(_ms(connection, f"SELECT count(loc_support(geom)) {few}") / FEW)
        return {
            "ms": round(float(np.median(ours)), 3),
            "share_of_baseline": round(median_ratio(ours, plain), 2),
            "ms_when_not_active": round(float(np.median(named)), 3),
            "ms_first_in_session": round(first_ms, 1),
            "support_ms": round(float(np.median(support)), 3),
            "difference_to_torch": _difference(connection, model.trained),
        }


def _ask(connection: db.Connection, city: City) -> None:
    """Put the points into a table: anywhere in the rectangle around the POIs, with longitude and latitude."""
    low, high = city.samples.metres.min(axis=0), city.samples.metres.max(axis=0)
    metres = np.random.default_rng(0).uniform(low, high, (POINTS, 2))
    connection.execute("CREATE TEMPORARY TABLE asked (number integer, geom geometry) ON COMMIT DROP")
    connection.execute(
        "INSERT INTO pg_temp.asked SELECT n, ST_Transform(ST_SetSRID(ST_Point(x, y), %s), 4326)"
        " FROM unnest(%s::float8[], %s::float8[]) WITH ORDINALITY AS p(x, y, n)",
        [SRID, *metres.T.tolist()],
    )


def _difference(connection: db.Connection, trained: TrainedModel) -> float:
    """The largest difference of any number of any point to what torch says."""
    query = sql.SQL(
        "SELECT ST_X(ST_Transform(geom, {0})), ST_Y(ST_Transform(geom, {0})), loc_embed(geom) FROM pg_temp.asked"
    ).format(SRID)
    easting, northing, found = read_rows(connection, query, ["float8", "float8", "vector"], dim=DIMENSIONS)
    return float(np.abs(found - embed_places(trained, np.column_stack([easting, northing]))).max())


def _ms(connection: db.Connection, query: str | sql.Composed) -> float:
    started = time.perf_counter()
    connection.execute(sql.SQL(query) if isinstance(query, str) else query).fetchall()
    return (time.perf_counter() - started) * 1000
