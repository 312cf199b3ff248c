"""`callipper-db remember`: more texts that the active model answers without running its text encoder."""

from __future__ import annotations

from callipper_db import db
from callipper_db.errors import TextUnknown
from callipper_trainer.embed import embed_texts
from callipper_trainer.model_rows import load_model
from callipper_trainer.peaks import shared_words
from callipper_trainer.text_encoder import encode_cached, find_model_encoder


def remember(dsn: str, texts: list[str], text_encoder: str | None = None) -> int:
    """Add texts to those that the active model answers; returns how many were new. Raises NoActiveModel, TextUnknown,
    TextEncoderMissing.
    """
    if not all(text.strip() for text in texts):
        raise TextUnknown(reason="the text is empty. Give a word or a phrase, such as 'park'.")
    with db.session(dsn, autocommit=True) as connection:
        model = load_model(connection)
    encoder = find_model_encoder(model.text_encoder, text_encoder)
    distinct = list(dict.fromkeys(texts))
    with db.session(dsn) as connection:
        plain = {text: _plain_question(connection, text) for text in distinct}
        encoded = list(dict.fromkeys(plain.values()))
        shared = shared_words(connection, model.version, model.trained.peaks, encoded)
    vectors = encode_cached(dsn, encoder, encoded)
    embedding = dict(zip(encoded, embed_texts(model.trained, vectors, shared).tolist(), strict=True))
    with db.session(dsn) as connection, connection.cursor() as cursor:
        cursor.executemany(
            connection.named(
                "INSERT INTO callipper.text_embedding (version, text, emb)"
                " SELECT %s, callipper._text_key(%s), %s::real[]::@vector ON CONFLICT DO NOTHING"
            ),
            [(model.version, text, embedding[plain[text]]) for text in distinct],
        )
        return cursor.rowcount


def _plain_question(connection: db.Connection, text: str) -> str:
    """What text_embed() would encode for a text."""
    return str(connection.one("SELECT callipper._plain_question(%s)", [text])[0])
