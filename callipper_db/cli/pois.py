"""`callipper-db pois`."""

from __future__ import annotations

import sys

import click

from callipper_db import pois as loaded
from callipper_db.cli.console import print_list
from callipper_db.cli.loading import conditions_of
from callipper_db.cli.options import json_option, with_schema


@click.group()
def pois() -> None:
    """Loaded POIs by source: list, remove."""


@pois.command("list-sources")
@json_option
@with_schema
def list_sources(dsn: str, as_json: bool) -> None:
    """List the sources with their numbers of POIs.

    \b
    Example:
      callipper-db pois list-sources
    """
    found = loaded.list_sources(dsn)
    rows = ([row["source"], *(f"{row[name]:,}" for name in ("pois", "with_category", "categories"))] for row in found)
    nothing = "There are no POIs yet. Load some with: callipper-db load FILE"
    print_list(found, as_json, nothing, ["source", "POIs", "with a category", "categories"], rows)


@pois.command("remove")
@click.option("--source", required=True, help="Name of the source, see list-sources.")
@click.option(
    "--where", multiple=True, metavar="COLUMN=VALUE", help="Only those with this value; an attribute counts too."
)
@click.option("--dry-run", is_flag=True, help="Count them, and remove nothing.")
@with_schema
def remove(dsn: str, source: str, where: tuple[str, ...], dry_run: bool) -> None:
    """Remove the POIs of a source, or some of them. The model follows with callipper-db refresh.

    \b
    Examples:
      callipper-db pois remove --source old_survey
      callipper-db pois remove --source overture --where category='atm' --dry-run
    """
    number = loaded.remove_pois(dsn, source, conditions_of(where), dry_run=dry_run)
    if not number:
        click.echo(f"No POI of {source} has {' and '.join(where)}. Nothing is removed.", err=True)
        sys.exit(1)
    what = "would be removed" if dry_run else "are removed. The model follows with: callipper-db refresh"
    click.echo(f"{number:,} POIs of {source} {what}")
