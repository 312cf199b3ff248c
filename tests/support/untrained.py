"""A published model without training, and what loc_embed says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from psycopg import sql

from callipper_db import db
from callipper_db.arrays import Array
from callipper_db.binary_copy import read_rows
from callipper_db.progress import Silent
from callipper_trainer.config import TrainConfig
from callipper_trainer.context import build_pyramid
from callipper_trainer.data.samples import Samples
from callipper_trainer.features import make_features
from callipper_trainer.fit_peaks import fit_peaks, point_kinds
from callipper_trainer.kinds import KindRows, Kinds
from callipper_trainer.model import CaLLiPer, TrainedModel
from callipper_trainer.publish import Encoded, Publication, publish
from sessions import user_session

SRID = 32631  # UTM 31 N


MIDDLE = np.array([645_000.0, 5_773_000.0])


POIS = 400


TEXT_DIM = 48


SIZES: dict[str, dict[str, Any]] = {"small": {"hidden": 24, "blocks": 1, "frequencies": 5}, "default": {}}


@dataclass(frozen=True)
class Published:
    """A model with random weights, as torch has it and as the database has it."""

    trained: TrainedModel
    version: int


def places(seed: int = 0, count: int = POIS) -> Array:
    """(count, 2) metres: three quarters of POIs, densest in their middles, and one that stands alone."""
    random = np.random.default_rng(seed)
    quarters = MIDDLE + np.array([[0, 0], [2500, 500], [-1500, 3000]])
    metres = quarters[random.integers(0, 3, count)] + random.normal(0, 400, (count, 2))
    metres[-1] = MIDDLE + np.array([6000, -6000])
    return metres


def publish_untrained(dsn: str, metres: Array, encoder: str, size: str) -> Published:
    """A model of POIs at (N, 2) metres through the product's own path, but for the training. It becomes the active one."""
    config = TrainConfig(encoder=encoder, device="cpu", **SIZES[size])
    with user_session(dsn) as connection:
        return _publish_untrained(connection, metres, config)


def _publish_untrained(connection: db.Connection, metres: Array, config: TrainConfig) -> Published:
    samples = samples_at(connection, metres)
    vectors = np.random.default_rng(1).normal(size=(len(samples.texts), TEXT_DIM)).astype(np.float32)
    pyramid, context = None, None
    if config.encoder == "contextual":
        pyramid = build_pyramid(samples.metres - samples.origin, samples.text_id, vectors, config)
        context = torch.from_numpy(pyramid.features(samples.metres - samples.origin))
    torch.manual_seed(config.seed)
    model = CaLLiPer(config, TEXT_DIM, make_features(config, pyramid)).eval()
    if context is not None and model.location.context is not None:
        model.location.context.set_standardisation(context.mean(dim=0), context.std(dim=0))
    trained = TrainedModel(model, samples.origin, pyramid, best_epoch=1)
    kinds = Kinds()
    kinds.read_texts(samples.texts)
    random = np.random.default_rng(3)
    kind_rows = KindRows.of(kinds, 0, lambda texts: random.normal(size=(len(texts), TEXT_DIM)).astype(np.float32))
    if pyramid is not None:
        trained.peaks = fit_peaks(kinds, kind_rows, point_kinds(kinds, samples.chunks()))
    encoded = Encoded(vectors, kinds, kind_rows, [], vectors[:0])
    publication = Publication(register(connection), encoded, 250.0, "square", "none", metrics={}, provenance={})
    version, _ = publish(connection, trained, samples, config, publication, Silent())
    return Published(trained, version)


def register(connection: db.Connection) -> int:
    (encoder_id,) = connection.one(
        "INSERT INTO callipper.text_encoder (name, revision, dim) VALUES ('none', 'r1', %s)"
        " ON CONFLICT (name, revision) DO UPDATE SET dim = excluded.dim RETURNING text_encoder_id",
        [TEXT_DIM],
    )
    return int(encoder_id)


def samples_at(connection: db.Connection, metres: Array) -> Samples:
    rows = connection.execute(
        "SELECT ST_X(g), ST_Y(g) FROM unnest(%s::float8[], %s::float8[]) WITH ORDINALITY AS p(x, y, n),"
        " ST_Transform(ST_SetSRID(ST_Point(x, y), %s), 4326) AS g ORDER BY n",
        [*metres.T.tolist(), SRID],
    ).fetchall()
    texts = [f"kind {number}" for number in range(7)]
    text_id = np.random.default_rng(2).integers(0, len(texts), len(metres)).astype(np.int32)
    return Samples(
        np.arange(1, len(metres) + 1), np.array(rows), metres, text_id, texts, SRID, np.full(len(metres), -1)
    )


def embed(connection: db.Connection, metres: Array, version: int | None = None) -> Array:
    """(N, 2) metres -> (N, 256) by loc_embed, the version named or not."""
    named = sql.SQL("") if version is None else sql.SQL(", {}").format(sql.Literal(version))
    query = sql.SQL(
        "SELECT loc_embed(ST_SetSRID(ST_Point(x, y), {srid}){named}) FROM unnest({x}::float8[], {y}::float8[])"
        " WITH ORDINALITY AS p(x, y, n) ORDER BY n"
    ).format(srid=SRID, named=named, x=sql.Literal(metres[:, 0].tolist()), y=sql.Literal(metres[:, 1].tolist()))
    (found,) = read_rows(connection, query, ["vector"], dim=256)
    return found
