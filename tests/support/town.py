"""A town of 300 POIs in five quarters, each of one kind, and a model of it that trains in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from callipper_db.arrays import Array
from callipper_db.progress import Reporter, Silent
from callipper_trainer.config import TrainConfig
from callipper_trainer.data.source import Source
from callipper_trainer.train import TrainOptions, TrainSummary, train
from sessions import user_session

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
SRID = 32631  # UTM 31 N, which the town lies in
MIDDLE = (5.12, 52.09)
# kind -> its group, and where its quarter lies, degrees from the middle (about 1.4 km)
QUARTERS = {
    "cafe": ("food", 0.0, 0.0),
    "school": ("education", 0.02, 0.0),
    "park": ("leisure", -0.02, 0.0),
    "factory": ("industry", 0.0, 0.0125),
    "hospital": ("health", 0.0, -0.0125),
}
EACH = 60
NAMES = ("The Old {}", "{} One", "{} & {}", None)
BESIDE = {  # other kinds that names say, in turn
    "cafe": ("Bakery", "Ice Cream Parlour"),
    "school": ("Library", "Music School"),
    "park": ("Playground", "Skate Park"),
    "factory": ("Warehouse", "Chocolate Shop"),
    "hospital": ("Pharmacy", "Clinic"),
}
CONFIG = TrainConfig(hidden=64, blocks=2, epochs=30, device="cpu")
GRID_M = 150.0


def places(kind: str) -> Array:
    """(EACH, 2) longitude and latitude of a kind's POIs."""
    _, east, north = QUARTERS[kind]
    scatter = np.random.default_rng(list(QUARTERS).index(kind)).normal(0, [0.0028, 0.0018], (EACH, 2))
    return np.add(scatter, [MIDDLE[0] + east, MIDDLE[1] + north])


def fill_town(dsn: str) -> None:
    """Put the POIs into callipper.poi."""
    rows = [
        (
            "town",
            f"{kind}/{number}",
            name and name.format(kind.title(), BESIDE[kind][number // len(NAMES) % 2]),
            kind,
            group,
            lon,
            lat,
        )
        for kind, (group, _, _) in QUARTERS.items()
        for number, (lon, lat) in enumerate(places(kind).tolist())
        for name in [NAMES[number % len(NAMES)]]
    ]
    with user_session(dsn) as connection, connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO callipper.poi (source, source_id, name, category, category_group, geom)"
            " VALUES (%s, %s, %s, %s, %s, ST_SetSRID(ST_Point(%s, %s), 4326))",
            rows,
        )


def train_town(
    dsn: str,
    folder: Path,
    config: TrainConfig = CONFIG,
    reporter: Reporter | None = None,
    *,
    source: Source | None = None,
    index: str = "none",
    resume: bool = False,
    text_tower: bool = False,  # 95 MB that each clone of the database would copy
    encoder: str = ENCODER,
    grid_m: float = GRID_M,
    grid_kind: str = "square",
    activate: bool = True,
) -> TrainSummary:
    """The product's own training run, with small settings."""
    return train(
        dsn,
        source or Source(),
        config,
        TrainOptions(
            text_encoder=encoder,
            checkpoint=folder / "checkpoint.pt",
            resume=resume,
            grid_size_m=grid_m,
            grid_kind=grid_kind,
            index=index,
            text_tower=text_tower,
            activate=activate,
        ),
        reporter or Silent(),
    )


def contents(dsn: str) -> dict[str, Any]:
    """All that stands in the schema callipper: its relations with their rows, and what it answers."""
    with user_session(dsn) as connection:
        names = connection.execute(
            "SELECT relname::text FROM pg_class WHERE relnamespace = 'callipper'::regnamespace AND relkind IN ('r', 'p')"
        ).fetchall()
        counts = {
            name: connection.execute(f'SELECT count(*) FROM callipper."{name}"').fetchone()
            for (name,) in names
            if name != "text_vector"
        }
        active = connection.execute("SELECT version, status FROM callipper.model ORDER BY 1").fetchall()
        answer = connection.execute(
            "SELECT cell_id, emb <-> text_embed('park') FROM cells ORDER BY 2 LIMIT 5"
        ).fetchall()
        return {"counts": counts, "active": active, "answer": answer}
