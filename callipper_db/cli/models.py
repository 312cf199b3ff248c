"""`callipper-db models`."""

from __future__ import annotations

import json
from datetime import datetime

import click

from callipper_db import models as model_versions
from callipper_db.cli.console import print_json, print_list, print_table
from callipper_db.cli.options import json_option, with_schema


@click.group()
def models() -> None:
    """Model versions: list, show, compare, activate, drop, prune."""


@models.command("list")
@json_option
@with_schema
def list_models(dsn: str, as_json: bool) -> None:
    """List the versions, newest first.

    \b
    Example:
      callipper-db models list
    """
    found = model_versions.list_models(dsn)
    rows = (
        [
            model["version"],
            model["status"],
            f"{model['created_at']:%Y-%m-%d %H:%M}",
            model["provenance"].get("source"),
            f"{model['provenance'].get('rows', 0):,}",
            f"{model['metrics'].get('validation_loss', 0):.3f}",
        ]
        for model in found
    )
    nothing = "There is no model yet. Train one with: callipper-db train"
    print_list(found, as_json, nothing, ["version", "status", "created", "source", "POIs", "validation loss"], rows)


@models.command("show")
@click.argument("version", type=int, required=False)
@with_schema
def show_model(dsn: str, version: int | None) -> None:
    """Everything that is stored about a version (default: the active one), as JSON.

    \b
    Example:
      callipper-db models show 3
    """
    click.echo(json.dumps(model_versions.show_model(dsn, version), default=str, indent=2, ensure_ascii=False))


@models.command("compare")
@click.argument("first", type=int, metavar="A")
@click.argument("second", type=int, metavar="B")
@json_option
@with_schema
def compare_models(dsn: str, first: int, second: int, as_json: bool) -> None:
    """Two versions side by side: their source, the settings that differ, training, and the figures of evaluate.

    \b
    Example:
      callipper-db models compare 1 2
    """
    found = model_versions.compare_models(dsn, first, second)
    if as_json:
        print_json(found)
        return
    rows: list[list[object]] = []
    for section, values in found.items():
        rows += [[section, "", ""]] if values else []
        rows += [[f"  {name}", *map(shown, pair)] for name, pair in values.items()]
    print_table(["", f"version {first}", f"version {second}"], rows)


def shown(value: object) -> str:
    """A value as a table shows it, with numbers of a readable length."""
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "" if value is None else f"{value:%Y-%m-%d %H:%M}" if isinstance(value, datetime) else str(value)


@models.command("activate")
@click.argument("version", type=int)
@with_schema
def activate_model(dsn: str, version: int) -> None:
    """Make a version the active one.

    \b
    Example:
      callipper-db models activate 2
    """
    model_versions.activate_model(dsn, version)
    click.echo(f"Model version {version} is active.")


@models.command("drop")
@click.argument("version", type=int)
@click.option("--force", is_flag=True, help="Drop it even if it is the active one.")
@with_schema
def drop_model(dsn: str, version: int, force: bool) -> None:
    """Remove a version with its embeddings.

    \b
    Example:
      callipper-db models drop 1
    """
    model_versions.drop_model(dsn, version, force=force)
    click.echo(f"Model version {version} is gone.")


@models.command("prune")
@click.option(
    "--keep", type=click.IntRange(min=0), required=True, metavar="N", help="How many of the newest versions stay."
)
@click.option("--dry-run", is_flag=True, help="Say which versions would go, and drop none.")
@with_schema
def prune_models(dsn: str, keep: int, dry_run: bool) -> None:
    """Remove old versions. The N newest stay, and the active one.

    Each version goes in a transaction of its own, so that a version that is being read stops only itself.

    \b
    Example:
      callipper-db models prune --keep 3
    """
    found = model_versions.versions_to_prune(dsn, keep)
    for version in found:
        if dry_run:
            click.echo(f"Model version {version} would go.")
            continue
        model_versions.drop_model(dsn, version)
        click.echo(f"Model version {version} is gone.")
    if not found:
        click.echo("There is no version to remove.")
