"""`callipper-db changes`."""

from __future__ import annotations

from typing import Any

import click

from callipper_db import changes as between_states
from callipper_db.cli.console import print_json, print_list
from callipper_db.cli.options import json_option, with_schema
from callipper_db.cli.search import how_many_cells, only_within

NOTHING_KEPT = "No state is kept. Keep what the next refresh replaces with: callipper-db refresh --keep"
PARTS = {"away": "less", "towards": "more", "removed": "removed", "added": "added", "changed": "changed"}


@click.command()
@click.option("--old", type=click.IntRange(1), metavar="STATE", help="Kept state (default: the last one kept).")
@click.option("--new", type=click.IntRange(1), metavar="STATE", help="Later kept state (default: today).")
@click.option("--list", "listing", is_flag=True, help="List the kept states instead.")
@how_many_cells
@only_within
@json_option
@with_schema
def changes(
    dsn: str, old: int | None, new: int | None, listing: bool, k: int, within: str | None, as_json: bool
) -> None:
    """Where the city has changed between two states of its POIs, and by which POIs.

    `callipper-db refresh --keep` keeps the state that it replaces. The cells whose embeddings have moved most come first, each
    with the kinds of POIs of which there are fewer or more within 250 m, and the POIs that made it.

    \b
    Examples:
      callipper-db changes
      callipper-db changes -k 5 --within -0.2,51.4,0,51.6 --json
      callipper-db changes --list
    """
    if listing:
        states = between_states.kept_states(dsn)
        rows = ([state["state"], f"{state['replaced_at']:%Y-%m-%d %H:%M}", f"{state['pois']:,}"] for state in states)
        print_list(states, as_json, NOTHING_KEPT, ["state", "replaced", "POIs changed since"], rows)
        return
    found = between_states.changed_cells(dsn, old, new, k, within)
    if as_json:
        print_json(found)
    elif found:
        click.echo("\n".join(line for rank, cell in enumerate(found, start=1) for line in _lines(rank, cell)))
    else:
        where = "" if within is None else f" in --within {within}"
        click.echo(f"No cell{where} has moved: near none are the POIs others than they were.")


def _lines(rank: int, cell: dict[str, Any]) -> list[str]:
    """A cell in a line, and what made it move in a line each."""
    place = f"{cell['lat']:.5f}, {cell['lon']:.5f}"
    parts = [f"      {word:<8} {cell[name]}" for name, word in PARTS.items() if cell[name]]
    return [f"{rank:>3}.  cell {cell['cell_id']} at {place}, moved {cell['moved']:.3f}", *parts]
