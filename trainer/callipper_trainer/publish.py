"""A trained model into the database: version, weights, texts, cells and points, active in one transaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from psycopg import sql

from callipper_db import binary_copy, partitions
from callipper_db.arrays import Array
from callipper_db.db import Connection
from callipper_db.disk import check_room
from callipper_db.grid import BLOCK, Grid, check_count, ensure_grid
from callipper_db.hnsw import build_hnsw
from callipper_db.progress import Advance, Reporter
from callipper_db.tables import SCHEMA
from callipper_trainer.config import TrainConfig
from callipper_trainer.data.sample_file import StoredSamples
from callipper_trainer.data.samples import CHUNK, Samples
from callipper_trainer.embed import embed_places, embed_texts
from callipper_trainer.kinds import KindRows, Kinds, plain_names, write_kinds, write_point_kinds
from callipper_trainer.model import TrainedModel
from callipper_trainer.model_rows import ModelRow, write_model
from callipper_trainer.stopwatch import Stopwatch

# At 80,000 cells the index takes 12 s to build and saves 29 ms a question (benchmarks/index_pays.py), so it pays after some
# 400 questions. Extrapolated, not measured: from here on a scan takes about 0.2 s, which a person notices.
HNSW_PAYS_FROM = 500_000
EMBEDDING_BYTES, HNSW_BYTES = 700, 1000  # of a row with its place, its text and its key; and in an HNSW index
SAMPLE = 1000  # cells; a percentile estimated from them is off by less than 3 of 100, mostly


@dataclass(frozen=True)
class Publication:
    """What is published in addition to the weights."""

    text_encoder_id: int
    words: list[str]  # texts to remember in addition to those of the training
    word_vectors: Array  # (W, T)
    text_vectors: Array  # (V, T), of samples.texts
    kinds: Kinds  # of the POIs
    kind_rows: KindRows
    grid_size_m: float
    grid_kind: str
    index: str  # auto, hnsw or none
    metrics: dict[str, Any]
    provenance: dict[str, Any]


def publish(
    connection: Connection,
    trained: TrainedModel,
    samples: Samples | StoredSamples,
    config: TrainConfig,
    publication: Publication,
    reporter: Reporter,
    watch: Stopwatch | None = None,
) -> tuple[int, int]:
    """Write a new version and make it the active one; returns (version, number of cells).

    One transaction: until it commits, readers see the version before, and whatever ends it early leaves nothing behind.
    `watch` takes the seconds: grid, embed, write, index, activate. Rows are embedded and written chunk by chunk, since they
    may be too many to hold.
    """
    watch = watch or Stopwatch()
    with connection.transaction():
        # Embedding takes minutes in which the server hears nothing, and building an index is one long statement.
        connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL statement_timeout = 0")
        connection.execute("SET LOCAL synchronous_commit = on")
        # drop_model takes this lock first too; were the grid's rows ours before it, the two could wait for each other.
        connection.execute("LOCK TABLE callipper.model IN ROW EXCLUSIVE MODE")
        with watch.timing("grid"):
            reporter.stage("cutting the grid")
            blocks = _block_centres(samples, publication.grid_size_m)
            grid = ensure_grid(connection, blocks, samples.srid, publication.grid_size_m, publication.grid_kind)
        check_space(connection, len(grid.cell_id), samples, publication.index)
        with watch.timing("write"):
            row = ModelRow(
                samples.srid,
                samples.extent,
                grid.grid_id,
                publication.text_encoder_id,
                publication.metrics,
                publication.provenance,
            )
            version = write_model(connection, trained, config, row)
        reporter.stage("writing cells", len(grid.cell_id))
        _write_cells(connection, version, trained, grid, config.seed, reporter.advance, watch)
        with watch.timing("write"):
            _write_texts(connection, version, trained, samples, publication)
        reporter.stage("writing points", len(samples))
        _write_points(connection, version, trained, samples, reporter.advance, watch)
        with watch.timing("write"):
            _write_evidence(connection, version, samples, publication)
        if publication.index == "hnsw" or (publication.index == "auto" and len(grid.cell_id) >= HNSW_PAYS_FROM):
            with watch.timing("index"):
                reporter.stage("building the HNSW index", len(grid.cell_id))
                build_hnsw(connection, version, reporter.advance)
        with watch.timing("activate"):
            reporter.stage("activating")
            connection.execute("SELECT callipper.activate(%s)", [version])
    return version, len(grid.cell_id)


def check_space(connection: Connection, cells: int, samples: Samples | StoredSamples, index: str = "none") -> None:
    """Raise DiskTooSmall where a version with that many cells does not fit on the server's disk."""
    indexed = cells if index == "hnsw" or (index == "auto" and cells >= HNSW_PAYS_FROM) else 0
    rows_bytes = EMBEDDING_BYTES * (cells + len(samples) + len(samples.texts)) + HNSW_BYTES * indexed
    check_room(connection, rows_bytes, "The new model version", fresh=True)


def check_grid(samples: Samples | StoredSamples, size_m: float, kind: str) -> None:
    """Raise BadExtent where a grid over the samples has too many cells."""
    check_count(len(_block_centres(samples, size_m)), size_m, kind)


def _block_centres(samples: Samples | StoredSamples, size_m: float) -> Array:
    """(K, 2) one place in each block of the grid that holds samples: all that the grid must know of them."""
    block_m = BLOCK * size_m
    blocks = np.empty((0, 2), np.int64)
    for part in samples.chunks():
        blocks = np.unique(np.concatenate([blocks, np.floor(part.metres / block_m).astype(np.int64)]), axis=0)
    centres: Array = (blocks + 0.5) * block_m
    return centres


def _write_texts(
    connection: Connection,
    version: int,
    trained: TrainedModel,
    samples: Samples | StoredSamples,
    publication: Publication,
) -> None:
    """Words and training texts; of texts with one key the first stays."""
    name = partitions.create_partition(connection, "text_embedding", version)
    embeddings = [embed_texts(trained, vectors) for vectors in (publication.word_vectors, publication.text_vectors)]
    texts = [*publication.words, *samples.texts]
    insert_texts(connection, name, version, texts, np.concatenate(embeddings), len(publication.words))
    partitions.attach_partition(connection, "text_embedding", version)


def insert_texts(
    connection: Connection, table: sql.Identifier, version: int, texts: list[str], embeddings: Array, words: int
) -> int:
    """Texts under the key that text_embed looks for, those that are not there yet; returns how many were added.

    The first `words` of them are the vocabulary of describe(), which wants to know how far each is from the city's sampled
    cells. embeddings: (V, 128) of all of them.
    """
    connection.execute(
        connection.named("CREATE TEMPORARY TABLE known (number int4, text text, emb @vector) ON COMMIT DROP")
    )
    columns: dict[str, tuple[str, Any]] = {
        "number": ("int4", np.arange(len(texts))),
        "text": ("text", [text.encode() for text in texts]),
        "emb": ("vector", embeddings),
    }
    binary_copy.write_rows(connection, sql.Identifier("pg_temp", "known"), columns)
    added = connection.execute(
        sql.SQL(
            "INSERT INTO {name} (version, text, emb, vocabulary, city_distances)"
            " SELECT {version}, key, emb, word, CASE WHEN word THEN callipper._city_distances({version}, emb) END FROM ("
            " SELECT DISTINCT ON (key, hashtextextended(key, 0)) key, emb, number < {words} AS word"
            " FROM (SELECT callipper._text_key(text) AS key, number, emb FROM pg_temp.known) AS keyed"
            " ORDER BY key, hashtextextended(key, 0), number) AS first ON CONFLICT DO NOTHING"
        ).format(name=table, version=sql.Literal(version), words=sql.Literal(words))
    ).rowcount
    connection.execute("DROP TABLE pg_temp.known")
    return added


def _write_sample(connection: Connection, version: int, embeddings: Array) -> None:
    columns: dict[str, tuple[str, Any]] = {
        "version": ("int4", np.full(len(embeddings), version)),
        "number": ("int4", np.arange(len(embeddings))),
        "emb": ("vector", embeddings),
    }
    binary_copy.write_rows(connection, sql.Identifier(SCHEMA, "cell_sample"), columns)


def draw_sample(count: int, seed: int) -> Array:
    """Row numbers of some cells drawn at random, from which percentiles are estimated; rows are in the order of cell_id."""
    drawn: Array = np.random.default_rng(seed).choice(count, min(SAMPLE, count), replace=False)
    return drawn


def _write_cells(
    connection: Connection,
    version: int,
    trained: TrainedModel,
    grid: Grid,
    seed: int,
    advance: Advance,
    watch: Stopwatch,
) -> None:
    """The cells, and the sample of them."""
    name = partitions.create_partition(connection, "cell_embedding", version)
    drawn = draw_sample(len(grid.cell_id), seed)
    sample = np.empty((len(drawn), trained.model.location.output.out_features), np.float32)
    for start in range(0, len(grid.cell_id), CHUNK):
        rows = slice(start, start + CHUNK)
        with watch.timing("embed"):
            embeddings = embed_places(trained, grid.centre[rows])
        here = (drawn >= start) & (drawn < start + CHUNK)
        sample[here] = embeddings[drawn[here] - start]
        columns: dict[str, tuple[str, Any]] = {
            "version": ("int4", np.full(len(embeddings), version)),
            "cell_id": ("int8", grid.cell_id[rows]),
            "emb": ("vector", embeddings),
        }
        with watch.timing("write"):
            binary_copy.write_rows(connection, name, columns, advance)
    with watch.timing("write"):
        partitions.attach_partition(connection, "cell_embedding", version)
        _write_sample(connection, version, sample)


def _write_points(
    connection: Connection,
    version: int,
    trained: TrainedModel,
    samples: Samples | StoredSamples,
    advance: Advance,
    watch: Stopwatch,
) -> None:
    name = partitions.create_partition(connection, "point_embedding", version)
    texts = np.array([text.encode() for text in samples.texts], dtype=object)
    for part in samples.chunks():
        with watch.timing("embed"):
            embeddings = embed_places(trained, part.metres)
        columns: dict[str, tuple[str, Any]] = {
            "version": ("int4", np.full(len(part), version)),
            "point_id": ("int8", part.point_id),
            "text": ("text", texts[part.text_id]),
            "geom": ("point", part.lonlat),
            "emb": ("vector", embeddings),
            "name": ("text", [name.encode() for name in plain_names(part)]),
        }
        with watch.timing("write"):
            binary_copy.write_rows(connection, name, columns, advance)
    with watch.timing("write"):
        partitions.attach_partition(connection, "point_embedding", version)


def _write_evidence(
    connection: Connection, version: int, samples: Samples | StoredSamples, publication: Publication
) -> None:
    """The kinds of the POIs, which answers rest on."""
    write_kinds(connection, version, publication.kind_rows)
    partitions.create_partition(connection, "point_kind", version)
    for part in samples.chunks():
        write_point_kinds(connection, version, publication.kinds, part)
    partitions.attach_partition(connection, "point_kind", version)
    connection.execute("SELECT callipper._count_evidence(%s)", [version])
