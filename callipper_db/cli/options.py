"""Options that commands share: the database, an SRID, and the training side."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click

from callipper_db import schema
from callipper_db.config import Settings
from callipper_db.db import without_secrets
from callipper_db.errors import CallipperError, ConnectionFailed, ConnectionLost, EmptyDsn, NotInitialised, needs_extra
from callipper_db.server import EmbeddedServer

EMBEDDED = "callipper_db.embedded"  # key in the context of a command

F = TypeVar("F", bound=Callable[..., Any])


dsn_option = click.option(
    "--dsn",
    metavar="DSN",
    help="Database to use (default: CALLIPPER_DSN, PGHOST and the like, else the embedded server, which is started).",
)


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


class Srid(click.ParamType):  # type: ignore[type-arg]
    """An EPSG number, also written EPSG:27700."""

    name = "srid"

    def __init__(self, auto: bool = False) -> None:
        self.auto = auto  # accept the word auto, as None

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """The number."""
        if self.auto and value == "auto":
            return None
        number = str(value).lower().removeprefix("epsg:")
        if not number.isdecimal() or int(number) == 0:
            self.fail(f"{value} is no EPSG number. Longitude and latitude are 4326, Web Mercator is 3857", param, ctx)
        return int(number)


def with_dsn(command: F) -> F:
    """Add --dsn. The command receives a DSN: the one given, or that of the embedded server."""

    @dsn_option
    @wraps(command)
    def wrapper(dsn: str | None, *args: Any, **kwargs: Any) -> Any:
        return command(*args, dsn=resolve_dsn(dsn), **kwargs)

    return wrapper  # type: ignore[return-value]


def with_schema(command: F) -> F:
    """As with_dsn, for a command that begins with a check that init has been run."""

    @with_dsn
    @wraps(command)
    def wrapper(dsn: str, *args: Any, **kwargs: Any) -> Any:
        schema.ensure_current(dsn)
        return command(*args, dsn=dsn, **kwargs)

    return wrapper  # type: ignore[return-value]


def resolve_dsn(dsn: str | None) -> str:
    """The DSN given, or the environment's, or that of the embedded server, which is started and brought up to date.

    If the command line does not give it, a line on stderr says which one it is. Raises EmptyDsn.
    """
    if dsn is not None and not dsn.strip():
        raise EmptyDsn(option="--dsn")
    settings = Settings.from_environment()
    server = EmbeddedServer.from_settings(settings)
    given = dsn or settings.dsn or settings.pg_dsn
    if given and not dsn:
        where = "CALLIPPER_DSN" if given == settings.dsn else "the PG variables"
        click.echo(f"Database: {without_secrets(given)} ({where} of the environment).", err=True)
    if not given or given == server.dsn():
        _remember(server)
    if given:
        return given
    if not server.status().running:
        click.echo("Starting the embedded PostgreSQL ...", err=True)
    server.start()
    click.echo(f"Database: the embedded PostgreSQL in {settings.home}.", err=True)
    try:
        schema.ensure_current(server.dsn())
    except NotInitialised:
        schema.init(server.dsn())
    return server.dsn()


def _remember(server: EmbeddedServer) -> None:
    """Remember the server in use and the present end of its log, for explained()."""
    if context := click.get_current_context(silent=True):
        context.meta[EMBEDDED] = server, server.log_size()


def explained(error: CallipperError, context: click.Context) -> CallipperError:
    """The cause of an error, if the embedded server's log has it: a full disk ends the server, not only the command."""
    if isinstance(error, (ConnectionLost, ConnectionFailed)) and EMBEDDED in context.meta:
        server, log_size = context.meta[EMBEDDED]
        return server.disk_full_since(log_size) or error
    return error


def database_digest(dsn: str) -> str:
    """A name for a database in file names. It does not depend on the password, which could be guessed from a hash."""
    return hashlib.sha256(without_secrets(dsn).encode()).hexdigest()[:16]


@needs_extra("This command", "train")
def training_side() -> Any:
    """The module callipper_trainer.train. Raises MissingExtra."""
    import callipper_trainer.train

    return callipper_trainer.train
