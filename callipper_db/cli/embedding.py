"""`callipper-db embed`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from callipper_db import schema
from callipper_db.cli.console import make_reporter, print_json
from callipper_db.cli.options import with_dsn
from callipper_db.errors import needs_extra
from callipper_db.own_file import FileSummary, embed_file
from callipper_db.own_table import TableOptions, TableSummary, embed_table

FILES = {".csv", ".tsv", ".gz", ".parquet", ".geoparquet", ".gpkg", ".geojson", ".json", ".fgb", ".shp", ".kml"}


@click.command()
@click.argument("target", metavar="TABLE|FILE")
@click.option("--column", default="emb", show_default=True, help="Column for the embeddings; added if it is missing.")
@click.option("--geometry", metavar="COLUMN", help="For a table with several geometries: the one to use.")
@click.option("--where", metavar="SQL", help="For a table: only rows for which this is true.")
@click.option(
    "--areas",
    type=click.Choice(["centroid", "mean"]),
    default="centroid",
    show_default=True,
    help="For a table: polygons as their centroid, or as the mean of their cells.",
)
@click.option("--all", "everything", is_flag=True, help="For a table: also rows that have an embedding already.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="For a file: the Parquet file to write."
)
@click.option("--json", "as_json", is_flag=True, help="Print progress and summary as JSON.")
@with_dsn
def embed(
    dsn: str,
    target: str,
    column: str,
    geometry: str | None,
    where: str | None,
    areas: str,
    everything: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Embeddings of your own places, in your table or as a Parquet file.

    In a table, it fills the rows whose column is NULL, and commits them in chunks. So an interrupted run resumes where it
    stopped, and others can read the table during a run. The table needs a primary key, and a geometry or columns lon and lat.

    \b
    Examples:
      callipper-db embed public.shop --column emb
      callipper-db embed district --areas mean --where "kind = 'ward'"
      callipper-db embed shops.csv -o shops.parquet
    """
    schema.ensure_current(dsn)
    is_file = Path(target).suffix.lower() in FILES or Path(target).is_file()
    if is_file and output is None:
        raise click.UsageError(f"{target} is a file: say where to write with -o FILE.parquet.")
    if not is_file and output is not None:
        raise click.UsageError("-o goes with a file; a table is filled in place.")
    with make_reporter(as_json) as reporter:
        if output is not None:
            with needs_extra("Reading and writing files", "geo"):
                summary: FileSummary | TableSummary = embed_file(dsn, Path(target), output, column, reporter)
            said = f"Wrote {output}: {summary.rows:,} rows"
        else:
            options = TableOptions(geometry, where, areas, everything)
            summary = embed_table(dsn, target, column, reporter, options)
            said = f"Filled {column} of {target}: {summary.rows:,} rows"
    if as_json:
        print_json(asdict(summary))
        return
    click.echo(f"{said} in {summary.seconds:.1f} s, by model version {summary.version}.")
    if summary.skipped:
        click.echo(f"{summary.skipped:,} rows have no place that can be embedded.")
