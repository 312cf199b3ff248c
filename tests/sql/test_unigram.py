"""The tokenizer of SentencePiece encoders in SQL against Hugging Face's, for texts of all kinds.

--every-text compares all names of POIs in the data folder, 20,000 generated texts and every code point. It takes five minutes.
"""

from __future__ import annotations

import copy
import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import osmium
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from callipper_db.db import Connection
from callipper_trainer.unigram import decode_charsmap, read_unigram
from sessions import user_connection
from texts import CODES, each_between, generated
from unigram import REPLACED, SPECIAL, encode_charsmap, install_unigram, nfkc, train_unigram

MONACO = Path(__file__).parents[2] / "demo" / "monaco.osm.pbf"
DATA = MONACO.parents[2] / "shared" / "data"
MOST = 200  # tokens
ROWS = 500  # texts in a statement
CLUSTERS = [
    *("\u2122\u0301", "\u2122\u200d\u2122\u0301", "\U0001f600\u200d\u2122\u0301", "\u0958\u0301", "\u0915\u094d\u0958\u0301"),
    *("\u1100\u1161\u0301", "\u1161\u0301", "\u1100\u0301\u1161", "\u0600\u1100\u1161", "\u06001", "\u06dd1", "\u0601x"),
    *("\r\n", "\r\u0301", "a\r\nb", "\u00a9\u200d\u00ae", "\u00a9\u200d", "1\ufe0f\u20e3", "1\ufe0f", "e\u0301\u0323"),
    *("\u2615\u0301", "\u2615\ufe0f", "Q\u0301", "\U0001f1e6\U0001f1e7\u0301", "\u0430\u0306\u0306", "\uac00\u11a8\u0301"),
]  # fmt: skip


@pytest.fixture(scope="module")
def names() -> list[str]:
    """The names of everything on the map of Monaco, in all languages."""
    return sorted({tag.v for thing in osmium.FileProcessor(str(MONACO)) for tag in thing.tags if "name" in tag.k})


@pytest.fixture(scope="module")
def content(names: list[str]) -> dict[str, Any]:
    """A tokenizer.json."""
    return train_unigram(names, nfkc(7) | REPLACED)


@pytest.fixture(scope="module")
def reader(module_database: str) -> Iterator[Connection]:
    """A connection that each test leaves as it is."""
    connection = user_connection(module_database, autocommit=True)
    connection.execute("SET statement_timeout = '60s'")  # stands in for time that grows with the square of a text
    yield connection
    connection.close()


@pytest.fixture(scope="module")
def every(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--every-text"))


def all_names() -> list[str]:
    """The names of all POIs in the data folder."""
    if not DATA.exists():
        pytest.skip("no data folder")
    with gzip.open(DATA / "london_pois.csv.gz", "rt", encoding="utf-8", newline="") as file:
        found = {row["name"] for row in csv.DictReader(file)}
    amenities = pyarrow.parquet.read_table(DATA / "global_osm_amenity_2015.parquet", columns=["name"])
    return sorted(found.union(filter(None, amenities["name"].unique().to_pylist())))


def changed(content: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """The same tokenizer with other parts; those of the model as model_NAME."""
    content = copy.deepcopy(content)
    for name, part in parts.items():
        if name.startswith("model_"):
            content["model"][name.removeprefix("model_")] = part
        else:
            content[name] = part
    return content


def compare(connection: Connection, content: dict[str, Any], texts: list[str], most: int = MOST) -> None:
    """Assert that the database splits the texts as the library does."""
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.enable_truncation(most)
    expected = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    with connection.transaction(force_rollback=True):
        encoder = install_unigram(connection, content, most)
        query = "SELECT callipper._unigram(t, %s) FROM unnest(%s::text[]) WITH ORDINALITY AS u (t, n) ORDER BY n"
        parts = [texts[start : start + ROWS] for start in range(0, len(texts), ROWS)]
        found = [ids for part in parts for (ids,) in connection.execute(query, [encoder, part])]
    different = [(text, ids, right) for text, ids, right in zip(texts, found, expected, strict=True) if ids != right]
    assert not different, f"{len(different)} of {len(texts)} differ, such as {ascii(different[0])[:2000]}"


def test_names(reader: Connection, content: dict[str, Any], names: list[str], every: bool) -> None:
    compare(reader, content, [*names, *all_names()] if every else names[::5])


def test_generated_texts(reader: Connection, content: dict[str, Any], every: bool) -> None:
    compare(reader, content, generated(20_000 if every else 150, seed=1, special=SPECIAL))


def test_code_points(reader: Connection, content: dict[str, Any], every: bool) -> None:
    """All up to U+024F, and one in 199 above; all of them take too long here."""
    codes = CODES if every else [*CODES[0x7E:0x250], *CODES[0x250:0x30000:199]]
    compare(reader, content, each_between(codes, 100), most=2000)


def test_clusters(reader: Connection, content: dict[str, Any]) -> None:
    texts = [
        f"{before}{cluster}{after}" for cluster in CLUSTERS for before in ("", "a") for after in ("", "b", "\u0301")
    ]
    compare(reader, content, texts)


METASPACE = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
ODD = [
    "",
    " ",
    "  a  b ",
    "\u2581a\u2581\u2581 b",
    "a <mask> b",
    "<mask>",
    " <mask>\u3000<s>a",
    "<unk",
    "\U0001f600\U0001f600 caf\u00e9 \U0001f600",
    "\x01",
]


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": None},
        {"pre_tokenizer": METASPACE},
        {"pre_tokenizer": METASPACE | {"prepend_scheme": "first"}},
        {"pre_tokenizer": METASPACE | {"prepend_scheme": "never"}},
        {"pre_tokenizer": METASPACE | {"split": False}},
    ],
    ids=["no normalisation", "spaces stay", "first", "never", "whole texts"],
)
def test_other_settings(reader: Connection, content: dict[str, Any], names: list[str], parts: dict[str, Any]) -> None:
    compare(reader, changed(content, **parts), [*ODD, *names[::100], *generated(40, seed=2, special=SPECIAL)])


def test_joined_and_stripped_spaces(reader: Connection, content: dict[str, Any]) -> None:
    steps = [
        content["normalizer"],
        {"type": "Strip", "strip_left": False, "strip_right": True},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"},
    ]
    normalizer = {"type": "Sequence", "normalizers": steps}
    compare(
        reader,
        changed(content, normalizer=normalizer, pre_tokenizer=METASPACE),
        [*ODD, "a\u00a0 \tb  ", "\u3000 a\u3000"],
    )


def test_bytes_of_unknown_characters(reader: Connection, content: dict[str, Any]) -> None:
    bytes_ = [[f"<0x{number:02X}>", -20.0] for number in range(256)]
    vocab = [*content["model"]["vocab"], *bytes_]
    texts = [*ODD, "\U0001f600\U0001f601a\U0001f602", "\u4e00\u9fff \u2603"]
    compare(reader, changed(content, model_vocab=vocab, model_byte_fallback=True), texts)
    compare(reader, changed(content, model_vocab=vocab[:-1], model_byte_fallback=True), texts)  # one byte is missing


def test_long_texts(reader: Connection, content: dict[str, Any]) -> None:
    """Longer than what is read, in words and without a space."""
    compare(
        reader,
        content,
        ["hotel de paris " * 600, "abc" * 1500, "\u516c\u5712" * 1500, "x" * 63 + "hotel" * 30],
        most=100,
    )


def test_any_text(reader: Connection, content: dict[str, Any]) -> None:
    tokenizer = Tokenizer.from_str(json.dumps(content))
    characters = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
    with reader.transaction(force_rollback=True):
        encoder = install_unigram(reader, content, 10_000)

        @settings(max_examples=50, deadline=None)
        @given(st.text(characters))
        def check(text: str) -> None:
            row = reader.execute("SELECT callipper._token_ids(%s, %s)", [text, encoder]).fetchone()
            assert row == (tokenizer.encode(text).ids,)

        check()


def test_a_charsmap_is_read_as_it_was_written() -> None:
    replaced = nfkc(11) | REPLACED
    assert decode_charsmap(encode_charsmap(replaced)) == {
        source: target for source, target in replaced.items() if len(source) == 1 or len(source.encode()) < 6
    }


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"normalizer": {"type": "NFKC"}}, "normalises texts by NFKC"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "splits texts by Whitespace, not as SentencePiece does"),
        ({"pre_tokenizer": None}, "splits texts by nothing"),
        ({"post_processor": None}, "does not put one token before a text and one after it"),
        ({"model_unk_id": None}, "has no unknown token"),
    ],
)
def test_strangers_are_refused(content: dict[str, Any], parts: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_unigram(changed(content, **parts), MOST, ValueError)
