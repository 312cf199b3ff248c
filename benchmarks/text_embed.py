"""Texts embedded in SQL: the transformer as multiples of sentence-transformers' own, remembered texts, memory, the numbers.

The projection is untrained, since training changes no time and no difference.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from psycopg import sql

from benchmarks.city import ENCODER, City, kinds_of, median_ratio
from benchmarks.sessions import user_session
from callipper_db import db
from callipper_db.binary_copy import read_rows
from callipper_db.progress import Silent
from callipper_db.tables import DIMENSIONS
from callipper_db.text_encoders import remove_text_encoder
from callipper_trainer.config import TrainConfig
from callipper_trainer.embed import embed_texts
from callipper_trainer.install_text_encoder import install
from callipper_trainer.model import CaLLiPer, TrainedModel
from callipper_trainer.model_rows import load_model
from callipper_trainer.peaks import shared_words
from callipper_trainer.publish import Encoded, Publication, publish
from callipper_trainer.text_encoder import TextEncoder, find_encoder, register_encoder

# tokens, those of beginning and end included -> a text that no model remembers
QUESTIONS = {
    3: "lighthouse",
    5: "quiet canal bridge",
    21: "an old stone church with a small garden where people sit in the shade on very hot summer afternoons",
    122: "the old town hall stands at the river " * 15,
}
ROUNDS = {3: 21, 5: 21, 21: 11, 122: 3}
BARS_TIMES = {3: 4, 5: 7, 21: 25}
BARS = {"remembered_us": 50, "difference": 2e-6, "install_s": 10, "private_mb": 40}
REMEMBERED = 20_000
NAMES = 1_000  # of POIs, against the reference
UNMET = 100  # texts between two looks at the memory


def run(city: City) -> dict[str, Any]:
    """What a text costs in SQL and how right the answer is. Model and encoder are removed again."""
    encoder = find_encoder(ENCODER)
    version = _publish(city, encoder)
    try:
        started = time.perf_counter()
        install(city.dsn, encoder, Silent())
        install_s = time.perf_counter() - started
        figures = {"install_s": round(install_s, 1)} | _measure(city, encoder, version)
    finally:
        with user_session(city.dsn) as connection:
            connection.execute("SELECT callipper.drop_model(%s, true)", [version])
        remove_text_encoder(city.dsn, ENCODER)
    kept = [figures["times_encode"][tokens] <= bar for tokens, bar in BARS_TIMES.items()]
    kept += [figures[name] <= bar for name, bar in BARS.items()]
    return figures | {"bars": {"times_encode": BARS_TIMES} | BARS, "holds": all(kept)}


def _publish(city: City, encoder: TextEncoder) -> int:
    """A version with random weights over a coarse grid, which remembers the texts of London's POIs."""
    samples, vectors, config = city.samples, city.text_vectors, TrainConfig(encoder="coordinate", device="cpu")
    torch.manual_seed(0)
    trained = TrainedModel(CaLLiPer(config, encoder.dim).eval(), samples.origin, None, best_epoch=1)
    kinds, kind_rows = kinds_of(samples, encoder.dim)
    with user_session(city.dsn) as connection:
        encoded = Encoded(vectors, kinds, kind_rows, [], vectors[:0])
        encoder_id = register_encoder(connection, encoder)
        publication = Publication(encoder_id, encoded, 1000.0, "square", "none", metrics={}, provenance={})
        version, _ = publish(connection, trained, samples, config, publication, Silent())
    return version


def _measure(city: City, encoder: TextEncoder, version: int) -> dict[str, Any]:
    with user_session(city.dsn) as connection:
        _ms(connection, "SELECT text_embed('an unmet text')")  # plans and caches
        encoder.transformer.encode("an unmet text")
        times: dict[int, float] = {}
        spent: dict[int, float] = {}
        for tokens, text in QUESTIONS.items():
            assert len(encoder.transformer.tokenizer(text)["input_ids"]) == tokens, text
            times[tokens], spent[tokens] = _times_encode(connection, encoder, text, ROUNDS[tokens])
        return {
            "times_encode": times,
            "ms": spent,
            "remembered_us": round(_remembered_us(connection, version), 1),
            "difference": float(f"{_difference(connection, encoder, version):.2g}"),
            "private_mb": round(_private_mb(city), 1),
        }


def _times_encode(connection: db.Connection, encoder: TextEncoder, text: str, rounds: int) -> tuple[float, float]:
    """(multiples of one encode, milliseconds), medians of measurements in turn. Each round is a transaction of its own."""
    ours, baseline = [], []
    for _ in range(rounds):
        ours.append(_ms(connection, "SELECT text_embed(%s)", text))
        connection.commit()
        started = time.perf_counter()
        encoder.transformer.encode(text, show_progress_bar=False)
        baseline.append((time.perf_counter() - started) * 1000)
    return round(median_ratio(ours, baseline), 1), round(float(np.median(ours)), 1)


def _remembered_us(connection: db.Connection, version: int) -> float:
    """Microseconds a row in one statement, over rows with all texts that the model remembers."""
    connection.execute("SET LOCAL max_parallel_workers_per_gather = 0")
    connection.execute(
        "CREATE TEMPORARY TABLE asked ON COMMIT DROP AS SELECT t.text FROM generate_series(1, %s) n,"
        " LATERAL (SELECT array_agg(text) AS texts FROM callipper.text_embedding WHERE version = %s) a,"
        " LATERAL (SELECT a.texts[1 + n %% cardinality(a.texts)] AS text) t",
        [REMEMBERED, version],
    )
    spent = [_ms(connection, "SELECT count(text_embed(text)) FROM pg_temp.asked") for _ in range(3)]
    connection.commit()
    return float(np.median(spent)) * 1000 / REMEMBERED


def _difference(connection: db.Connection, encoder: TextEncoder, version: int) -> float:
    """The largest difference of any number, between SQL and torch."""
    rows = connection.execute(
        "SELECT name FROM (SELECT DISTINCT name FROM callipper.poi WHERE length(name) BETWEEN 2 AND 60) n"
        " ORDER BY hashtextextended(name, 0) LIMIT %s",
        [NAMES],
    ).fetchall()
    texts = [str(name) for (name,) in rows]
    connection.execute("CREATE TEMPORARY TABLE named (number integer, text text) ON COMMIT DROP")
    with connection.cursor() as cursor, cursor.copy("COPY pg_temp.named FROM STDIN") as copy:
        for row in enumerate(texts):
            copy.write_row(row)
    number, found = read_rows(
        connection, sql.SQL("SELECT number, text_embed(text) FROM pg_temp.named"), ["int4", "vector"], dim=DIMENSIONS
    )
    connection.commit()
    vectors = encoder.transformer.encode(texts, show_progress_bar=False)
    trained = load_model(connection, version).trained
    expected = embed_texts(trained, vectors, shared_words(connection, version, trained.peaks, texts))
    return float(np.abs(found - expected[number]).max())


def _private_mb(city: City) -> float:
    """By how much the memory of a fresh session grows while it embeds texts that nobody has met."""
    with user_session(city.dsn) as connection:
        _ms(connection, "SELECT text_embed('park')")
        before = _private_bytes(connection)
        for number in range(UNMET):
            _ms(connection, "SELECT text_embed(%s)", f"unmet {number}")
        return (_private_bytes(connection) - before) / 1e6


def _private_bytes(connection: db.Connection) -> int:
    status = Path(f"/proc/{connection.info.backend_pid}/status").read_text(encoding="utf-8")
    return int(re.findall(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)[0]) * 1024


def _ms(connection: db.Connection, query: str, *values: object) -> float:
    started = time.perf_counter()
    connection.execute(sql.SQL(query), values or None, prepare=False).fetchall()
    return (time.perf_counter() - started) * 1000
