"""The embedded server: started once, private, and back on its feet after whatever ended it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from callipper_db import db, schema
from callipper_db.config import Settings
from callipper_db.errors import (
    ConfigError,
    NoRightToCreate,
    ServerBinariesMissing,
    ServerHomeUnusable,
    ServerStartFailed,
    ServerVersionChanged,
)
from callipper_db.server import LOG_LIMIT, EmbeddedServer, server_settings
from processes import wait_for
from sessions import user_session

REPOSITORY = Path(__file__).parents[2]
START = "import sys; from pathlib import Path; from callipper_db.server import EmbeddedServer as S; "
START += "s = S(Path(sys.argv[1]), durable=False); s.start(); print(s.status().pid, flush=True); "
IS_ROOT = os.geteuid() == 0


@pytest.fixture(scope="module")
def module_server(module_folder: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(module_folder / "home", durable=False)
    yield server
    server.stop()


@pytest.fixture
def shared(module_server: EmbeddedServer) -> EmbeddedServer:
    """A running server that the tests share; they may stop and kill it, and leave it so that it can start."""
    module_server.start()
    return module_server


@pytest.fixture
def server(open_folder: Path) -> Iterator[EmbeddedServer]:
    """A server of the test's own that was never started."""
    server = EmbeddedServer(open_folder / "home", durable=False, root_area=open_folder / "area")
    yield server
    server.stop()


def start_elsewhere(server: EmbeddedServer, then: str = "", **options: Any) -> subprocess.Popen[str]:
    """Start the server from another Python process."""
    return subprocess.Popen(
        [sys.executable, "-c", START + then, str(server.home)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def pid_of(server: EmbeddedServer) -> int:
    pid = server.status().pid
    assert pid is not None
    return pid


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_alive(pid))


@contextmanager
def sleeping(uid: int, gid: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the server's user: PostgreSQL itself already sees through those of other users."""
    identity: dict[str, Any] = {"user": uid, "group": gid, "extra_groups": []} if IS_ROOT else {}
    with subprocess.Popen(["sleep", "600"], cwd="/", **identity) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def edited(path: Path, change: Callable[[str], str]) -> Iterator[None]:
    before = path.read_text()
    path.write_text(change(before))
    try:
        yield
    finally:
        path.write_text(before)


def query(server: EmbeddedServer, statement: str) -> Any:
    with user_session(server.dsn()) as connection:
        row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    return row[0]


def keep_a_row(server: EmbeddedServer) -> None:
    with user_session(server.dsn()) as connection:
        connection.execute("DROP TABLE IF EXISTS kept")
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")


def test_start_status_stop(server: EmbeddedServer) -> None:
    before = server.status()
    assert (before.state, before.version, before.pid, before.since) == ("stopped", None, None, None)
    assert not server.home.exists(), "asking changes nothing"
    server.stop()
    assert not server.home.exists()

    server.start()
    status = server.status()
    assert status.running
    assert status.version is not None and int(status.version.split(".")[0]) >= 15
    assert status.pid is not None and is_alive(status.pid)
    assert status.since is not None
    assert status.socket.is_socket()
    assert status.dsn == server.dsn()
    keep_a_row(server)
    server.start()
    assert pid_of(server) == status.pid, "a second start finds the first"

    server.stop()
    assert not is_alive(status.pid)
    assert server.status().state == "stopped"
    server.stop()
    server.start()
    assert query(server, "SELECT answer FROM kept") == 42


def test_from_settings(open_folder: Path) -> None:
    settings = Settings(dsn=None, home=open_folder, pg_bin=Path("/bin"), server_user="someone", text_encoder="")
    server = EmbeddedServer.from_settings(settings)
    assert (server.home, server.pg_bin, server.server_user) == (open_folder, Path("/bin"), "someone")
    assert server.durable


def test_psql_takes_the_dsn(shared: EmbeddedServer) -> None:
    statement = "SELECT current_database(), current_user"
    command = [str(shared.psql_path), "--no-psqlrc", "-Atc", statement, shared.dsn()]
    environment = os.environ | {"PGPORT": "1", "PGDATABASE": "other", "PGUSER": "other", "PGHOST": "nowhere"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "callipper|callipper\n"


def test_a_path_with_spaces_and_accents(open_folder: Path) -> None:
    server = EmbeddedServer(open_folder / "Größe & 100 % 'x'", durable=False)
    server.start()
    try:
        assert query(server, "SELECT 1") == 1
    finally:
        server.stop()


@pytest.mark.parametrize("name", ["a,b", 'a"b', "a\\b"])
def test_a_path_that_libpq_would_split_gets_another_socket(name: str) -> None:
    assert str(EmbeddedServer(Path("/home", name)).socket_dir).startswith("/tmp/callipper-db-")


def test_only_the_owner_can_connect(shared: EmbeddedServer) -> None:
    assert stat.S_IMODE(shared.socket_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE(shared.status().socket.stat().st_mode) == 0o700
    assert query(shared, "SHOW listen_addresses") == ""
    sockets = {link for link in map(os.readlink, Path(f"/proc/{pid_of(shared)}/fd").iterdir()) if "socket:" in link}
    assert sockets, "the one on the file system"
    for table in ("tcp", "tcp6", "udp", "udp6"):
        lines = Path("/proc/net", table).read_text().splitlines()[1:]
        assert not sockets & {f"socket:[{line.split()[9]}]" for line in lines}


def test_settings_reach_the_server(shared: EmbeddedServer) -> None:
    found = {name: query(shared, f"SHOW {name}") for name in ("wal_level", "max_wal_senders", "jit", "max_connections")}
    assert found == {"wal_level": "minimal", "max_wal_senders": "0", "jit": "off", "max_connections": "40"}
    assert query(shared, "SHOW server_encoding") == "UTF8"
    assert query(shared, "SHOW data_checksums") == "on"


def test_the_role_that_commands_use_is_no_superuser(shared: EmbeddedServer) -> None:
    """It owns the database and all that it makes there, and may hand out the right to ask."""
    may = "rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls"
    assert query(shared, f"SELECT {may} FROM pg_roles WHERE rolname = current_user") is False
    assert query(shared, "SELECT datdba = current_user::regrole FROM pg_database WHERE datname = current_database()")
    schema.init(shared.dsn())
    theirs = (
        "SELECT bool_and(proowner = 'callipper'::regrole) FROM pg_proc WHERE pronamespace = 'callipper'::regnamespace"
    )
    assert query(shared, theirs)
    assert query(shared, "SELECT has_function_privilege('callipper_reader', 'callipper.text_embed(text)', 'EXECUTE')")
    with user_session(shared.administrator_dsn()) as connection:
        connection.execute("CREATE ROLE guest")
    with user_session(shared.dsn()) as connection:
        connection.execute("GRANT callipper_reader TO guest")
    with user_session(shared.administrator_dsn()) as connection:
        connection.execute("DROP ROLE guest")


def test_alter_system_wins_but_cannot_open_the_server(shared: EmbeddedServer) -> None:
    with user_session(shared.administrator_dsn(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET work_mem = '5MB'")
        connection.execute("ALTER SYSTEM SET listen_addresses = '*'")
    shared.stop()
    shared.start()
    assert query(shared, "SHOW work_mem") == "5MB"
    assert query(shared, "SHOW listen_addresses") == ""
    with user_session(shared.administrator_dsn(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM RESET ALL")


@pytest.mark.parametrize(
    ("memory_gb", "shared_mb", "work_mb", "maintenance_mb"),
    [(0.25, 32, 32, 64), (4, 512, 32, 512), (64, 1024, 64, 4096)],
)
def test_memory_settings(memory_gb: float, shared_mb: int, work_mb: int, maintenance_mb: int) -> None:
    lines = server_settings(int(memory_gb * 2**30), 2**33, durable=True).splitlines()
    assert f"shared_buffers = {shared_mb}MB" in lines
    assert f"work_mem = {work_mb}MB" in lines
    assert f"maintenance_work_mem = {maintenance_mb}MB" in lines
    assert "autovacuum_work_mem = 64MB" in lines
    assert not any(line.startswith(("fsync", "dynamic_shared_memory_type")) for line in lines)


def test_a_container_with_little_shared_memory() -> None:
    assert "dynamic_shared_memory_type = sysv" in server_settings(2**33, 2**26, durable=True).splitlines()


def test_two_processes_start_it_once(server: EmbeddedServer) -> None:
    starters = [start_elsewhere(server) for _ in range(3)]
    results = [starter.communicate(timeout=60) for starter in starters]
    assert [starter.returncode for starter in starters] == [0, 0, 0], results
    assert {output for output, _ in results} == {f"{pid_of(server)}\n"}
    log = server.log_path.read_text()
    assert log.count("performing post-bootstrap initialization") == 1
    assert log.count("listening on Unix socket") == 1


def test_it_outlives_its_starter_and_ctrl_c(server: EmbeddedServer) -> None:
    # A session of its own stands in for the terminal: Ctrl-C signals all that belongs to it.
    with start_elsewhere(server, "sys.stdin.read()", start_new_session=True) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        os.killpg(starter.pid, signal.SIGINT)
        output, errors = starter.communicate(timeout=20)  # comes back only if the server does not hold the pipes
        assert starter.returncode != 0 and "KeyboardInterrupt" in errors and not output
    assert os.getsid(pid) not in (starter.pid, os.getsid(0))
    assert pid_of(server) == pid
    assert query(server, "SELECT 1") == 1


def test_it_ignores_variables_of_another_server(server: EmbeddedServer) -> None:
    foreign = {"PGPORT": "1", "PGDATA": "/nowhere", "PGHOST": "nowhere", "PGUSER": "other", "PGDATABASE": "other"}
    with start_elsewhere(server, env=os.environ | foreign) as starter:
        output, errors = starter.communicate(timeout=30)
    assert output == f"{pid_of(server)}\n", errors


def test_kill_of_the_server_loses_nothing(shared: EmbeddedServer) -> None:
    keep_a_row(shared)
    killed = pid_of(shared)
    kill(killed)
    assert (shared.link / "postmaster.pid").exists()
    assert shared.status().state == "stopped"
    shared.start()
    assert pid_of(shared) != killed
    assert query(shared, "SELECT answer FROM kept") == 42


def test_a_busy_child_of_a_killed_server_is_ended(shared: EmbeddedServer) -> None:
    keep_a_row(shared)
    with closing(psycopg.connect(shared.dsn(), autocommit=True)) as connection:
        child = connection.info.backend_pid
        # It never waits, so it would never notice that its server is gone.
        connection.pgconn.send_query(b"DO $$BEGIN LOOP PERFORM 1; END LOOP; END$$")
        connection.pgconn.flush()
        activity = f"SELECT state = 'active' FROM pg_stat_activity WHERE pid = {child}"
        wait_for(lambda: query(shared, activity))
        kill(pid_of(shared))
        assert is_alive(child)
        shared.start()
        assert not is_alive(child)
    assert query(shared, "SELECT answer FROM kept") == 42


@pytest.mark.parametrize("state", ["taken", "empty"])
def test_a_pid_file_that_lies(shared: EmbeddedServer, state: str) -> None:
    keep_a_row(shared)
    owner = shared.data_dir.stat()
    kill(pid_of(shared))
    with sleeping(owner.st_uid, owner.st_gid) as foreign:
        for path in (shared.link / "postmaster.pid", shared.socket_dir / ".s.PGSQL.5432.lock"):
            lines = path.read_text().splitlines(keepends=True)
            path.write_text("".join([f"{foreign.pid}\n", *lines[1:]]) if state == "taken" else "")
        assert shared.status().state == "stopped"
        assert shared.status().pid is None
        shared.stop()
        assert foreign.poll() is None, "a stranger is left alone"
        shared.start()
        assert query(shared, "SELECT answer FROM kept") == 42
        shared.stop()
        assert foreign.poll() is None


def test_a_lost_socket_is_made_again(shared: EmbeddedServer) -> None:
    keep_a_row(shared)
    before = pid_of(shared)
    shared.status().socket.unlink()
    shared.start()
    assert not is_alive(before)
    assert query(shared, "SELECT answer FROM kept") == 42


def test_a_killed_initdb_leaves_nothing(server: EmbeddedServer) -> None:
    with start_elsewhere(server) as starter:
        half = wait_for(lambda: list(server.home.glob("postgres.init-*/base")))[0].parent
        starter.kill()
    assert half.exists()
    assert server.status().version is None
    server.start()
    assert query(server, "SELECT 1") == 1
    assert not half.exists()
    assert sorted(path.name for path in server.home.iterdir()) == ["postgres", "postgres.log", "server.lock"]


def test_a_missing_database_is_made_again(shared: EmbeddedServer) -> None:
    """As after a kill between initdb and CREATE DATABASE."""
    with user_session(shared.administrator_dsn("postgres"), autocommit=True) as connection:
        connection.execute("DROP DATABASE callipper")
    shared.start()
    assert query(shared, "SELECT current_database()") == "callipper"


def test_a_missing_extension_is_made_at_the_next_start(shared: EmbeddedServer) -> None:
    """As when it is installed while the server runs: the role of the commands may not create it."""
    shared.start()
    with user_session(shared.administrator_dsn()) as connection:
        connection.execute("DROP EXTENSION postgis CASCADE")
    with pytest.raises(NoRightToCreate, match="create the extension postgis"):
        schema.init(shared.dsn())
    shared.start()
    schema.init(shared.dsn())


@pytest.fixture
def far_server(open_folder: Path) -> Iterator[EmbeddedServer]:
    """A server whose home is too long for a socket's address."""
    server = EmbeddedServer(open_folder / ("long" * 20) / ("longer" * 10), durable=False)
    yield server
    server.stop()
    with suppress(FileNotFoundError, NotADirectoryError):
        shutil.rmtree(server.socket_dir)


def test_a_long_home_gets_a_short_socket(far_server: EmbeddedServer) -> None:
    far_server.start()
    status = far_server.status()
    assert status.running
    assert len(bytes(status.socket)) <= 107
    assert far_server.home not in status.socket.parents
    assert stat.S_IMODE(far_server.socket_dir.stat().st_mode) == 0o700
    keep_a_row(far_server)
    kill(pid_of(far_server))
    far_server.start()
    assert query(far_server, "SELECT answer FROM kept") == 42


def test_a_short_socket_folder_of_somebody_else_is_refused(far_server: EmbeddedServer) -> None:
    far_server.socket_dir.mkdir(mode=0o755)
    with pytest.raises(ServerHomeUnusable, match="only you can enter"):
        far_server.start()
    far_server.socket_dir.rmdir()
    elsewhere = far_server.home.parent.parent / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    far_server.socket_dir.symlink_to(elsewhere)
    with pytest.raises(ServerHomeUnusable, match="only you can enter"):
        far_server.start()
    far_server.socket_dir.unlink()


def test_a_home_that_everybody_may_write_is_refused(server: EmbeddedServer) -> None:
    server.home.mkdir()
    server.home.chmod(0o777)
    with pytest.raises(ServerHomeUnusable, match="everybody may write"):
        server.start()


def test_a_home_that_cannot_be_made_is_refused(open_folder: Path) -> None:
    (open_folder / "file").touch()
    with pytest.raises(ServerHomeUnusable, match="Not a directory"):
        EmbeddedServer(open_folder / "file" / "home").start()


def test_foreign_files_are_not_overwritten(server: EmbeddedServer) -> None:
    server.link.mkdir(parents=True)
    (server.link / "thesis.txt").write_text("years of work")
    with pytest.raises(ServerHomeUnusable, match="something else"):
        server.start()
    assert (server.link / "thesis.txt").read_text() == "years of work"


def test_another_major_version_is_refused(shared: EmbeddedServer) -> None:
    shared.stop()
    with edited(shared.link / "PG_VERSION", lambda _: "9\n"), pytest.raises(ServerVersionChanged) as caught:
        shared.start()
    assert f"{shared.data_dir} was made by PostgreSQL 9, and only PostgreSQL 1" in str(caught.value)
    assert "pg_dump" in str(caught.value)


def test_missing_binaries(open_folder: Path) -> None:
    server = EmbeddedServer(open_folder / "home", pg_bin=open_folder)
    with pytest.raises(ServerBinariesMissing, match=r"version 15 or newer.*CALLIPPER_PG_BIN.*--dsn"):
        server.start()
    with pytest.raises(ServerBinariesMissing):
        _ = server.psql_path


def test_a_failed_start_shows_the_log(shared: EmbeddedServer) -> None:
    shared.stop()
    wrong = edited(shared.link / "postgresql.conf", lambda text: f"{text}\nno_such_setting = 1\n")
    with wrong, pytest.raises(ServerStartFailed) as caught:
        shared.start()
    assert 'unrecognized configuration parameter "no_such_setting"' in str(caught.value)
    assert str(shared.log_path) in str(caught.value)
    assert "no_such_setting" in "".join(shared.tail_log(3))


def test_a_failed_initdb_shows_why_and_leaves_nothing(server: EmbeddedServer, open_folder: Path) -> None:
    programs = {"postgres": "echo 'postgres (PostgreSQL) 15.1'", "initdb": "echo 'no room' >&2; exit 1"}
    for name, line in programs.items():
        (open_folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (open_folder / name).chmod(0o755)
    broken = EmbeddedServer(server.home, pg_bin=open_folder)
    with pytest.raises(ServerStartFailed, match=r"initdb failed: .*no room"):
        broken.start()
    assert sorted(path.name for path in server.home.iterdir()) == ["postgres.log", "server.lock"]


def test_a_long_log_is_put_aside(server: EmbeddedServer) -> None:
    server.home.mkdir()
    server.log_path.write_bytes(b"old line\n" * (LOG_LIMIT // 9 + 1))
    server.start()
    assert server.log_path.stat().st_size < 10_000
    assert server.log_path.with_name("postgres.log.1").read_text().startswith("old line\n")
    assert server.tail_log(1) == server.log_path.read_text().splitlines()[-1:]
    assert server.tail_log(0) == []


def test_as_root_a_closed_home_gets_a_link(server: EmbeddedServer) -> None:
    """Root's home is closed to the server's user; another user's home is its own, and needs no link."""
    server.home.mkdir(mode=0o700)
    server.start()
    assert query(server, "SELECT 1") == 1
    assert server.link.is_symlink() == IS_ROOT
    assert server.data_dir.parent == (server.root_area if IS_ROOT else server.home)
    assert stat.S_IMODE(server.data_dir.stat().st_mode) == 0o700
    user = pwd.getpwuid(Path(f"/proc/{pid_of(server)}").stat().st_uid)
    assert server.data_dir.owner() == user.pw_name
    assert user.pw_uid != 0
    kill(pid_of(server))
    server.start()
    server.stop()

    shutil.rmtree(server.data_dir)  # how one starts over
    server.start()
    assert query(server, "SELECT 1") == 1
    server.stop()
    assert server.data_dir.exists()
    assert not IS_ROOT or list(server.root_area.iterdir()) == [server.data_dir]


def test_the_server_user_must_exist(open_folder: Path) -> None:
    server = EmbeddedServer(open_folder / "home", server_user="nobody-of-this-name", durable=False)
    if IS_ROOT:
        with pytest.raises(ConfigError, match="CALLIPPER_SERVER_USER='nobody-of-this-name'"):
            server.start()
        with pytest.raises(ConfigError, match="other than root"):
            EmbeddedServer(server.home, server_user="root").start()
    else:
        server.start()
        server.stop()


def test_the_clones_are_separate(database: str, shared_database: str, connection: db.Connection) -> None:
    with user_session(database) as own:
        own.execute("CREATE TABLE only_here (n int)")
        path = own.execute("SELECT setting FROM pg_db_role_setting, unnest(setconfig) setting").fetchall()
    assert any("callipper" in row[0] for row in path)
    assert connection.execute("SELECT to_regclass('only_here')").fetchone() == (None,)
    assert connection.execute(
        "SELECT count(*) FROM pg_extension WHERE extname IN ('postgis', 'vector')"
    ).fetchone() == (2,)
