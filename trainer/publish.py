"""A trained model into the database: version, weights, texts, cells and points, active in one transaction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from psycopg import sql
from psycopg.types.json import Jsonb
from torch import Tensor

from callipper_db import store
from callipper_db.db import Connection
from callipper_db.grid import Grid, ensure_grid
from callipper_db.store import Array
from callipper_db.tables import SCHEMA
from trainer.config import TrainConfig
from trainer.context import CODE_SIZE, PRIOR, Level, Pyramid
from trainer.embed import embed_places, embed_texts
from trainer.fit import Trained
from trainer.samples import Samples

# At 80,000 cells the index takes 12 s to build and saves 29 ms a question (benchmarks/index_pays.py), so it pays after some
# 400 questions. Extrapolated, not measured: from here on a scan takes about 0.2 s, which a person notices.
HNSW_PAYS_FROM = 500_000
SAMPLE = 1000  # cells; a percentile estimated from them is off by less than 3 of 100, mostly


@dataclass(frozen=True)
class Publication:
    """What goes beside the weights."""

    text_encoder_id: int
    words: list[str]  # texts to remember beside those of the training
    word_vectors: Array  # (W, T)
    text_vectors: Array  # (V, T), of samples.texts
    grid_size_m: float
    grid_kind: str
    index: str  # auto, hnsw or none
    metrics: dict[str, Any]
    provenance: dict[str, Any]


def publish(
    connection: Connection,
    trained: Trained,
    samples: Samples,
    config: TrainConfig,
    publication: Publication,
    stage: Callable[[str, int], Callable[[int], None]],
) -> tuple[int, int]:
    """Write a new version and make it the active one; returns (version, number of cells).

    One transaction: until it commits, readers see the version before, and whatever ends it early leaves nothing behind.
    `stage(name, total)` is told of each part and returns what counts its progress.
    """
    with connection.transaction():
        # Embedding takes minutes in which the server hears nothing, and building an index is one long statement.
        connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL statement_timeout = 0")
        connection.execute("SET LOCAL synchronous_commit = on")
        # drop_model takes this lock first too; were the grid's rows ours before it, the two could wait for each other.
        connection.execute("LOCK TABLE callipper.model IN ROW EXCLUSIVE MODE")
        stage("cutting the grid", 0)
        grid = ensure_grid(connection, samples.metres, samples.srid, publication.grid_size_m, publication.grid_kind)
        version = _insert_model(connection, trained, samples, config, publication, grid)
        _write_weights(connection, version, trained)
        cells = embed_places(trained, grid.centre, stage("embedding cells", len(grid.cell_id)))
        _write_sample(connection, version, cells, config.seed)
        _write_texts(connection, version, trained, samples, publication)
        _write_cells(connection, version, grid, cells, stage("writing cells", len(cells)))
        points = embed_places(trained, samples.metres, stage("embedding points", len(samples)))
        _write_points(connection, version, samples, points, stage("writing points", len(points)))
        if publication.index == "hnsw" or (publication.index == "auto" and len(cells) >= HNSW_PAYS_FROM):
            store.build_hnsw(connection, version, stage("building the HNSW index", len(cells)))
        stage("activating", 0)
        connection.execute("SELECT callipper.activate(%s)", [version])
    return version, len(cells)


def architecture(config: TrainConfig, trained: Trained) -> dict[str, Any]:
    """The location encoder as data: which features, then which layers, so that SQL can run it."""
    layers: list[dict[str, Any]] = [{"layer": "input", "activation": "relu"}]
    for number in range(config.blocks):
        layers += [
            {"layer": f"block{number}.first", "activation": "relu", "residual": "begin"},
            {"layer": f"block{number}.second", "activation": "relu", "residual": "add"},
        ]
    return {
        "encoder": config.encoder,
        # In the order in which the input layer reads them.
        "features": [
            {"kind": "grid", "divisors_m": trained.model.location.encoding.divisors.tolist()},
            *([_context_features(trained.pyramid)] if trained.pyramid else []),
        ],
        "layers": [*layers, {"layer": "output", "activation": None}],
        "dimensions": trained.model.location.output.out_features,
        "logit_scale": float(trained.model.scale().detach()),
    }


def _context_features(pyramid: Pyramid) -> dict[str, Any]:
    return {"kind": "context", "sizes_m": [level.size_m for level in pyramid.levels], "code": CODE_SIZE, "prior": PRIOR}


def _standardisation(trained: Trained) -> dict[str, list[float]]:
    """Of the context features: they enter the network as (feature - mean) * scale."""
    location = trained.model.location
    return {"mean": location.context_mean.tolist(), "scale": location.context_scale.tolist()}


def _insert_model(
    connection: Connection,
    trained: Trained,
    samples: Samples,
    config: TrainConfig,
    publication: Publication,
    grid: Grid,
) -> int:
    west, south = samples.lonlat.min(axis=0).tolist()
    east, north = samples.lonlat.max(axis=0).tolist()
    row = connection.execute(
        "INSERT INTO callipper.model (status, srid, origin_easting, origin_northing, extent, grid_id, text_encoder_id, arch,"
        " standardisation, metrics, provenance)"
        # A little wider than the POIs, so that a single spot still makes a polygon.
        " VALUES ('ready', %s, %s, %s, ST_Expand(ST_MakeEnvelope(%s, %s, %s, %s, 4326), 1e-6), %s, %s, %s, %s, %s, %s)"
        " RETURNING version",
        [
            samples.srid,
            *trained.origin.tolist(),
            *(west, south, east, north),
            grid.grid_id,
            publication.text_encoder_id,
            Jsonb(architecture(config, trained)),
            Jsonb(_standardisation(trained)),
            Jsonb(publication.metrics),
            Jsonb(publication.provenance),
        ],
    ).fetchone()
    assert row is not None
    return int(row[0])


def _write_weights(connection: Connection, version: int, trained: Trained) -> None:
    for name, layer in trained.model.location.linear_layers().items():
        _write_layer(connection, "location_weight", layer.weight, layer.bias, {"version": version, "layer": name})
    projection = trained.model.text_projection
    _write_layer(connection, "text_projection", projection.weight, projection.bias, {"version": version})
    if trained.pyramid is not None:
        code = trained.pyramid.text_code
        key = {"version": version, "layer": "text_code"}
        _write_layer(connection, "location_weight", torch.from_numpy(code.weight), torch.from_numpy(code.bias), key)
        for number, level in enumerate(trained.pyramid.levels):
            _write_level(connection, version, number, level)


def _write_level(connection: Connection, version: int, number: int, level: Level) -> None:
    columns: dict[str, tuple[str, Any]] = {
        "version": ("int4", np.full(len(level.ij), version)),
        "level": ("int4", np.full(len(level.ij), number)),
        "i": ("int4", level.ij[:, 0]),
        "j": ("int4", level.ij[:, 1]),
        "n": ("float4", level.count),
        "code_sum": ("vector", level.code_sum),
    }
    store.write_rows(connection, sql.Identifier(SCHEMA, "context_cell"), columns)


def _write_layer(connection: Connection, table: str, weights: Tensor, biases: Tensor, key: dict[str, Any]) -> None:
    weight = weights.detach().cpu().numpy()
    count = len(weight)
    columns: dict[str, tuple[str, Any]] = {"version": ("int4", np.full(count, key["version"]))}
    if "layer" in key:
        columns["layer"] = ("text", [key["layer"].encode()] * count)
    columns |= {
        "neuron": ("int4", np.arange(count)),
        "weight": ("vector", weight),
        "bias": ("float4", biases.detach().cpu().numpy()),
    }
    store.write_rows(connection, sql.Identifier(SCHEMA, table), columns)


def _write_texts(
    connection: Connection, version: int, trained: Trained, samples: Samples, publication: Publication
) -> None:
    """Words and training texts, under the key that text_embed looks for; of texts with one key the first stays.

    The words are the vocabulary of describe(), which wants to know how far each is from the city's sampled cells.
    """
    texts = [*publication.words, *samples.texts]
    vectors = np.concatenate([publication.word_vectors, publication.text_vectors])
    connection.execute("CREATE TEMPORARY TABLE known (number int4, text text, emb vector) ON COMMIT DROP")
    columns: dict[str, tuple[str, Any]] = {
        "number": ("int4", np.arange(len(texts))),
        "text": ("text", [text.encode() for text in texts]),
        "emb": ("vector", embed_texts(trained, vectors)),
    }
    store.write_rows(connection, sql.Identifier("pg_temp", "known"), columns)
    name = store.create_partition(connection, "text_embedding", version)
    connection.execute(
        sql.SQL(
            "INSERT INTO {name} (version, text, emb, vocabulary, city_distances)"
            " SELECT {version}, key, emb, word, CASE WHEN word THEN callipper._city_distances({version}, emb) END FROM ("
            " SELECT DISTINCT ON (key, hashtextextended(key, 0)) key, emb, number < {words} AS word"
            " FROM (SELECT callipper._text_key(text) AS key, number, emb FROM pg_temp.known) AS keyed"
            " ORDER BY key, hashtextextended(key, 0), number) AS first"
        ).format(name=name, version=sql.Literal(version), words=sql.Literal(len(publication.words)))
    )
    store.attach_partition(connection, "text_embedding", version)


def _write_sample(connection: Connection, version: int, embeddings: Array, seed: int) -> None:
    """Some cells drawn at random, from which percentiles are estimated."""
    count = min(SAMPLE, len(embeddings))
    drawn = np.random.default_rng(seed).choice(len(embeddings), count, replace=False)
    columns: dict[str, tuple[str, Any]] = {
        "version": ("int4", np.full(count, version)),
        "number": ("int4", np.arange(count)),
        "emb": ("vector", embeddings[drawn]),
    }
    store.write_rows(connection, sql.Identifier(SCHEMA, "cell_sample"), columns)


def _write_cells(
    connection: Connection, version: int, grid: Grid, embeddings: Array, advance: Callable[[int], None]
) -> None:
    name = store.create_partition(connection, "cell_embedding", version)
    columns: dict[str, tuple[str, Any]] = {
        "version": ("int4", np.full(len(embeddings), version)),
        "cell_id": ("int8", grid.cell_id),
        "emb": ("vector", embeddings),
    }
    store.write_rows(connection, name, columns, advance)
    store.attach_partition(connection, "cell_embedding", version)


def _write_points(
    connection: Connection, version: int, samples: Samples, embeddings: Array, advance: Callable[[int], None]
) -> None:
    name = store.create_partition(connection, "point_embedding", version)
    texts = np.array([text.encode() for text in samples.texts], dtype=object)
    columns: dict[str, tuple[str, Any]] = {
        "version": ("int4", np.full(len(embeddings), version)),
        "point_id": ("int8", samples.point_id),
        "text": ("text", texts[samples.text_id]),
        "geom": ("point", samples.lonlat),
        "emb": ("vector", embeddings),
    }
    store.write_rows(connection, name, columns, advance)
    store.attach_partition(connection, "point_embedding", version)
