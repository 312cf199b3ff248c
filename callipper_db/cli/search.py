"""`callipper-db query`, `points`, `similar`, `describe` and `plot`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from callipper_db import schema, search
from callipper_db.cli.console import print_json, print_note, print_table
from callipper_db.cli.options import json_option, with_dsn, with_schema
from callipper_db.errors import needs_extra
from callipper_db.languages import ENGLISH

how_many_cells = click.option(
    "-k", type=click.IntRange(1, 100_000), default=10, show_default=True, help="How many cells."
)
only_within = click.option("--within", metavar="AREA", help="'west,south,east,north' in degrees, or a WKT geometry.")


@click.command()
@click.argument("text")
@how_many_cells
@only_within
@json_option
@with_schema
def query(dsn: str, text: str, k: int, within: str | None, as_json: bool) -> None:
    """The grid cells that fit a text best, with the reasons.

    First come cells with POIs that the text asks for: their number within 250 m, how many times their usual share that is
    (lift), and up to three of them. Each meaning of the text and each part of the city has its turn. Then come cells whose
    embedding fits, with the POIs near them.

    \b
    Examples:
      callipper-db query pub
      callipper-db query 'fresh fish' -k 5 --within -0.2,51.4,0,51.6 --json
    """
    print_cells(search.nearest_cells(dsn, text, k, within, print_note), as_json, within)


@click.command()
@click.argument("text")
@click.option("-k", type=click.IntRange(1, 100_000), default=10, show_default=True, help="How many POIs.")
@only_within
@json_option
@with_schema
def points(dsn: str, text: str, k: int, within: str | None, as_json: bool) -> None:
    """The POIs that fit a text best: first by name, then by kind, then by place.

    \b
    Examples:
      callipper-db points 'fresh bread' -k 5
      callipper-db points 'evans cycles' --within -0.2,51.4,0,51.6 --json
    """
    found = search.nearest_points(dsn, text, k, within, print_note)
    if as_json:
        print_json(found)
        return
    if not found and within is not None:
        click.echo(f"No POI of the model is in --within {within}.")
        return
    rows = (
        [
            rank,
            point["name"],
            point["category"] or point["text"],
            *_fit(point),
            f"{point['lat']:.5f}, {point['lon']:.5f}",
            point["because"] or "place",
        ]
        for rank, point in enumerate(found, start=1)
    )
    print_table(["", "name", "category", *FIT, "latitude, longitude", "because of its"], rows)


@click.command(context_settings={"ignore_unknown_options": True})  # a longitude may begin with a minus
@click.argument("place", metavar="LON,LAT|WKT")
@how_many_cells
@only_within
@click.option(
    "--min-distance",
    type=click.FloatRange(0, 1e7),
    default=0.0,
    show_default=True,
    help="Metres from the place, at least.",
)
@json_option
@with_schema
def similar(dsn: str, place: str, k: int, within: str | None, min_distance: float, as_json: bool) -> None:
    """The grid cells that are most like a place.

    \b
    Examples:
      callipper-db similar 7.4206,43.7326 --min-distance 500
      callipper-db similar -0.1276,51.5072 -k 5 --within -0.2,51.4,0,51.6 --json
    """
    print_cells(search.similar_cells(dsn, place, k, within, min_distance), as_json, within)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("place", metavar="LON,LAT|WKT")
@click.option("-k", type=click.IntRange(1, 100_000), default=10, show_default=True, help="How many kinds.")
@click.option("--language", default=ENGLISH, show_default=True, help="Of the kinds' names, such as de.")
@json_option
@with_schema
def describe(dsn: str, place: str, k: int, language: str, as_json: bool) -> None:
    """The kinds of POIs that a place has more of than the rest of the city.

    POIs within 250 m count, or within 500 m or 1 km where fewer than five are so near; for a polygon, POIs inside it. Lift is
    how many times their usual share they have there.

    \b
    Examples:
      callipper-db describe 7.4206,43.7326
      callipper-db describe 7.4206,43.7326 --language fr
      callipper-db describe 'LINESTRING(7.42 43.73, 7.43 43.74)' -k 5 --json
    """
    kinds = search.describe_place(dsn, place, k, language)
    if as_json:
        print_json(kinds)
    elif not kinds:
        click.echo(search.why_no_description(dsn, place))
    elif kinds[0]["pois"] is None:  # the model of an earlier program
        print_table(["", "text", *FIT], [[rank, kind["text"], *_fit(kind)] for rank, kind in enumerate(kinds, start=1)])
    else:
        rows = ([n, kind["text"], kind["pois"], _lift(kind), kind["because"]] for n, kind in enumerate(kinds, start=1))
        print_table(["", "text", "POIs", "lift", "because"], rows)


FIT = ["similarity", "percentile"]


def _fit(row: dict[str, Any]) -> list[object]:
    """The two columns of FIT. A model without a sample of cells has no percentiles."""
    return [f"{row['similarity']:.3f}", None if row["percentile"] is None else f"{row['percentile']:.1f}"]


def _lift(row: dict[str, Any]) -> str | None:
    return None if row["lift"] is None else f"{row['lift']:.1f}"


def print_cells(cells: list[dict[str, Any]], as_json: bool, within: str | None = None) -> None:
    """Cells, best first, with their reasons or the POIs that are near."""
    if as_json:
        print_json(cells)
        return
    if not cells and within is not None:
        click.echo(f"No cell of the model touches --within {within}.")
        return
    with_reasons = any(cell.get("because") for cell in cells)
    columns = ["POIs", "lift", "because"] if with_reasons else ["nearest POIs"]
    rows = (
        [
            rank,
            cell["cell_id"],
            *_fit(cell),
            f"{cell['lat']:.5f}, {cell['lon']:.5f}",
            *(_reasons(cell) if with_reasons else ["; ".join(cell["places"])]),
        ]
        for rank, cell in enumerate(cells, start=1)
    )
    print_table(["", "cell", *FIT, "latitude, longitude", *columns], rows)


def _reasons(cell: dict[str, Any]) -> list[object]:
    """The number of relevant POIs, their lift and their names; for a cell without any, the POIs that are near."""
    return [cell["relevant"], _lift(cell), cell["because"] or f"(near: {'; '.join(cell['places'])})"]


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
    with needs_extra("A map", "map"):
        from callipper_db.plot import plot_similarity
    schema.ensure_current(dsn)
    path = output or Path(f"{text.replace('/', '-').replace(' ', '-')}.png")
    plot_similarity(dsn, text, path)
    click.echo(f"Wrote {path}.")
