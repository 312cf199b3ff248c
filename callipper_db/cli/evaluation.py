"""`callipper-db evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from callipper_db import schema
from callipper_db.cli.console import make_reporter, print_json, print_table
from callipper_db.cli.options import json_option, training_side, with_dsn
from callipper_db.errors import needs_extra
from callipper_db.figures import LOWER_IS_BETTER, SPLITS, TASKS


@click.command()
@click.option("--labels", metavar="FILE|TABLE", help="Labelled places: a file, or a table, view or query.")
@click.option("--target", metavar="COLUMN,...", help="Column with the label, or the columns of a distribution.")
@click.option("--task", type=click.Choice(TASKS), help="What the target is (default: guessed from its values).")
@click.option(
    "--split",
    type=click.Choice([*reversed(SPLITS), "both"]),
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
@json_option
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
    """How well a model predicts labels of yours, next to simple baselines that it must beat.

    The figures are also kept with the version: see models show and models compare.

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
    from callipper_trainer.evaluation.evaluate import assess
    from callipper_trainer.evaluation.labels import LabelSource
    from callipper_trainer.evaluation.retrieval import evaluate_retrieval

    schema.ensure_current(dsn)
    assessment, found = None, None
    with make_reporter(False) as reporter:  # on stderr, so that a JSON document stays alone
        if labels and target:
            label_source = LabelSource(labels, [column.strip() for column in target.split(",")], task, srid)
            assessment = assess(dsn, label_source, version, reporter, split=split, seeds=seeds)
            if draw:
                draw(assessment, picture)
        if retrieval:
            found = evaluate_retrieval(dsn, version, reporter, device=device, label_column=label_column)
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


@needs_extra("A map", "map")
def drawing() -> Any:
    """The function that draws errors. Raises MissingExtra."""
    from callipper_trainer.evaluation.plot import draw

    return draw


def print_scores(answer: dict[str, Any]) -> None:
    """Print an assessment as tables: a line for each set of features, and one for each class."""
    how = "guessed from the target; --task says otherwise" if answer["guessed"] else "as asked"
    targets = f"{len(answer['targets'])} {'classes' if answer['task'] == 'classification' else 'columns'}"
    click.echo(f"{answer['name']}: {answer['labels']:,} labels, {answer['task']} ({how}), {targets},")
    click.echo(f"model version {answer['version']}, mean and standard deviation over {answer['seeds']} seeds.\n")
    figures = list(answer["scores"][0]["mean"])
    for split in dict.fromkeys(score["split"] for score in answer["scores"]):
        lines = [score for score in answer["scores"] if score["split"] == split]
        rows = (
            [line["name"], *(f"{line['mean'][name]:.4f} ± {line['spread'][name]:.4f}" for name in figures)]
            for line in lines
        )
        print_table([f"held out {'by blocks' if split == 'blocks' else 'at random'}", *map(figure_name, figures)], rows)
        click.echo()
        if lines[0].get("classes"):
            rows = (
                [c["class"], round(c["support"]), *(f"{c[name]:.3f}" for name in ("precision", "recall", "f1"))]
                for c in lines[0]["classes"]
            )
            print_table(["class", "places", "precision", "recall", "F1"], rows)
            click.echo()
    for verdict in answer["verdicts"]:
        click.echo(verdict["says"])


def figure_name(figure: str) -> str:
    """A figure's name for a table, with an arrow that says which way is better."""
    names = {"macro_f1": "macro F1", "kl": "KL divergence", "l1": "L1", "r2": "R2", "rmse": "RMSE", "mae": "MAE"}
    return f"{names.get(figure, figure)} {'↓' if figure in LOWER_IS_BETTER else '↑'}"


def print_retrieval(answer: dict[str, Any]) -> None:
    """The AUC of each label, and their means."""
    ways = list(answer["macro_auc"])
    rows = [[row["label"], row["places"], *(f"{row['auc'][way]:.3f}" for way in ways)] for row in answer["labels"]]
    print_table(["label", "held-out places", *(f"AUC, asked by {way}" for way in ways)], rows)
    macro = " and ".join(f"{answer['macro_auc'][way]:.4f} asked by {way}" for way in ways)
    click.echo(
        f"\nMacro AUC {macro}, over {len(rows)} labels: {answer['held_out']:,} POIs held out from a model"
        f" trained on {answer['trained_on']:,}, with the settings of version {answer['version']}."
    )
