"""The command line: parse, call one function, print. Errors of ours become one sentence and exit status 1."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from callipper_db.cli import (
    changes,
    database,
    embedding,
    evaluation,
    exporting,
    layers,
    loading,
    map,
    mcp,
    models,
    pois,
    search,
    server,
    text_encoders,
    training,
)
from callipper_db.cli.options import explained
from callipper_db.errors import CallipperError


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP was received. The driver cancels its query, as after Ctrl-C."""


@contextmanager
def unwound_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise Terminated, so that transactions are rolled back and files are removed.

    Only signals that would have ended the process: an ignored one (nohup) stays ignored.
    """
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # Python handles signals in the main thread only

    def unwind(number: int, _: object) -> None:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)  # a second signal must not interrupt the cleaning up
        raise Terminated(number)

    try:
        for number in numbers:
            signal.signal(number, unwind)
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


class Group(click.Group):
    """Turns our errors into sentences, and signals that end the program into a quiet end."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            with unwound_by_signals():
                return super().invoke(ctx)
        except Terminated as signalled:
            click.echo("Terminated.", err=True)
            sys.exit(128 + int(signalled.args[0]))
        except CallipperError as error:
            raise click.ClickException(str(explained(error, ctx))) from error
        except BrokenPipeError:
            sys.exit(141)  # the reader of a pipe, such as `head`, has closed it
        except OSError as error:  # a file that cannot be read or written, a full disk
            raise click.ClickException(
                f"{error.filename}: {error.strerror}" if error.filename else str(error)
            ) from error


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="callipper-db")
def main() -> None:
    """Spatial-semantic search in PostGIS.

    \b
    callipper-db load pois.csv          POIs into the database
    callipper-db train                  train, embed a grid, make the model active
    callipper-db query 'quiet park'     ask

    Without --dsn and CALLIPPER_DSN, the database that PGHOST, PGSERVICE or PGDATABASE name is used; without those, an
    embedded PostgreSQL, which is started on demand.
    """


for command in (
    database.init,
    database.doctor,
    database.status,
    database.extension,
    database.print_dsn,
    loading.load,
    pois.pois,
    training.train,
    training.refresh,
    training.remember,
    search.query,
    search.points,
    search.similar,
    search.describe,
    changes.changes,
    evaluation.evaluate,
    search.plot_command,
    map.map_command,
    mcp.mcp_command,
    layers.layer_group,
    embedding.embed,
    exporting.export_command,
    models.models,
    text_encoders.text_encoder_group,
    server.server,
):
    main.add_command(command)
