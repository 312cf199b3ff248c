"""Freezes a database as this program makes it, for later programs to be tested on: python tests/freeze.py NAME.

Run it once for each migration and each release. tests/fixtures/NAME then holds a dump of the schema with two small models,
one of each encoder, and the answers that the database gave. test_upgrade.py upgrades every folder there.

CALLIPPER_TREE=FOLDER freezes what the earlier program in that checkout makes. So were made: 0004 cc670d2, 0005 d568b5c,
0006 18337bb, 0007 6a5d0e9, 0008 ae92e3f, 0009 45b63a1, 0010 0a93784, 0011 391bb16, 0012 c6e04a7, 0013 bde61b8, 0014 5e3c05c,
0016 ec617e2, 0017 dc38ddc, 0018 e218aa6,
each the last commit at that revision, and 0019 f854129; 0015 is 0b1a902 put on 5e3c05c, since on the
main branch 0016 came before it. 0001 (84e20df) and 0002 (128aaaf) have no function for some of the answers. 0003 is larger,
and has the text encoder's files, which a refresh needs.
"""

from __future__ import annotations

import json
import lzma
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

TREE = Path(os.environ.get("CALLIPPER_TREE", Path(__file__).parents[1])).resolve()
sys.path[:0] = [str(TREE / folder) for folder in ("tests/support", "tests", "trainer", ".")]

from callipper_db import schema  # noqa: E402
from callipper_trainer.config import TrainConfig  # noqa: E402
from deployments import binaries, succeed  # noqa: E402
from tiny_encoder import write_encoder  # noqa: E402
from town import fill_town, train_town  # noqa: E402

FIXTURES = Path(__file__).parent / "fixtures"
SETTINGS = {"hidden": 8, "blocks": 1, "epochs": 2, "frequencies": 4, "device": "cpu"}
GRID_M = 1500.0
POIS_KEPT = "callipper.poi WHERE split_part(source_id, '/', 2)::int < 6"  # of each kind
VECTOR = re.compile(r"\[(-?[\d.e-]+(?:,-?[\d.e-]+)+)\]")
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
            dsn, folder, TrainConfig.of(kind, **SETTINGS), encoder=str(encoder.folder), grid_m=GRID_M, text_tower=True
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
    succeed(
        binaries(dsn) / "pg_dump",
        *("--schema=callipper*", "--no-owner", "--no-privileges", "-f", folder / "database.sql", dsn),
    )
    plain = (folder / "database.sql").read_text()
    plain = re.sub(r"(?m)^\\(un)?restrict .*\n", "", plain)  # an older psql does not know it
    (folder / "database.sql").write_text(VECTOR.sub(_rounded, plain))
    with lzma.open(folder / "database.sql.xz", "wb", preset=9) as file:
        file.write((folder / "database.sql").read_bytes())


def _rounded(vector: re.Match[str]) -> str:
    """Three digits of each number: a fixture is a third of the size, and as good."""
    return "[" + ",".join(f"{float(number):.3g}" for number in vector[1].split(",")) + "]"


def ask(folder: Path, administrator: str) -> None:
    """Write what the frozen program answers in a restored database."""
    with psycopg.connect(administrator, autocommit=True) as connection:
        connection.execute("CREATE DATABASE frozen TEMPLATE template0")
    dsn = make_conninfo(administrator, dbname="frozen")
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE EXTENSION postgis; CREATE EXTENSION vector")
    succeed(binaries(dsn) / "psql", *("-Xq", "-v", "ON_ERROR_STOP=1", "-d", dsn, "-f", folder / "database.sql"))
    with psycopg.connect(dsn) as connection:
        (folder / "answers.json").write_text(json.dumps(answers(connection)))


def answers(connection: psycopg.Connection[Any], names: Iterable[str] = VECTORS) -> dict[str, list[list[float]]]:
    """What both versions answer: name -> a vector for each version."""
    connection.execute("SET search_path = callipper, public")
    return {
        name: [
            (connection.execute(f"SELECT {expression.format(version)}::real[]".encode()).fetchone() or ([],))[0]
            for (version,) in connection.execute("SELECT version FROM callipper.model ORDER BY version").fetchall()
        ]
        for name, expression in VECTORS.items()
        if name in names
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
            ask(made, server.administrator_dsn("postgres"))
        finally:
            server.stop()
        for file in ("database.sql.xz", "answers.json"):
            (FIXTURES / name).mkdir(exist_ok=True)
            shutil.copy(made / file, FIXTURES / name)
    finally:
        shutil.rmtree(home)


if __name__ == "__main__":
    main(*sys.argv[1:])
