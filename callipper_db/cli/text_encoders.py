"""`callipper-db text-encoder`."""

from __future__ import annotations

import click

from callipper_db import schema, text_encoders
from callipper_db.cli.console import make_reporter, print_list
from callipper_db.cli.options import json_option, training_side, with_dsn, with_schema
from callipper_db.config import Settings


@click.group("text-encoder")
def text_encoder_group() -> None:
    """Text encoders inside the database: list, install, remove."""


@text_encoder_group.command("list")
@json_option
@with_schema
def list_text_encoders(dsn: str, as_json: bool) -> None:
    """List the encoders that models were trained with, and whether they run in SQL.

    \b
    Example:
      callipper-db text-encoder list
    """
    found = text_encoders.list_text_encoders(dsn)
    rows = (
        [
            encoder["name"],
            encoder["revision"][:12],
            encoder["dim"],
            "yes" if encoder["installed"] else "no",
            ", ".join(map(str, encoder["models"])),
        ]
        for encoder in found
    )
    nothing = "There is no text encoder yet. callipper-db train installs one."
    print_list(found, as_json, nothing, ["name", "revision", "dimensions", "installed", "used by models"], rows)


@text_encoder_group.command("install")
@click.argument("name", required=False)
@with_dsn
def install_text_encoder(dsn: str, name: str | None) -> None:
    """Write an encoder's weights into the database, so that text_embed answers any text.

    NAME is that of train --text-encoder. It takes seconds, and about 95 MB for the default encoder. `train` does it too.

    \b
    Examples:
      callipper-db text-encoder install
      callipper-db text-encoder install sentence-transformers/all-MiniLM-L12-v2
    """
    training_side()
    from callipper_trainer.install_text_encoder import install
    from callipper_trainer.text_encoder import find_encoder

    schema.ensure_current(dsn)
    encoder = find_encoder(name or Settings.from_environment().text_encoder)
    with make_reporter(False) as reporter:
        fresh = install(dsn, encoder, reporter)
    click.echo(f"{encoder.name} {'is installed' if fresh else 'was installed already'}.")


@text_encoder_group.command("remove")
@click.argument("name")
@with_schema
def remove_text_encoder(dsn: str, name: str) -> None:
    """Remove an encoder's weights from the database. Remembered texts are still answered.

    \b
    Example:
      callipper-db text-encoder remove sentence-transformers/all-MiniLM-L6-v2
    """
    versions = text_encoders.remove_text_encoder(dsn, name)
    click.echo(f"{name} is removed.")
    if versions:
        click.echo(
            f"Model version {', '.join(map(str, versions))} answers only remembered texts from now on;"
            f" to undo this: callipper-db text-encoder install {name}"
        )
