"""Parameters of libpq for encrypted connections reach every connection that the program opens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import Result
from fastapi.testclient import TestClient
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import create_engine

from callipper_db import schema
from callipper_db.web.app import create_app
from callipper_db.web.settings import MapSettings
from deployments import binaries
from encrypted import EncryptedServer, encrypted
from tiny_encoder import write_encoder
from town import GRID_M, MIDDLE, QUARTERS, places

VARIABLES = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "dbname": "PGDATABASE"}
VARIABLES |= {"sslmode": "PGSSLMODE", "sslrootcert": "PGSSLROOTCERT"}
HERE = f"{MIDDLE[0]},{MIDDLE[1]}"
# In the order of a first session. {} is a folder with the town, an encoder, and room for files.
COMMANDS = [
    "init",
    "load {}/town.csv",
    f"train --epochs 1 --grid-size {GRID_M} --text-encoder {{}}/encoder --device cpu",
    "models list",
    "models show",
    "query park",
    "points park",
    f"describe {HERE}",
    f"similar {HERE}",
    "refresh --text-encoder {}/encoder",
    "remember lamp",
    "export cells -o {}/cells.csv",
    "plot park -o {}/park.png",
    "pois list-sources",
    "text-encoder list",
    "status",
    "models activate 1",
]


@pytest.fixture(scope="module")
def server(cluster_dsn: str, module_folder: Path) -> Iterator[EncryptedServer]:
    with encrypted(module_folder, binaries(cluster_dsn)) as found:
        yield found


@pytest.fixture(scope="module")
def files(module_folder: Path) -> Path:
    write_encoder(module_folder / "encoder", num_hidden_layers=1)
    rows = [
        f"{kind}/{number},{kind} {number},{kind},{lon},{lat}"
        for kind in QUARTERS
        for number, (lon, lat) in enumerate(places(kind).tolist())
    ]
    (module_folder / "town.csv").write_text("\n".join(["id,name,category,lon,lat", *rows]))
    return module_folder


@pytest.fixture(params=["--dsn", "the environment"])
def call(
    request: pytest.FixtureRequest, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Run a command in the database of a DSN, which is given in one of two ways."""

    def call(dsn: str, command: str, exit_code: int = 0) -> Result:
        given = ["--dsn", dsn] if request.param == "--dsn" else []
        if not given:
            for name, value in conninfo_to_dict(dsn).items():
                monkeypatch.setenv(VARIABLES[name], str(value))
        return run(*command.split(), *given, exit_code=exit_code)

    return call


def test_every_command_verifies_the_server(server: EncryptedServer, files: Path, call: Any) -> None:
    for command in COMMANDS:
        call(server.dsn(), command.format(files))
    with psycopg.connect(server.dsn()) as connection:
        assert connection.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone() == (True,)


@pytest.mark.parametrize(
    ("authority", "sslmode", "reason"),
    [("stranger", "verify-full", "certificate verify failed"), ("authority", "disable", "no encryption")],
)
def test_what_is_not_trusted_is_one_sentence(
    server: EncryptedServer, files: Path, call: Any, authority: str, sslmode: str, reason: str
) -> None:
    dsn = server.dsn(getattr(server, authority), sslmode)
    for command in COMMANDS:
        said = call(dsn, command.format(files), exit_code=1).stderr.splitlines()
        errors = [line for line in said if not line.startswith("Database: ")]
        assert len(errors) == 1, command
        assert errors[0].startswith("Error: Cannot connect to ") and reason in errors[0], command
    (line,) = [line for line in call(dsn, "doctor", exit_code=1).stdout.splitlines() if reason in line]
    assert "Cannot connect" in line


def test_another_name_than_the_certificates_is_refused(server: EncryptedServer, run: Any) -> None:
    dsn = make_conninfo(server.dsn(), host="elsewhere", hostaddr="127.0.0.1")
    said = run("models", "list", "--dsn", dsn, exit_code=1).stderr
    assert 'server certificate for "localhost" does not match host name "elsewhere"' in said


def test_the_map_verifies_the_server(server: EncryptedServer) -> None:
    schema.init(server.dsn())
    address = "http://127.0.0.1"
    with TestClient(create_app(MapSettings(server.dsn())), base_url=address) as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/api/city").status_code in (200, 409)  # by whether another test has trained
    with TestClient(create_app(MapSettings(server.dsn(server.stranger), wait_s=0.1)), base_url=address) as client:
        answer = client.get("/api/city")
        assert answer.status_code == 503 and "certificate verify failed" in answer.json()["error"]


def test_sqlalchemy_takes_the_same_parameters(server: EncryptedServer) -> None:
    """As notebooks use it; init itself gives SQLAlchemy a connection of the program's own."""
    query = "".join(f"&{name}={value}" for name, value in server.parts().items() if name.startswith("ssl"))
    engine = create_engine(f"postgresql+psycopg://callipper@localhost:{server.port}/callipper?{query[1:]}")
    with engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").scalar()
    engine.dispose()
    assert found is True
