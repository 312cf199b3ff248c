"""`callipper-db train`: read, encode, fit, publish."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from callipper_db import db, languages
from callipper_db.arrays import Array
from callipper_db.errors import CallipperError, TextEncoderUnsupported
from callipper_db.progress import Reporter, Silent
from callipper_trainer.config import TrainConfig
from callipper_trainer.data.sample_file import StoredSamples, stored_samples
from callipper_trainer.data.samples import CHUNK, Samples
from callipper_trainer.data.source import POI_TABLE, OpenSource, Source, open_source
from callipper_trainer.device import choose_device
from callipper_trainer.distributed import ALONE, Ranks
from callipper_trainer.fit import Run, check_batch, fit, fit_stored
from callipper_trainer.fit_peaks import fit_peaks, point_kinds
from callipper_trainer.install_text_encoder import install
from callipper_trainer.kinds import Kinds, find_kinds, plain_names
from callipper_trainer.lock import only_trainer
from callipper_trainer.model import TrainedModel
from callipper_trainer.publish import Encoded, Publication, check_grid, check_space, publish
from callipper_trainer.stopwatch import Stopwatch
from callipper_trainer.text_encoder import NGRAMS, TextEncoder, encode_cached, find_encoder, register_encoder

PACKAGES = ("callipper-db", "torch", "sentence-transformers", "numpy")
LANGUAGE_SAMPLE = 2000  # texts of which the language is looked at
FOREIGN_PIECES = 1.4  # English POIs of four cities come to 1.24 at most, French ones to 1.49
# Rows from which they stay on disk. A million rows in memory take 5 GB (benchmarks/stream_memory.py), which a machine with 8 GB
# can spare next to a server.
STREAM_FROM = 1_000_000


@dataclass(frozen=True)
class TrainOptions:
    """How a run proceeds and what it publishes. No option changes the weights."""

    text_encoder: str  # a name on the Hugging Face hub, or a folder
    checkpoint: Path  # file of the state after each epoch
    resume: bool = False  # continue from the checkpoint
    wait: bool = False  # wait for another run in the database to end, in place of an error
    stream: bool | None = None  # keep the rows in a folder next to the checkpoint; None: from STREAM_FROM rows on
    languages: tuple[
        str, ...
    ] = ()  # of the words for kinds; empty: English, and those of the POIs if the encoder knows them
    text_tower: bool = True  # install the text encoder, so that text_embed answers any text
    grid_size_m: float = 100.0  # metres per cell side
    grid_kind: str = "square"  # or hexagon
    index: str = "auto"  # auto, hnsw or none
    activate: bool = True  # False: the version that is active stays so


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
    rows_per_s: int  # during the fit
    streamed: bool
    seconds: dict[str, float] = field(default_factory=dict)  # by stage


@dataclass(frozen=True)
class FitJob:
    """What a process needs to take part in the fit."""

    samples: Samples | StoredSamples
    text_vectors: Array  # (V, T) of samples.texts
    config: TrainConfig
    fingerprint: str
    resume: bool


@dataclass(frozen=True)
class Reading:
    """What was read from the source."""

    opened: OpenSource
    samples: Samples | StoredSamples
    categories: list[str]  # to remember in addition to samples.texts


def train(
    dsn: str,
    source: Source,
    config: TrainConfig,
    options: TrainOptions,
    reporter: Reporter,
    ranks: Ranks = ALONE,
) -> TrainSummary:
    """Train on a source in the database and activate the result, unless the options say otherwise.

    ranks: the processes that take part in the fit. This one is the leader; the others call follow().
    Raises TrainerBusy, BadSource, BadExtent, NotEnoughData, TextEncoderMissing, CheckpointMissing, CheckpointMismatch,
    BatchTooLarge, DiskTooSmall, RowsUnwritable, PeerLost.
    """
    device, watch = choose_device(config.device), Stopwatch()
    with ExitStack() as stack:
        stack.enter_context(only_trainer(dsn, wait=options.wait, reporter=reporter))
        with watch.timing("read"):
            check = partial(check_batch, config=config, device=device, ranks=ranks)
            reading = _read(dsn, source, config.seed, options, reporter, stack, check)
        samples = reading.samples
        check_grid(samples, options.grid_size_m, options.grid_kind)
        with watch.timing("encode"):
            encoder = find_encoder(options.text_encoder, str(device))
            encoded = _encode(dsn, encoder, reading, options.languages, reporter)
        if options.text_tower:
            with watch.timing("install"):
                _install(dsn, encoder, reporter)
        fingerprint = hashlib.sha256(f"{samples.content_hash()} {encoder.revision}".encode()).hexdigest()
        with db.session(dsn) as connection:
            check_space(connection, samples)  # publish() checks again when it knows the number of cells
        job = FitJob(samples, encoded.text_vectors, config, fingerprint, options.resume)
        trained = _fit_both_halves(job, encoded, options.checkpoint, reporter, ranks, watch)
        metrics = _metrics(trained)
        provenance = _provenance(source, reading, encoded.kinds, config, ranks) | {"seconds": watch.rounded()}
        with db.session(dsn) as connection:
            encoder_id = register_encoder(connection, encoder)
            grid = (options.grid_size_m, options.grid_kind, options.index)
            publication = Publication(encoder_id, encoded, *grid, metrics, provenance, options.activate)
            version, cells = publish(connection, trained, samples, config, publication, reporter, watch)
        options.checkpoint.unlink(missing_ok=True)
    return TrainSummary(
        version=version,
        rows=len(samples),
        texts=len(samples.texts),
        cells=cells,
        srid=samples.srid,
        best_epoch=trained.best_epoch,
        validation_loss=metrics["validation_loss"],
        rows_per_s=round(trained.rows_per_s),
        streamed=isinstance(samples, StoredSamples),
        seconds=watch.rounded(),
    )


def _fit_both_halves(
    job: FitJob, encoded: Encoded, checkpoint: Path, reporter: Reporter, ranks: Ranks, watch: Stopwatch
) -> TrainedModel:
    """Fit the location encoder; then, for a contextual one, the peaks of kinds of places."""
    if checkpoint.exists() and not job.resume:
        reporter.note(f"{checkpoint} holds an unfinished run. This run starts over; --resume continues that one.")
    trained = _fit(job, reporter, checkpoint, ranks)
    watch.seconds |= trained.seconds
    if job.config.encoder == "contextual":
        reporter.stage("finding peaks of kinds")
        with watch.timing("peaks"):
            points = point_kinds(encoded.kinds, job.samples.chunks())
            trained.peaks = fit_peaks(encoded.kinds, encoded.kind_rows, points)
    return trained


def _metrics(trained: TrainedModel) -> dict[str, Any]:
    validation_loss = trained.history[trained.best_epoch - 1]["validation_loss"]
    return {"validation_loss": validation_loss, "best_epoch": trained.best_epoch, "history": trained.history}


def _provenance(source: Source, reading: Reading, kinds: Kinds, config: TrainConfig, ranks: Ranks) -> dict[str, Any]:
    """What a refresh needs to know about the source, and how the model was made."""
    opened, samples = reading.opened, reading.samples
    return {
        "source": opened.name,
        "text": opened.text_sql,
        "keep_outliers": source.keep_outliers,
        "name": opened.name_sql,
        "names": source.names,
        "languages": list(kinds.languages),
        "brands_of": sorted(kinds.countries),
        "identifier": source.identifier,
        "geometry": source.geometry,
        "rows": len(samples),
        "texts": len(samples.texts),
        "content_sha256": samples.content_hash(),
        "snapshot": opened.taken_at,
        "config": config.to_dict(),
        "streamed": isinstance(samples, StoredSamples),
        "processes": ranks.world_size,
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def follow(ranks: Ranks) -> None:
    """Take part in the leader's fit. Only the leader reads, publishes and reports errors."""
    with suppress(CallipperError):
        job: FitJob = ranks.broadcast(None)
        _fit_part(job, Silent(), None, ranks)


def _fit(job: FitJob, reporter: Reporter, checkpoint: Path, ranks: Ranks) -> TrainedModel:
    if ranks.world_size > 1:
        # The other processes do not need the texts, only their vectors.
        ranks.broadcast(replace(job, samples=replace(job.samples, texts=[])))
    return _fit_part(job, reporter, checkpoint, ranks)


def _fit_part(job: FitJob, reporter: Reporter, checkpoint: Path | None, ranks: Ranks) -> TrainedModel:
    samples, vectors, config = job.samples, job.text_vectors, job.config
    run = Run(reporter, checkpoint, job.fingerprint, job.resume, ranks)
    if isinstance(samples, StoredSamples):
        return fit_stored(samples, vectors, config, run)
    return fit(samples.metres, samples.text_id, vectors, samples.origin, config, run, samples.name_id)


def _read(
    dsn: str,
    source: Source,
    seed: int,
    options: TrainOptions,
    reporter: Reporter,
    stack: ExitStack,
    check: Callable[[int], None],
) -> Reading:
    """Read into memory, or into a folder next to the checkpoint that `stack` removes. First call `check` with the row count."""
    reporter.stage("reading POIs")
    with db.session(dsn, autocommit=True) as connection:
        with open_source(connection, source) as opened:
            check(opened.usable)
            samples: Samples | StoredSamples
            if opened.usable >= STREAM_FROM if options.stream is None else options.stream:
                parts = opened.parts(CHUNK, reporter.advance)
                samples = stack.enter_context(
                    stored_samples(options.checkpoint.with_suffix(".rows"), parts, opened.usable, seed)
                )
            else:
                samples = opened.read(reporter.advance)
        categories = _categories(connection, opened.name)
    for note in opened.notes:
        reporter.note(note)
    return Reading(opened, samples, categories)


def _install(dsn: str, encoder: TextEncoder, reporter: Reporter) -> None:
    """Install the encoder if its family runs in SQL. If not, note it; the model stays usable."""
    try:
        install(dsn, encoder, reporter)
    except TextEncoderUnsupported as error:
        reporter.note(str(error))


def _encode(dsn: str, encoder: TextEncoder, reading: Reading, spoken: tuple[str, ...], reporter: Reporter) -> Encoded:
    """Encode the texts of the samples, the phrases of their kinds in some languages, and the words to remember."""

    def encode(texts: list[str]) -> Array:
        return encode_cached(dsn, encoder, texts, reporter.advance)

    samples = reading.samples
    reporter.stage("encoding texts", len(samples.texts))
    text_vectors = encode(samples.texts)
    if note := _foreign_language(encoder, samples.texts):
        reporter.note(note)
    reporter.stage("finding kinds of places")
    if not spoken:
        spoken = (languages.ENGLISH, *_languages_of(encoder, samples, reporter))
    kinds, kind_rows = find_kinds(samples, text_vectors, encode, spoken)
    words = list(dict.fromkeys([*languages.vocabulary(spoken), *reading.categories, *kinds.names]))
    return Encoded(text_vectors, kinds, kind_rows, words, encode(words))


def _languages_of(encoder: TextEncoder, samples: Samples | StoredSamples, reporter: Reporter) -> list[str]:
    """The languages of the POIs' names, which an encoder of English does not know."""
    if not encoder.knows_many_languages:
        return []
    some = next(samples.chunks())
    named = np.flatnonzero(some.name_id >= 0)
    found = languages.languages_of(plain_names(some.take(named[:: max(1, len(named) // languages.SAMPLE)])))
    reporter.note(f"Words for places: {', '.join(['en', *found])}. --languages chooses others.")
    return found


def _foreign_language(encoder: TextEncoder, texts: list[str]) -> str | None:
    """What to say when the texts do not look like those of the encoder's language; the vectors of such texts mean little."""
    pieces = encoder.pieces_per_word(texts[:: max(1, len(texts) // LANGUAGE_SAMPLE)])
    if pieces is None or pieces < FOREIGN_PIECES:
        return None
    return (
        f"The text encoder {encoder.name} cuts the words of these POIs into {pieces:.1f} pieces on average, as it does with"
        f" words of a language that it does not know. For POIs or questions in other languages than its own, train with"
        f" --text-encoder {NGRAMS} (docs/languages.md)."
    )


def _categories(connection: db.Connection, source: str) -> list[str]:
    """The bare categories and groups of loaded POIs, because people ask by them."""
    if source != POI_TABLE:
        return []
    rows = connection.execute(
        "SELECT category FROM callipper.poi UNION SELECT category_group FROM callipper.poi ORDER BY 1"
    ).fetchall()
    return [str(text) for (text,) in rows if text]
