"""Write a trained model into the database and activate it, in one transaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from psycopg import sql

from callipper_db import binary_copy, partitions
from callipper_db.arrays import Array
from callipper_db.db import Connection
from callipper_db.disk import check_room
from callipper_db.grid import Grid, block_centres, check_count, ensure_grid
from callipper_db.hnsw import build_hnsw
from callipper_db.progress import Advance, Reporter
from callipper_db.tables import DIMENSIONS
from callipper_trainer.cell_summary import summarise_cells
from callipper_trainer.config import TrainConfig
from callipper_trainer.data.sample_file import StoredSamples
from callipper_trainer.data.samples import CHUNK, Samples
from callipper_trainer.embed import embed_places, embed_texts
from callipper_trainer.kinds import KindRows, Kinds, plain_names, write_kinds, write_point_kinds, write_point_names
from callipper_trainer.model import TrainedModel
from callipper_trainer.model_rows import ModelRow, write_model
from callipper_trainer.peaks import shared_words, write_peaks
from callipper_trainer.stopwatch import Stopwatch
from callipper_trainer.weight_rows import WeightRows

# Cells from which "auto" builds an HNSW index. At 80,000 cells a build takes 12 s and saves 29 ms per question, so it pays
# after 400 questions (benchmarks/index_pays.py). At 500,000 a scan takes about 0.2 s (extrapolated), which a person notices.
HNSW_PAYS_FROM = 500_000
EMBEDDING_BYTES = 1200  # of disk per row with an embedding, its text and its primary key
NAME_BYTES = 900  # of disk per POI with the sentence vector of its name
HNSW_BYTES = 1500  # of disk per row of an HNSW index
SAMPLE = 1000  # cells; a percentile estimated from them is mostly off by less than 3 percentage points
# The tables that all versions share and that questions read. A version's partitions are analysed where they are attached.
ANALYSE = """
ANALYZE callipper.cell, callipper.cell_sample, callipper.context_cell, callipper.kind, callipper.kind_peak,
    callipper.kind_phrase, callipper.kind_word, callipper.location_weight, callipper.poi_density, callipper.text_projection
"""


@dataclass(frozen=True)
class Encoded:
    """The sentence vectors of a run, and the kinds of its POIs that follow from them."""

    text_vectors: Array  # (V, T) of samples.texts
    kinds: Kinds
    kind_rows: KindRows
    words: list[str]  # to remember in addition to samples.texts
    word_vectors: Array  # (W, T) of words


@dataclass(frozen=True)
class Publication:
    """What is published in addition to the weights."""

    text_encoder_id: int
    encoded: Encoded
    grid_size_m: float
    grid_kind: str
    index: str  # auto, hnsw or none
    metrics: dict[str, Any]
    provenance: dict[str, Any]
    activate: bool = True  # False: readers keep the version that is active

    def has_hnsw(self, cells: int) -> bool:
        """Whether a version with this many cells gets an HNSW index."""
        return self.index == "hnsw" or (self.index == "auto" and cells >= HNSW_PAYS_FROM)


def publish(
    connection: Connection,
    trained: TrainedModel,
    samples: Samples | StoredSamples,
    config: TrainConfig,
    publication: Publication,
    reporter: Reporter,
    watch: Stopwatch | None = None,
) -> tuple[int, int]:
    """Write a new version and activate it, unless the publication says otherwise; returns (version, number of cells).

    All in one transaction: until the commit readers see the old version, and a failure leaves nothing behind. Rows are embedded
    and written in chunks, because memory may not hold all of them. `watch` counts the seconds of grid, embed, write, index,
    summary and activate. Raises BadExtent, DiskTooSmall.
    """
    watch = watch or Stopwatch()
    with connection.transaction():
        begin_writing(connection)
        with watch.timing("grid"):
            reporter.stage("cutting the grid")
            blocks = _block_centres(samples, publication.grid_size_m, publication.grid_kind)
            grid = ensure_grid(connection, blocks, samples.srid, publication.grid_size_m, publication.grid_kind)
        cells = len(grid.cell_id)
        check_space(connection, samples, cells, cells if publication.has_hnsw(cells) else 0)
        reporter.stage("writing the model")
        with watch.timing("write"):
            about = (publication.text_encoder_id, publication.metrics, publication.provenance)
            row = ModelRow(samples.srid, samples.extent, grid.grid_id, *about)
            version = write_model(connection, trained, config, row)
        reporter.stage("writing cells", cells)
        _write_cells(connection, version, trained, grid, config.seed, reporter.advance, watch)
        with watch.timing("write"):
            write_kinds(connection, version, publication.encoded.kind_rows)
            _write_texts(connection, version, trained, samples, publication.encoded)
        reporter.stage("writing points", len(samples))
        _write_points(connection, version, trained, samples, reporter.advance, watch)
        with watch.timing("write"):
            _write_evidence(connection, version, trained, samples, publication.encoded)
        if publication.has_hnsw(cells):
            with watch.timing("index"):
                reporter.stage("building the HNSW index", cells)
                build_hnsw(connection, version, reporter.advance)
        with watch.timing("summary"):
            reporter.stage("summing up the cells")
            summarise_cells(connection, version, config.seed)
        # Last, since it locks the tables against VACUUM. Without, the first questions would be planned for empty tables.
        connection.execute(ANALYSE)
        if publication.activate:
            with watch.timing("activate"):
                reporter.stage("activating")
                connection.execute("SELECT callipper.activate(%s)", [version])
    return version, cells


def begin_writing(connection: Connection) -> None:
    """Prepare a transaction for writing a version. Until it ends, neither activate nor drop_model can run; readers can."""
    # Embedding keeps the session idle for minutes, and building an index is one long statement.
    connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL statement_timeout = 0")
    connection.execute("SET LOCAL synchronous_commit = on")
    # Take this lock before rows of the grid, as drop_model does. In another order the two could deadlock.
    connection.execute("LOCK TABLE callipper.model IN ROW EXCLUSIVE MODE")


def check_space(connection: Connection, samples: Samples | StoredSamples, cells: int = 0, indexed: int = 0) -> None:
    """Raise DiskTooSmall when a version with this many cells, `indexed` of them by HNSW, does not fit on the server's disk."""
    rows_bytes = EMBEDDING_BYTES * (cells + len(samples) + len(samples.texts))
    rows_bytes += NAME_BYTES * len(samples) + HNSW_BYTES * indexed
    check_room(connection, rows_bytes, "The new model version", fresh=True)


def check_grid(samples: Samples | StoredSamples, size_m: float, kind: str) -> None:
    """Raise BadExtent when a grid over the samples has too many cells."""
    check_count(len(_block_centres(samples, size_m, kind)), size_m, kind)


def _block_centres(samples: Samples | StoredSamples, size_m: float, kind: str) -> Array:
    """(K, 2) the centre of each block of the grid that holds samples, as ensure_grid() takes places."""
    centres = np.empty((0, 2))
    for part in samples.chunks():
        found = block_centres(part.metres, part.lonlat, size_m, kind)
        centres = np.unique(np.concatenate([centres, found]), axis=0)
    return centres


def _write_texts(
    connection: Connection, version: int, trained: TrainedModel, samples: Samples | StoredSamples, encoded: Encoded
) -> None:
    """Write words and training texts. Of texts with the same key the first one counts."""
    name = partitions.create_partition(connection, "text_embedding", version)
    embeddings = [
        embed_texts(trained, vectors, shared_words(connection, version, trained.peaks, texts))
        for texts, vectors in ((encoded.words, encoded.word_vectors), (samples.texts, encoded.text_vectors))
    ]
    texts = [*encoded.words, *samples.texts]
    insert_texts(connection, name, version, texts, np.concatenate(embeddings), len(encoded.words))
    partitions.attach_partition(connection, "text_embedding", version)


def insert_texts(
    connection: Connection, table: sql.Identifier, version: int, texts: list[str], embeddings: Array, words: int
) -> int:
    """Insert the texts that are not there yet, under the key that text_embed looks up; returns how many were added.

    embeddings: (V, 256) of `texts`. The first `words` texts are the vocabulary of describe(); for them the distances to the
    sampled cells are stored too.
    """
    connection.execute(
        connection.named("CREATE TEMPORARY TABLE known (number int4, text text, emb @vector) ON COMMIT DROP")
    )
    columns: binary_copy.Columns = {
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


def draw_sample(count: int, seed: int) -> Array:
    """Row numbers of a random sample of cells, for estimating percentiles. Rows are in the order of cell_id."""
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
    """Embed and write the cells, and the sample of them."""
    name = partitions.create_partition(connection, "cell_embedding", version)
    drawn = draw_sample(len(grid.cell_id), seed)
    sample = np.empty((len(drawn), DIMENSIONS), np.float32)
    for start in range(0, len(grid.cell_id), CHUNK):
        rows = slice(start, start + CHUNK)
        with watch.timing("embed"):
            embeddings = embed_places(trained, grid.centre[rows])
        here = (drawn >= start) & (drawn < start + CHUNK)
        sample[here] = embeddings[drawn[here] - start]
        columns: binary_copy.Columns = {
            "version": ("int4", version),
            "cell_id": ("int8", grid.cell_id[rows]),
            "emb": ("vector", embeddings),
        }
        with watch.timing("write"):
            binary_copy.write_rows(connection, name, columns, advance)
    with watch.timing("write"):
        partitions.attach_partition(connection, "cell_embedding", version)
        drawn_rows: binary_copy.Columns = {"number": ("int4", np.arange(len(sample))), "emb": ("vector", sample)}
        WeightRows(connection, version).write("cell_sample", drawn_rows)


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
        columns: binary_copy.Columns = {
            "version": ("int4", version),
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
    connection: Connection, version: int, trained: TrainedModel, samples: Samples | StoredSamples, encoded: Encoded
) -> None:
    """Write the kinds and names of the POIs, which search() and describe() answer from; the kinds themselves are there."""
    for table in ("point_kind", "point_name"):
        partitions.create_partition(connection, table, version)
    for part in samples.chunks():
        write_point_kinds(connection, version, encoded.kinds, part)
        write_point_names(connection, version, part, encoded.text_vectors)
    for table in ("point_kind", "point_name"):
        partitions.attach_partition(connection, table, version)
    if trained.peaks is not None:
        write_peaks(connection, version, trained.peaks)
    connection.execute("SELECT callipper._count_evidence(%s)", [version])
