"""The WordPiece tokenizer in SQL against Hugging Face's, for texts of all kinds."""

from __future__ import annotations

import csv
import gzip
import os
import random
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import osmium
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb
from tokenizers import Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer
from transformers import AutoTokenizer

from callipper_db import schema
from callipper_db.db import Connection
from callipper_trainer.text_encoder import TextEncoder, find_encoder
from sessions import user_connection, user_session
from texts import CODES, each_between, generated, joined
from town import ENCODER

REPOSITORY = Path(__file__).parents[2]
MONACO = REPOSITORY / "demo" / "monaco.osm.pbf"
LONDON = REPOSITORY.parent / "shared" / "data" / "london_pois.csv.gz"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MOST = 256  # what all-MiniLM-L6-v2 reads


@dataclass(frozen=True)
class Variant:
    """How a tokenizer treats letters; the vocabulary is the same for all."""

    lower_case: bool = True
    strip_accents: bool | None = None
    split_cjk: bool = True
    max_tokens: int = MOST

    def reference(self, vocabulary: Path) -> Tokenizer:
        """The library's tokenizer."""
        tokenizer = BertWordPieceTokenizer(
            str(vocabulary),
            lowercase=self.lower_case,
            strip_accents=self.strip_accents,
            handle_chinese_chars=self.split_cjk,
        )
        tokenizer.enable_truncation(self.max_tokens)
        return tokenizer._tokenizer

    @property
    def settings(self) -> dict[str, Any]:
        """What the installer writes into text_encoder.arch."""
        return {
            "lower_case": self.lower_case,
            "strip_accents": self.strip_accents,
            "split_cjk": self.split_cjk,
            "max_tokens": self.max_tokens,
            "max_word_chars": 100,
            "max_piece_chars": 18,
            "prefix": "##",
            "unknown": "[UNK]",
            "first": "[CLS]",
            "last": "[SEP]",
            "special": SPECIAL,
        }


UNCASED, CASED = Variant(), Variant(lower_case=False)
LONG = Variant(max_tokens=20_000)  # many texts in one, so that each word costs little
VARIANTS = [
    UNCASED,
    CASED,
    Variant(strip_accents=False),
    Variant(lower_case=False, strip_accents=True, split_cjk=False),
]


@pytest.fixture(scope="module")
def files() -> Path:
    """The folder of the packaged encoder."""
    return find_encoder(ENCODER).folder


@pytest.fixture(scope="module")
def hugging_face(files: Path) -> Tokenizer:
    """The encoder's own tokenizer, as sentence-transformers sets it up."""
    tokenizer = AutoTokenizer.from_pretrained(str(files)).backend_tokenizer
    tokenizer.no_padding()
    tokenizer.enable_truncation(MOST)
    return tokenizer


@pytest.fixture(scope="module")
def reader(module_database: str, files: Path) -> Iterator[Connection]:
    """A connection to a database with the vocabulary, which no test changes."""
    with user_session(module_database) as connection:
        install(connection, UNCASED, files)
    connection = user_connection(module_database, autocommit=True)
    connection.execute("SET statement_timeout = '60s'")  # stands in for time that grows with the square of a text
    yield connection
    connection.close()


def install(connection: Connection, variant: Variant, files: Path) -> int:
    """The id of a text encoder of that kind, which has a vocabulary only."""
    found = connection.execute(
        "INSERT INTO callipper.text_encoder (name, revision, dim, arch) VALUES ('bert', %s, 1, %s)"
        " ON CONFLICT (name, revision) DO UPDATE SET dim = 1 RETURNING text_encoder_id, xmax = 0",
        [str(variant), Jsonb({"tokenizer": variant.settings})],
    ).fetchone()
    assert found is not None
    encoder, is_new = found
    if is_new:
        pieces = (files / "vocab.txt").read_text(encoding="utf-8").splitlines()
        connection.execute(
            "INSERT INTO callipper.text_token (text_encoder_id, token_id, piece, embedding)"
            " SELECT %s, n - 1, piece, '[0]' FROM unnest(%s::text[]) WITH ORDINALITY AS v (piece, n)",
            [encoder, pieces],
        )
    return int(encoder)


def tokenize(connection: Connection, encoder: int, texts: list[str]) -> list[list[int]]:
    """Token ids of texts, by one query."""
    with connection.transaction():
        connection.execute("CREATE TEMPORARY TABLE wanted (number integer, content text)")
        with connection.cursor() as cursor, cursor.copy("COPY pg_temp.wanted FROM STDIN") as copy:
            for row in enumerate(texts):
                copy.write_row(row)
        query = "SELECT callipper._wordpiece(content, %s) FROM pg_temp.wanted ORDER BY number"
        found = [ids for (ids,) in connection.execute(query, [encoder])]
        connection.execute("DROP TABLE pg_temp.wanted")
        return found


def compare(connection: Connection, files: Path, variant: Variant, texts: list[str]) -> None:
    """Assert that the database splits the texts as the library does."""
    found = tokenize(connection, install(connection, variant, files), texts)
    expected = [encoding.ids for encoding in variant.reference(files / "vocab.txt").encode_batch(texts)]
    different = [(text, ids, right) for text, ids, right in zip(texts, found, expected, strict=True) if ids != right]
    assert not different, f"{len(different)} of {len(texts)} differ, such as {ascii(different[0])[:2000]}"


def split(connection: Connection, variant: Variant, texts: list[str]) -> list[list[str]]:
    """The words of texts in the database."""
    accents = variant.lower_case if variant.strip_accents is None else variant.strip_accents
    query = (
        "SELECT callipper._bert_words(content, %s, %s, %s) FROM unnest(%s::text[]) WITH ORDINALITY AS t (content, number)"
        " ORDER BY number"
    )
    return [words for (words,) in connection.execute(query, [variant.lower_case, accents, variant.split_cjk, texts])]


def compare_words(connection: Connection, files: Path, variant: Variant, texts: list[str]) -> set[str]:
    """As compare(), but nothing hides behind [UNK]; returns the words."""
    words: set[str] = set()
    reference = variant.reference(files / "vocab.txt")
    for start in range(0, len(texts), 20_000):
        chunk = texts[start : start + 20_000]
        for text, found in zip(chunk, split(connection, variant, chunk), strict=True):
            normalized = reference.normalizer.normalize_str(text)
            expected = [word for word, _ in reference.pre_tokenizer.pre_tokenize_str(normalized)]
            assert found == expected, f"{text!a} became {found!a}, not {expected!a}"
            words.update(found)
    return words


def test_every_code_point(reader: Connection, files: Path) -> None:
    """Of the planes that hold nothing yet, one code point in 16."""
    codes = [code for code in CODES if not 0x40000 <= code < 0xE0000 or code % 16 == 0]
    compare_words(reader, files, UNCASED, each_between(codes, 200))


@pytest.mark.parametrize("variant", VARIANTS[1:], ids=str)
def test_every_assigned_code_point(reader: Connection, files: Path, variant: Variant) -> None:
    assigned = [code for code in CODES if unicodedata.category(chr(code)) not in ("Cn", "Co")]
    compare_words(reader, files, variant, each_between(assigned, 200))


def test_token_ids_of_letters_and_marks(reader: Connection, files: Path) -> None:
    """Of all that the vocabulary holds a piece for, but ideographs."""
    letters = [code for code in CODES if code < 0x3100 and unicodedata.category(chr(code))[0] in "LMN"]
    compare(reader, files, LONG, each_between(letters, 1000))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_words_of_generated_texts(reader: Connection, files: Path, variant: Variant) -> None:
    compare_words(reader, files, variant, generated(20_000 if variant == UNCASED else 7_000, seed=1, special=SPECIAL))


@pytest.mark.parametrize(("variant", "count"), [(UNCASED, 20_000), (CASED, 5_000)], ids=str)
def test_token_ids_of_generated_texts(reader: Connection, files: Path, variant: Variant, count: int) -> None:
    compare(reader, files, variant, generated(count, seed=1, special=SPECIAL))


def long_texts(count: int, seed: int) -> list[str]:
    """Texts that are longer than what is read at first, cut at places of all kinds."""
    draw = random.Random(seed)
    words = [
        "a",
        "pub",
        "café",
        "Łódź",
        "unbelievable",
        "北京",
        "カフェ",
        "서울",
        "😀",
        "\u0301",
        "\u200b",
        "x" * 120,
        *SPECIAL,
    ]
    gaps = [" ", "", ",", ". ", "。", "\n", "\u00a0", "-", "[", " " * 50]

    def text() -> str:
        few, between = draw.sample(words, draw.randint(1, 4)), draw.sample(gaps, draw.randint(1, 3))
        return "".join(draw.choice(few) + draw.choice(between) for _ in range(draw.choice([400, 1500, 4000])))

    return [text() for _ in range(count)]


@pytest.mark.parametrize("variant", [UNCASED, Variant(split_cjk=False), Variant(max_tokens=16)], ids=str)
def test_long_texts(reader: Connection, files: Path, variant: Variant) -> None:
    texts = long_texts(40, seed=2)
    # What must not be cut, at each place around the one where reading stops first, as the last token and as a later one.
    edge = 8 * variant.max_tokens
    for end in (
        "restaurant b",
        "[SEP] b",
        "[UNK][SEP]",
        "e\u0301 b",
        " \u0301b",
        ",\u302e\u1d165",
        "。b",
        "京\u0323b",
        "京😀",
    ):
        for size in range(edge - 10, edge + 2):
            few, more = "a " * (variant.max_tokens - 3), "a " * (variant.max_tokens - 6)
            texts += [
                filler + gap * (size - len(filler)) + end for filler in ("", few, more) for gap in (" ", "\u200b", "x")
            ]
    compare(reader, files, variant, texts)


HOSTILE = {
    "a megabyte of words": "hello world " * 90_000,
    "a megabyte of ideographs": "北京" * 170_000,
    "a megabyte of lines": "É\n" * 350_000,
    "100,000 spaces": " " * 100_000,
    "100,000 spaces before a word": " " * 100_000 + "pub",
    "100,000 other spaces": "\u00a0" * 100_000,
    "100,000 emoji": "😀" * 100_000,
    "100,000 emoji apart": "😀 " * 50_000,
    "100,000 accents": "e" + "\u0301" * 100_000,
    "100,000 marks that move": "\u302e\u1d165\u0e48" * 30_000,
    "nothing but what is dropped": "\u200b" * 500_000,
    "one word of a million letters": "a" * 1_000_000,
    "one word of 300,000 letters with accents": "é" * 300_000,
    "one word of 200,000 syllables": "서" * 200_000,
    "100,000 special tokens": "[SEP]" * 100_000,
    "500,000 brackets": "[" * 500_000,
    "words without end, one after the other": ("zq" * 200 + " ") * 2_000,
    "words that cannot be split": ("zq" * 49 + "😀 ") * 100,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_texts(reader: Connection, files: Path, text: str) -> None:
    compare(reader, files, UNCASED, [text])


def test_names_of_monaco(reader: Connection, files: Path, hugging_face: Tokenizer) -> None:
    """The names of everything on the map, in all languages."""
    names = sorted({tag.v for thing in osmium.FileProcessor(str(MONACO)) for tag in thing.tags if "name" in tag.k})
    assert len(names) > 2000
    assert tokenize(reader, install(reader, UNCASED, files), names) == [e.ids for e in hugging_face.encode_batch(names)]


@pytest.mark.skipif(not LONDON.exists(), reason="the open London POIs are next to a developer's checkout only")
def test_names_of_london(reader: Connection, files: Path) -> None:
    with gzip.open(LONDON, "rt", encoding="utf-8", newline="") as file:
        names = sorted({row["name"] for row in csv.DictReader(file)})
    assert len(names) > 50_000
    words = compare_words(reader, files, UNCASED, names)
    compare(reader, files, LONG, joined(sorted(words), 1000))


def test_sentence_transformers_reads_the_same(reader: Connection, files: Path, encoder: TextEncoder) -> None:
    texts = [
        "",
        "a pub",
        "  Café, Łódź!\n",
        "a [SEP] b [MASK]",
        "x" * 101,
        "word " * 300,
        *generated(200, seed=3, special=SPECIAL),
    ]
    expected = [encoder.transformer.tokenize([text])["input_ids"][0].tolist() for text in texts]
    assert tokenize(reader, install(reader, UNCASED, files), texts) == expected


@pytest.mark.parametrize("variant", [UNCASED, CASED], ids=str)
def test_any_text(reader: Connection, files: Path, variant: Variant) -> None:
    encoder = install(reader, variant, files)
    reference = variant.reference(files / "vocab.txt")
    characters = st.characters(exclude_characters="\0", exclude_categories=["Cs"])

    @settings(max_examples=300, deadline=None)
    @given(st.text(characters))
    def check(text: str) -> None:
        assert tokenize(reader, encoder, [text]) == [reference.encode(text).ids]

    check()


def test_the_longest_words(reader: Connection, files: Path) -> None:
    """A word of 100 characters, after normalisation, is split; a longer one is unknown."""
    letters = ["a", "É", "ひ", "가", "\u200ba"]
    compare(reader, files, UNCASED, [letter * size for letter in letters for size in (49, 50, 51, 99, 100, 101, 250)])


@pytest.mark.parametrize("text", ["", " ", "\t\n\u00a0\u3000", "\x01\x7f\u200b\ufffd", "\u0301"])
def test_nothing_to_read(reader: Connection, files: Path, text: str) -> None:
    assert tokenize(reader, install(reader, UNCASED, files), [text]) == [[101, 102]]


def test_special_tokens_of_any_form(reader: Connection, files: Path) -> None:
    """Others than BERT's: with letters of regular expressions in them, one the beginning of another, one with a comma."""
    special = [*SPECIAL, "<a.b*>", "<a.b*>>", "|", "\\d", "·é·", "one, two", "Word"]
    variant = Variant(max_tokens=64)
    tokenizer = variant.reference(files / "vocab.txt")
    tokenizer.add_special_tokens(special)
    with reader.transaction(force_rollback=True):
        encoder = install(reader, variant, files)
        reader.execute(
            "INSERT INTO callipper.text_token SELECT %s, token, piece, '[0]' FROM unnest(%s::integer[], %s::text[])"
            " AS v (token, piece) ON CONFLICT DO NOTHING",
            [encoder, [tokenizer.token_to_id(piece) for piece in special], special],
        )
        reader.execute(
            "UPDATE callipper.text_encoder SET arch = jsonb_set(arch, '{tokenizer,special}', %s) WHERE text_encoder_id = %s",
            [Jsonb(special), encoder],
        )
        texts = [f"a{token}b {token.upper()} {token[:-1]} {token}{token}" for token in special]
        texts += [
            "".join(special),
            "5\\d5",
            "<a.b*>>>",
            "a·e·",
            "words",
            *("x" * n + "one, two y" for n in range(500, 515)),
        ]
        expected = {text: tokenizer.encode(text).ids for text in texts}
        for text in texts:
            row = reader.execute("SELECT callipper._wordpiece(%s, %s)", [text, encoder]).fetchone()
            assert row == (expected[text],), text


def test_backslashes_that_quote(reader: Connection, files: Path) -> None:
    with reader.transaction(force_rollback=True):
        reader.execute("SET LOCAL standard_conforming_strings = off")
        reader.execute("SET LOCAL escape_string_warning = off")
        for name in ("014_unicode.sql", "015_wordpiece.sql"):
            reader.execute((REPOSITORY / "sql" / name).read_text(encoding="utf-8"))
        compare(reader, files, UNCASED, ["a\tb\x01c [SEP] d-e\\f", "x" * 3000 + " [SEP]"])


@pytest.mark.parametrize("provider", ["C", "Turkish of ICU"])
def test_any_locale(empty_database: str, files: Path, provider: str) -> None:
    """Neither capitals nor classes of characters are asked of the database's locale."""
    options = "LOCALE 'C'" if provider == "C" else "LOCALE_PROVIDER icu ICU_LOCALE 'tr' LOCALE 'C'"
    with own_database(empty_database, f"ENCODING 'UTF8' {options}") as dsn:
        schema.init(dsn)
        with user_session(dsn) as connection:
            compare(
                connection,
                files,
                UNCASED,
                ["ISTANBUL \u0130stanbul \u0131l\u0131k I\u011eDIR", *generated(300, seed=4, special=SPECIAL)],
            )
            letters = [code for code in CODES if code < 0x20000 and unicodedata.category(chr(code))[0] in "LMPZ"]
            compare_words(connection, files, UNCASED, each_between(letters, 200))


def test_other_encoding(empty_database: str) -> None:
    with own_database(empty_database, "ENCODING 'LATIN1' LOCALE 'C'") as dsn:
        schema.init(dsn)
        with (
            user_connection(dsn) as connection,
            pytest.raises(psycopg.errors.FeatureNotSupported, match="UTF8 only, not LATIN1"),
        ):
            connection.execute("SELECT callipper._wordpiece('pub', 1)")


@contextmanager
def own_database(dsn: str, options: str) -> Iterator[str]:
    """A database with the extensions that is not of the cluster's own locale."""
    name = f"callipper_test_{os.getpid()}_locale"
    with user_session(dsn, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 {options}")  # type: ignore[call-overload]
        try:
            own = make_conninfo(dsn, dbname=name)
            with user_session(own) as connection:
                connection.execute("CREATE EXTENSION postgis")
                connection.execute("CREATE EXTENSION vector")
            yield own
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[call-overload]


def test_no_encoder(reader: Connection, files: Path) -> None:
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="text encoder 999 is not installed"):
        reader.execute("SELECT callipper._wordpiece('pub', 999)")
    assert reader.execute("SELECT callipper._wordpiece(NULL, 1), callipper._wordpiece('pub', NULL)").fetchone() == (
        None,
        None,
    )
    with reader.transaction(force_rollback=True):
        encoder = install(reader, UNCASED, files)
        reader.execute("DELETE FROM callipper.text_token WHERE piece = '[SEP]'")
        with pytest.raises(psycopg.errors.DataCorrupted, match=r"lacks \[SEP\]") as caught:
            reader.execute("SELECT callipper._wordpiece('pub', %s)", [encoder])
        assert caught.value.diag.message_hint


def test_without_the_length_of_pieces(reader: Connection, files: Path) -> None:
    """An encoder that says nothing of it is read all the same."""
    with reader.transaction(force_rollback=True):
        encoder = install(reader, UNCASED, files)
        texts = generated(200, seed=5, special=SPECIAL)
        expected = tokenize(reader, encoder, texts)
        reader.execute("UPDATE callipper.text_encoder SET arch = arch #- '{tokenizer,max_piece_chars}'")
        assert tokenize(reader, encoder, texts) == expected


def test_in_a_parallel_worker(reader: Connection, files: Path) -> None:
    encoder = install(reader, UNCASED, files)
    with reader.transaction(force_rollback=True):
        reader.execute(
            "CREATE TABLE callipper.texts AS SELECT 'café ' || n AS content FROM generate_series(1, 1000) AS n"
        )
        reader.execute("SET LOCAL parallel_setup_cost = 0")
        reader.execute("SET LOCAL parallel_tuple_cost = 0")
        reader.execute("SET LOCAL min_parallel_table_scan_size = 0")
        query = f"SELECT count(*), sum(cardinality(callipper._wordpiece(content, {encoder}))) FROM callipper.texts"
        plan = reader.execute(f"EXPLAIN {query}").fetchall()  # type: ignore[call-overload]
        assert any("Gather" in line for (line,) in plan), plan
        count, tokens = reader.execute(query).fetchone()  # type: ignore[call-overload]
        assert (count, tokens >= 4 * count) == (1000, True)
