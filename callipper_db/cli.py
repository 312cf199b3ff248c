"""The command line: parse, call one function, print. Errors of ours become one sentence and exit status 1."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

from callipper_db import models as model_versions
from callipper_db import schema, search, text_encoders
from callipper_db.config import Settings
from callipper_db.console import reporter
from callipper_db.db import without_secrets
from callipper_db.errors import CallipperError, MissingExtra, NotInitialised
from callipper_db.load import LoadOptions, LoadProgress
from callipper_db.load import load as load_files
from callipper_db.progress import Reporter
from callipper_db.server import EmbeddedServer

F = TypeVar("F", bound=Callable[..., Any])


class Group(click.Group):
    """Turns our errors into sentences, and Ctrl-C into a quiet end."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except CallipperError as error:
            raise click.ClickException(str(error)) from error
        except BrokenPipeError:
            sys.exit(141)  # the reader, `head` for one, has seen enough
        except OSError as error:  # a file that cannot be read or written, a full disk
            raise click.ClickException(
                f"{error.filename}: {error.strerror}" if error.filename else str(error)
            ) from error


dsn_option = click.option(
    "--dsn",
    metavar="DSN",
    help="Database to use (default: CALLIPPER_DSN, else the embedded server, which is started).",
)


def with_dsn(command: F) -> F:
    """Add --dsn; the command receives a DSN, of the embedded server when none was given."""

    @dsn_option
    @wraps(command)
    def wrapper(dsn: str | None, *args: Any, **kwargs: Any) -> Any:
        return command(*args, dsn=resolve_dsn(dsn), **kwargs)

    return wrapper  # type: ignore[return-value]


def resolve_dsn(dsn: str | None) -> str:
    """The DSN given, the environment's, or the embedded server's, which is started and brought up to date."""
    settings = Settings.from_environment()
    if dsn or settings.dsn:
        return dsn or settings.dsn or ""
    server = EmbeddedServer.from_settings(settings)
    if not server.status().running:
        click.echo("Starting the embedded PostgreSQL ...", err=True)
    server.start()
    try:
        schema.ensure_current(server.dsn())
    except NotInitialised:
        schema.init(server.dsn())
    return server.dsn()


def database_digest(dsn: str) -> str:
    """Names a database in the names of files. The password is no part of it: from a hash, a short one could be guessed."""
    return hashlib.sha256(without_secrets(dsn).encode()).hexdigest()[:16]


def training_side(extra: str = "train") -> Any:
    """The module trainer.train, or a sentence that says how to install what it needs."""
    try:
        import trainer.train
    except ModuleNotFoundError as error:
        raise MissingExtra(feature="This command", module=error.name, extra=extra) from error
    return trainer.train


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, default=str, ensure_ascii=False))


def print_table(columns: list[str], rows: list[list[object]]) -> None:
    """A table on stdout, as wide as it needs to be when that is not a terminal."""
    console = Console() if sys.stdout.isatty() else Console(width=120)
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    console.print(table)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="callipper-db")
def main() -> None:
    """Spatial-semantic search in PostGIS.

    \b
    callipper-db load pois.csv          POIs into the database
    callipper-db train                  train, embed a grid, make the model active
    callipper-db query 'quiet park'     ask

    Without --dsn and CALLIPPER_DSN, an embedded PostgreSQL is used and started on demand.
    """


@main.command()
@click.option("--sql", "print_sql", is_flag=True, help="Print what would run, and run nothing.")
@click.option("--no-search-path", is_flag=True, help="Leave the database's search_path alone.")
@with_dsn
def init(dsn: str, print_sql: bool, no_search_path: bool) -> None:
    """Create or update the schema callipper in a database.

    Needs the extensions postgis and vector, or the right to create them. Doing it twice changes nothing.

    \b
    Examples:
      callipper-db init --dsn postgresql://me@localhost/city
      callipper-db init --sql > review.sql
    """
    if print_sql:
        click.echo(schema.pending_sql(dsn, search_path=not no_search_path), nl=False)
        return
    report = schema.init(dsn, search_path=not no_search_path)
    changed = f"from revision {report.before} to" if report.before not in (None, report.after) else "at revision"
    click.echo(f"The schema callipper is {changed} {report.after}.")
    for note in report.notes:
        click.echo(note)


@main.command()
@with_dsn
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def doctor(dsn: str, as_json: bool) -> None:
    """Check the server, the extensions, the schema and the Python packages, and say what to do about each.

    Exits with 1 when something that is needed does not work.

    \b
    Example:
      callipper-db doctor --dsn postgresql://me@localhost/city
    """
    from callipper_db.doctor import examine

    findings = examine(dsn)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            click.echo(f"{'ok' if finding.ok else 'NO' if finding.needed else '--'}  {finding.what}: {finding.says}")
    if any(finding.needed and not finding.ok for finding in findings):
        sys.exit(1)


@main.command("dsn")
def print_dsn() -> None:
    """Print the DSN in use, for any client. Starts the embedded server when it is the one.

    \b
    Example:
      psql "$(callipper-db dsn)"
    """
    click.echo(resolve_dsn(None))


@main.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option("--where", multiple=True, metavar="COLUMN=VALUE", help="Keep only rows with this value; may be repeated.")
@click.option("--source", help="Name of the source for every row (default: a source column, else the file's name).")
@click.option("--srid", type=int, help="SRID of the coordinates (default: what the file says, else 4326).")
@click.option("--id-column", help="Column with the id (default: id, source_id, osm_id, ...).")
@click.option("--name-column", help="Column with the name.")
@click.option("--category-column", help="Column with the category (default: category, type, amenity, ...).")
@click.option("--group-column", help="Column with the category group.")
@click.option("--description-column", help="Column with a text of your own, which the model then reads.")
@click.option("--lon-column", help="Column with the longitude or easting.")
@click.option("--lat-column", help="Column with the latitude or northing.")
@click.option("--geometry-column", help="Column with a geometry: WKT, EWKT, WKB in hex or GeoJSON.")
@click.option("--source-column", help="Column with the source.")
@click.option("--street-furniture", is_flag=True, help="Keep OpenStreetMap's benches, bins and the like.")
@click.option("--rejects", type=click.Path(dir_okay=False, path_type=Path), help="Where refused rows go (CSV).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@with_dsn
def load(
    dsn: str, files: tuple[Path, ...], where: tuple[str, ...], rejects: Path | None, as_json: bool, **options: Any
) -> None:
    """Load POIs from files: CSV, TSV, GeoJSON, GeoParquet or OpenStreetMap PBF (CSV and GeoJSON also gzipped).

    A file loaded twice changes nothing: rows are known by (source, id). What cannot be used goes to a rejects file.

    \b
    Examples:
      callipper-db load monaco.osm.pbf
      callipper-db load pois.csv.gz --where dup=0 --category-column label
      callipper-db load shops.geojson --source shops --json
    """
    conditions = dict(condition.partition("=")[::2] for condition in where)
    if any("=" not in condition for condition in where):
        raise click.BadParameter("give COLUMN=VALUE, such as dup=0", param_hint="--where")
    schema.ensure_current(dsn)
    with reporter(as_json) as told:
        summary = load_files(dsn, files, LoadOptions(where=conditions, rejects=rejects, **options), Bytes(told))
    if as_json:
        print_json(summary.to_dict())
        return
    for file in summary.files:
        counts = [
            (count, getattr(file, count)) for count in ("inserted", "updated", "unchanged", "duplicates", "filtered")
        ]
        said = ", ".join(f"{number:,} {count}" for count, number in counts if number or count == "inserted")
        click.echo(f"{file.path}: {file.rows:,} rows, {said}.")
        for reason, number in file.reasons.items():
            click.echo(f"  refused {number:,}: {reason}")
        if file.rejects:
            click.echo(f"  The refused rows are in {file.rejects}.")


class Bytes:
    """Shows the loader's progress: one bar a file, in bytes of the file."""

    def __init__(self, told: Reporter) -> None:
        self.told = told
        self.path: Path | None = None
        self.done = 0

    def __call__(self, progress: LoadProgress) -> None:
        """Take what the loader tells."""
        if progress.path != self.path:
            self.path, self.done = progress.path, 0
            self.told.stage(f"reading {progress.path.name}", progress.bytes_total)
        self.told.advance(progress.bytes_done - self.done)
        self.done = progress.bytes_done


@main.command()
@click.option("--source", default="callipper.poi", show_default=True, help="Table, view or query with the POIs.")
@click.option("--text", help="SQL expression for a row's text (columns of the source as s.NAME).")
@click.option(
    "--template", help="Or a template: '[{name}, ]A place of {category}'; brackets go where a column is empty."
)
@click.option(
    "--name", help="SQL expression for a row's name (default: the column name, without --text or --template)."
)
@click.option(
    "--names",
    type=click.IntRange(0),
    default=25_000,
    show_default=True,
    help="The most frequent names to learn, so many.",
)
@click.option("--id", "identifier", help="Unique integer column of the source.")
@click.option("--geometry", help="Geometry column of the source (default: the first).")
@click.option("--srid", default="auto", show_default=True, help="Projected CRS in metres, or auto: the UTM zone.")
@click.option(
    "--grid-size", type=click.FloatRange(1, 100_000), default=100.0, show_default=True, help="Metres a cell side."
)
@click.option(
    "--grid", type=click.Choice(["square", "hexagon"]), default="square", show_default=True, help="Cell shape."
)
@click.option(
    "--encoder",
    type=click.Choice(["contextual", "coordinate"]),
    default="contextual",
    show_default=True,
    help="Whether the model sees the POIs around a place, or its coordinates alone (the paper's model).",
)
@click.option("--epochs", type=click.IntRange(1), help="Passes over the POIs (default: 6, more for small sources).")
@click.option("--batch-size", type=click.IntRange(2), help="POIs a step, at most (default: 512; coordinate: 1024).")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=42,
    show_default=True,
    help="The same seed and data give the same model.",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, or auto.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bf16"]),
    default="auto",
    show_default=True,
    help="Of the network in training; auto: bf16 on a GPU that has it, else float32.",
)
@click.option(
    "--stream/--no-stream",
    default=None,
    help="Keep the POIs on disk and not in memory (default: from a million on).",
)
@click.option("--text-encoder", help="Name on the Hugging Face hub or a folder (default: all-MiniLM-L6-v2).")
@click.option(
    "--index", type=click.Choice(["auto", "hnsw", "none"]), default="auto", show_default=True, help="HNSW on cells."
)
@click.option(
    "--text-tower/--no-text-tower",
    default=True,
    help="Install the text encoder too (once, 95 MB), so that any text can be asked in SQL.",
)
@click.option("--resume", is_flag=True, help="Go on after the last whole epoch of an interrupted run.")
@click.option("--wait", is_flag=True, help="Wait when another training run is at work in the database.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line an epoch and one at the end.")
@dsn_option
def train(
    dsn: str | None,
    source: str,
    text: str | None,
    template: str | None,
    name: str | None,
    names: int,
    identifier: str | None,
    geometry: str | None,
    srid: str,
    grid_size: float,
    grid: str,
    encoder: str,
    epochs: int | None,
    batch_size: int | None,
    seed: int,
    device: str,
    precision: str,
    stream: bool | None,
    text_encoder: str | None,
    index: str,
    text_tower: bool,
    resume: bool,
    wait: bool,
    as_json: bool,
) -> None:
    """Train a CaLLiPer model on POIs in the database and make it the active one.

    The version that was active answers until the new one is whole.

    \b
    Examples:
      callipper-db train
      callipper-db train --srid 27700 --grid-size 50 --template 'A place of {category}'
      callipper-db train --dsn postgresql://me@localhost/city \\
          --source public.shops --text "s.kind" --name "s.title"
      torchrun --nproc-per-node 4 -m callipper_db train      # on four GPUs
    """
    trainer_train = training_side()
    from trainer.config import TrainConfig
    from trainer.distributed import joined
    from trainer.stream import Source

    if srid != "auto" and not srid.isdecimal():
        raise click.BadParameter("give an EPSG number such as 27700, or auto", param_hint="--srid")
    if text and template:
        raise click.UsageError("--text and --template exclude each other.")
    config = TrainConfig.of(
        encoder, epochs=epochs, batch_size=batch_size, seed=seed, device=device, precision=precision
    )
    with joined(device) as ranks:
        if not ranks.leads:
            trainer_train.follow(ranks)
            return
        dsn = resolve_dsn(dsn)
        schema.ensure_current(dsn)
        settings = Settings.from_environment()
        with reporter(as_json) as told:
            summary = trainer_train.train(
                dsn,
                Source(
                    source,
                    text,
                    template,
                    identifier,
                    geometry,
                    srid=None if srid == "auto" else int(srid),
                    name=name,
                    names=names if config.name_weight else 0,
                ),
                config,
                told,
                text_encoder=text_encoder or settings.text_encoder,
                checkpoint=settings.home / "checkpoints" / f"{database_digest(dsn)}.pt",
                resume=resume,
                wait=wait,
                grid_size_m=grid_size,
                grid_kind=grid,
                index=index,
                text_tower=text_tower,
                stream=stream,
                ranks=ranks,
            )
    if as_json:
        print_json(asdict(summary))
        return
    spent = ", ".join(f"{name} {value:.1f} s" for name, value in summary.seconds.items())
    click.echo(
        f"Model version {summary.version} is active: {summary.rows:,} POIs, {summary.texts:,} texts, {summary.cells:,} cells,"
        f" EPSG:{summary.srid}, validation loss {summary.validation_loss:.3f} (epoch {summary.best_epoch})."
        f" {summary.rows_per_s:,} rows/s in training. {spent}."
    )


@main.command()
@click.option("--watch", is_flag=True, help="Go on: refresh after every change, until Ctrl-C.")
@click.option(
    "--every",
    type=click.FloatRange(1, 86_400),
    metavar="SECONDS",
    help="With --watch: look this often too. Needed where the source is not callipper.poi.",
)
@click.option("--compare", is_flag=True, help="Compare with the source even where no change was noted.")
@click.option("--text-encoder", help="Where the model's text encoder is, if its name does not say: a folder.")
@click.option("--wait", is_flag=True, help="Wait when a training run is at work in the database.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document; with --watch a line for each refresh.")
@with_dsn
def refresh(
    dsn: str, watch: bool, every: float | None, compare: bool, text_encoder: str | None, wait: bool, as_json: bool
) -> None:
    """Bring the active model up to date with its POIs, without training.

    POIs that were added, changed or deleted change what lies around places near them; those are embedded anew, in one
    transaction. When POIs have changed a lot, it advises to train again. With --watch, in a large city, what sees a change
    only from afar follows when the changes pause. A model of a table or query of your own can be watched with --every.

    \b
    Examples:
      callipper-db refresh
      callipper-db refresh --watch
      callipper-db refresh --watch --every 300
    """
    if every is not None and not watch:
        raise click.UsageError("--every goes with --watch.")
    training_side()
    from trainer.refresh import refresh as renew
    from trainer.watch import Watch

    schema.ensure_current(dsn)
    with reporter(False) as told:  # on stderr, so that JSON stays alone
        if watch:
            show = print_refresh_json if as_json else print_refresh
            try:
                Watch(dsn, told, show, every, compare, text_encoder).run()
            except KeyboardInterrupt:
                told.note("Stopped.")
            return
        summary = renew(dsn, told, text_encoder=text_encoder, compare=compare, wait=wait)
    (print_refresh_json if as_json else print_refresh)(summary)


def print_refresh_json(summary: Any) -> None:
    """A refresh as one line of JSON."""
    print_json(summary.to_dict())


def print_refresh(summary: Any) -> None:
    """A refresh as a sentence, with the advice to train when it is time."""
    model = f"Model version {summary.version}"
    if summary.anything:
        grown = f" ({summary.new_cells:,} of them new)" if summary.new_cells else ""
        where = " near what has changed" if summary.postponed else ""
        follow = f" {summary.postponed:,} cells and points that see it from afar follow." if summary.postponed else ""
        click.echo(
            f"{model} is fresh{where}: {summary.added:,} POIs added, {summary.changed:,} changed, {summary.removed:,} removed."
            f" Renewed in {summary.seconds:.1f} s: {summary.lattice_cells:,} lattice cells,"
            f" {summary.cells:,} grid cells{grown}, {summary.points:,} points, {summary.texts:,} new texts.{follow}"
        )
    else:
        click.echo(f"{model} is up to date with its {summary.pois:,} POIs.")
    if summary.training_advised:
        click.echo(
            f"{summary.drift:.0%} of the POIs are not those that it was trained with."
            " A new model would know them better: callipper-db train"
        )


@main.command()
@click.argument("texts", nargs=-1, required=True, metavar="TEXT...")
@with_dsn
def remember(dsn: str, texts: tuple[str, ...]) -> None:
    """Add texts to those that text_embed answers.

    \b
    Example:
      callipper-db remember 'quiet residential street' 'somewhere to buy fresh fish'
    """
    trainer_train = training_side()
    schema.ensure_current(dsn)
    added = trainer_train.remember(dsn, list(texts))
    click.echo(f"{added} of {len(texts)} texts were new to the active model.")


@main.command()
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


@main.command(context_settings={"ignore_unknown_options": True})  # a longitude may begin with a minus
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


@main.command(context_settings={"ignore_unknown_options": True})
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


@main.command()
@click.option("--labels", metavar="FILE|TABLE", help="Labelled places: a file, or a table, view or query.")
@click.option("--target", metavar="COLUMN,...", help="Column with the label, or the columns of a distribution.")
@click.option(
    "--task",
    type=click.Choice(["classification", "regression", "distribution"]),
    help="What the target is (default: guessed from its values).",
)
@click.option(
    "--split",
    type=click.Choice(["blocks", "random", "both"]),
    default="both",
    show_default=True,
    help="Hold out whole areas, or places at random.",
)
@click.option("--seeds", type=click.IntRange(1, 100), default=5, show_default=True, help="Repetitions.")
@click.option("--model", "version", type=int, help="Version to evaluate (default: the active one).")
@click.option("--srid", type=int, help="SRID of a file's coordinates (default: what the file says, else 4326).")
@click.option(
    "--map", "picture", type=click.Path(dir_okay=False, path_type=Path), help="PNG of the confusions or the errors."
)
@click.option("--retrieval", is_flag=True, help="Do texts find held-out POIs? Trains a model for it.")
@click.option("--label-column", metavar="COLUMN", help="With --retrieval: the POIs' label (default: category).")
@click.option("--device", default="auto", show_default=True, help="With --retrieval: cpu, cuda, cuda:1, or auto.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@with_dsn
def evaluate(
    dsn: str,
    labels: str | None,
    target: str | None,
    task: str | None,
    split: str,
    seeds: int,
    version: int | None,
    srid: int | None,
    picture: Path | None,
    retrieval: bool,
    label_column: str | None,
    device: str,
    as_json: bool,
) -> None:
    """How much a model knows: probes for labels of yours, beside the floors that it must beat.

    The figures also go into the version's metrics, see models show and models compare.

    \b
    Examples:
      callipper-db evaluate --labels landuse.geojson.gz --target landuse
      callipper-db evaluate --labels public.census --target share_1,share_2,share_3 --split blocks --map errors.png
      callipper-db evaluate --retrieval
    """
    if not labels and not retrieval:
        raise click.UsageError("Give --labels with --target, or --retrieval.")
    if bool(labels) != bool(target) or (picture and not labels):
        raise click.UsageError("--labels and --target go together, and --map needs both.")
    training_side()
    draw = drawing() if picture else None
    from trainer.assess import assess
    from trainer.labels import LabelSource
    from trainer.retrieval import evaluate_retrieval

    schema.ensure_current(dsn)
    assessment, found = None, None
    with reporter(False) as told:  # on stderr, so that a JSON document stays alone
        if labels and target:
            label_source = LabelSource(labels, [column.strip() for column in target.split(",")], task, srid)
            assessment = assess(dsn, label_source, version, told, split=split, seeds=seeds)
            if draw:
                draw(assessment, picture)
        if retrieval:
            found = evaluate_retrieval(dsn, version, told, device=device, label_column=label_column)
    if as_json:
        print_json(
            {**(assessment.to_dict() if assessment else {}), **({"retrieval": found.to_dict()} if found else {})}
        )
        return
    if assessment:
        print_scores(assessment.to_dict())
    if picture:
        click.echo(f"Wrote {picture}.")
    if found:
        print_retrieval(found.to_dict())


def drawing() -> Any:
    """The function that draws errors, or a sentence that says how to install what it needs."""
    try:
        from trainer.figures import draw
    except ModuleNotFoundError as error:
        raise MissingExtra(feature="A map", module=error.name, extra="map") from error
    return draw


def print_scores(answer: dict[str, Any]) -> None:
    """An assessment as tables: a line for each source of features, and one for each class."""
    how = "guessed from the target; --task says otherwise" if answer["guessed"] else "as asked"
    targets = f"{len(answer['targets'])} {'classes' if answer['task'] == 'classification' else 'columns'}"
    click.echo(f"{answer['name']}: {answer['labels']:,} labels, {answer['task']} ({how}), {targets},")
    click.echo(f"model version {answer['version']}, mean and standard deviation over {answer['seeds']} seeds.\n")
    figures = list(answer["scores"][0]["mean"])
    for split in dict.fromkeys(score["split"] for score in answer["scores"]):
        lines = [score for score in answer["scores"] if score["split"] == split]
        rows: list[list[object]] = [
            [line["name"], *(f"{line['mean'][name]:.4f} ± {line['spread'][name]:.4f}" for name in figures)]
            for line in lines
        ]
        print_table([f"held out {'by blocks' if split == 'blocks' else 'at random'}", *map(figure_name, figures)], rows)
        click.echo()
        if lines[0].get("classes"):
            print_table(
                ["class", "places", "precision", "recall", "F1"],
                [
                    [c["class"], round(c["support"]), *(f"{c[name]:.3f}" for name in ("precision", "recall", "f1"))]
                    for c in lines[0]["classes"]
                ],
            )
            click.echo()
    for verdict in answer["verdicts"]:
        click.echo(verdict["says"])


def figure_name(figure: str) -> str:
    """A figure as people write it; an arrow says which way is better."""
    names = {"macro_f1": "macro F1", "kl": "KL divergence", "l1": "L1", "r2": "R2", "rmse": "RMSE", "mae": "MAE"}
    return f"{names.get(figure, figure)} {'↓' if figure in {'kl', 'l1', 'rmse', 'mae'} else '↑'}"


def print_retrieval(answer: dict[str, Any]) -> None:
    """The AUC of each label, and their means."""
    ways = list(answer["macro_auc"])
    rows: list[list[object]] = [
        [row["label"], row["places"], *(f"{row['auc'][way]:.3f}" for way in ways)] for row in answer["labels"]
    ]
    print_table(["label", "held-out places", *(f"AUC, asked by {way}" for way in ways)], rows)
    macro = " and ".join(f"{answer['macro_auc'][way]:.4f} asked by {way}" for way in ways)
    click.echo(
        f"\nMacro AUC {macro}, over {len(rows)} labels: {answer['held_out']:,} POIs held out from a model"
        f" trained on {answer['trained_on']:,}, with the settings of version {answer['version']}."
    )


@main.command("plot")
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


@main.group()
def models() -> None:
    """Model versions: list, show, compare, activate, drop."""


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@with_dsn
def list_models(dsn: str, as_json: bool) -> None:
    """List the versions, newest first.

    \b
    Example:
      callipper-db models list
    """
    schema.ensure_current(dsn)
    found = model_versions.list_models(dsn)
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo("There is no model yet. Train one with: callipper-db train")
        return
    rows: list[list[object]] = [
        [
            model["version"],
            model["status"],
            f"{model['created_at']:%Y-%m-%d %H:%M}",
            model["provenance"].get("source"),
            f"{model['provenance'].get('rows', 0):,}",
            f"{model['metrics'].get('validation_loss', 0):.3f}",
        ]
        for model in found
    ]
    print_table(["version", "status", "created", "source", "POIs", "validation loss"], rows)


@models.command("show")
@click.argument("version", type=int, required=False)
@with_dsn
def show_model(dsn: str, version: int | None) -> None:
    """All that is stored about a version (default: the active one), as JSON.

    \b
    Example:
      callipper-db models show 3
    """
    schema.ensure_current(dsn)
    click.echo(json.dumps(model_versions.show_model(dsn, version), default=str, indent=2, ensure_ascii=False))


@models.command("compare")
@click.argument("first", type=int, metavar="A")
@click.argument("second", type=int, metavar="B")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@with_dsn
def compare_models(dsn: str, first: int, second: int, as_json: bool) -> None:
    """Two versions side by side: what they are, the settings that differ, training, and what evaluate has found.

    \b
    Example:
      callipper-db models compare 1 2
    """
    schema.ensure_current(dsn)
    found = model_versions.compare_models(dsn, first, second)
    if as_json:
        print_json(found)
        return
    rows: list[list[object]] = []
    for section, values in found.items():
        rows += [[section, "", ""]] if values else []
        rows += [[f"  {name}", *map(shown, pair)] for name, pair in values.items()]
    print_table(["", f"version {first}", f"version {second}"], rows)


def shown(value: object) -> str:
    """A value in a table: numbers of a readable length."""
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "" if value is None else f"{value:%Y-%m-%d %H:%M}" if isinstance(value, datetime) else str(value)


@models.command("activate")
@click.argument("version", type=int)
@with_dsn
def activate_model(dsn: str, version: int) -> None:
    """Make a version the one that answers.

    \b
    Example:
      callipper-db models activate 2
    """
    schema.ensure_current(dsn)
    model_versions.activate_model(dsn, version)
    click.echo(f"Model version {version} is active.")


@models.command("drop")
@click.argument("version", type=int)
@click.option("--force", is_flag=True, help="Drop it even if it is the active one.")
@with_dsn
def drop_model(dsn: str, version: int, force: bool) -> None:
    """Remove a version with its embeddings.

    \b
    Example:
      callipper-db models drop 1
    """
    schema.ensure_current(dsn)
    model_versions.drop_model(dsn, version, force=force)
    click.echo(f"Model version {version} is gone.")


@main.group("text-encoder")
def text_encoder_group() -> None:
    """Text encoders inside the database: list, install, remove."""


@text_encoder_group.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@with_dsn
def list_text_encoders(dsn: str, as_json: bool) -> None:
    """List the encoders that models were trained with, and whether they run in SQL.

    \b
    Example:
      callipper-db text-encoder list
    """
    schema.ensure_current(dsn)
    found = text_encoders.list_text_encoders(dsn)
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo("There is no text encoder yet. callipper-db train installs one.")
        return
    rows: list[list[object]] = [
        [
            encoder["name"],
            encoder["revision"][:12],
            encoder["dim"],
            "yes" if encoder["installed"] else "no",
            ", ".join(map(str, encoder["models"])),
        ]
        for encoder in found
    ]
    print_table(["name", "revision", "dimensions", "installed", "used by models"], rows)


@text_encoder_group.command("install")
@click.argument("name", required=False)
@with_dsn
def install_text_encoder(dsn: str, name: str | None) -> None:
    """Put an encoder's weights into the database, so that text_embed answers any text.

    NAME as for train --text-encoder. Takes seconds, and about 95 MB for the default encoder. `train` does it by itself.

    \b
    Examples:
      callipper-db text-encoder install
      callipper-db text-encoder install sentence-transformers/all-MiniLM-L12-v2
    """
    training_side()
    from trainer.text import find_encoder
    from trainer.text_weights import install

    schema.ensure_current(dsn)
    encoder = find_encoder(name or Settings.from_environment().text_encoder)
    with reporter(False) as told:
        fresh = install(dsn, encoder, told)
    click.echo(f"{encoder.name} {'is installed' if fresh else 'was installed already'}.")


@text_encoder_group.command("remove")
@click.argument("name")
@with_dsn
def remove_text_encoder(dsn: str, name: str) -> None:
    """Take an encoder's weights out of the database. Texts that are remembered are still answered.

    \b
    Example:
      callipper-db text-encoder remove sentence-transformers/all-MiniLM-L6-v2
    """
    schema.ensure_current(dsn)
    versions = text_encoders.remove_text_encoder(dsn, name)
    click.echo(f"{name} is removed.")
    if versions:
        click.echo(
            f"Model version {', '.join(map(str, versions))} answers only remembered texts from now on;"
            f" to undo this: callipper-db text-encoder install {name}"
        )


@main.group()
def server() -> None:
    """The embedded PostgreSQL: start, stop, status, psql, logs."""


def embedded() -> EmbeddedServer:
    """The embedded server of this environment."""
    return EmbeddedServer.from_settings(Settings.from_environment())


@server.command()
def start() -> None:
    """Start it; made at the first start.

    \b
    Example:
      callipper-db server start
    """
    found = embedded()
    found.start()
    click.echo(f"Running: {found.dsn()}")


@server.command()
def stop() -> None:
    """Stop it; sessions in it are ended.

    \b
    Example:
      callipper-db server stop
    """
    embedded().stop()
    click.echo("Stopped.")


@server.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def status(as_json: bool) -> None:
    """Whether it runs, where its data are, and its DSN. Exits with 3 when it does not run.

    \b
    Example:
      callipper-db server status --json
    """
    found = embedded().status()
    if as_json:
        print_json(asdict(found))
    else:
        for name, value in asdict(found).items():
            click.echo(f"{name.replace('_', ' '):<9} {'' if value is None else value}")
    if not found.running:
        sys.exit(3)


@server.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def psql(arguments: tuple[str, ...]) -> None:
    """Open psql on it; further arguments go to psql.

    \b
    Examples:
      callipper-db server psql
      callipper-db server psql -c "SELECT count(*) FROM poi"
    """
    dsn = resolve_dsn(None)
    sys.exit(subprocess.run([embedded().psql_path, dsn, *arguments], check=False).returncode)


@server.command()
@click.option("-n", "lines", type=click.IntRange(1), default=50, show_default=True, help="How many lines.")
def logs(lines: int) -> None:
    """The last lines of its log.

    \b
    Example:
      callipper-db server logs -n 100
    """
    for line in embedded().tail_log(lines):
        click.echo(line)
