"""Settings: the only reader of the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from callipper_db.errors import ConfigError


@dataclass(frozen=True)
class Settings:
    """What the environment says. Each field is a variable: `dsn` is CALLIPPER_DSN."""

    dsn: str | None  # the database to use; None: the embedded server
    home: Path  # the embedded server, checkpoints and logs live here
    pg_bin: Path | None  # the folder of initdb and postgres; None: search for the newest
    server_user: str  # who runs the embedded server when the program runs as root
    text_encoder: str  # name on the Hugging Face hub, or a folder

    @classmethod
    def from_environment(cls) -> Settings:
        env = os.environ.get
        pg_bin = env("CALLIPPER_PG_BIN")
        if pg_bin and not (Path(pg_bin) / "initdb").exists():
            raise ConfigError(name="CALLIPPER_PG_BIN", value=pg_bin, reason="it holds no initdb")
        return cls(
            dsn=env("CALLIPPER_DSN") or None,
            home=Path(env("CALLIPPER_HOME") or platformdirs.user_data_dir("callipper-db")).expanduser().absolute(),
            pg_bin=Path(pg_bin) if pg_bin else None,
            server_user=env("CALLIPPER_SERVER_USER") or "postgres",
            text_encoder=env("CALLIPPER_TEXT_ENCODER") or "sentence-transformers/all-MiniLM-L6-v2",
        )
