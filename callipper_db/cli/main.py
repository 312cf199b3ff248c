"""The command line: parse, call one function, print. Errors of ours become one sentence and exit status 1."""

from __future__ import annotations

import sys
from typing import Any

import click

from callipper_db.cli import database, evaluation, loading, models, search, server, text_encoders, training
from callipper_db.errors import CallipperError


class Group(click.Group):
    """Turns our errors into sentences, and Ctrl-C into a quiet end."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except CallipperError as error:
            raise click.ClickException(str(error)) from error
        except BrokenPipeError:
            sys.exit(141)  # the reader, `head` for one, has seen enough
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

    Without --dsn and CALLIPPER_DSN, an embedded PostgreSQL is used and started on demand.
    """


for command in (
    database.init,
    database.doctor,
    database.print_dsn,
    loading.load,
    training.train,
    training.refresh,
    training.remember,
    search.query,
    search.similar,
    search.describe,
    evaluation.evaluate,
    search.plot_command,
    models.models,
    text_encoders.text_encoder_group,
    server.server,
):
    main.add_command(command)
