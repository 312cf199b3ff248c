"""The city that the benchmarks run on: London's open POIs, loaded once into a server of their own."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.sessions import user_session
from callipper_db import schema
from callipper_db.arrays import Array
from callipper_db.load import LoadOptions, load
from callipper_db.server import EmbeddedServer
from callipper_trainer.data.samples import Samples
from callipper_trainer.data.source import Source, read_samples
from callipper_trainer.kinds import KindRows, Kinds
from callipper_trainer.text_encoder import encode_cached, find_encoder

LONDON = Path(__file__).resolve().parents[2] / "shared" / "data" / "london_pois.csv.gz"
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
TEMPLATE = "A place of {category}[, a type of {category_group}]"  # the published procedure's
SRID = 27700

OPTIONS = LoadOptions(where={"dup": "0"}, category_column="label", group_column="group")


def missing_data() -> Path | None:
    """The data file that is not there, if so."""
    return None if LONDON.exists() else LONDON


class City:
    """London in a database (loaded when first asked for) and as arrays."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.server = server

    @cached_property
    def dsn(self) -> str:
        """DSN of a database that holds London's POIs and no model."""
        self.server.start()
        dsn = self.server.dsn()
        schema.init(dsn)
        load(dsn, [LONDON], OPTIONS)
        with user_session(dsn, autocommit=True) as connection:
            connection.execute("ANALYZE callipper.poi")
        return dsn

    @cached_property
    def samples(self) -> Samples:
        """London's POIs as training reads them, with their category texts."""
        with user_session(self.dsn, autocommit=True) as connection:
            return read_samples(connection, Source(template=TEMPLATE, srid=SRID)).samples

    @cached_property
    def text_vectors(self) -> Array:
        """(V, 384) of the texts."""
        return encode_cached(self.dsn, find_encoder(ENCODER), self.samples.texts)


def kinds_of(samples: Samples, dim: int) -> tuple[Kinds, KindRows]:
    """The kinds of samples by their texts, with random vectors (T,) for phrases: these change no time."""
    kinds, random = Kinds(), np.random.default_rng(0)
    kinds.read_texts([samples.texts[number] for number in np.unique(samples.text_id)])
    return kinds, KindRows.of(kinds, 0, lambda texts: random.normal(size=(len(texts), dim)).astype(np.float32))


def median_ratio(numerator: list[float], denominator: list[float]) -> float:
    """Median of the ratios of measurements taken in turn, so that a machine that slows down slows both."""
    return float(np.median(np.array(numerator) / np.array(denominator)))
