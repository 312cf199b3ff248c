"""A trained model into the database: version, weights, texts, cells and points, active in one transaction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from psycopg import sql
from psycopg.types.json import Jsonb

from callipper_db import store
from callipper_db.db import Connection
from callipper_db.grid import Grid, ensure_grid
from callipper_db.store import Array
from callipper_db.tables import SCHEMA
from trainer.config import TrainConfig
from trainer.embed import embed_places, embed_texts
from trainer.fit import Trained
from trainer.samples import Samples

# Building an HNSW index costs minutes where the exact scan costs milliseconds; benchmarks/index_pays.py has the figures.
HNSW_PAYS_FROM = 500_000


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
        connection.execute("SET LOCAL synchronous_commit = on")
        stage("cutting the grid", 0)
        grid = ensure_grid(connection, samples.metres, samples.srid, publication.grid_size_m, publication.grid_kind)
        version = _insert_model(connection, trained, samples, config, publication, grid)
        _write_weights(connection, version, trained)
        _write_texts(connection, version, trained, samples, publication)
        cells = embed_places(trained, grid.centre, stage("embedding cells", len(grid.cell_id)))
        _write_cells(connection, version, grid, cells, stage("writing cells", len(cells)))
        points = embed_places(trained, samples.metres, stage("embedding points", len(samples)))
        _write_points(connection, version, samples, points, stage("writing points", len(points)))
        if publication.index == "hnsw" or (publication.index == "auto" and len(cells) >= HNSW_PAYS_FROM):
            stage("building the HNSW index", 0)
            store.build_hnsw(connection, version)
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
        "features": "grid",
        "frequencies": config.frequencies,
        "divisors_m": trained.model.location.encoding.divisors.tolist(),
        "layers": [*layers, {"layer": "output", "activation": None}],
        "dimensions": trained.model.location.output.out_features,
        "logit_scale": float(trained.model.scale().detach()),
    }


def _insert_model(
    connection: Connection, trained: Trained, samples: Samples, config: TrainConfig, publication: Publication, grid: Grid
) -> int:
    west, south = samples.lonlat.min(axis=0).tolist()
    east, north = samples.lonlat.max(axis=0).tolist()
    row = connection.execute(
        "INSERT INTO callipper.model (status, srid, origin_easting, origin_northing, extent, grid_id, text_encoder_id, arch,"
        " metrics, provenance)"
        # A little wider than the POIs, so that a single spot still makes a polygon.
        " VALUES ('ready', %s, %s, %s, ST_Expand(ST_MakeEnvelope(%s, %s, %s, %s, 4326), 1e-6), %s, %s, %s, %s, %s)"
        " RETURNING version",
        [
            samples.srid,
            *trained.origin.tolist(),
            *(west, south, east, north),
            grid.grid_id,
            publication.text_encoder_id,
            Jsonb(architecture(config, trained)),
            Jsonb(publication.metrics),
            Jsonb(publication.provenance),
        ],
    ).fetchone()
    assert row is not None
    return int(row[0])


def _write_weights(connection: Connection, version: int, trained: Trained) -> None:
    for name, layer in trained.model.location.linear_layers().items():
        _write_layer(connection, "location_weight", layer, {"version": version, "layer": name})
    _write_layer(connection, "text_projection", trained.model.text_projection, {"version": version})


def _write_layer(connection: Connection, table: str, layer: Any, key: dict[str, Any]) -> None:
    weight = layer.weight.detach().cpu().numpy()
    count = len(weight)
    columns: dict[str, tuple[str, Any]] = {"version": ("int4", np.full(count, key["version"]))}
    if "layer" in key:
        columns["layer"] = ("text", [key["layer"].encode()] * count)
    columns |= {
        "neuron": ("int4", np.arange(count)),
        "weight": ("vector", weight),
        "bias": ("float4", layer.bias.detach().cpu().numpy()),
    }
    store.write_rows(connection, sql.Identifier(SCHEMA, table), columns)


def _write_texts(
    connection: Connection, version: int, trained: Trained, samples: Samples, publication: Publication
) -> None:
    """Training texts and words, under the key that text_embed looks for; of texts with one key the first stays."""
    texts = [*publication.words, *samples.texts]
    vectors = np.concatenate([publication.word_vectors, publication.text_vectors])
    connection.execute("CREATE TEMPORARY TABLE known (number int4, text text, emb vector) ON COMMIT DROP")
    columns: dict[str, tuple[str, Any]] = {
        "number": ("int4", np.arange(len(texts))),
        "text": ("text", [text.encode() for text in texts]),
        "emb": ("vector", embed_texts(trained, vectors)),
    }
    store.write_rows(connection, sql.Identifier("known"), columns)
    name = store.create_partition(connection, "text_embedding", version)
    connection.execute(
        sql.SQL(
            "INSERT INTO {} (version, text, emb) SELECT DISTINCT ON (key, hashtextextended(key, 0)) {}, key, emb"
            " FROM (SELECT callipper._text_key(text) AS key, number, emb FROM known) AS keyed ORDER BY key,"
            " hashtextextended(key, 0), number"
        ).format(name, sql.Literal(version))
    )
    store.attach_partition(connection, "text_embedding", version)


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
