"""Sentence encoders made on the spot: BERT networks with random weights, and a vocabulary of some hundred pieces."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
from psycopg import sql
from safetensors.torch import load_file, save_file
from tokenizers.implementations import BertWordPieceTokenizer
from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel
from transformers.utils import logging

from callipper_db import binary_copy, db
from callipper_db.arrays import Array
from callipper_db.progress import Silent
from callipper_db.tables import DIMENSIONS
from callipper_trainer.install_text_encoder import install
from callipper_trainer.text_encoder import TextEncoder, find_encoder
from published import expected_texts
from sessions import user_session
from unigram import REPLACED, nfkc, train_unigram

logging.disable_progress_bar()  # of saving, amid pytest's own

# The vector of a text by an encoder, in SQL.
ENCODED_BY = (
    "callipper._encode_tokens(callipper._token_ids("
    "(SELECT arch ->> 'prompt' FROM callipper.text_encoder WHERE text_encoder_id = {0}) || text, {0}), {0})"
)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["a", "quiet", "park", "pub", "cafe", "fresh", "fish", "street", "old", "river", "駅", "##ing", "##s"]
LETTERS = string.ascii_letters + string.digits
PIECES = list(dict.fromkeys([*SPECIAL, *WORDS, *string.punctuation, *LETTERS, *(f"##{letter}" for letter in LETTERS)]))
# As multilingual-e5-small has it.
UNIGRAM_CONFIG = {
    "tokenizer_class": "XLMRobertaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>",
    "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>",
}  # fmt: skip
TEXTS = [
    "park",
    "a quiet park",
    "Fishing, fresh fish & old cafés",
    "駅 river 駅",
    "zoo",
    "☕",
    "x1y2z3 !?",
    "pub pub pub pub pub pub pub",
    "old river street " * 8,
    "abcdefghij " * 40,  # beyond the limit of tokens
]


def write_encoder(
    folder: Path,
    *,
    seed: int = 0,
    pooling: str = "mean",
    normalize: bool = True,
    dtype: torch.dtype = torch.float32,
    prefix: str = "",
    lower_case: bool = True,
    unigram: bool = False,
    roberta: bool = False,
    prompt: str = "",
    **config: Any,
) -> TextEncoder:
    """An encoder's folder in the form that the hub has; `config` goes to BertConfig.

    unigram: with a SentencePiece tokenizer; roberta: a network of XLM-RoBERTa; prompt: before each text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shape = {
        "vocab_size": len(PIECES) + 3,  # as where the vocabulary is filled up to a round number
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 100,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(seed)
    model = (
        XLMRobertaModel(XLMRobertaConfig(**(shape | config))) if roberta else BertModel(BertConfig(**(shape | config)))
    )
    _randomise(model)
    model.to(dtype).save_pretrained(folder)
    if prefix:
        path = folder / "model.safetensors"
        tensors = {prefix + name: tensor for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    if unigram:
        content = train_unigram([*TEXTS, *WORDS, string.ascii_letters], nfkc(50) | REPLACED, size=len(PIECES))
        write_json(folder / "tokenizer.json", content)
        limit = {"model_max_length": 62} if roberta else {}  # its first two positions are never used
        write_json(folder / "tokenizer_config.json", UNIGRAM_CONFIG | limit)
    else:
        _write_tokenizer(folder, lower_case)
    if prompt:
        prompts = {"prompts": {"question": prompt}, "default_prompt_name": "question"}
        write_json(folder / "config_sentence_transformers.json", prompts)
    _write_modules(folder, pooling, normalize)
    return find_encoder(str(folder))


def _randomise(model: BertModel | XLMRobertaModel) -> None:
    """Weights of a size that makes every part matter; BERT's own beginning is close to no network at all."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 1 if "embeddings" in name else 1.5 * parameter.shape[1] ** -0.5)
            else:
                parameter.normal_(float(name.endswith("LayerNorm.weight")), 0.3)


def _write_tokenizer(folder: Path, lower_case: bool) -> None:
    tokenizer = BertWordPieceTokenizer({piece: row for row, piece in enumerate(PIECES)}, lowercase=lower_case)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": lower_case})


def _write_modules(folder: Path, pooling: str, normalize: bool) -> None:
    names = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
        for number, (name, path) in enumerate(zip(names, paths, strict=False))
    ]
    write_json(folder / "modules.json", modules)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    modes = {f"pooling_mode_{mode}": mode.startswith(pooling) for mode in ("cls_token", "mean_tokens", "max_tokens")}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": config["hidden_size"], **modes})


def write_json(path: Path, value: object) -> None:
    """A JSON file."""
    path.write_text(json.dumps(value), encoding="utf-8")


def change_json(path: Path, **values: object) -> None:
    """Some keys of a JSON file anew; None takes a key away."""
    changed = json.loads(path.read_text(encoding="utf-8")) | values
    write_json(path, {key: value for key, value in changed.items() if value is not None})


def install_encoder(dsn: str, encoder: TextEncoder) -> int:
    """Put an encoder into a database; its id there."""
    install(dsn, encoder, Silent())
    with user_session(dsn) as connection:
        query = "SELECT text_encoder_id FROM callipper.text_encoder WHERE name = %s AND revision = %s"
        return int(connection.one(query, [encoder.name, encoder.revision])[0])


def give_text_tower(connection: db.Connection, version: int, text_encoder_id: int, dim: int, seed: int = 0) -> None:
    """Let a model made by hand read texts with an encoder, through a random projection."""
    connection.execute("UPDATE callipper.model SET text_encoder_id = %s WHERE version = %s", [text_encoder_id, version])
    random = np.random.default_rng(seed)
    columns: binary_copy.Columns = {
        "version": ("int4", version),
        "neuron": ("int4", np.arange(DIMENSIONS)),
        "weight": ("vector", random.normal(0, dim**-0.5, (DIMENSIONS, dim))),
        "bias": ("float4", random.normal(0, 0.1, DIMENSIONS)),
    }
    binary_copy.write_rows(connection, sql.Identifier("callipper", "text_projection"), columns)


def expected_embeddings(connection: db.Connection, version: int, texts: list[str], vectors: Array) -> Array:
    """(N,) texts, (N, T) vectors of them -> (N, 256): by the version's rows, in float64."""
    found = connection.execute("SELECT arch ? 'peaks' FROM callipper.model WHERE version = %s", [version]).fetchone()
    if found == (True,):
        return expected_texts(connection, version, texts, vectors.astype(np.float64))
    query = sql.SQL("SELECT weight, bias FROM callipper.text_projection WHERE version = {} ORDER BY neuron")
    weight, bias = binary_copy.read_rows(
        connection, query.format(sql.Literal(version)), ["vector", "float4"], vectors.shape[1]
    )
    projected = vectors.astype(np.float64) @ weight.astype(np.float64).T + bias
    return np.asarray(projected / np.linalg.norm(projected, axis=1, keepdims=True))


def read_vectors(connection: db.Connection, expression: str, texts: list[str]) -> Array:
    """(N, D): an SQL expression of each `text`."""
    rows = connection.execute(
        sql.SQL(
            "SELECT ({})::real[] FROM unnest(%s::text[]) WITH ORDINALITY AS u (text, number) ORDER BY number"
        ).format(sql.SQL(expression)),
        [texts],
    ).fetchall()
    return np.array([vector for (vector,) in rows], np.float32).astype(np.float64)
