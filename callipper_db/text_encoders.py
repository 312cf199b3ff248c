"""Text encoders in the database: list them, say which run in SQL, remove one."""

from __future__ import annotations

from typing import Any

from psycopg.rows import dict_row

from callipper_db import db
from callipper_db.errors import TextEncoderNotInstalled

TABLES = ("text_token", "text_normal", "text_position", "text_weight", "text_norm")


def list_text_encoders(dsn: str) -> list[dict[str, Any]]:
    """Each encoder: text_encoder_id, name, revision (sha256), dim, installed, models (their versions)."""
    with db.session(dsn) as connection, connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            "SELECT e.text_encoder_id, e.name, e.revision, e.dim,"
            " EXISTS (SELECT FROM callipper.text_norm n WHERE n.text_encoder_id = e.text_encoder_id) AS installed,"
            " ARRAY(SELECT version FROM callipper.model m WHERE m.text_encoder_id = e.text_encoder_id ORDER BY 1) AS models"
            " FROM callipper.text_encoder e ORDER BY e.text_encoder_id"
        ).fetchall()


def remove_text_encoder(dsn: str, name: str) -> list[int]:
    """Remove an encoder's weights; returns the model versions that now answer remembered texts only.

    Raises TextEncoderNotInstalled.
    """
    found = [e for e in list_text_encoders(dsn) if e["name"] == name and e["installed"]]
    if not found:
        raise TextEncoderNotInstalled(name=name)
    encoders = [e["text_encoder_id"] for e in found]
    with db.session(dsn, autocommit=True) as connection:
        with connection.transaction():
            connection.execute("LOCK TABLE callipper.text_norm IN SHARE ROW EXCLUSIVE MODE")  # as an installation does
            for table in TABLES:
                connection.execute(f"DELETE FROM callipper.{table} WHERE text_encoder_id = ANY(%s)", [encoders])
        for table in TABLES:  # gives the space back, about 95 MB for a small encoder
            connection.execute(f"VACUUM callipper.{table}")
    return [version for e in found for version in e["models"]]
