"""`callipper-db train`: read, encode, fit, publish."""

from __future__ import annotations

import hashlib
import importlib.metadata
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from psycopg import sql

from callipper_db import db
from callipper_db.errors import NoActiveModel, TextEncoderMissing, TextEncoderUnsupported, TextUnknown, TrainerBusy
from callipper_db.progress import Reporter
from callipper_db.store import Array, read_rows
from trainer.config import TrainConfig
from trainer.fit import choose_device, fit
from trainer.publish import Publication, publish
from trainer.samples import Samples
from trainer.stream import POI_TABLE, Source, read_samples
from trainer.text import TextEncoder, encode_cached, find_encoder, place_words, register_encoder
from trainer.text_weights import install

TRAIN_LOCK = 0x0CA1_0002  # advisory lock: one training run at a time in a database
PACKAGES = ("callipper-db", "torch", "sentence-transformers", "numpy")


@dataclass
class TrainSummary:
    """What a training run did."""

    version: int
    rows: int
    texts: int
    cells: int
    srid: int
    best_epoch: int
    validation_loss: float
    seconds: dict[str, float] = field(default_factory=dict)


def train(
    dsn: str,
    source: Source,
    config: TrainConfig,
    reporter: Reporter,
    *,
    text_encoder: str,
    checkpoint: Path,
    resume: bool = False,
    wait: bool = False,
    grid_size_m: float = 100.0,
    grid_kind: str = "square",
    index: str = "auto",
    text_tower: bool = True,
) -> TrainSummary:
    """Train on a source in the database and make the result its active model.

    `text_tower`: install the text encoder too, so that text_embed answers texts that nobody has met.
    Raises TrainerBusy, BadSource, BadExtent, NotEnoughData, TextEncoderMissing, CheckpointMissing, CheckpointMismatch.
    """
    device = choose_device(config.device)
    seconds: dict[str, float] = {}
    with only_trainer(dsn, wait=wait, reporter=reporter):
        with _timed("read", seconds), db.session(dsn, autocommit=True) as connection:
            reporter.stage("reading POIs")
            snapshot = read_samples(connection, source, reporter.advance)
            words = place_words() + _categories(connection, snapshot.source)
        samples = snapshot.samples
        if snapshot.without_geometry or snapshot.without_text:
            reporter.note(
                f"{snapshot.without_geometry:,} rows without a usable geometry and {snapshot.without_text:,} without a text"
                " were left out."
            )
        with _timed("encode", seconds):
            encoder = find_encoder(text_encoder, str(device))
            text_vectors, word_vectors = _encode(dsn, encoder, samples, words, reporter)
        if text_tower:
            with _timed("install", seconds):
                _install(dsn, encoder, reporter)
        fingerprint = hashlib.sha256(f"{samples.content_hash()} {encoder.revision}".encode()).hexdigest()
        if checkpoint.exists() and not resume:
            reporter.note(f"An unfinished run was found ({checkpoint}) and is started over; --resume goes on with it.")
        with _timed("train", seconds):
            trained = fit(
                samples.metres,
                samples.text_id,
                text_vectors,
                samples.origin,
                config,
                reporter=reporter,
                checkpoint=checkpoint,
                fingerprint=fingerprint,
                resume=resume,
            )
        validation_loss = trained.history[trained.best_epoch - 1]["validation_loss"]
        with _timed("publish", seconds), db.session(dsn) as connection:
            publication = Publication(
                text_encoder_id=register_encoder(connection, encoder),
                words=words,
                word_vectors=word_vectors,
                text_vectors=text_vectors,
                grid_size_m=grid_size_m,
                grid_kind=grid_kind,
                index=index,
                metrics={
                    "validation_loss": validation_loss,
                    "best_epoch": trained.best_epoch,
                    "history": trained.history,
                },
                provenance={
                    "source": snapshot.source,
                    "text": snapshot.text_sql,
                    "identifier": source.identifier,
                    "geometry": source.geometry,
                    "rows": len(samples),
                    "texts": len(samples.texts),
                    "content_sha256": samples.content_hash(),
                    "snapshot": snapshot.taken_at,
                    "config": config.to_dict(),
                    "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
                    "seconds": {name: round(value, 2) for name, value in seconds.items()},
                },
            )
            version, cells = publish(connection, trained, samples, config, publication, _stages(reporter))
        checkpoint.unlink(missing_ok=True)
    return TrainSummary(
        version=version,
        rows=len(samples),
        texts=len(samples.texts),
        cells=cells,
        srid=samples.srid,
        best_epoch=trained.best_epoch,
        validation_loss=validation_loss,
        seconds={name: round(value, 2) for name, value in seconds.items()},
    )


def remember(dsn: str, texts: list[str], text_encoder: str | None = None) -> int:
    """Add texts to those that the active model answers; returns how many were new. Raises NoActiveModel, TextUnknown."""
    if not all(text.strip() for text in texts):
        raise TextUnknown(reason="the text is empty. Give a word or a phrase, such as 'park'.")
    with db.session(dsn) as connection:
        row = connection.execute(
            "SELECT m.version, e.name, e.revision, e.dim FROM callipper.model m"
            " JOIN callipper.text_encoder e USING (text_encoder_id) WHERE m.status = 'active'"
        ).fetchone()
        if row is None:
            raise NoActiveModel
        version, name, revision, dim = row
        query = sql.SQL("SELECT weight, bias FROM callipper.text_projection WHERE version = {} ORDER BY neuron")
        weight, bias = read_rows(connection, query.format(sql.Literal(version)), ["vector", "float4"], dim)
    encoder = find_encoder(text_encoder or name)
    if encoder.revision != revision:
        raise TextEncoderMissing(name=name, reason="its weights are not those that the active model was trained with")
    vectors = encode_cached(dsn, encoder, list(dict.fromkeys(texts)))
    projected = torch.nn.functional.linear(*map(torch.from_numpy, (vectors, weight, bias)))
    embeddings = torch.nn.functional.normalize(projected, dim=1).tolist()
    with db.session(dsn) as connection, connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO callipper.text_embedding (version, text, emb)"
            " SELECT %s, callipper._text_key(%s), %s::real[]::vector ON CONFLICT DO NOTHING",
            [(version, text, emb) for text, emb in zip(dict.fromkeys(texts), embeddings, strict=True)],
        )
        return cursor.rowcount


@contextmanager
def only_trainer(dsn: str, *, wait: bool, reporter: Reporter) -> Iterator[None]:
    """Hold the database's training lock on a connection of its own; it goes with the process, however that ends."""
    with db.session(dsn, autocommit=True) as connection:
        connection.execute("SET idle_session_timeout = 0")
        while connection.execute("SELECT pg_try_advisory_lock(%s)", [TRAIN_LOCK]).fetchone() == (False,):
            holder = connection.execute(
                "SELECT l.pid, to_char(a.backend_start, 'YYYY-MM-DD HH24:MI') FROM pg_catalog.pg_locks l"
                " LEFT JOIN pg_catalog.pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' AND l.granted"
                " AND l.objid = %s"
                " AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())",
                [TRAIN_LOCK],
            ).fetchone()
            if holder is not None and not wait:
                raise TrainerBusy(pid=holder[0], since=holder[1])
            if wait:
                reporter.note("Another training run is at work in this database; waiting for it.")
                connection.execute("SELECT pg_advisory_lock(%s)", [TRAIN_LOCK])
                break
        yield


def _install(dsn: str, encoder: TextEncoder, reporter: Reporter) -> None:
    """Install the encoder where it is of the family that runs in SQL; where not, the model is no worse for it."""
    try:
        install(dsn, encoder, reporter)
    except TextEncoderUnsupported as error:
        reporter.note(str(error))


def _encode(
    dsn: str, encoder: TextEncoder, samples: Samples, words: list[str], reporter: Reporter
) -> tuple[Array, Array]:
    distinct = list(dict.fromkeys([*samples.texts, *words]))
    reporter.stage("encoding texts", len(distinct))
    vectors = encode_cached(dsn, encoder, distinct, reporter.advance)
    row_of = {text: row for row, text in enumerate(distinct)}
    return vectors[: len(samples.texts)], vectors[np.array([row_of[word] for word in words], dtype=np.int64)]


def _categories(connection: db.Connection, source: str) -> list[str]:
    """The bare categories and groups of loaded POIs, since that is what people ask for."""
    if source != POI_TABLE:
        return []
    rows = connection.execute(
        "SELECT category FROM callipper.poi UNION SELECT category_group FROM callipper.poi ORDER BY 1"
    ).fetchall()
    return [str(text) for (text,) in rows if text]


def _stages(reporter: Reporter) -> Callable[[str, int], Callable[[int], None]]:
    def stage(name: str, total: int) -> Callable[[int], None]:
        reporter.stage(name, total or None)
        return reporter.advance

    return stage


@contextmanager
def _timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[name] = time.monotonic() - started
