"""The steps of docs/operations.md, run as they stand, on a server that takes passwords by TLS alone.

Ports are replaced, training is short, pip does nothing, and as root the server's programs run as the server's user.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from test_upgrade import FIXTURES, restore

from callipper_db import schema
from deployments import binaries, extension_folder, find_pgbouncer
from encrypted import PASSWORD, EncryptedServer, encrypted
from sessions import user_session
from tiny_encoder import write_encoder
from town import QUARTERS, places

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
SERVER_PROGRAMS = ("pg_ctl", "pg_basebackup", "pgbouncer")
REPLICATED = {"wal_level": "replica", "max_wal_senders": "4"}


def blocks(section: str, kind: str) -> list[str]:
    """The blocks of code in a section of the page."""
    (text,) = re.findall(rf"(?ms)^## {section}\n(.*?)(?=^## |\Z)", PAGE)
    return re.findall(rf"(?s)```{kind}\n(.*?)```", text)


@dataclass
class Workplace:
    """A folder to work in, with the environment of somebody who may do everything on the server."""

    folder: Path
    server: EncryptedServer
    programs: Path
    ports: dict[str, str]  # as on the page -> in the test

    @property
    def environment(self) -> dict[str, str]:
        path = [self.folder / "bin", Path(sys.executable).parent, self.programs, *os.environ["PATH"].split(os.pathsep)]
        return {
            "PATH": os.pathsep.join(map(str, path)),
            "HOME": str(self.folder),
            "CALLIPPER_HOME": str(self.folder / "home"),
            "CALLIPPER_TEXT_ENCODER": str(self.folder / "encoder"),
            "HF_HUB_OFFLINE": "1",
            "PGHOST": "localhost",
            "PGPORT": str(self.server.port),
            "PGUSER": "postgres",
            "PGPASSFILE": str(self.folder / "pgpass"),
            "PGSSLMODE": "verify-full",
            "PGSSLROOTCERT": str(self.server.authority),
        }

    def dsn(self, database: str) -> str:
        return make_conninfo(self.server.dsn(), user="postgres", password=PASSWORD, dbname=database)

    def run(self, script: str) -> str:
        """What a script of the page prints; each of its lines must succeed."""
        for written, ours in {**self.ports, "train\n": "train --epochs 2 --grid-size 150\n"}.items():
            script = script.replace(written, ours)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env=self.environment,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def steps(self, section: str) -> None:
        for script in blocks(section, "sh"):
            self.run(script)

    def renew(self, *databases: str) -> None:
        """Drop these databases, and make an empty one named city."""
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            for name in ("city", *databases):
                connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())
            connection.execute("CREATE DATABASE city")
        with psycopg.connect(self.dsn("city")) as connection:
            connection.execute("CREATE EXTENSION postgis; CREATE EXTENSION vector")

    def fill(self, revision: str) -> None:
        """Put a frozen database into city: two small models, of which the second is active."""
        restore(FIXTURES / revision, self.dsn("city"), self.folder)

    def ask(self, database: str) -> Any:
        return json.loads(self.run(f"callipper-db query park --json --dsn postgresql:///{database}"))


def free_port() -> str:
    with socket.create_server(("localhost", 0)) as found:
        return str(found.getsockname()[1])


def write_program(path: Path, lines: str) -> None:
    path.write_text(f"#!/bin/bash\n{lines}\n")
    path.chmod(0o755)


@pytest.fixture(scope="module")
def work(cluster_dsn: str, module_folder: Path) -> Iterator[Workplace]:
    programs = binaries(cluster_dsn)
    with ExitStack() as stack:
        server = stack.enter_context(encrypted(module_folder, programs, "scram-sha-256", REPLICATED))
        folder = module_folder / "work"
        (folder / "bin").mkdir(parents=True)
        write_program(folder / "bin" / "pip", "exit 0")
        owner = server.data.stat()
        for name in SERVER_PROGRAMS if os.geteuid() == 0 else ():
            program = programs / name if name != "pgbouncer" else find_pgbouncer()
            become = f"setpriv --reuid {owner.st_uid} --regid {owner.st_gid} --clear-groups"
            write_program(folder / "bin" / name, f'chown -R {owner.st_uid} .\nexec {become} {program} "$@"')
        passwords = {"postgres": PASSWORD, "me": "another-long-password"}
        (folder / "pgpass").write_text("".join(f"*:*:*:{role}:{word}\n" for role, word in passwords.items()))
        (folder / "pgpass").chmod(stat.S_IRUSR | stat.S_IWUSR)
        ports = {"5432": str(server.port), "5433": free_port(), "6432": free_port()}
        yield Workplace(folder, server, programs, ports)


def test_upgrade(work: Workplace) -> None:
    work.renew("before")
    work.fill("0017")
    work.steps("Upgrade")
    schema.ensure_current(work.dsn("city"))
    with user_session(work.dsn("before")) as connection:
        assert schema.revision(connection) == "0017"


def test_as_an_extension(work: Workplace) -> None:
    work.renew()
    with extension_folder(work.dsn("city")):
        work.steps("As an extension")
        schema.ensure_current(work.dsn("city"))
        with user_session(work.dsn("city")) as connection:
            assert schema.is_extension(connection)
        work.renew()


def test_backup_and_restore(work: Workplace) -> None:
    work.renew("restored")
    work.fill("0018")
    schema.init(work.dsn("city"))
    work.steps("Backup and restore")
    assert work.ask("restored") == work.ask("city") != []


def test_managed_postgresql_and_a_pooler(work: Workplace) -> None:
    rows = [
        f"{kind}/{number},{kind} {number},{kind},{lon},{lat}"
        for kind in QUARTERS
        for number, (lon, lat) in enumerate(places(kind).tolist())
    ]
    (work.folder / "pois.csv").write_text("\n".join(["id,name,category,lon,lat", *rows]))
    write_encoder(work.folder / "encoder", num_hidden_layers=1)
    work.renew("before", "restored")
    with psycopg.connect(work.dsn("postgres"), autocommit=True) as connection:
        connection.execute("DROP DATABASE city")  # which the page makes
        connection.execute("DROP ROLE IF EXISTS callipper_reader")
    work.run("".join(blocks("Managed PostgreSQL", "sh")))
    with psycopg.connect(work.dsn("city")) as connection:
        owners = connection.execute(
            "SELECT DISTINCT nspowner::regrole::text, rolsuper FROM pg_namespace JOIN pg_roles r ON r.oid = nspowner"
            " WHERE nspname IN ('callipper', 'callipper_map')"
        ).fetchall()
    assert owners == [("me", False)]

    (work.folder / "root.crt").write_bytes(work.server.authority.read_bytes())
    (settings,) = blocks("Connection poolers", "ini")
    for port, ours in work.ports.items():
        settings = settings.replace(port, ours)
    (work.folder / "pgbouncer.ini").write_text(settings)
    try:
        work.steps("Connection poolers")
    finally:
        os.kill(int((work.folder / "pgbouncer.pid").read_text()), signal.SIGTERM)


def test_replica(work: Workplace, request: pytest.FixtureRequest) -> None:
    """Last, since it ends the server."""
    work.renew()
    work.fill("0018")
    schema.init(work.dsn("city"))
    (work.folder / "primary").symlink_to(work.server.data)
    request.addfinalizer(lambda: work.run("pg_ctl -D standby -m immediate stop || true"))
    asked = work.ask("city")
    follow, fail_over = blocks("Replica", "sh")
    work.run(follow)
    answer = json.loads(work.run("callipper-db query park --json --dsn postgresql://localhost:5433/city"))
    assert answer == asked
    work.run(fail_over)
    with psycopg.connect(make_conninfo(work.dsn("city"), port=work.ports["5433"])) as connection:
        assert connection.execute(
            "SELECT pg_is_in_recovery(), version FROM callipper.model WHERE status = 'active'"
        ).fetchall() == [(False, 1)]
