"""`callipper-db models`."""

from __future__ import annotations

import json
from datetime import datetime
from itertools import zip_longest
from typing import Any

import click

from callipper_db import models as model_versions
from callipper_db import search
from callipper_db.cli.console import print_json, print_list, print_note, print_table
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
@click.option(
    "--ask", "texts", multiple=True, metavar="TEXT", help="Also show what both answer to this. May be repeated."
)
@click.option("-k", type=click.IntRange(1, 1000), default=5, show_default=True, help="How many cells of an answer.")
@json_option
@with_schema
def compare_models(dsn: str, first: int, second: int, texts: tuple[str, ...], k: int, as_json: bool) -> None:
    """Two versions side by side: their source, the settings that differ, training, and the figures of evaluate.

    With --ask also their answers, whichever of them is active. So you see a new version before readers do.

    \b
    Examples:
      callipper-db models compare 1 2
      callipper-db models compare 1 2 --ask park --ask 'quiet street' -k 3
    """
    found = model_versions.compare_models(dsn, first, second)
    answers = {text: search.compare_answers(dsn, text, first, second, k, print_note) for text in texts}
    if as_json:
        print_json(found | {"answers": answers} if texts else found)
        return
    rows: list[list[object]] = []
    for section, values in found.items():
        rows += [[section, "", ""]] if values else []
        rows += [[f"  {name}", *map(shown, pair)] for name, pair in values.items()]
    print_table(["", f"version {first}", f"version {second}"], rows)
    for text, sides in answers.items():
        print_answers(text, sides, first, second)


def print_answers(text: str, sides: dict[str, list[dict[str, Any]]], first: int, second: int) -> None:
    """The cells of two versions, rank by rank."""
    shared = sum(cell["shared"] for cell in sides["first"])
    click.echo(
        f"\n{text}: {shared} of the {len(sides['first'])} places of version {first} are also among those of version {second}"
        f" (within {search.SHARED_M:g} m)."
    )
    pairs = zip_longest(sides["first"], sides["second"])
    rows = ([rank, *map(place, pair)] for rank, pair in enumerate(pairs, start=1))
    print_table(["", f"version {first}", f"version {second}"], rows)


def place(cell: dict[str, Any] | None) -> str:
    """Where a cell is, and why it is an answer."""
    if cell is None:
        return ""
    return f"{cell['lat']:.5f}, {cell['lon']:.5f}  {cell['because'] or '(by its embedding)'}"


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
