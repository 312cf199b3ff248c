"""`callipper-db layer`."""

from __future__ import annotations

import click

from callipper_db import layers
from callipper_db.cli.console import print_list
from callipper_db.cli.options import json_option, with_schema


@click.group("layer")
def layer_group() -> None:
    """Questions that are saved as views, for maps and BI tools: add, list, remove."""


@layer_group.command("add")
@click.argument("name")
@click.argument("text")
@click.option("--like", "likes", multiple=True, metavar="TEXT", help="One more text that the places should be like.")
@click.option("--unlike", "dislikes", multiple=True, metavar="TEXT", help="A text that they should not be like.")
@with_schema
def add_layer(dsn: str, name: str, text: str, likes: tuple[str, ...], dislikes: tuple[str, ...]) -> None:
    """Save how well each cell fits TEXT, as the view callipper_map.layer_NAME.

    It follows the active model. Its columns are cell_id, geom, lon, lat, similarity and percentile.

    \b
    Examples:
      callipper-db layer add quiet 'quiet residential street'
      callipper-db layer add family park --like school --unlike nightclub
    """
    click.echo(f"Saved as {layers.add_layer(dsn, name, text, likes, dislikes)}.")


@layer_group.command("list")
@json_option
@with_schema
def list_layers(dsn: str, as_json: bool) -> None:
    """List the saved layers.

    \b
    Example:
      callipper-db layer list
    """
    found = layers.list_layers(dsn)
    nothing = "There is no layer yet. Save one: callipper-db layer add quiet 'quiet residential street'"
    columns = ["name", "view", "question"]
    print_list(found, as_json, nothing, columns, ([layer[name] for name in columns] for layer in found))


@layer_group.command("remove")
@click.argument("name")
@with_schema
def remove_layer(dsn: str, name: str) -> None:
    """Remove a layer.

    \b
    Example:
      callipper-db layer remove quiet
    """
    layers.remove_layer(dsn, name)
    click.echo(f"Removed {name}.")
