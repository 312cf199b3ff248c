"""Servers beyond a plain connection: their programs, dumps, a standby, a connection pooler."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from callipper_db import db
from callipper_db.server import BINARY_FOLDERS, ENVIRONMENT, EmbeddedServer
from processes import wait_for
from sessions import user_session

NOBODY = 65534
NAMED_STATEMENTS_SINCE = (1, 21)  # of PgBouncer: it knows which server connection has which prepared statement


def binaries(dsn: str) -> Path:
    """The folder of PostgreSQL's programs in the major version of a running server."""
    with user_session(dsn) as connection:
        major = connection.info.server_version // 10000
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += [folder for pattern in BINARY_FOLDERS for folder in sorted(Path("/").glob(pattern.lstrip("/")))]
    for folder in folders:
        if (folder / "postgres").exists() and _major(folder / "postgres") == major:
            return folder
    raise AssertionError(f"the programs of PostgreSQL {major}, which the server is, are not on this machine")


def _major(postgres: Path) -> int:
    said = subprocess.run([postgres, "--version"], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"\) (\d+)", said)[1])  # type: ignore[index]


def call(program: Path, *arguments: str | Path, user: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program of the server to its end, without the caller's PG* variables."""
    return subprocess.run(
        [program, *arguments], capture_output=True, text=True, check=False, cwd="/", env=ENVIRONMENT, user=user
    )


def succeed(program: Path, *arguments: str | Path, user: int | None = None) -> str:
    """The same, and it must succeed; returns what it complained of."""
    done = call(program, *arguments, user=user)
    assert done.returncode == 0, done.stderr
    return done.stderr


@contextmanager
def extension_folder(dsn: str) -> Iterator[Path]:
    """Where the server reads the files of extensions, for one test at a time; files of callipper are removed at the end."""
    config = binaries(dsn) / "pg_config"
    said = call(config, "--sharedir").stdout if config.exists() else ""
    there = Path(said.strip() or "/nowhere") / "extension"
    if not (there / "vector.control").exists() or not os.access(there, os.W_OK):
        pytest.skip(f"the server reads extensions from {there}, where this user may not write")
    with (there / "vector.control").open() as lock:  # other processes run tests too
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (there / "callipper.control").exists():
            pytest.skip(f"there is an extension callipper in {there}")
        try:
            yield there
        finally:
            for path in there.glob("callipper*"):
                path.unlink()


# Standby


def start_primary(home: Path, folder: Path) -> EmbeddedServer:
    """A server that a standby can follow, which the embedded server's own settings rule out."""
    server = EmbeddedServer(home / "primary", pg_bin=folder, durable=False, root_area=home / "area")
    server.start()
    allow_standbys(server)
    return server


def allow_standbys(server: EmbeddedServer) -> None:
    """Change the settings of a running server, and restart it."""
    with user_session(server.administrator_dsn(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET wal_level = replica")
        connection.execute("ALTER SYSTEM SET max_wal_senders = 4")
    server.stop()
    server.start()


def start_standby(primary: EmbeddedServer, home: Path) -> EmbeddedServer:
    """A hot standby that streams from the primary, made of a base backup."""
    programs = binaries(primary.dsn())
    standby = EmbeddedServer(home / "standby", pg_bin=programs, durable=False, root_area=home / "area")
    owner = primary.data_dir.stat()
    standby.link.mkdir(parents=True)
    standby.link.chmod(0o700)
    os.chown(standby.link, owner.st_uid, owner.st_gid)
    succeed(
        programs / "pg_basebackup",
        *("-D", standby.link, "-d", primary.administrator_dsn("postgres")),
        *("--write-recovery-conf", "--checkpoint=fast", "--no-sync"),
        user=owner.st_uid if os.geteuid() == 0 else None,
    )
    standby.start()
    return standby


def wait_for_replay(primary: EmbeddedServer, standby: EmbeddedServer) -> None:
    """Until the standby has done all that the primary has done by now."""
    with user_session(primary.dsn()) as connection:
        (position,) = connection.execute("SELECT pg_current_wal_lsn()::text").fetchone() or (None,)
    with user_session(standby.dsn(), autocommit=True) as connection:
        query = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
        wait_for(lambda: connection.execute(query, [position]).fetchone() == (True,))


def promote(standby: EmbeddedServer) -> None:
    """Make a standby a server that takes changes."""
    with user_session(standby.administrator_dsn("postgres"), autocommit=True) as connection:
        assert connection.execute("SELECT pg_promote(true, 120)").fetchone() == (True,)


def multi_host_dsn(servers: Sequence[EmbeddedServer]) -> str:
    """A DSN of several servers, which leads to the one that takes changes."""
    hosts, ports = zip(
        *((part["host"], part["port"]) for part in (conninfo_to_dict(s.dsn()) for s in servers)), strict=True
    )
    return make_conninfo(
        servers[0].dsn(),
        host=",".join(map(str, hosts)),
        port=",".join(map(str, ports)),
        target_session_attrs="read-write",
    )


# PgBouncer


def find_pgbouncer() -> str:
    """Debian keeps it where only root's PATH leads."""
    found = shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
    assert found, "PgBouncer is not installed: scripts/install-postgres.sh --pgbouncer"
    return found


@cache
def knows_named_statements() -> bool:
    said = subprocess.run([find_pgbouncer(), "--version"], capture_output=True, text=True, check=True).stdout
    return db.version_tuple(said.split()[1])[:2] >= NAMED_STATEMENTS_SINCE


@contextmanager
def pooled(dsn: str, folder: Path, server_connections: int, mode: str = "transaction") -> Iterator[str]:
    """The DSN of a database behind PgBouncer, which hands a server connection on after each transaction, or session."""
    parts = conninfo_to_dict(dsn)
    host, port, user = str(parts["host"]), str(parts["port"]), str(parts["user"])
    settings: dict[str, Any] = {
        "listen_addr": "",
        "listen_port": 6432,
        "unix_socket_dir": folder,
        "auth_type": "trust",
        "auth_file": folder / "users.txt",
        "pool_mode": mode,
        "default_pool_size": server_connections,
        "max_client_conn": 100,
        "logfile": folder / "pgbouncer.log",
    }
    if knows_named_statements():
        settings["max_prepared_statements"] = 100
    lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
    (folder / "users.txt").write_text(f'"{user}" ""\n')
    (folder / "pgbouncer.ini").write_text(f"[databases]\n* = host={host} port={port}\n[pgbouncer]\n{lines}")
    pooled_dsn = make_conninfo("", host=str(folder), port=6432, user=user, dbname=str(parts["dbname"]))
    with subprocess.Popen([find_pgbouncer(), "-q", folder / "pgbouncer.ini"], **_identity(host, folder)) as process:
        try:

            def is_up() -> bool:
                assert process.poll() is None, (folder / "pgbouncer.log").read_text()
                return _answers(pooled_dsn)

            wait_for(is_up)
            yield pooled_dsn
        finally:
            process.terminate()


def _identity(host: str, folder: Path) -> dict[str, Any]:
    """PgBouncer refuses root, and must reach the server's socket, which the server's user alone can."""
    if os.geteuid() != 0:
        return {}
    uid = os.stat(host).st_uid if host.startswith("/") else NOBODY
    os.chown(folder, uid, -1)
    return {"user": uid, "group": NOBODY, "extra_groups": []}


def _answers(dsn: str) -> bool:
    try:
        with psycopg.connect(dsn):
            return True
    except psycopg.OperationalError:
        return False


def kill_server(server: EmbeddedServer) -> None:
    """As a power cut would, but for what the system still writes."""
    pid = server.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
