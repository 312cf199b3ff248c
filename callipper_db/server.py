"""The embedded PostgreSQL: a private cluster under the user's data directory, started on demand.

Layout of the home: `postgres` (the data directory, or a link to it), `postgres.log`, `server.lock`. The socket lies in
the data directory, which PostgreSQL keeps at 0700, so the file system decides who may connect: no password, no port.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from psycopg import pq, sql
from psycopg.conninfo import make_conninfo

from callipper_db.config import Settings
from callipper_db.db import extension_schemas, session
from callipper_db.disk import FULL
from callipper_db.errors import (
    ConfigError,
    ConnectionFailed,
    ConnectionLost,
    ServerBinariesMissing,
    ServerDiskFull,
    ServerHomeUnusable,
    ServerStartFailed,
    ServerVersionChanged,
)
from callipper_db.versions import MINIMUM, MINIMUM_POSTGRES

# Only part of the socket's file name. It is in the DSN, because a PGPORT in the environment would change it.
PORT = 5432
SOCKET_NAME = f".s.PGSQL.{PORT}"
LONGEST_SOCKET_PATH = 103 if sys.platform == "darwin" else 107  # bytes that fit in a socket address
ADMINISTRATOR = "postgres"  # the superuser, which creates the database and its extensions
OWNER = "callipper"  # the role of all commands
READER = "callipper_reader"
CLUSTER_BYTES = 100 * 2**20  # that initdb and the first start write
LOG_LIMIT = 10 * 2**20  # bytes; a longer log is put aside at the next start
SILENCE_S = 60.0  # a server that runs but has not answered for this long hangs
NO_SOCKET_S = 2.0  # a server without a socket for this long has lost it
DYING_S = 5.0  # how long a killed initdb may still write into its folder
ORPHANS_S = 30.0  # how long to wait for the children of a killed server
# Without the caller's PG*, which are for another server.
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C"}

# Where distributions put the server; PATH and pg_config are asked as well.
BINARY_FOLDERS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/libexec/postgresql*",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)


State = Literal["running", "starting", "stopped"]


@dataclass(frozen=True)
class ServerStatus:
    """What `status` found, without starting or changing anything."""

    state: State  # starting (or stopping): it answers, but accepts no session
    version: str | None  # of the running server, else the major version of the data; None: there is no data yet
    pid: int | None
    data_dir: Path
    socket: Path
    dsn: str
    since: datetime | None

    @property
    def running(self) -> bool:
        return self.state == "running"


@dataclass(frozen=True)
class EmbeddedServer:
    """The server of one home. Any number of processes may use the same home at once."""

    home: Path
    pg_bin: Path | None = None  # the folder of the binaries; None: search
    server_user: str = "postgres"  # who runs the server when the program runs as root
    durable: bool = True  # False: no fsync anywhere; for throw-away clusters that nobody misses after a power cut
    root_area: Path = Path("/var/lib/callipper-db")  # holds root's clusters when server_user cannot reach the home

    @classmethod
    def from_settings(cls, settings: Settings) -> EmbeddedServer:
        return cls(home=settings.home, pg_bin=settings.pg_bin, server_user=settings.server_user)

    @property
    def link(self) -> Path:
        """The data directory, or as root perhaps a link to it. The link is the truth."""
        return self.home / "postgres"

    @property
    def data_dir(self) -> Path:
        return Path(os.path.realpath(self.link))

    @property
    def log_path(self) -> Path:
        return self.home / "postgres.log"

    @property
    def socket_dir(self) -> Path:
        """The data directory where its path fits a socket address and libpq's syntax, else a short one under /tmp.

        Depends on the home alone: with $TMPDIR in it, two terminals could look for the same server in two places.
        """
        longest = max(len(os.fsencode(path)) for path in (self.link, self.data_dir))
        plain = not re.search(r"[,\"\\@\x00-\x1f]", f"{self.link}{self.data_dir}")
        if plain and longest + len(SOCKET_NAME) + 1 <= LONGEST_SOCKET_PATH:
            return self.link
        return Path("/tmp", f"callipper-db-{os.geteuid()}-{self._digest}")

    @property
    def psql_path(self) -> Path:
        """The psql that belongs to the server. Raises ServerBinariesMissing."""
        beside = self._binaries() / "psql"
        found = beside if beside.exists() else shutil.which("psql")
        if found is None:
            raise ServerBinariesMissing(minimum=MINIMUM_POSTGRES)
        return Path(found)

    def dsn(self, database: str = "callipper") -> str:
        """The libpq URI of a database of this server, whether it runs or not. The role is the owner of `callipper`."""
        return self._dsn(database, OWNER)

    def administrator_dsn(self, database: str = "callipper") -> str:
        """The libpq URI of a database of this server, which must run, with the role that may do everything."""
        with suppress(ConnectionFailed, ConnectionLost), session(self._dsn("postgres", ADMINISTRATOR)):
            return self._dsn(database, ADMINISTRATOR)
        return self._dsn(database, OWNER)  # the superuser of a cluster that an earlier program has made

    def start(self) -> None:
        """Start the server and create the database `callipper`, where that is not done yet.

        Raises ServerBinariesMissing, ServerVersionChanged, ServerHomeUnusable, ServerStartFailed.
        """
        self._secure_socket_dir()
        if self._is_ready():
            return
        with self._lock():
            self._remove_half_made()
            if not self._is_cluster():
                self._make_cluster()
            self._run_server()
            self._create_database()
            self._create_extensions()

    def stop(self) -> None:
        """Stop the server; open transactions are rolled back. Nothing happens when it is not running."""
        if not self._is_cluster():
            return
        with self._lock():
            if pid := self._postmaster():
                self._end(pid)

    def status(self) -> ServerStatus:
        states: dict[int, State] = {pq.Ping.OK: "running", pq.Ping.REJECT: "starting"}
        state: State = states.get(self._ping(), "stopped")
        version, since = _read(self.link / "PG_VERSION"), None
        if state == "running":
            # A server without a free connection answers the ping and refuses the session. Then only its state is known.
            with suppress(ConnectionFailed, ConnectionLost), session(self.dsn("postgres")) as connection:
                version, since = connection.one("SELECT current_setting('server_version'), pg_postmaster_start_time()")
        return ServerStatus(
            state=state,
            version=version.split()[0] if version else None,
            pid=self._postmaster(),
            data_dir=self.data_dir,
            socket=self._socket,
            dsn=self.dsn(),
            since=since,
        )

    def tail_log(self, lines: int = 10) -> list[str]:
        """The last lines of the server's log, oldest first."""
        return self._log_since(0)[-lines:] if lines > 0 else []

    # Is it running?

    @property
    def _socket(self) -> Path:
        return self.socket_dir / SOCKET_NAME

    @property
    def _digest(self) -> str:
        return hashlib.sha256(os.fsencode(os.path.realpath(self.home))).hexdigest()[:12]

    @property
    def _cluster_name(self) -> str:
        return f"callipper-db-{self._digest}"

    def _ping(self) -> int:
        return pq.PGconn.ping(make_conninfo(self.dsn("postgres"), connect_timeout="5").encode())

    def _dsn(self, database: str, role: str) -> str:
        host = quote(os.fsencode(self.socket_dir), safe="/")
        return f"postgresql:///{quote(database, safe='')}?host={host}&port={PORT}&user={role}"

    def _is_ready(self) -> bool:
        try:
            with session(self.dsn()) as connection:
                return len(extension_schemas(connection)) == len(MINIMUM)
        except (ConnectionFailed, ConnectionLost):
            return False

    def _postmaster(self) -> int | None:
        """The process id of this cluster's living server. postmaster.pid alone is no proof, because the system reuses ids."""
        pid = _first_number(self.link / "postmaster.pid")
        if pid and (_has_folder(_command(pid), self.data_dir) or self._ping() != pq.Ping.NO_RESPONSE):
            return pid
        return None

    def _orphans(self) -> list[int]:
        """Processes that a killed server left behind, titled `postgres: <cluster name>: ...`."""
        return [pid for pid in _all_processes() if _command(pid).startswith(f"postgres: {self._cluster_name}: ")]

    def _wait_for_answer(self, pid: int, patience_s: float = SILENCE_S) -> bool:
        """Wait until server process `pid` accepts a session. During a long recovery it answers 'not yet'."""
        silent_since = time.monotonic()
        while time.monotonic() - silent_since < patience_s:
            answer = self._ping()
            if answer == pq.Ping.OK:
                return True
            if answer == pq.Ping.REJECT:
                silent_since = time.monotonic()
            elif not _exists(pid):
                return False
            time.sleep(0.05)
        return False

    # Making the cluster

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One process at a time makes, starts or stops this home's server; others wait here."""
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            info = self.home.stat()
            if info.st_uid != os.geteuid():
                raise ServerHomeUnusable(path=self.home, reason="it belongs to another user")
            if info.st_mode & stat.S_IWOTH:
                raise ServerHomeUnusable(path=self.home, reason="everybody may write in it")
            handle = os.open(self.home / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                yield
            finally:
                os.close(handle)
        except OSError as error:
            path = self.home if error.filename is None else error.filename
            raise ServerHomeUnusable(path=path, reason=error.strerror or str(error)) from error

    def _is_cluster(self) -> bool:
        return _read(self.link / "PG_VERSION") is not None

    def _account(self) -> tuple[int, int]:
        """User and group that run the server. PostgreSQL refuses root, so as root it is the owner of the data."""
        if os.geteuid() != 0:
            return os.geteuid(), os.getegid()
        if self._is_cluster():
            info = self.data_dir.stat()
            return info.st_uid, info.st_gid
        for name in [self.server_user, *(["nobody"] if self.server_user == "postgres" else [])]:
            with suppress(KeyError):
                entry = pwd.getpwnam(name)
                if entry.pw_uid == 0:
                    break
                return entry.pw_uid, entry.pw_gid
        reason = "PostgreSQL needs an existing user other than root to run as"
        raise ConfigError(name="CALLIPPER_SERVER_USER", value=self.server_user, reason=reason)

    def _run(self, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """Run a program as the server's user, without our terminal, environment and working directory."""
        uid, gid = self._account()
        if "input" not in options:
            options["stdin"] = subprocess.DEVNULL
        if os.geteuid() == 0:
            options |= {"user": uid, "group": gid, "extra_groups": []}
        try:
            run: subprocess.CompletedProcess[bytes] = subprocess.run(
                arguments, check=False, cwd="/", env=ENVIRONMENT, start_new_session=True, **options
            )
        except OSError as error:
            reason = f"user {uid} cannot run {arguments[0]} ({error.strerror}; are its folders open to that user?)"
            raise ServerStartFailed(reason=reason, log=self.log_path) from error
        return run

    def _write(self, path: Path, text: str, *, append: bool = False) -> None:
        """Write as the server's user: root would follow a link planted in that user's folder."""
        script = f'umask 077; cat {">>" if append else ">"} "$1"'
        done = self._run("/bin/sh", "-c", script, "sh", path, input=text.encode(), stderr=subprocess.PIPE)
        if done.returncode != 0:
            raise ServerHomeUnusable(path=path.parent, reason=done.stderr.decode(errors="replace"))

    def _may_enter(self, folder: Path) -> bool:
        return self._run("/bin/sh", "-c", 'cd "$1"', "sh", folder, stderr=subprocess.DEVNULL).returncode == 0

    def _make_cluster(self) -> None:
        """Run initdb in another folder, then rename that. A kill in between leaves nothing that looks finished."""
        if self.link.is_symlink() and not self.link.exists():
            self.link.unlink()  # the cluster was removed, to start over
        if self.link.exists() and (not self.link.is_dir() or any(self.link.iterdir())):
            raise ServerHomeUnusable(path=self.link, reason="there is something else than a PostgreSQL data directory")
        if self._may_enter(self.home):
            fresh = Path(tempfile.mkdtemp(prefix="postgres.init-", dir=self.home))
            self._fill_cluster(fresh)
            fresh.rename(self.link)
            return
        self.root_area.mkdir(mode=0o755, parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f"init-{self._digest}-", dir=self.root_area))
        self._fill_cluster(fresh)
        final = fresh.with_name(fresh.name.removeprefix("init-"))
        # The link first: a kill in between leaves a link to nothing, and a folder whose name shows that it is not finished.
        self.link.symlink_to(final)
        fresh.rename(final)

    def _fill_cluster(self, folder: Path) -> None:
        initdb = self._binaries() / "initdb"
        if (free := shutil.disk_usage(folder).free) < CLUSTER_BYTES:
            reason = f"a new database takes {CLUSTER_BYTES / 2**20:.0f} MiB, and {free / 2**20:.0f} MiB are free"
            shutil.rmtree(folder, ignore_errors=True)
            raise ServerDiskFull(path=folder.parent, reason=reason)
        if os.geteuid() == 0:
            os.chown(folder, *self._account())
        start = self.log_size()
        options = [f"--username={ADMINISTRATOR}", "--auth-local=trust", "--auth-host=reject", "--encoding=UTF8"]
        options += ["--data-checksums", "--no-instructions", *([] if self.durable else ["--no-sync"])]
        for locale in ("C.UTF-8", "C"):  # older systems lack the first
            with self._open_log() as log:
                done = self._run(initdb, "-D", folder, *options, f"--locale={locale}", stdout=log, stderr=log)
            if done.returncode == 0:
                self._write(folder / "postgresql.conf", "include_if_exists = 'callipper.conf'\n", append=True)
                return
        shutil.rmtree(folder, ignore_errors=True)
        raise self._failed("initdb failed", start)

    def _remove_half_made(self) -> None:
        """Remove what a killed initdb left, and end an initdb that outlived its caller."""
        for folder in [*self.home.glob("postgres.init-*"), *self.root_area.glob(f"init-{self._digest}-*")]:
            deadline = time.monotonic() + DYING_S
            while folder.exists() and time.monotonic() < deadline:
                for pid in _all_processes():
                    if _has_folder(_command(pid), folder):
                        _signal(pid, signal.SIGKILL)
                shutil.rmtree(folder, ignore_errors=True)
                time.sleep(0.02)

    def _create_database(self) -> None:
        """Create the database and the role that owns it, which is no superuser. The functions run with its rights."""
        with session(self.administrator_dsn("postgres"), autocommit=True) as connection:
            roles = {str(name) for (name,) in connection.execute("SELECT rolname FROM pg_roles")}
            if OWNER not in roles:
                connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(OWNER)))
            if READER not in roles:  # init may not create roles
                connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(READER)))
            may_grant = "SELECT pg_has_role(%s::name, %s::name, 'MEMBER WITH ADMIN OPTION')"
            if connection.one(may_grant, [OWNER, READER]) != (True,):
                grant = sql.SQL("GRANT {} TO {} WITH ADMIN OPTION")
                connection.execute(grant.format(sql.Identifier(READER), sql.Identifier(OWNER)))
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = 'callipper'").fetchone():
                connection.execute(sql.SQL("CREATE DATABASE callipper OWNER {}").format(sql.Identifier(OWNER)))

    def _create_extensions(self) -> None:
        """Create the extensions whose files are installed, which only a superuser may. init names the missing ones."""
        with session(self.administrator_dsn(), autocommit=True) as connection:
            missing = connection.execute(
                "SELECT name FROM pg_available_extensions WHERE name = ANY(%s::name[]) AND installed_version IS NULL",
                [list(MINIMUM)],
            ).fetchall()
            for (name,) in missing:
                connection.execute(sql.SQL("CREATE EXTENSION {} SCHEMA public").format(sql.Identifier(name)))

    def _secure_socket_dir(self) -> None:
        """Anyone could have made a socket directory outside the home. So make it, or check that it is ours."""
        path = self.socket_dir
        if path == self.link:
            return
        uid, gid = self._account()
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        info = path.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid not in (uid, os.geteuid()) or info.st_mode & 0o077:
            raise ServerHomeUnusable(path=path, reason="it is not a folder that only you can enter")
        if info.st_uid != uid:
            os.chown(path, uid, gid, follow_symlinks=False)

    # Starting and stopping

    def _run_server(self) -> None:
        if pid := self._postmaster():
            if self._wait_for_answer(pid, SILENCE_S if self._socket.exists() else NO_SOCKET_S):
                return
            self._end(pid)
        binaries = self._binaries()
        self._remove_stale_locks()
        self._write_settings()
        self._rotate_log()
        deadline = time.monotonic() + ORPHANS_S
        while True:
            start = self.log_size()
            pid = self._launch(binaries)
            if self._wait_for_answer(pid):
                return
            if _exists(pid):
                self._end(pid)
                raise self._failed(f"it did not answer for {SILENCE_S:.0f} seconds", start)
            if "is still in use" not in "".join(self._log_since(start)) or time.monotonic() > deadline:
                raise self._failed("it stopped at once", start)
            # Children of a killed server that still run a long query. Their server would have ended them with the same signal.
            for orphan in self._orphans():
                _signal(orphan, signal.SIGQUIT)
            time.sleep(0.2)

    def _launch(self, binaries: Path) -> int:
        """Start the server in its own session, which Ctrl-C does not reach, and as a child of init, which leaves no zombie."""
        socket_dir = self.data_dir if self.socket_dir == self.link else self.socket_dir
        settings = {  # on the command line, so that no ALTER SYSTEM can open the server to the network
            "listen_addresses": "",
            "port": PORT,
            "unix_socket_directories": f'"{socket_dir}"',
            "unix_socket_permissions": "0700",
            "cluster_name": self._cluster_name,
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        command: list[str | Path] = [binaries / "postgres", "-D", self.data_dir, *options]
        with self._open_log() as log:
            script = '"$@" >&2 & echo $!'  # stdout is only for the process id: the server must not hold our pipe open
            done = self._run("/bin/sh", "-c", script, "sh", *command, stdout=subprocess.PIPE, stderr=log)
        return int(done.stdout)

    def _remove_stale_locks(self) -> None:
        """Remove lock files of a dead server that PostgreSQL would believe; others it removes itself.

        It believes one whose process id now belongs to another program or a zombie, or was never written.
        """
        for path in (self.link / "postmaster.pid", self.socket_dir / f"{SOCKET_NAME}.lock"):
            pid = _first_number(path)
            if pid is None or _is_taken(pid):
                path.unlink(missing_ok=True)

    def _write_settings(self) -> None:
        """Write our settings, at each start. PostgreSQL reads the user's ALTER SYSTEM after them, so that wins."""
        text = server_settings(_memory_bytes(), _shm_bytes(), durable=self.durable)
        self._write(self.data_dir / "callipper.conf", text)

    def _end(self, pid: int) -> None:
        """Fast shutdown; if that takes too long, an immediate one; if that takes too long, kill."""
        for number, patience_s in ((signal.SIGINT, 120), (signal.SIGQUIT, 10), (signal.SIGKILL, 10)):
            _signal(pid, number)
            deadline = time.monotonic() + patience_s
            while _exists(pid) and time.monotonic() < deadline:
                time.sleep(0.02)

    # The log

    def _open_log(self) -> Any:
        return os.fdopen(os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "wb")

    def log_size(self) -> int:
        """Bytes of the log."""
        return self.log_path.stat().st_size if self.log_path.exists() else 0

    def _rotate_log(self) -> None:
        if self.log_size() > LOG_LIMIT:
            self.log_path.replace(f"{self.log_path}.1")

    def _log_since(self, offset: int) -> list[str]:
        """The log's lines after a byte, at most the last 64 kB."""
        if not self.log_path.exists():
            return []
        with self.log_path.open("rb") as log:
            log.seek(max(offset, self.log_size() - 2**16))
            return log.read().decode(errors="replace").splitlines()

    def disk_full_since(self, offset: int) -> ServerDiskFull | None:
        """DiskFull, if the log after a byte reports a full disk."""
        lines = [line.strip() for line in self._log_since(offset) if FULL in line]
        return ServerDiskFull(path=self.data_dir, reason=lines[-1].rstrip(".")) if lines else None

    def _failed(self, what: str, offset: int) -> ServerStartFailed | ServerDiskFull:
        if full := self.disk_full_since(offset):
            return full
        said = " / ".join(line.strip() for line in self._log_since(offset)[-5:])
        return ServerStartFailed(reason=f"{what}: {said}" if said else what, log=self.log_path)

    # Binaries

    def _binaries(self) -> Path:
        """The folder of the binaries for this data. For a new cluster: binaries with the extensions first, then the newest."""
        versions = {folder: major for folder in self._binary_folders() if (major := _major(folder)) is not None}
        made_by = _read(self.link / "PG_VERSION")
        if made_by is None:
            usable = [folder for folder, major in versions.items() if major >= MINIMUM_POSTGRES]
        else:
            usable = [folder for folder, major in versions.items() if str(major) == made_by]
        if usable:
            return max(usable, key=lambda folder: (_has_extensions(folder), versions[folder]))
        if made_by is None or not versions:
            raise ServerBinariesMissing(minimum=MINIMUM_POSTGRES)
        available = ", ".join(str(major) for major in sorted(set(versions.values())))
        raise ServerVersionChanged(data_dir=self.data_dir, found=made_by, available=f"PostgreSQL {available}")

    def _binary_folders(self) -> list[Path]:
        if self.pg_bin:
            return [self.pg_bin]
        said = _output("pg_config", "--bindir")
        folders = [Path(said)] if said else []
        for pattern in BINARY_FOLDERS:
            folders += sorted(Path("/").glob(pattern.lstrip("/")))
        if on_path := shutil.which("initdb"):
            folders.append(Path(on_path).resolve().parent)
        return [*folders, Path(sys.prefix, "bin")]


def server_settings(memory_bytes: int, shm_bytes: int | None, *, durable: bool) -> str:
    """The text of callipper.conf for a machine with this memory and this space in /dev/shm (None: no /dev/shm)."""
    mb = memory_bytes // 2**20
    values = {
        "max_connections": "40",
        "shared_buffers": f"{_within(mb // 8, 32, 1024)}MB",
        "work_mem": f"{_within(mb // 256, 32, 64)}MB",
        "maintenance_work_mem": f"{_within(mb // 8, 64, 4096)}MB",  # an HNSW index of two million cells is built in it
        "autovacuum_work_mem": "64MB",
        "effective_cache_size": f"{max(mb // 2, 128)}MB",
        "random_page_cost": "1.1",
        "jit": "off",  # compiling costs more than it saves for short functions over vectors
        "wal_level": "minimal",  # with the next line: COPY into a table of the same transaction skips the WAL
        "max_wal_senders": "0",
        "max_wal_size": "2GB",
        "checkpoint_timeout": "15min",
        "log_checkpoints": "off",
        "log_line_prefix": "'%m [%p] '",
        "logging_collector": "off",
    }
    if shm_bytes is not None and shm_bytes < 5 * 2**30:  # containers have 64 MB, too little for a parallel index build
        values["dynamic_shared_memory_type"] = "sysv"
    if not durable:
        values |= {"fsync": "off", "full_page_writes": "off"}
    lines = "".join(f"{name} = {value}\n" for name, value in values.items())
    return f"# Written by callipper-db at each start; change settings with ALTER SYSTEM instead.\n{lines}"


def _within(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))


def _memory_bytes() -> int:
    """The machine's memory, or the container's limit where that is lower."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _first_number(Path("/sys/fs/cgroup/memory.max"))
    return min(memory, limit) if limit else memory


def _shm_bytes() -> int | None:
    try:
        room = os.statvfs("/dev/shm")
    except OSError:
        return None
    return room.f_frsize * room.f_blocks


def _output(*arguments: str | Path) -> str | None:
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _major(folder: Path) -> int | None:
    """Major version of the server in a folder; None if no complete one is there."""
    if not (folder / "initdb").exists():
        return None
    match = re.search(r"\) (\d+)", _output(folder / "postgres", "--version") or "")
    return int(match[1]) if match else None


def _has_extensions(folder: Path) -> bool:
    share = _output(folder / "pg_config", "--sharedir")
    return share is not None and all(Path(share, "extension", f"{e}.control").exists() for e in ("postgis", "vector"))


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError:
        return None


def _first_number(path: Path) -> int | None:
    match = re.match(r"\d+", _read(path) or "")
    return int(match[0]) if match else None


# Processes: through /proc on Linux, through ps elsewhere. In a container without CAP_SYS_PTRACE, /proc shows root only the
# command line of another user's process. So only command lines are compared.


def _command(pid: int) -> str:
    said = _read(Path("/proc", str(pid), "cmdline"))
    if said is None and not Path("/proc/self").exists():
        said = _output("ps", "-p", str(pid), "-o", "command=")
    return (said or "").replace("\0", " ")


def _has_folder(command: str, folder: Path) -> bool:
    """Whether a command line is that of a postgres or initdb of this data directory."""
    return f" -D {folder} " in f"{command} " and ("/postgres " in command or "/initdb " in command)


def _all_processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def _is_taken(pid: int) -> bool:
    """Whether a process id is in use, also by a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _exists(pid: int) -> bool:
    """Whether a process lives; a zombie does not."""
    said = _read(Path("/proc", str(pid), "stat"))
    if said is not None:
        return said.rpartition(")")[2].split()[0] not in ("Z", "X")
    return not Path("/proc/self").exists() and _is_taken(pid)


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
