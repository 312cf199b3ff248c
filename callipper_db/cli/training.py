"""`callipper-db train`, `refresh` and `remember`."""

from __future__ import annotations

import signal
from dataclasses import asdict, fields
from typing import Any

import click

from callipper_db import schema
from callipper_db.cli.console import make_reporter, print_json
from callipper_db.cli.options import Srid, database_digest, dsn_option, resolve_dsn, training_side, with_dsn
from callipper_db.config import Settings
from callipper_db.h3_cells import edge_m
from callipper_db.languages import check_language


@click.command()
@click.option(
    "--source", "relation", default="callipper.poi", show_default=True, help="Table, view or query with the POIs."
)
@click.option("--text", help="SQL expression for a row's text (columns of the source as s.NAME).")
@click.option(
    "--template", help="Or a template: '[{name}, ]A place of {category}'; [ ] is left out if a column in it is empty."
)
@click.option(
    "--name", help="SQL expression for a row's name (default: the column name, without --text or --template)."
)
@click.option(
    "--names",
    type=click.IntRange(0),
    default=100_000,
    show_default=True,
    help="How many names to read, the most frequent ones; 0: none.",
)
@click.option(
    "--id", "identifier", help="Unique column of the source, or several with commas (default: its primary key)."
)
@click.option("--geometry", help="Geometry or geography column of the source (default: the first).")
@click.option(
    "--srid",
    type=Srid(auto=True),
    default="auto",
    show_default=True,
    help="Projected CRS in metres, or auto: the UTM zone, for larger areas an equal-area CRS.",
)
@click.option("--force-srid", is_flag=True, help="Take the CRS even if its metres are wrong.")
@click.option("--keep-outliers", is_flag=True, help="Keep rows whose place is most likely wrong.")
@click.option(
    "--grid-size",
    "grid_size_m",
    type=click.FloatRange(1, 100_000),
    default=100.0,
    show_default=True,
    help="Metres per cell side.",
)
@click.option(
    "--grid",
    "grid_kind",
    type=click.Choice(["square", "hexagon", "h3"]),
    default="square",
    show_default=True,
    help="Cell shape; h3: H3 cells of a --resolution.",
)
@click.option("--resolution", type=click.IntRange(0, 15), help="Of H3 cells (default: 9, with edges of about 200 m).")
@click.option(
    "--encoder",
    type=click.Choice(["contextual", "coordinate"]),
    default="contextual",
    show_default=True,
    help="Whether the model reads the POIs near a place, or only its coordinates (the paper's model).",
)
@click.option("--epochs", type=click.IntRange(1), help="Passes over the POIs (default: 6, more for small sources).")
@click.option("--batch-size", type=click.IntRange(2), help="POIs per step, at most (default: 512; coordinate: 1024).")
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
    help="Number format of the network in training; auto: bf16 on a GPU that supports it, else float32.",
)
@click.option(
    "--stream/--no-stream",
    default=None,
    help="Keep the POIs on disk, not in memory (default: from a million POIs on).",
)
@click.option("--text-encoder", help="Name on the Hugging Face hub or a folder (default: all-MiniLM-L6-v2).")
@click.option(
    "--languages",
    help="Of the words for places, such as de,en (default: en, with an encoder of many languages also those of the POIs).",
)
@click.option(
    "--index", type=click.Choice(["auto", "hnsw", "none"]), default="auto", show_default=True, help="HNSW on cells."
)
@click.option(
    "--text-tower/--no-text-tower",
    default=True,
    help="Also install the text encoder (once, 95 MB), so that text_embed answers any text.",
)
@click.option(
    "--activate/--no-activate",
    default=True,
    help="Make it the active version, or leave that to: callipper-db models activate N.",
)
@click.option("--resume", is_flag=True, help="Continue an interrupted run after its last whole epoch.")
@click.option("--wait", is_flag=True, help="Wait while another training run is at work in the database.")
@click.option("--json", "as_json", is_flag=True, help="A JSON line for each stage and epoch, and one at the end.")
@dsn_option
def train(dsn: str | None, resolution: int | None, encoder: str, device: str, as_json: bool, **options: Any) -> None:
    """Train a CaLLiPer model on POIs in the database and make it the active one.

    The old version answers until the new one is complete.

    \b
    Examples:
      callipper-db train
      callipper-db train --srid 27700 --grid-size 50 --template 'A place of {category}'
      callipper-db train --dsn postgresql://me@localhost/city \\
          --source public.shops --text "s.kind" --name "s.title"
      callipper-db train --no-activate
      torchrun --nproc-per-node 4 -m callipper_db train      # on four GPUs
    """
    trainer_train = training_side()
    from callipper_trainer.config import TrainConfig
    from callipper_trainer.data.source import Source
    from callipper_trainer.distributed import joined

    def given(settings: Any) -> dict[str, Any]:
        """The options that are fields of a class, whose names they have."""
        return {field.name: options[field.name] for field in fields(settings) if field.name in options}

    if options["text"] and options["template"]:
        raise click.UsageError("--text and --template exclude each other.")
    if resolution is not None and options["grid_kind"] != "h3":
        raise click.UsageError("--resolution is for H3 cells: add --grid h3.")
    if options["grid_kind"] == "h3":
        options["grid_size_m"] = edge_m(9 if resolution is None else resolution)
    config = TrainConfig.of(encoder, device=device, **given(TrainConfig))
    with joined(device) as ranks:
        if not ranks.is_leader:
            # Such a process has nothing to clean up, and Python calls no handler while it waits for a message.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            trainer_train.follow(ranks)
            return
        dsn = resolve_dsn(dsn)
        schema.ensure_current(dsn)
        settings = Settings.from_environment()
        options["text_encoder"] = options["text_encoder"] or settings.text_encoder
        spoken = options["languages"].split(",") if options["languages"] else []
        options["languages"] = tuple(check_language(language.strip()) for language in spoken)
        checkpoint = settings.home / "checkpoints" / f"{database_digest(dsn)}.pt"
        run = trainer_train.TrainOptions(checkpoint=checkpoint, **given(trainer_train.TrainOptions))
        with make_reporter(as_json) as reporter:
            summary = trainer_train.train(dsn, Source(**given(Source)), config, run, reporter, ranks)
    if as_json:
        print_json(asdict(summary))
        return
    spent = ", ".join(f"{name} {value:.1f} s" for name, value in summary.seconds.items())
    click.echo(
        f"Model version {summary.version} is {'active' if run.activate else 'ready'}: {summary.rows:,} POIs,"
        f" {summary.texts:,} texts, {summary.cells:,} cells,"
        f" EPSG:{summary.srid}, validation loss {summary.validation_loss:.3f} (epoch {summary.best_epoch})."
        f" {summary.rows_per_s:,} rows/s in training. {spent}."
    )


@click.command()
@click.option("--watch", is_flag=True, help="Keep running: refresh after every change, until Ctrl-C.")
@click.option(
    "--every",
    type=click.FloatRange(1, 86_400),
    metavar="SECONDS",
    help="With --watch: also look this often. Needed if the source is not callipper.poi.",
)
@click.option("--compare", is_flag=True, help="Compare with the source even if no change was noted.")
@click.option(
    "--keep",
    type=click.IntRange(0, 1000),
    is_flag=False,
    flag_value=1,
    metavar="[N]",
    help="Keep what is replaced, for `changes`; the N newest such states stay (default: 1).",
)
@click.option("--text-encoder", help="Folder of the model's text encoder, if its name is not enough to find it.")
@click.option("--wait", is_flag=True, help="Wait while a training run is at work in the database.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document; with --watch a line for each refresh.")
@with_dsn
def refresh(
    dsn: str,
    watch: bool,
    every: float | None,
    compare: bool,
    keep: int | None,
    text_encoder: str | None,
    wait: bool,
    as_json: bool,
) -> None:
    """Bring the active model up to date with its POIs, without training.

    POIs that were added, changed or deleted change the context of places near them. These places are embedded again, in one
    transaction. When many POIs have changed, the command advises to train again. With --watch in a large city, places far
    from a change follow when the changes pause. A model of a table or query of your own can be watched with --every.
    With --keep, `callipper-db changes` says afterwards where the city has changed.

    \b
    Examples:
      callipper-db refresh
      callipper-db refresh --watch
      callipper-db refresh --watch --every 300
      callipper-db refresh --keep
    """
    if every is not None and not watch:
        raise click.UsageError("--every goes with --watch.")
    training_side()
    from callipper_trainer.refresh.refresh import refresh as renew
    from callipper_trainer.refresh.watch import Watch

    schema.ensure_current(dsn)
    with make_reporter(False) as reporter:  # on stderr, so that JSON stays alone
        show = print_refresh_json if as_json else print_refresh
        if watch:
            try:
                Watch(dsn, reporter, show, every, compare, text_encoder, keep).run()
            except KeyboardInterrupt:
                reporter.note("Stopped.")
            return
        summary = renew(dsn, reporter, text_encoder=text_encoder, compare=compare, wait=wait, keep=keep)
        if keep and not summary.kept:
            reporter.note("No POI differs, so there is nothing new to keep.")
    show(summary)


def print_refresh_json(summary: Any) -> None:
    """A refresh as one line of JSON."""
    print_json(summary.to_dict())


def print_refresh(summary: Any) -> None:
    """A refresh as a sentence, with the advice to train again when that is due."""
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
        if summary.kept:
            click.echo(
                f"What it replaced is kept as state {summary.kept}. Where the city has changed: callipper-db changes"
            )
    else:
        click.echo(f"{model} is up to date with its {summary.pois:,} POIs.")
    if summary.training_advised:
        click.echo(
            f"{summary.drift:.0%} of the POIs are not those that it was trained with."
            " A new model would know them better: callipper-db train"
        )


@click.command()
@click.argument("texts", nargs=-1, required=True, metavar="TEXT...")
@with_dsn
def remember(dsn: str, texts: tuple[str, ...]) -> None:
    """Store the embeddings of texts, so that text_embed answers them at once.

    \b
    Example:
      callipper-db remember 'quiet residential street' 'somewhere to buy fresh fish'
    """
    training_side()
    from callipper_trainer.remember import remember as remember_texts

    schema.ensure_current(dsn)
    added = remember_texts(dsn, list(texts))
    click.echo(f"{added} of {len(texts)} texts were new to the active model.")
