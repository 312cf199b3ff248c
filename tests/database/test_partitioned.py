"""The cells of a version in partitions of their own, by the statements of docs/scale.md: same answers, same commands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from callipper_db import db
from handmade import ORIGIN, write_model, write_sample
from sessions import user_session

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
AREA = "ST_Transform(ST_MakeEnvelope(500000, 5500000, 501500, 5502000, 32631), 4326)"


def split(connection: db.Connection) -> None:
    """As the page says; its version is 1, as here."""
    (statements,) = re.findall(r"```sql\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    connection.execute(statements)


def answers(connection: db.Connection) -> list[Any]:
    return [
        connection.execute(query.encode()).fetchall()
        for query in (
            "SELECT cell_id, similarity, percentile FROM search('pub', 20)",
            f"SELECT cell_id, similarity, percentile FROM search('park', 20, {AREA})",
            "SELECT cell_id, emb::text FROM cells ORDER BY cell_id",
            "SELECT cell_id FROM cells ORDER BY emb <-> text_embed('pub') LIMIT 5",
            "SELECT cell_id, lon, lat, model_version FROM callipper_map.cell ORDER BY cell_id",
        )
    ]


def make(connection: db.Connection) -> None:
    blocks = np.stack(np.meshgrid(np.arange(6), np.arange(6)), axis=-1).reshape(-1, 2)
    model = write_model(connection, ORIGIN + blocks * 500.0 + 50, hnsw=True)
    write_sample(connection, model)
    assert model.version == 1


def test_a_version_may_be_partitioned_further(database: str) -> None:
    with user_session(database) as connection:
        make(connection)
        before = answers(connection)
    with user_session(database, autocommit=True) as connection:
        split(connection)
        assert connection.one(
            "SELECT count(*) FROM pg_inherits WHERE inhparent = 'callipper.cell_embedding_v1'::regclass"
        ) == (8,)
        assert connection.one("SELECT callipper._has_index(1)") == (True,)
        assert answers(connection) == before
    with user_session(database) as connection:
        assert answers(connection) == before
        (cell_id,) = connection.one("SELECT min(cell_id) FROM cells")
        plan = str(
            connection.execute("EXPLAIN (FORMAT JSON) SELECT * FROM cells WHERE cell_id = %s", [cell_id]).fetchall()
        )
        assert re.findall(r"cell_embedding_v1_\d", plan) == ["cell_embedding_v1_1"] * plan.count("cell_embedding_v1_")


def test_another_version_and_a_drop(database: str) -> None:
    with user_session(database) as connection:
        make(connection)
        split(connection)
        other = write_model(connection, seed=1)
    with user_session(database, autocommit=True) as connection:
        plan = str(connection.execute("EXPLAIN (FORMAT JSON) SELECT * FROM cells").fetchall())
        assert f"cell_embedding_v{other.version}" in plan
        assert "cell_embedding_v1" not in plan
        connection.execute("SELECT callipper.drop_model(1)")
        left = connection.execute(
            "SELECT relname FROM pg_class WHERE relname ~ 'cell_embedding_v1|dropped_'"
        ).fetchall()
        assert left == []
