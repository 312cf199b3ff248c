"""The tokenizer in SQL against Hugging Face's, which it must equal for every text."""

from __future__ import annotations

import csv
import gzip
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import osmium
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb
from tokenizers.implementations import BertWordPieceTokenizer

from callipper_db import db
from trainer.text import TextEncoder, register_encoder
from trainer.text_weights import read_transformer

ROOT = Path(__file__).parent.parent
LONDON = ROOT.parent / "shared" / "data" / "london_pois.csv.gz"
LIMIT = 256  # all-MiniLM-L6-v2's, [CLS] and [SEP] included
SURROGATES = range(0xD800, 0xE000)
# First and last code point of what the generated texts are made of: scripts, marks, symbols, controls, private use, unassigned.
BLOCKS = (
    (0x20, 0x7E), (0x20, 0x7E), (0x61, 0x7A), (0x01, 0x1F), (0x7F, 0xFF), (0x100, 0x24F), (0x250, 0x36F), (0x300, 0x36F),
    (0x370, 0x52F), (0x530, 0x6FF), (0x700, 0x8FF), (0x900, 0xDFF), (0xE00, 0x109F), (0x10A0, 0x11FF), (0x1200, 0x1DBF),
    (0x1DC0, 0x1EFF), (0x1F00, 0x206F), (0x2070, 0x2BFF), (0x2C00, 0x2E7F), (0x2E80, 0x30FF), (0x3100, 0x9FFF),
    (0xA000, 0xABFF), (0xAC00, 0xD7FF), (0xE000, 0xF8FF), (0xF900, 0xFAFF), (0xFB00, 0xFFFF), (0x10000, 0x10FFF),
    (0x1B000, 0x1D1FF), (0x1D400, 0x1D7FF), (0x1F1E6, 0x1F1FF), (0x1F300, 0x1FAFF), (0x20000, 0x2FA1F), (0xE0000, 0xE01EF),
)  # fmt: skip
SPECIAL = ("[SEP]", "[CLS]", "[MASK]", "[UNK]", "[PAD]", "[sep]", "[[MASK]]", "[ SEP ]")


class Tokenizers:
    """A vocabulary in the database under three settings, and the tokenizers that the settings are those of."""

    def __init__(self, connection: db.Connection, encoder: TextEncoder) -> None:
        self.connection = connection
        transformer = read_transformer(encoder)
        vocabulary = {piece: number for number, piece in enumerate(transformer.pieces)}
        self.reference = {"uncased": encoder.transformer.tokenizer}
        self.number = {"uncased": register_encoder(connection, encoder)}
        self._fill(self.number["uncased"], transformer.arch, transformer.pieces)
        for name, lower_case, strip_accents in (("cased", False, False), ("accents", True, False)):
            made = BertWordPieceTokenizer(vocabulary, lowercase=lower_case, strip_accents=strip_accents)
            made.enable_truncation(LIMIT)
            made.add_special_tokens(transformer.arch["tokenizer"]["special"])
            self.reference[name] = made
            row = connection.execute(
                "INSERT INTO callipper.text_encoder (name, revision, dim) VALUES (%s, '1', 1) RETURNING text_encoder_id",
                [name],
            ).fetchone()
            assert row is not None
            self.number[name] = row[0]
            settings_ = transformer.arch["tokenizer"] | {"lower_case": lower_case, "strip_accents": strip_accents}
            self._fill(row[0], {"tokenizer": settings_}, transformer.pieces)

    def _fill(self, number: int, arch: dict[str, Any], pieces: list[str]) -> None:
        self.connection.execute(
            "UPDATE callipper.text_encoder SET arch = %s WHERE text_encoder_id = %s", [Jsonb(arch), number]
        )
        with self.connection.cursor() as cursor, cursor.copy("COPY callipper.text_token FROM STDIN") as copy:
            for row, piece in enumerate(pieces):
                copy.write_row((number, row, piece, "[0]"))

    def expected(self, name: str, texts: list[str]) -> list[list[int]]:
        """What Hugging Face makes of the texts."""
        reference = self.reference[name]
        if isinstance(reference, BertWordPieceTokenizer):
            return [encoding.ids for encoding in reference.encode_batch(texts)]
        ids: list[list[int]] = reference(texts, truncation=True, max_length=LIMIT)["input_ids"]
        return ids

    def found(self, name: str, texts: list[str]) -> list[list[int]]:
        """What SQL makes of them."""
        self.connection.execute("CREATE TEMPORARY TABLE IF NOT EXISTS asked (number int, text text)")
        self.connection.execute("TRUNCATE pg_temp.asked")
        with self.connection.cursor() as cursor, cursor.copy("COPY pg_temp.asked FROM STDIN") as copy:
            for row in enumerate(texts):
                copy.write_row(row)
        rows = self.connection.execute(
            "SELECT callipper._wordpiece(text, %s) FROM pg_temp.asked ORDER BY number", [self.number[name]]
        ).fetchall()
        return [ids for (ids,) in rows]

    def check(self, texts: list[str], name: str = "uncased") -> None:
        """Assert that both agree on every text."""
        for text, found, expected in zip(texts, self.found(name, texts), self.expected(name, texts), strict=True):
            assert found == expected, f"{name}: {text[:200]!a}"


@pytest.fixture(scope="module")
def tokenizers(module_database: str, encoder: TextEncoder) -> Iterator[Tokenizers]:
    with db.session(module_database) as connection:
        yield Tokenizers(connection, encoder)


def generated(count: int, seed: int) -> list[str]:
    """Texts of some blocks each, with spaces, special tokens and overlong words in between."""
    chance = random.Random(seed)

    def stretch() -> str:
        first, last = chance.choice(BLOCKS)
        codes = (chance.randint(first, last) for _ in range(chance.randint(1, 7)))
        return "".join(chr(code) for code in codes if code not in SURROGATES)

    def text() -> str:
        parts = []
        for _ in range(chance.randint(1, 8)):
            parts.append(stretch())
            kind = chance.random()
            parts.append(
                " " if kind < 0.4
                else chance.choice(SPECIAL) if kind < 0.43
                else chance.choice("aZé") * chance.randint(95, 120) if kind < 0.45
                else ""
            )  # fmt: skip
        return "".join(parts)

    return [text() for _ in range(count)]


@pytest.mark.parametrize(("name", "count"), [("uncased", 20_000), ("cased", 3_000), ("accents", 3_000)])
def test_generated_texts(tokenizers: Tokenizers, name: str, count: int) -> None:
    tokenizers.check(generated(count, seed=len(name)), name)


@pytest.mark.parametrize("name", ["uncased", "cased", "accents"])
def test_every_code_point_of_the_assigned_planes(tokenizers: Tokenizers, name: str) -> None:
    codes = [code for code in (*range(1, 0x32000), *range(0xE0000, 0xE0200)) if code not in SURROGATES]
    # 36 words of at most 7 tokens stay below the encoder's limit.
    texts = [" ".join(f"a{chr(code)}b" for code in codes[start : start + 36]) for start in range(0, len(codes), 36)]
    tokenizers.check(texts, name)


def test_names_of_monaco(tokenizers: Tokenizers) -> None:
    names = {
        tag.v
        for entity in osmium.FileProcessor(str(ROOT / "demo" / "monaco.osm.pbf"))
        for tag in entity.tags
        if "name" in tag.k
    }
    assert len(names) > 700
    tokenizers.check(sorted(names))


@pytest.mark.skipif(not LONDON.exists(), reason="London's POIs are not beside this checkout (../shared/data)")
def test_names_of_london(tokenizers: Tokenizers) -> None:
    with gzip.open(LONDON, "rt", encoding="utf-8") as file:
        names = sorted({row["name"] for row in csv.DictReader(file)})
    tokenizers.check(names)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1, max_size=20))
@settings(deadline=None, max_examples=150)
def test_any_text(tokenizers: Tokenizers, texts: list[str]) -> None:
    tokenizers.check(texts)


@pytest.mark.parametrize(
    "text",
    [
        "ab " * 350_000,
        "é à " * 250_000,
        "x" * 1_000_000,
        "é" * 500_000 + " end",
        " " * 100_000,
        " " * 1_000_000 + "park",
        "a" + "\u0301" * 50_000 + "b park",
        "\U0001f600" * 3_000,
        "你好" * 100_000,
        "[SEP]" * 1_000,
        "x" * 3_999 + "é park",
        ("x" * 99 + " ") * 39 + "cut word " * 300,
    ],
    ids=["1 MB", "accents", "one word", "one word of accents", "spaces", "spaces and a word", "accents on one letter", "emoji",
         "Chinese", "special", "cut after a letter", "cut in a word"],
)  # fmt: skip
def test_hostile_texts(tokenizers: Tokenizers, text: str) -> None:
    tokenizers.check([text])


@pytest.mark.parametrize("text", ["", "   ", "\t\n", "\x01\x7f", "\u200b\ufeff", "\u0301"])
def test_nothing_to_read(tokenizers: Tokenizers, text: str) -> None:
    (found,) = tokenizers.found("uncased", [text])
    assert len(found) == 2


def test_null(tokenizers: Tokenizers) -> None:
    assert tokenizers.connection.execute("SELECT callipper._wordpiece(NULL, 1)").fetchone() == (None,)
