"""Settings: the only reader of the environment."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from psycopg.conninfo import make_conninfo

from callipper_db.errors import ConfigError


@dataclass(frozen=True)
class Settings:
    """The settings from the environment. Each field is a variable: `dsn` is CALLIPPER_DSN."""

    dsn: str | None  # the database to use; None: the one of the PG variables, else the embedded server
    home: Path  # the folder of the embedded server, checkpoints and logs
    pg_bin: Path | None  # the folder of initdb and postgres; None: search for the newest
    server_user: str  # the user that runs the embedded server when the program runs as root
    text_encoder: str  # name on the Hugging Face hub, or a folder
    map_token: str | None = None  # what `map` asks for where other machines reach it
    pg_dsn: str | None = None  # from libpq's variables, if they name a server or a database

    @classmethod
    def from_environment(cls) -> Settings:
        env = os.environ.get
        pg_bin = env("CALLIPPER_PG_BIN")
        if pg_bin and not (Path(pg_bin) / "initdb").exists():
            raise ConfigError(name="CALLIPPER_PG_BIN", value=pg_bin, reason="it holds no initdb")
        map_token = env("CALLIPPER_MAP_TOKEN")
        if map_token and not re.fullmatch(r"[\w.~-]+", map_token, re.ASCII):
            reason = "it stands in an address and a cookie, so it may have letters, digits and - . _ ~ alone"
            raise ConfigError(name="CALLIPPER_MAP_TOKEN", value="(not shown)", reason=reason)
        return cls(
            dsn=env("CALLIPPER_DSN") or None,
            pg_dsn=_pg_dsn(),
            map_token=map_token or None,
            home=Path(env("CALLIPPER_HOME") or platformdirs.user_data_dir("callipper-db")).expanduser().absolute(),
            pg_bin=Path(pg_bin) if pg_bin else None,
            server_user=env("CALLIPPER_SERVER_USER") or "postgres",
            text_encoder=env("CALLIPPER_TEXT_ENCODER") or "sentence-transformers/all-MiniLM-L6-v2",
        )


# libpq reads the other variables, such as PGPASSWORD, by itself.
PG_VARIABLES = {
    "PGSERVICE": "service",
    "PGHOST": "host",
    "PGHOSTADDR": "hostaddr",
    "PGPORT": "port",
    "PGDATABASE": "dbname",
    "PGUSER": "user",
}
NAMING = {"PGSERVICE", "PGHOST", "PGHOSTADDR", "PGDATABASE"}


def _pg_dsn() -> str | None:
    found = {name: value for name in PG_VARIABLES if (value := os.environ.get(name))}
    if NAMING.isdisjoint(found):
        return None
    return make_conninfo("", **{PG_VARIABLES[name]: value for name, value in found.items()})
