"""Text encoders in other languages: how far up a word finds its category, and what the encoder costs in SQL.

languages.toml has 25 words for places in fifteen languages, and an English paraphrase of each. Each is compared with all
categories of OpenStreetMap objects: with their names alone, and with the names and phrases for places in English and in the
language of the word, as a version has them. The figure is the mean reciprocal rank of the first right category. Bars, for the
encoder that is recommended for many languages: 0.75 over ten languages with the names alone, and 25 ms for a word.

    make bench ARGS="languages --encoder intfloat/multilingual-e5-small"
    make bench ARGS="languages --costs"
"""

from __future__ import annotations

import argparse
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.city import ENCODER, City
from benchmarks.sessions import process_cpu_s, server_cpu_s, user_session
from callipper_db import schema
from callipper_db.arrays import Array
from callipper_db.db import Connection
from callipper_db.languages import ENGLISH, phrases
from callipper_db.progress import Silent
from callipper_db.read import osm
from callipper_db.server import EmbeddedServer
from callipper_db.text_encoders import TABLES, remove_text_encoder
from callipper_trainer.install_text_encoder import install
from callipper_trainer.text_encoder import NGRAMS, TextEncoder, find_encoder

WORDS = Path(__file__).with_name("languages.toml")
TEN = ("de", "fr", "es", "it", "pt", "nl", "pl", "tr", "ru", "ar")
LANGUAGES = ("paraphrase", "en", *TEN, "ja", "zh", "ko", "hi")
BARS = {"ten_languages": 0.75, "word_ms": 25}
ROUNDS = 101
TEXTS = (
    "bakery",
    "B\u00e4ckerei",
    "\u516c\u5712",
    "where can I buy fresh bread",
    "\u0635\u064a\u062f\u0644\u064a\u0629",
)
SIZES = "SELECT t, pg_total_relation_size(('callipper.' || t)::regclass)::float8 FROM unnest(%s::text[]) AS t"
ENCODED = (
    "SELECT callipper._encode_tokens(callipper._token_ids("
    "(SELECT arch ->> 'prompt' FROM callipper.text_encoder WHERE text_encoder_id = %(id)s) || %(text)s, %(id)s), %(id)s)"
    "::real[]"
)


def run(city: City, options: Sequence[str] = ()) -> dict[str, Any]:
    """Figures of each encoder; those of NGRAMS have bars."""
    parser = argparse.ArgumentParser(prog="languages")
    parser.add_argument(
        "--encoder", action="append", help="a name or a folder; several are measured one after the other"
    )
    parser.add_argument("--costs", action="store_true", help="only what the encoder costs in SQL")
    chosen = parser.parse_args(options)
    names = chosen.encoder or [ENCODER, NGRAMS]
    city.server.start()
    schema.init(city.server.dsn())
    figures = {}
    for name in names:
        encoder = find_encoder(name)
        figures[name] = ({} if chosen.costs else _ranks(encoder)) | _costs(city.server, encoder)
    quick = figures.get(NGRAMS, {})
    holds = quick.get("ten_languages", 1) >= BARS["ten_languages"] and quick.get("word_ms", 0) <= BARS["word_ms"]
    return {"encoders": figures, "bars": BARS, "holds": holds}


def _ranks(encoder: TextEncoder) -> dict[str, Any]:
    """The mean reciprocal rank in each language."""
    words = tomllib.loads(WORDS.read_text(encoding="utf-8"))["word"]
    categories = sorted({line.split("|")[2].strip() for line in osm.markdown().splitlines() if line.startswith("| `")})
    right = [[categories.index(category) for category in word["categories"]] for word in words]
    vectors, ranks, with_phrases = _unit(encoder.encode(categories)), {}, {}
    english = _phrases(encoder, categories, ENGLISH)
    for language in LANGUAGES:
        asked = _unit(encoder.encode([word[language] for word in words]))
        ranks[language] = _mean_reciprocal_rank(asked @ vectors.T, right)
        nearest = asked @ vectors.T
        for owner, said in (english, english if language == "paraphrase" else _phrases(encoder, categories, language)):
            np.maximum.at(nearest.T, owner, (asked @ said.T).T)
        with_phrases[language] = _mean_reciprocal_rank(nearest, right)
    return {
        "ten_languages": round(float(np.mean([ranks[language] for language in TEN])), 2),
        "mean_reciprocal_rank": ranks,
        "with_phrases": with_phrases,
    }


def _phrases(encoder: TextEncoder, categories: list[str], language: str) -> tuple[Array, Array]:
    """Numbers of categories, and the vectors of their phrases in a language."""
    said = [(number, text) for number, name in enumerate(categories) for text in phrases(name, language)]
    distinct = sorted({text for _, text in said})  # many categories are of the same kind
    row = {text: place for place, text in enumerate(distinct)}
    vectors = _unit(encoder.encode(distinct))
    return np.array([number for number, _ in said]), vectors[[row[text] for _, text in said]]


def _mean_reciprocal_rank(similarity: Array, right: list[list[int]]) -> float:
    """(W, C) similarities of words to categories, and the right categories of each word."""
    best = [row[columns].max() for row, columns in zip(similarity, right, strict=True)]
    return round(float(np.mean([1 / (row >= value).sum() for row, value in zip(similarity, best, strict=True)])), 2)


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _costs(server: EmbeddedServer, encoder: TextEncoder) -> dict[str, Any]:
    """Of installation: seconds by the clock and of the processor, and megabytes. Of one word: the least milliseconds by
    the clock, and the mean ones of the processor. And how far the vectors of a few texts are from the encoder's own.
    """
    dsn = server.dsn()
    started, cpu = time.perf_counter(), server_cpu_s(server)
    install(dsn, encoder, Silent())
    install_s, install_cpu_s = time.perf_counter() - started, server_cpu_s(server) - cpu
    with user_session(dsn, autocommit=True) as connection:
        sizes = dict(connection.execute(SIZES, [list(TABLES)]).fetchall())
        found = connection.one("SELECT max(text_encoder_id) FROM callipper.text_encoder")
        vectors = [_encode(connection, found[0], text) for text in TEXTS]
        times, backend = [], connection.info.backend_pid
        cpu = process_cpu_s(backend)
        for _ in range(ROUNDS):
            started = time.perf_counter()
            _encode(connection, found[0], TEXTS[0])
            times.append(time.perf_counter() - started)
        word_cpu_s = (process_cpu_s(backend) - cpu) / ROUNDS
    difference = np.abs(np.array(vectors) - encoder.encode(list(TEXTS))).max()
    remove_text_encoder(dsn, encoder.name)
    return {
        "install_s": round(install_s, 1),
        "install_cpu_s": round(install_cpu_s, 1),
        "mb": round(sum(sizes.values()) / 1e6),
        "vocabulary_mb": round(sizes["text_token"] / 1e6),
        "word_ms": round(1000 * min(times), 1),
        "word_cpu_ms": round(1000 * word_cpu_s, 1),
        "difference": float(f"{difference:.1g}"),
    }


def _encode(connection: Connection, text_encoder_id: int, text: str) -> list[float]:
    """(T,) of the sentence encoder in SQL."""
    (vector,) = connection.one(ENCODED, {"id": text_encoder_id, "text": text})
    return list(vector)
