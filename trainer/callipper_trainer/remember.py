"""`callipper-db remember`: more texts that the active model answers without running its text encoder."""

from __future__ import annotations

import torch
from psycopg import sql

from callipper_db import db
from callipper_db.binary_copy import read_rows
from callipper_db.errors import NoActiveModel, TextEncoderMissing, TextUnknown
from callipper_trainer.text_encoder import encode_cached, find_encoder


def remember(dsn: str, texts: list[str], text_encoder: str | None = None) -> int:
    """Add texts to those that the active model answers; returns how many were new. Raises NoActiveModel, TextUnknown."""
    if not all(text.strip() for text in texts):
        raise TextUnknown(reason="the text is empty. Give a word or a phrase, such as 'park'.")
    with db.session(dsn) as connection:
        row = connection.execute(
            "SELECT m.version, e.name, e.revision, e.dim FROM callipper.model m"
            " JOIN callipper.text_encoder e USING (text_encoder_id) WHERE m.status = 'active'"
        ).fetchone()
        if row is None:
            raise NoActiveModel
        version, name, revision, dim = row
        query = sql.SQL("SELECT weight, bias FROM callipper.text_projection WHERE version = {} ORDER BY neuron")
        weight, bias = read_rows(connection, query.format(sql.Literal(version)), ["vector", "float4"], dim)
    encoder = find_encoder(text_encoder or name)
    if encoder.revision != revision:
        raise TextEncoderMissing(name=name, reason="its weights are not those that the active model was trained with")
    vectors = encode_cached(dsn, encoder, list(dict.fromkeys(texts)))
    projected = torch.nn.functional.linear(*map(torch.from_numpy, (vectors, weight, bias)))
    embeddings = torch.nn.functional.normalize(projected, dim=1).tolist()
    with db.session(dsn) as connection, connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO callipper.text_embedding (version, text, emb)"
            " SELECT %s, callipper._text_key(%s), %s::real[]::vector ON CONFLICT DO NOTHING",
            [(version, text, emb) for text, emb in zip(dict.fromkeys(texts), embeddings, strict=True)],
        )
        return cursor.rowcount
