"""`callipper-db remember`: store embeddings of texts, so that the active model answers without its text encoder."""

from __future__ import annotations

import torch

from callipper_db import db
from callipper_db.errors import TextEncoderMissing, TextUnknown, UnknownModel
from callipper_db.models import active_version
from callipper_trainer.text_encoder import encode_cached, find_encoder
from callipper_trainer.weight_rows import WeightRows


def remember(dsn: str, texts: list[str], text_encoder: str | None = None) -> int:
    """Store the embeddings of texts for the active model; returns how many are new. Raises NoActiveModel, TextUnknown."""
    if not all(text.strip() for text in texts):
        raise TextUnknown(reason="the text is empty. Give a word or a phrase, such as 'park'.")
    with db.session(dsn) as connection:
        version = active_version(connection)
        row = connection.execute(
            "SELECT e.name, e.revision, e.dim FROM callipper.model m"
            " JOIN callipper.text_encoder e USING (text_encoder_id) WHERE m.version = %s",
            [version],
        ).fetchone()
        if row is None:
            raise UnknownModel(version=version)  # dropped in between
        name, revision, dim = row
        weight, bias = WeightRows(connection, version).read_projection(dim)
    encoder = find_encoder(text_encoder or name)
    if encoder.revision != revision:
        raise TextEncoderMissing(name=name, reason="its weights are not those that the active model was trained with")
    vectors = encode_cached(dsn, encoder, list(dict.fromkeys(texts)))
    projected = torch.nn.functional.linear(*map(torch.from_numpy, (vectors, weight, bias)))
    embeddings = torch.nn.functional.normalize(projected, dim=1).tolist()
    with db.session(dsn) as connection, connection.cursor() as cursor:
        cursor.executemany(
            connection.named(
                "INSERT INTO callipper.text_embedding (version, text, emb)"
                " SELECT %s, callipper._text_key(%s), %s::real[]::@vector ON CONFLICT DO NOTHING"
            ),
            [(version, text, emb) for text, emb in zip(dict.fromkeys(texts), embeddings, strict=True)],
        )
        return cursor.rowcount
