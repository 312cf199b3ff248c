"""`callipper-db export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from callipper_db import export, schema
from callipper_db.cli.console import make_reporter, print_json
from callipper_db.cli.options import with_dsn
from callipper_db.errors import needs_extra

SUFFIXES = {
    ".parquet": "geoparquet",
    ".gpkg": "gpkg",
    ".tif": "geotiff",
    ".csv": "csv",
    ".safetensors": "safetensors",
    ".onnx": "onnx",
}
FORMATS = {
    "cells": ("geoparquet", "gpkg", "geotiff", "csv"),
    "places": ("geoparquet", "gpkg", "csv"),
    "model": ("safetensors", "onnx"),
}


@click.command("export")
@click.argument("what", type=click.Choice(list(FORMATS)))
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The file to write."
)
@click.option(
    "--format", "form", type=click.Choice(list(SUFFIXES.values())), help="Default: by the ending of the file."
)
@click.option("--json", "as_json", is_flag=True, help="Print progress and summary as JSON.")
@with_dsn
def export_command(dsn: str, what: str, output: Path, form: str | None, as_json: bool) -> None:
    """Cells, places or weights of the active model as a file.

    GeoParquet and CSV include the embeddings, a GeoPackage does not. A GeoTIFF has one band per dimension and a STAC item next
    to it; it needs a grid of squares. safetensors holds the weights of both towers, and a JSON file next to it describes them.
    ONNX runs without this program: model.onnx makes model.places.onnx and model.texts.onnx.

    \b
    Examples:
      callipper-db export cells -o cells.parquet
      callipper-db export places -o places.gpkg
      callipper-db export cells -o cells.tif
      callipper-db export model -o model.safetensors
      callipper-db export model -o model.onnx
    """
    form = form or SUFFIXES.get(output.suffix.lower())
    if form not in FORMATS[what]:
        raise click.UsageError(f"{what} can be written as {', '.join(FORMATS[what])}; choose with --format.")
    schema.ensure_current(dsn)
    extra = {"geotiff": "raster", "safetensors": "train", "onnx": "onnx"}.get(form, "geo")
    with needs_extra("This format", extra), make_reporter(as_json) as reporter:
        if form == "geotiff":
            summary = export.export_raster(dsn, output, reporter)
        elif form == "safetensors":
            summary = export.export_model(dsn, output, reporter)
        elif form == "onnx":
            from callipper_trainer.onnx_towers import export_onnx

            summary = export_onnx(dsn, output, reporter)
        else:
            summary = export.export_layer(dsn, what, form, output, reporter)
    if as_json:
        print_json(asdict(summary))
    else:
        unit = {"safetensors": "tensors", "onnx": "towers"}.get(form, "rows")
        click.echo(
            f"Wrote {summary.path}: {summary.rows:,} {unit} of model version {summary.version}, {summary.seconds:.1f} s."
        )
