"""Write a sentence encoder of the BERT family into the database: vocabulary, embeddings, neurons and norms as rows.

The functions in sql/ run it there, so that a new text needs no process but PostgreSQL.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from psycopg import sql
from psycopg.types.json import Jsonb
from safetensors import SafetensorError, safe_open

from callipper_db import db
from callipper_db.arrays import Array
from callipper_db.binary_copy import Columns, write_rows
from callipper_db.db import Connection
from callipper_db.disk import check_room
from callipper_db.errors import TextEncoderUnsupported
from callipper_db.progress import Advance, Reporter, silent
from callipper_db.tables import SCHEMA
from callipper_trainer.ngram_network import ngram_tables, read_arch, read_tokenizer
from callipper_trainer.text_encoder import NgramEncoder, TextEncoder, register_encoder
from callipper_trainer.unigram import Unigram, read_unigram

# part of a layer -> its name in the file (Hugging Face's), in the order of computation
PARTS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention": "attention.output.dense",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
}
NORMS = {"attention": "attention.output.LayerNorm", "output": "output.LayerNorm"}
EMBEDDING = -1  # the layer number of the norm before layer 0
# The values of settings that a config.json leaves out.
DEFAULTS = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
}
# SQL must give the same vectors for these as the encoder itself: capitals, accents, punctuation, digits, another script.
TRIALS = ("quiet park", "Café-Bar, 12 Rue de l'Église", "駅前の公園")
TOLERANCE = 1e-3  # as a share of the largest number; a correct installation is off by 1e-6


@dataclass(frozen=True)
class Transformer:
    """The files of a BERT encoder, read lazily: the largest part is 47 MB."""

    name: str
    weights: Path
    arch: dict[str, Any]
    pieces: list[str]
    unigram: Unigram | None  # None: its tokenizer is WordPiece
    first_position: int  # row of the first token's position in the file

    @contextmanager
    def tensors(self) -> Iterator[Callable[[str], Array]]:
        """A function from a tensor's name to its values, float32. Raises TextEncoderUnsupported."""
        try:
            with safe_open(self.weights, "pt") as file:  # not "np", because numpy has no bfloat16
                prefix = "" if "embeddings.word_embeddings.weight" in set(file.keys()) else "bert."
                yield lambda name: file.get_tensor(prefix + name).float().numpy()
        except SafetensorError as error:
            reason = f"{self.weights} is damaged or lacks a part ({error})"
            raise TextEncoderUnsupported(name=self.name, reason=reason) from error


def read_transformer(encoder: TextEncoder) -> Transformer:
    """What the database needs to know about an encoder. Raises TextEncoderUnsupported for another family, with the reason."""
    config: dict[str, Any] = DEFAULTS | encoder.arch
    folder = encoder.folder

    def refuse(reason: str) -> TextEncoderUnsupported:
        return TextEncoderUnsupported(name=encoder.name, reason=reason)

    if config.get("model_type") not in ("bert", "xlm-roberta"):
        raise refuse(f"it is of the type {config.get('model_type')}, not bert")
    if config["hidden_act"] != "gelu":
        raise refuse(f"its activation is {config['hidden_act']}, not gelu")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise refuse("its positions are not absolute")
    modules = _modules(folder)
    if unknown := set(modules) - {"Transformer", "Pooling", "Normalize"}:
        raise refuse(f"after the transformer comes {', '.join(sorted(unknown))}")
    pooling = _pooling(folder, modules)
    if pooling is None:
        raise refuse("its pooling is neither the mean nor the first token")
    # XLM-RoBERTa numbers positions from the one after its padding token's.
    first = 1 + int(config.get("pad_token_id") or 1) if config["model_type"] == "xlm-roberta" else 0
    limit = _limit(folder, int(config["max_position_embeddings"]) - first)
    tokenizer = _json(folder / "tokenizer.json")
    kind, vocabulary = tokenizer.get("model", {}).get("type", "WordPiece"), tokenizer.get("model", {}).get("vocab")
    unigram = read_unigram(tokenizer, limit, refuse) if kind == "Unigram" and isinstance(vocabulary, list) else None
    if unigram:
        pieces, settings = unigram.pieces, unigram.settings
    elif kind == "WordPiece" and isinstance(vocabulary, dict):
        pieces = sorted(vocabulary, key=vocabulary.__getitem__)
        if [vocabulary[piece] for piece in pieces] != list(range(len(pieces))):
            raise refuse("its vocabulary is not numbered from 0 without gaps")
        settings = _tokenizer(tokenizer, limit, refuse)
    else:
        raise refuse("its tokenizer is neither WordPiece nor Unigram, or tokenizer.json is missing")
    added = {"pooling": pooling, "normalize": "Normalize" in modules, "prompt": encoder.prompt, "tokenizer": settings}
    return Transformer(encoder.name, folder / "model.safetensors", config | added, pieces, unigram, first)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _modules(folder: Path) -> dict[str, str]:
    """Class name -> folder, in order. A bare transformer gets mean pooling, as in sentence-transformers."""
    listed = _json(folder / "modules.json") or [
        {"type": "models.Transformer", "path": ""},
        {"type": "models.Pooling", "path": ""},
    ]
    return {str(module["type"]).rsplit(".", 1)[-1]: str(module["path"]) for module in listed}


def _pooling(folder: Path, modules: dict[str, str]) -> str | None:
    """'mean' or 'first'; None for another pooling."""
    config = _json(folder / modules.get("Pooling", "") / "config.json") if modules.get("Pooling") else {}
    modes = {name for name, on in config.items() if name.startswith("pooling_mode_") and on}
    if isinstance(config.get("pooling_mode"), str):
        modes = {f"pooling_mode_{config['pooling_mode']}_tokens"}
    if modes <= {"pooling_mode_mean_tokens"}:
        return "mean"
    return "first" if modes in ({"pooling_mode_cls_token"}, {"pooling_mode_cls_tokens"}) else None


def _limit(folder: Path, positions: int) -> int:
    """The most tokens of a text, the two special ones included."""
    stated = _json(folder / "sentence_bert_config.json").get("max_seq_length")
    stated = stated or _json(folder / "tokenizer_config.json").get("model_max_length") or positions
    return min(positions, int(stated))


def _tokenizer(
    tokenizer: dict[str, Any], limit: int, refuse: Callable[[str], TextEncoderUnsupported]
) -> dict[str, Any]:
    """The settings of callipper._wordpiece, from a tokenizer.json."""
    normalizer, model = tokenizer.get("normalizer") or {}, tokenizer["model"]
    if normalizer.get("type") != "BertNormalizer" or not normalizer.get("clean_text", True):
        raise refuse("its tokenizer does not clean texts as BERT does")
    if (tokenizer.get("pre_tokenizer") or {}).get("type") != "BertPreTokenizer":
        raise refuse("its tokenizer does not split words as BERT does")
    return {
        "lower_case": bool(normalizer.get("lowercase", True)),
        "strip_accents": normalizer.get("strip_accents"),
        "split_cjk": bool(normalizer.get("handle_chinese_chars", True)),
        "max_tokens": limit,
        "max_word_chars": int(model.get("max_input_chars_per_word", 100)),
        "max_piece_chars": max(map(len, model["vocab"])),
        "prefix": model.get("continuing_subword_prefix", "##"),
        "unknown": model.get("unk_token", "[UNK]"),
        "first": "[CLS]",
        "last": "[SEP]",
        "special": [token["content"] for token in tokenizer.get("added_tokens", [])],
    }


def is_installed(connection: Connection, text_encoder_id: int) -> bool:
    """Whether the encoder's weights are in the database."""
    query = "SELECT EXISTS (SELECT FROM callipper.text_norm WHERE text_encoder_id = %s)"
    return connection.one(query, [text_encoder_id]) == (True,)


def install(dsn: str, encoder: TextEncoder, reporter: Reporter) -> bool:
    """Write an encoder into the database, once for all models that share it; returns False if it is there already.

    Raises TextEncoderUnsupported.
    """
    rows = read_rows(encoder)
    with db.session(dsn) as connection:
        connection.execute("LOCK TABLE callipper.text_norm IN SHARE ROW EXCLUSIVE MODE")  # one install at a time
        text_encoder_id = register_encoder(connection, encoder)
        if is_installed(connection, text_encoder_id):
            return False
        check_room(connection, rows.bytes, f"The text encoder {encoder.name}")
        reporter.stage("installing the text encoder", rows.pieces)
        _write(connection, rows, text_encoder_id, reporter.advance)
        _try_out(connection, encoder, text_encoder_id)
    with db.session(dsn, autocommit=True) as connection:
        # VACUUM also sets the visibility of all rows; otherwise the first readers would have to write it.
        connection.execute(
            "VACUUM ANALYZE callipper.text_token, callipper.text_normal, callipper.text_position, callipper.text_weight"
        )
    return True


def _rows_bytes(transformer: Transformer) -> int:
    """About the bytes of the encoder's rows: weights in float32, and a tenth for row headers and indexes."""
    parts: list[list[int]] = []
    with suppress(SafetensorError), safe_open(transformer.weights, "pt") as file:  # _write refuses a damaged file
        parts = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    return round(1.1 * 4 * sum(math.prod(shape) for shape in parts))


def _try_out(connection: Connection, encoder: TextEncoder, text_encoder_id: int) -> None:
    """Raise TextEncoderUnsupported unless SQL gives the same vectors for a few texts as the encoder itself.

    So a difference that read_transformer does not know about ends here, and not in wrong answers.
    """
    rows = connection.execute(
        "SELECT callipper._encode_tokens(callipper._token_ids(%(prompt)s || text, %(id)s), %(id)s)::real[]"
        " FROM unnest(%(texts)s::text[]) WITH ORDINALITY AS u (text, number) ORDER BY number",
        {"id": text_encoder_id, "texts": list(TRIALS), "prompt": encoder.prompt},
    ).fetchall()
    expected = encoder.encode(list(TRIALS))
    found = np.array([vector or [np.nan] * encoder.dim for (vector,) in rows])
    off = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not off <= TOLERANCE:
        raise TextEncoderUnsupported(name=encoder.name, reason=f"its vectors come out different there, by {off:.1g}")


@dataclass(frozen=True)
class EncoderRows:
    """An encoder as the database keeps it. `tables` yields the vocabulary first, which has most rows."""

    arch: dict[str, Any]
    bytes: int
    pieces: int
    tables: Iterator[tuple[str, Columns]]


def read_rows(encoder: TextEncoder) -> EncoderRows:
    """The rows of an encoder, read as they are asked for. Raises TextEncoderUnsupported."""
    if isinstance(encoder, NgramEncoder):
        unigram = read_tokenizer(encoder.folder)
        arch = encoder.arch | read_arch(encoder.folder) | {"prompt": "", "tokenizer": unigram.settings}
        tables = chain(ngram_tables(encoder.folder, unigram), [("text_normal", _normal_columns(unigram))])
        return EncoderRows(arch, round(1.1 * 2 * encoder.dim * len(unigram.pieces)), len(unigram.pieces), tables)
    transformer = read_transformer(encoder)
    size = _rows_bytes(transformer)
    return EncoderRows(transformer.arch, size, len(transformer.pieces), _bert_tables(transformer))


def _write(connection: Connection, rows: EncoderRows, text_encoder_id: int, advance: Advance) -> None:
    connection.execute(
        "UPDATE callipper.text_encoder SET arch = %s WHERE text_encoder_id = %s", [Jsonb(rows.arch), text_encoder_id]
    )
    for table, columns in rows.tables:
        report = advance if table == "text_token" else silent
        keyed: Columns = {"text_encoder_id": ("int4", text_encoder_id), **columns}
        write_rows(connection, sql.Identifier(SCHEMA, table), keyed, report)


def _bert_tables(transformer: Transformer) -> Iterator[tuple[str, Columns]]:
    with transformer.tensors() as tensor:
        yield "text_token", _token_columns(transformer, tensor)
        if transformer.unigram:
            yield "text_normal", _normal_columns(transformer.unigram)
        yield "text_position", _position_columns(transformer, tensor)
        norms = [(EMBEDDING, "embedding", "embeddings.LayerNorm")]
        for layer in range(transformer.arch["num_hidden_layers"]):
            inside = f"encoder.layer.{layer}."
            for part, name in PARTS.items():
                yield "text_weight", _neuron_columns(layer, part, inside + name, tensor)
            norms += [(layer, part, inside + name) for part, name in NORMS.items()]
        yield "text_norm", _norm_columns(norms, tensor)


def _token_columns(transformer: Transformer, tensor: Callable[[str], Array]) -> Columns:
    """Vectors that float16 holds exactly, as where the file has them so, take half the space."""
    pieces = transformer.pieces
    vectors = tensor("embeddings.word_embeddings.weight")[: len(pieces)]
    with np.errstate(over="ignore"):
        is_half = bool((vectors.astype(np.float16) == vectors).all())
    columns: Columns = {
        "token_id": ("int4", np.arange(len(pieces))),
        "piece": ("text", [piece.encode() for piece in pieces]),
        "half" if is_half else "embedding": ("halfvec" if is_half else "vector", vectors),
    }
    return columns | ({"score": ("float8", np.array(transformer.unigram.scores))} if transformer.unigram else {})


def _normal_columns(unigram: Unigram) -> Columns:
    return {
        "source": ("text", [source.encode() for source in unigram.replaced]),
        "target": ("text", [target.encode() for target in unigram.replaced.values()]),
    }


def _position_columns(transformer: Transformer, tensor: Callable[[str], Array]) -> Columns:
    # All tokens of a single text have the token type 0, so its embedding is the same everywhere and is added here.
    positions = tensor("embeddings.position_embeddings.weight") + tensor("embeddings.token_type_embeddings.weight")[0]
    limit, first = transformer.arch["tokenizer"]["max_tokens"], transformer.first_position
    return {"position": ("int4", np.arange(limit)), "embedding": ("vector", positions[first : first + limit])}


def _neuron_columns(layer: int, part: str, name: str, tensor: Callable[[str], Array]) -> Columns:
    weight = tensor(f"{name}.weight")
    return {
        "layer": ("int4", layer),
        "part": ("text", [part.encode()] * len(weight)),
        "neuron": ("int4", np.arange(len(weight))),
        "bias": ("float4", tensor(f"{name}.bias")),
        "weight": ("vector", weight),
    }


def _norm_columns(norms: list[tuple[int, str, str]], tensor: Callable[[str], Array]) -> Columns:
    """norms: layer, part, and name in the file."""
    return {
        "layer": ("int4", np.array([layer for layer, _, _ in norms])),
        "part": ("text", [part.encode() for _, part, _ in norms]),
        "gain": ("vector", np.stack([tensor(f"{name}.weight") for _, _, name in norms])),
        "bias": ("vector", np.stack([tensor(f"{name}.bias") for _, _, name in norms])),
    }
