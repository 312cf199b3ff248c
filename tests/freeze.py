"""Freezes a database as this program makes it, for later programs to be tested on: python tests/freeze.py NAME.

To be run once for each release. tests/fixtures/NAME then holds a dump of the schema with two small models, one of each
encoder, the text encoder's files, and what the database answered. test_upgrade.py upgrades every folder there.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import psycopg

sys.path.insert(0, str(Path(__file__).parent / "support"))

from callipper_db import schema
from callipper_trainer.config import TrainConfig
from deployments import binaries, succeed
from tiny_encoder import write_encoder
from town import fill_town, train_town

FIXTURES = Path(__file__).parent / "fixtures"
SETTINGS = {"hidden": 16, "blocks": 1, "epochs": 2, "frequencies": 4, "device": "cpu"}
POIS_KEPT = "callipper.poi WHERE split_part(source_id, '/', 2)::int < 12"  # of each kind
WORDS_KEPT = ("park", "pub", "cafe", "school", "factory", "hospital", "quiet street", "river")
VECTORS = {
    "a remembered text": "text_embed('park', {})",
    "an unknown text": "text_embed('a fresh river', {})",
    "a place": "loc_embed(ST_SetSRID(ST_Point(5.121, 52.093), 4326), {})",
    "a place outside": "loc_embed(ST_SetSRID(ST_Point(5.3, 52.2), 4326), {})",
    "the first cell": "(SELECT emb FROM callipper.cell_embedding WHERE version = {} ORDER BY cell_id LIMIT 1)",
}


def freeze(dsn: str, folder: Path) -> None:
    """Fill a database and write it into the folder."""
    schema.init(dsn)
    fill_town(dsn)
    with psycopg.connect(dsn) as connection:
        connection.execute(f"DELETE FROM callipper.poi WHERE poi_id NOT IN (SELECT poi_id FROM {POIS_KEPT})".encode())
    encoder = write_encoder(
        folder / "encoder", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    for kind in ("coordinate", "contextual"):  # the second stays active
        train_town(
            dsn, folder, TrainConfig.of(kind, **SETTINGS), encoder=str(encoder.folder), grid_m=600.0, text_tower=True
        )
    with psycopg.connect(dsn) as connection:
        connection.execute("UPDATE callipper.text_encoder SET name = 'tiny'")
        for table in ("text_embedding", "text_vector"):
            connection.execute(
                f"DELETE FROM callipper.{table} WHERE text <> ALL(%s)"
                " AND text NOT IN (SELECT category FROM callipper.poi UNION SELECT name FROM callipper.poi WHERE name <> ''"
                " UNION SELECT category_group FROM callipper.poi)".encode(),
                [list(WORDS_KEPT)],
            )
    with psycopg.connect(dsn) as connection:
        (folder / "answers.json").write_text(json.dumps(answers(connection), indent=1))
    succeed(
        binaries(dsn) / "pg_dump",
        *("--schema=callipper*", "--no-owner", "--no-privileges", "-f", folder / "database.sql", dsn),
    )
    plain = (folder / "database.sql").read_text()
    plain = re.sub(r"(?m)^\\(un)?restrict .*\n", "", plain)  # an older psql does not know it
    (folder / "database.sql").unlink()
    with gzip.GzipFile(folder / "database.sql.gz", "wb", mtime=0) as file:
        file.write(plain.encode())


def answers(connection: psycopg.Connection[Any]) -> dict[str, list[list[float]]]:
    """What both versions answer: name -> a vector for each version."""
    connection.execute("SET search_path = callipper, public")
    return {
        name: [
            (connection.execute(f"SELECT {expression.format(version)}::real[]".encode()).fetchone() or ([],))[0]
            for version in (1, 2)
        ]
        for name, expression in VECTORS.items()
    }


def main(name: str) -> None:
    """Make a server for it, and a folder that its user can reach."""
    home = Path(tempfile.mkdtemp(prefix="callipper-freeze-"))
    home.chmod(0o755)
    try:
        from callipper_db.server import EmbeddedServer

        server = EmbeddedServer(home / "home", durable=False, root_area=home / "area")
        server.start()
        try:
            made = home / "made"
            made.mkdir(mode=0o777)
            freeze(server.dsn(), made)
        finally:
            server.stop()
        target = FIXTURES / name
        shutil.copytree(made, target)
    finally:
        shutil.rmtree(home)


if __name__ == "__main__":
    main(*sys.argv[1:])
