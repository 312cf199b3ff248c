"""SentencePiece tokenizers made on the spot, and their way into a database."""

from __future__ import annotations

import base64
import json
import struct
import unicodedata
from typing import Any

from psycopg.types.json import Jsonb
from tokenizers import Tokenizer
from tokenizers.models import Unigram as UnigramModel
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.trainers import UnigramTrainer

from callipper_db.db import Connection
from callipper_trainer.unigram import read_unigram

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
# Replaced beyond NFKC: dropped characters, spaces, the beginnings of clusters, ASCII, clusters of marks, controls and Hangul.
REPLACED = {
    **dict.fromkeys(["\x01", "\x7f", "\u200b", "\u00ad", "\ufeff", "\u0601"], ""),
    **dict.fromkeys(["\t", "\n", "\r", "\u00a0", "\u2028", "\u3000"], " "),
    "a\u0301": "\u00e1", "e\u0301": "\u00e9", "e\u0301\u0323": "E", "i\u0308": "\u00ef", "\u0430\u0306": "\u04d1",
    "\u2122": "TM", "\u3297": "F", "\u0958": "\u0915\u093c", "\u1100": "G", "\u1161": "A", "\u0600": "N", "\u06dd1": "O",
    "1\ufe0f": "one", "\u00a9\u200d": "c", "\r\n": "|", "\u2615": "coffee", "Q": "q",
}  # fmt: skip


def nfkc(step: int) -> dict[str, str]:
    """What NFKC does to every `step`th code point that it changes."""
    changed = [code for code in range(0xA0, 0x30000) if unicodedata.normalize("NFKC", chr(code)) != chr(code)]
    return {chr(code): unicodedata.normalize("NFKC", chr(code)) for code in changed[::step]}


def encode_charsmap(replaced: dict[str, str]) -> bytes:
    """A precompiled map of SentencePiece: a trie in a double array, then the replacements."""
    targets = b""
    trie: dict[int, Any] = {}
    for source, target in replaced.items():
        node = trie
        for byte in source.encode():
            node = node.setdefault(byte, {})
        node[0] = len(targets)
        targets += target.encode() + b"\0"
    units, taken, bases, free = {0: 0}, {0}, {0}, 1  # no two nodes have one base, else one had the other's children
    open_nodes = [(0, trie)]
    while open_nodes:
        position, node = open_nodes.pop()
        while free in taken:
            free += 1
        base = free ^ min(node)  # one child comes to the first free unit, and the others to free ones too
        while base in bases or any(base ^ byte in taken for byte in node):
            base += 1
        bases.add(base)
        taken |= {base ^ byte for byte in node}
        units[position] |= (position ^ base) << 10 | (0x100 if 0 in node else 0)
        for byte, child in node.items():
            units[base ^ byte] = child | 0x80000000 if byte == 0 else byte
            if byte:
                open_nodes.append((base ^ byte, child))
    size = (max(units) | 255) + 257
    packed = b"".join(struct.pack("<I", units.get(number, 0)) for number in range(size))
    return struct.pack("<I", len(packed)) + packed + targets


def train_unigram(texts: list[str], replaced: dict[str, str], size: int = 2000) -> dict[str, Any]:
    """The content of a tokenizer.json, laid out as that of XLM-RoBERTa."""
    tokenizer = Tokenizer(UnigramModel())
    tokenizer.pre_tokenizer = Metaspace()
    trainer = UnigramTrainer(
        vocab_size=size, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False, initial_alphabet=["\u2581"]
    )
    tokenizer.train_from_iterator(texts, trainer)
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    charsmap = base64.b64encode(encode_charsmap(replaced)).decode()
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": charsmap}
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]}
    content["post_processor"] = {"type": "RobertaProcessing", "cls": ["<s>", 0], "sep": ["</s>", 2],
                                 "trim_offsets": True, "add_prefix_space": True}  # fmt: skip
    for token in content["added_tokens"]:
        token["lstrip"] = token["content"] == "<mask>"
    return content


def install_unigram(connection: Connection, content: dict[str, Any], most: int) -> int:
    """The id of a text encoder that has this tokenizer only."""
    unigram = read_unigram(content, most, ValueError)
    (encoder_id,) = connection.one(
        "INSERT INTO callipper.text_encoder (name, revision, dim, arch)"
        " SELECT 'unigram', count(*), 1, %s FROM callipper.text_encoder RETURNING text_encoder_id",
        [Jsonb({"tokenizer": unigram.settings})],
    )
    connection.execute(
        "INSERT INTO callipper.text_token (text_encoder_id, token_id, piece, score, embedding)"
        " SELECT %s, n - 1, piece, score, '[0]' FROM unnest(%s::text[], %s::float8[]) WITH ORDINALITY AS u (piece, score, n)",
        [encoder_id, unigram.pieces, unigram.scores],
    )
    connection.execute(
        "INSERT INTO callipper.text_normal SELECT %s, source, target FROM unnest(%s::text[], %s::text[]) AS u (source, target)",
        [encoder_id, list(unigram.replaced), list(unigram.replaced.values())],
    )
    return int(encoder_id)
