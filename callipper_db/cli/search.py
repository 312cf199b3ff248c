"""`callipper-db query`, `similar`, `describe` and `plot`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from callipper_db import schema, search
from callipper_db.cli.console import print_json, print_table
from callipper_db.cli.options import with_dsn
from callipper_db.errors import MissingExtra


@click.command()
@click.argument("text")
@click.option("-k", type=click.IntRange(1, 100_000), default=10, show_default=True, help="How many cells.")
@click.option("--within", metavar="AREA", help="'west,south,east,north' in degrees, or a WKT geometry.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@with_dsn
def query(dsn: str, text: str, k: int, within: str | None, as_json: bool) -> None:
    """The grid cells that fit a text best.

    \b
    Examples:
      callipper-db query pub
      callipper-db query 'fresh fish' -k 5 --within -0.2,51.4,0,51.6 --json
    """
    schema.ensure_current(dsn)
    print_cells(search.nearest_cells(dsn, text, k, within), as_json)


@click.command(context_settings={"ignore_unknown_options": True})  # a longitude may begin with a minus
@click.argument("place", metavar="LON,LAT|WKT")
@click.option("-k", type=click.IntRange(1, 100_000), default=10, show_default=True, help="How many cells.")
@click.option("--within", metavar="AREA", help="'west,south,east,north' in degrees, or a WKT geometry.")
@click.option(
    "--min-distance",
    type=click.FloatRange(0, 1e7),
    default=0.0,
    show_default=True,
    help="Metres from the place, at least.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@with_dsn
def similar(dsn: str, place: str, k: int, within: str | None, min_distance: float, as_json: bool) -> None:
    """The grid cells that are most like a place.

    \b
    Examples:
      callipper-db similar 7.4206,43.7326 --min-distance 500
      callipper-db similar -0.1276,51.5072 -k 5 --within -0.2,51.4,0,51.6 --json
    """
    schema.ensure_current(dsn)
    print_cells(search.similar_cells(dsn, place, k, within, min_distance), as_json)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("place", metavar="LON,LAT|WKT")
@click.option("-k", type=click.IntRange(1, 100_000), default=10, show_default=True, help="How many texts.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@with_dsn
def describe(dsn: str, place: str, k: int, as_json: bool) -> None:
    """The common words and categories that say best what a place is like, compared with the rest of the city.

    \b
    Examples:
      callipper-db describe 7.4206,43.7326
      callipper-db describe 'LINESTRING(7.42 43.73, 7.43 43.74)' -k 5 --json
    """
    schema.ensure_current(dsn)
    texts = search.describe_place(dsn, place, k)
    if as_json:
        print_json(texts)
        return
    rows: list[list[object]] = [
        [rank, text["text"], f"{text['similarity']:.3f}", f"{text['percentile']:.1f}"]
        for rank, text in enumerate(texts, start=1)
    ]
    print_table(["", "text", "similarity", "percentile"], rows)


def print_cells(cells: list[dict[str, Any]], as_json: bool) -> None:
    """Cells with what is near, best first."""
    if as_json:
        print_json(cells)
        return
    rows: list[list[object]] = [
        [
            rank,
            cell["cell_id"],
            f"{cell['similarity']:.3f}",
            None if cell["percentile"] is None else f"{cell['percentile']:.1f}",
            f"{cell['lat']:.5f}, {cell['lon']:.5f}",
            "; ".join(cell["places"]),
        ]
        for rank, cell in enumerate(cells, start=1)
    ]
    print_table(["", "cell", "similarity", "percentile", "latitude, longitude", "nearest POIs"], rows)


@click.command("plot")
@click.argument("text")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="PNG file (default: TEXT.png).")
@with_dsn
def plot_command(dsn: str, text: str, output: Path | None) -> None:
    """A PNG map of how well each cell fits a text, with the POIs on top.

    \b
    Example:
      callipper-db plot 'places to eat' -o eat.png
    """
    try:
        from callipper_db.plot import plot_similarity
    except ModuleNotFoundError as error:
        raise MissingExtra(feature="A map", module=error.name, extra="map") from error
    schema.ensure_current(dsn)
    path = output or Path(f"{text.replace('/', '-').replace(' ', '-')}.png")
    plot_similarity(dsn, text, path)
    click.echo(f"Wrote {path}.")
