"""`callipper-db layer`."""

from __future__ import annotations

import click

from callipper_db import layers, schema
from callipper_db.cli.console import print_json, print_table
from callipper_db.cli.options import with_dsn


@click.group("layer")
def layer_group() -> None:
    """Questions that are saved as views, for maps and BI tools: add, list, remove."""


@layer_group.command("add")
@click.argument("name")
@click.argument("text")
@click.option("--like", "likes", multiple=True, metavar="TEXT", help="One more text that the places should be like.")
@click.option("--unlike", "dislikes", multiple=True, metavar="TEXT", help="A text that they should not be like.")
@with_dsn
def add_layer(dsn: str, name: str, text: str, likes: tuple[str, ...], dislikes: tuple[str, ...]) -> None:
    """Save how well each cell fits TEXT, as the view callipper_map.layer_NAME.

    It follows the active model. Its columns are cell_id, geom, lon, lat, similarity and percentile.

    \b
    Examples:
      callipper-db layer add quiet 'quiet residential street'
      callipper-db layer add family park --like school --unlike nightclub
    """
    schema.ensure_current(dsn)
    click.echo(f"Saved as {layers.add_layer(dsn, name, text, likes, dislikes)}.")


@layer_group.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@with_dsn
def list_layers(dsn: str, as_json: bool) -> None:
    """List the saved layers.

    \b
    Example:
      callipper-db layer list
    """
    schema.ensure_current(dsn)
    found = layers.list_layers(dsn)
    if as_json:
        print_json(found)
    elif not found:
        click.echo("There is no layer yet. Save one: callipper-db layer add quiet 'quiet residential street'")
    else:
        rows: list[list[object]] = [[layer["name"], layer["view"], layer["question"]] for layer in found]
        print_table(["name", "view", "question"], rows)


@layer_group.command("remove")
@click.argument("name")
@with_dsn
def remove_layer(dsn: str, name: str) -> None:
    """Remove a layer.

    \b
    Example:
      callipper-db layer remove quiet
    """
    schema.ensure_current(dsn)
    layers.remove_layer(dsn, name)
    click.echo(f"Removed {name}.")
