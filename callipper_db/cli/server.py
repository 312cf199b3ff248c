"""`callipper-db server`."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict

import click

from callipper_db.cli.console import print_json
from callipper_db.cli.options import json_option, resolve_dsn
from callipper_db.config import Settings
from callipper_db.server import EmbeddedServer


@click.group()
def server() -> None:
    """The embedded PostgreSQL: start, stop, status, psql, logs."""


def embedded() -> EmbeddedServer:
    """The embedded server of this environment."""
    return EmbeddedServer.from_settings(Settings.from_environment())


@server.command()
def start() -> None:
    """Start it. The first start creates it.

    \b
    Example:
      callipper-db server start
    """
    found = embedded()
    found.start()
    click.echo(f"Running: {found.dsn()}")


@server.command()
def stop() -> None:
    """Stop it. This ends all sessions.

    \b
    Example:
      callipper-db server stop
    """
    embedded().stop()
    click.echo("Stopped.")


@server.command()
@json_option
def status(as_json: bool) -> None:
    """Show whether it runs, where its data is, and its DSN. Exits with 3 if it does not run.

    \b
    Example:
      callipper-db server status --json
    """
    found = embedded().status()
    if as_json:
        print_json(asdict(found))
    else:
        for name, value in asdict(found).items():
            click.echo(f"{name.replace('_', ' '):<9} {'' if value is None else value}")
    if not found.running:
        sys.exit(3)


@server.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def psql(arguments: tuple[str, ...]) -> None:
    """Open psql on it. Further arguments go to psql.

    \b
    Examples:
      callipper-db server psql
      callipper-db server psql -c "SELECT count(*) FROM poi"
    """
    dsn = resolve_dsn(None)
    sys.exit(subprocess.run([embedded().psql_path, dsn, *arguments], check=False).returncode)


@server.command()
@click.option("-n", "lines", type=click.IntRange(1), default=50, show_default=True, help="How many lines.")
def logs(lines: int) -> None:
    """Show the last lines of its log.

    \b
    Example:
      callipper-db server logs -n 100
    """
    for line in embedded().tail_log(lines):
        click.echo(line)
