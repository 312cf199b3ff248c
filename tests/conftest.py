"""The database of the tests: one throw-away cluster a session, a template made by the product's own init, clones of it.

CALLIPPER_TEST_DSN points the tests at another server; its user must be able to create databases and extensions.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result
from psycopg import sql
from psycopg.conninfo import make_conninfo

from callipper_db import db
from callipper_db.cli.main import main
from callipper_db.server import EmbeddedServer
from sessions import rolled_back, user_session

if TYPE_CHECKING:
    from callipper_trainer.text_encoder import TextEncoder

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads only wait for each other in models as small as the tests'

# A shell's background job ignores Ctrl-C, and nohup SIGHUP, and both hand that down; the tests of these need them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

_numbers = count(1)


@contextmanager
def _open_folder() -> Iterator[Path]:
    """A folder that the server's user can reach too (pytest's own are closed to it when the tests run as root)."""
    folder = Path(tempfile.mkdtemp(prefix="callipper-test-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    with _open_folder() as folder:
        yield folder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole-crowd", action="store_true", help="the crowd of readers at its full size (make crowd)")
    parser.addoption(
        "--every-text", action="store_true", help="tokenizers: all names of the data folder, all code points"
    )


@pytest.fixture(scope="module")
def module_folder() -> Iterator[Path]:
    with _open_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def cluster_dsn() -> Iterator[str]:
    """A database of a running server, to create others from."""
    if dsn := os.environ.get("CALLIPPER_TEST_DSN"):
        yield dsn
        return
    with _open_folder() as home:
        server = EmbeddedServer(home, durable=False)
        try:
            server.start()
            yield server.administrator_dsn()
        finally:
            server.stop()


@pytest.fixture(scope="session")
def bare_template(cluster_dsn: str) -> Iterator[str]:
    """The name of a database with the two extensions alone. Nobody connects to it: it is there to be cloned."""
    with _database(cluster_dsn, "template0") as dsn:
        with user_session(dsn) as connection:
            connection.execute("CREATE EXTENSION postgis")
            connection.execute("CREATE EXTENSION vector")
            name = connection.info.dbname
        yield name


@pytest.fixture(scope="session")
def template_database(cluster_dsn: str, bare_template: str) -> Iterator[str]:
    """The name of a database with the extensions and the schema, to be cloned."""
    from callipper_db import schema

    with _database(cluster_dsn, bare_template) as dsn:
        schema.init(dsn)
        with user_session(dsn) as connection:
            name = connection.info.dbname
        yield name


@pytest.fixture
def empty_database(cluster_dsn: str) -> Iterator[str]:
    """The DSN of a database with nothing in it, not even the extensions."""
    with _database(cluster_dsn, "template0") as dsn:
        yield dsn


@pytest.fixture
def bare_database(cluster_dsn: str, bare_template: str) -> Iterator[str]:
    """The DSN of a database with the two extensions alone."""
    with _database(cluster_dsn, bare_template) as dsn:
        yield dsn


@pytest.fixture
def database(cluster_dsn: str, template_database: str) -> Iterator[str]:
    """The DSN of a database of the test's own, with the extensions and the schema."""
    with _database(cluster_dsn, template_database) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def module_database(cluster_dsn: str, template_database: str) -> Iterator[str]:
    """The DSN of a database that the tests of one file share."""
    with _database(cluster_dsn, template_database) as dsn:
        yield dsn


@pytest.fixture(scope="session")
def shared_database(cluster_dsn: str, template_database: str) -> Iterator[str]:
    with _database(cluster_dsn, template_database) as dsn:
        yield dsn


@pytest.fixture
def connection(shared_database: str) -> Iterator[db.Connection]:
    """A transaction that is rolled back after the test, in a database that the tests share: do not commit."""
    with rolled_back(shared_database) as connection:
        yield connection


@pytest.fixture
def reading(shared_town: str) -> Iterator[db.Connection]:
    """A transaction in the trained town that is rolled back after the test: do not commit."""
    with rolled_back(shared_town) as connection:
        yield connection


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the test, where rejects files go."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def poi(module_database: str) -> str:
    """The DSN of a database without POIs, which the tests of one file share."""
    with user_session(module_database) as connection:
        connection.execute("TRUNCATE callipper.poi")
    return module_database


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command; without --dsn it would start a server, in a folder of the test's own."""
    for name in [name for name in os.environ if name.startswith(("CALLIPPER_", "PG"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CALLIPPER_HOME", str(tmp_path / "home"))

    def run(*arguments: str, exit_code: int = 0) -> Result:
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == exit_code, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return run


@pytest.fixture(scope="session")
def encoder() -> TextEncoder:
    """The sentence encoder, which the tests load once."""
    from callipper_trainer.text_encoder import find_encoder
    from town import ENCODER

    return find_encoder(ENCODER)


@pytest.fixture(scope="session")
def town_template(
    cluster_dsn: str, template_database: str, encoder: TextEncoder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The name of a database with the town's POIs, model version 1 of them, and the vectors of all its texts."""
    from town import fill_town, train_town

    with _database(cluster_dsn, template_database) as dsn:
        fill_town(dsn)
        train_town(dsn, tmp_path_factory.mktemp("town"))
        with user_session(dsn) as connection:
            name = connection.info.dbname
        yield name


@pytest.fixture
def town(cluster_dsn: str, town_template: str) -> Iterator[str]:
    """The DSN of a trained town of the test's own."""
    with _database(cluster_dsn, town_template) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def module_town(cluster_dsn: str, town_template: str) -> Iterator[str]:
    """The DSN of a trained town that the tests of one file share."""
    with _database(cluster_dsn, town_template) as dsn:
        yield dsn


@pytest.fixture(scope="session")
def shared_town(cluster_dsn: str, town_template: str) -> Iterator[str]:
    """The DSN of a trained town to read from."""
    with _database(cluster_dsn, town_template) as dsn:
        yield dsn


@contextmanager
def _database(cluster_dsn: str, template: str) -> Iterator[str]:
    """The DSN of a copy of a database that nobody is connected to."""
    name = f"callipper_test_{os.getpid()}_{next(_numbers)}"
    new, old = sql.Identifier(name), sql.Identifier(template)
    with user_session(cluster_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {} ENCODING 'UTF8'").format(new, old))
    try:
        _copy_settings(cluster_dsn, template, name)
        yield make_conninfo(cluster_dsn, dbname=name)
    finally:
        with user_session(cluster_dsn, autocommit=True) as admin:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(new))


def _copy_settings(cluster_dsn: str, template: str, name: str) -> None:
    """A clone lacks what ALTER DATABASE set in its template, such as the search_path."""
    with user_session(cluster_dsn, autocommit=True) as admin:
        found = admin.execute(
            "SELECT split_part(s, '=', 1), substr(s, strpos(s, '=') + 1) FROM pg_db_role_setting, unnest(setconfig) s"
            " WHERE setrole = 0 AND setdatabase = (SELECT oid FROM pg_database WHERE datname = %s)",
            [template],
        ).fetchall()
        for setting, value in found:
            # search_path is stored as the list of identifiers that it is, others as text.
            text = sql.SQL(value) if setting == "search_path" else sql.Literal(value)
            statement = sql.SQL("ALTER DATABASE {} SET {} = {}")
            admin.execute(statement.format(sql.Identifier(name), sql.Identifier(setting), text))
