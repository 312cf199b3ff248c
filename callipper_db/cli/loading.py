"""`callipper-db load`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from callipper_db import schema
from callipper_db.cli.console import make_reporter, print_json
from callipper_db.cli.options import Srid, json_option, with_dsn
from callipper_db.load import FileSummary, LoadOptions
from callipper_db.load import load as load_files


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option("--where", multiple=True, metavar="COLUMN=VALUE", help="Keep only rows with this value; may be repeated.")
@click.option("--source", help="Name of the source for every row (default: a source column, else the file's name).")
@click.option("--srid", type=Srid(), help="SRID of the coordinates (default: what the file says, else 4326).")
@click.option("--id-column", help="Column with the id (default: id, source_id, osm_id, ...).")
@click.option("--name-column", help="Column with the name.")
@click.option("--category-column", help="Column with the category (default: category, type, amenity, ...).")
@click.option("--group-column", help="Column with the category group.")
@click.option("--description-column", help="Column with a text of your own, which the model then reads.")
@click.option("--lon-column", help="Column with the longitude or easting.")
@click.option("--lat-column", help="Column with the latitude or northing.")
@click.option("--geometry-column", help="Column with a geometry: WKT, EWKT, WKB in hex or GeoJSON.")
@click.option("--source-column", help="Column with the source.")
@click.option("--layer", help="Layer of a GeoPackage, or sheet of a spreadsheet, that has several.")
@click.option(
    "--encoding",
    help="Encoding of CSV and Shapefiles (default: UTF-8 or UTF-16 if it is one of these, else Windows-1252).",
)
@click.option("--decimal", type=click.Choice([",", "."]), help="Decimal sign in CSV (default: as in the first rows).")
@click.option(
    "--min-confidence", type=click.FloatRange(0, 1), help="Leave out Overture places with a lower confidence."
)
@click.option(
    "--replace-source", is_flag=True, help="Also remove rows of the same source that the files no longer hold."
)
@click.option("--street-furniture", is_flag=True, help="Keep OpenStreetMap's benches, bins and the like.")
@click.option("--rejects", type=click.Path(dir_okay=False, path_type=Path), help="Where refused rows go (CSV).")
@json_option
@with_dsn
def load(
    dsn: str, files: tuple[Path, ...], where: tuple[str, ...], rejects: Path | None, as_json: bool, **options: Any
) -> None:
    """Load POIs from files: CSV, GeoJSON, GeoParquet, OpenStreetMap, GeoPackage, Shapefile, KML, Excel and others.

    Files of OpenStreetMap, Overture, Foursquare and GeoNames are recognised by their columns. In other files, a path such as
    names.primary or tags[0] can name a nested column.

    Loading a file a second time changes nothing, because (source, id) identifies a row. Rows that cannot be used go to a
    file of rejects.

    \b
    Examples:
      callipper-db load monaco.osm.pbf
      callipper-db load pois.csv.gz --where dup=0 --category-column label
      callipper-db load overture.parquet --source overture --min-confidence 0.5 --replace-source
      callipper-db load shops.geojson --source shops --json
    """
    conditions = conditions_of(where)
    schema.ensure_current(dsn)
    with make_reporter(False) as reporter:  # on stderr, so that the JSON document stays alone
        summary = load_files(dsn, files, LoadOptions(where=conditions, rejects=rejects, **options), reporter)
    if as_json:
        print_json(summary.to_dict())
        return
    for file in summary.files:
        print_file(file)
    if options["replace_source"]:
        click.echo(f"{summary.removed:,} rows that the source no longer holds are removed.")


def conditions_of(where: tuple[str, ...]) -> dict[str, str]:
    """COLUMN=VALUE, as often as it is given."""
    if any("=" not in condition for condition in where):
        raise click.BadParameter("give COLUMN=VALUE, such as dup=0", param_hint="--where")
    return {column: value for column, _, value in (condition.partition("=") for condition in where)}


def print_file(file: FileSummary) -> None:
    """Print what happened to the rows of a file. Notes for the user go to stderr."""
    counts = [(count, getattr(file, count)) for count in ("inserted", "updated", "unchanged", "duplicates")]
    said = ", ".join(f"{number:,} {count}" for count, number in counts if number or count == "inserted")
    click.echo(f"{file.path}: {file.rows:,} rows, {said}{f', {file.filtered:,} left out' if file.filtered else ''}.")
    for reason, number in file.left_out.items():
        click.echo(f"  left out {number:,}: {reason}")
    for reason, number in file.reasons.items():
        click.echo(f"  refused {number:,}: {reason}")
    if file.rejects:
        click.echo(f"  The refused rows are in {file.rejects}.")
    for note in file.notes:
        click.echo(f"{file.path}: {note}", err=True)
