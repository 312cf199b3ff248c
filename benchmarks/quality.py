"""How good the embeddings are: the recipe next to the paper's method, floors without a model, and a bar.

From arrays, without a database. One model a row, trained once on nine tenths of London's POIs, serves all columns: probes read
land use and socio-economic mix off it, and texts look for the POIs of the other tenth. docs/quality.md says what it means.

    make bench ARGS=quality
    make bench ARGS="quality --rows floors,default --seeds 2 --pois 5000 --epochs 2"
    python -m benchmarks quality --write docs/quality.json --maps docs/images
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.city import City
from benchmarks.london_arrays import Labelled, Pois, Vectors, read_landuse, read_nssec, read_pois
from benchmarks.national_grid import from_national_grid
from callipper_db.arrays import Array
from callipper_db.cli.console import make_reporter
from callipper_db.progress import Reporter
from callipper_trainer.config import TrainConfig
from callipper_trainer.context import build_pyramid
from callipper_trainer.data.samples import Samples
from callipper_trainer.data.source import Source
from callipper_trainer.embed import embed_places, embed_texts
from callipper_trainer.evaluation.evaluate import Assessment
from callipper_trainer.evaluation.labels import Labels
from callipper_trainer.evaluation.plot import draw
from callipper_trainer.evaluation.protocol import MAIN, Score, evaluate_embeddings, evaluate_floors
from callipper_trainer.evaluation.retrieval import fit_without, hold_out, retrieval_auc
from callipper_trainer.features import GridEncoding
from callipper_trainer.fit import Run, fit
from callipper_trainer.model import TrainedModel

# Wang et al. 2025: category texts, coordinates alone, plain contrast. Of six epochs, validation keeps the fifth.
PAPER = TrainConfig.of("coordinate", epochs=6)
ROWS = ("floors", "paper", "default")
RECIPE = "callipper-db"
LOWER = ("NS-SeC",)  # columns of a divergence
BAR = {
    "land use random": 36.5,
    "land use blocks": 29.5,
    "NS-SeC random": 3.75,
    "NS-SeC blocks": 4.35,
    "AUC": 83.0,
}
BARE = "AUC, bare label"  # next to the bar: the category alone, as a person would ask
COLUMNS = (*BAR, BARE)
COLOURS = 64  # of a map: a third of the bytes, and nobody sees it
SHORT = {"nearest": "k-NN on coordinates", "coordinates": "probe on coordinates"}


@dataclass(frozen=True)
class Row:
    """A line of the table: column -> mean and spread over the probes' seeds, times 100; a retrieval has no spread."""

    name: str
    figures: dict[str, tuple[float, float]]
    details: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, list[Score]] = field(default_factory=dict)  # of a model, by task


@dataclass(frozen=True)
class Material:
    """What all rows share."""

    pois: Pois
    kept: Array  # rows to train on
    held_out: Array
    tasks: dict[str, Labelled]
    vectors: Vectors
    seeds: int
    reporter: Reporter


def run(city: City, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """The table to stderr, its figures as the result; `--write` keeps them in a file too."""
    options = _parse(arguments)
    with make_reporter(as_json=False) as reporter:
        pois = read_pois().first(options.pois)
        kept, held_out = hold_out(len(pois))
        tasks = {"land use": read_landuse(), "NS-SeC": read_nssec()}
        material = Material(pois, kept, held_out, tasks, Vectors(reporter), options.seeds, reporter)
        rows = _measure(material, options)
    verdict = judge(rows)
    print(table(rows, verdict, options.seeds), file=sys.stderr)
    result = _result(material, rows, verdict)
    if options.maps:
        draw_maps(material, rows[-1], options.maps)
    if options.write:
        options.write.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks quality", description=str(__doc__).splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="of the probes: folds that are held out in turn (5)")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"some of {','.join(ROWS)}")
    parser.add_argument("--pois", type=int, help="number of POIs in place of all, for a quick look")
    parser.add_argument("--epochs", type=int, help="instead of each recipe's own, for a quick look")
    parser.add_argument("--train-seed", type=int, default=TrainConfig().seed, help="of the models (%(default)s)")
    parser.add_argument("--maps", type=Path, metavar="FOLDER", help="draw where the last row's model errs")
    parser.add_argument("--write", type=Path, metavar="FILE", help="keep the result as JSON")
    options = parser.parse_args(arguments)
    options.rows = options.rows.split(",")
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"there is no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    if options.maps and options.rows == ["floors"]:
        parser.error("--maps draws a model's errors: add the row paper or default")
    return options


def _measure(material: Material, options: argparse.Namespace) -> list[Row]:
    """The rows that were asked for, in the order of the table."""
    changes = {"seed": options.train_seed} | ({"epochs": options.epochs} if options.epochs else {})
    rows: list[Row] = []
    if "floors" in options.rows:
        rows += _floors(material)
    if "paper" in options.rows:
        rows.append(_model("the paper's method", material, replace(PAPER, **changes), train_plain))
    if "default" in options.rows:
        rows.append(_model(RECIPE, material, replace(TrainConfig(), **changes), train_recipe))
    return rows


# Rows


def _floors(material: Material) -> list[Row]:
    """What needs no model: the labels around, and probes on what a model would read."""
    pois, kept = material.pois, material.kept
    vectors = material.vectors(pois.texts, "categories")
    pyramid = build_pyramid(pois.metres[kept] - pois.origin, pois.text_id[kept], vectors, TrainConfig())
    encoding = GridEncoding(PAPER.frequencies, PAPER.wavelength_min_m, PAPER.wavelength_max_m)
    figures: dict[str, dict[str, tuple[float, float]]] = {}
    for task, places in material.tasks.items():
        inside = places.metres - pois.origin
        features = {
            "position encoding": encoding(torch.from_numpy(inside)).numpy(),
            "context features": pyramid.features(inside),
        }
        material.reporter.stage(f"floors of {task}", 2 + len(features))
        scores = evaluate_floors(
            places.metres, places.targets, seeds=material.seeds, features=features, advance=material.reporter.advance
        )
        for score in scores:
            name = SHORT["nearest"] if "nearest" in score.name else SHORT.get(score.name, score.name)
            figures.setdefault(name, {}).update(_figures(task, [score]))
    return [Row(name, found) for name, found in figures.items()]


def _model(
    name: str, material: Material, config: TrainConfig, train: Callable[[Material, TrainConfig], TrainedModel]
) -> Row:
    """Train one model, and ask it everything."""
    started = time.monotonic()
    trained = train(material, config)
    spent = time.monotonic() - started
    figures, scores = _retrieval(trained, material), {}
    for task, places in material.tasks.items():
        material.reporter.stage(f"{name}: {task}")
        embeddings = embed_places(trained, places.metres)
        scores[task] = evaluate_embeddings(embeddings, places.metres, places.targets, seeds=material.seeds)
        figures |= _figures(task, scores[task])
    details = {"train_s": round(spent, 1), "best_epoch": trained.best_epoch, "config": config.to_dict()}
    return Row(name, figures, details, scores)


def train_plain(material: Material, config: TrainConfig) -> TrainedModel:
    """A model of the kept POIs' category texts, each counted as a text of its own: as in the paper, any two POIs of a batch
    are told apart, also two pubs."""
    pois, kept = material.pois, material.kept
    vectors = material.vectors(pois.texts, "categories")[pois.text_id[kept]]
    text_id = np.arange(len(kept), dtype=np.int32)
    return fit(pois.metres[kept], text_id, vectors, pois.origin, config, Run(reporter=material.reporter))


def train_recipe(material: Material, config: TrainConfig) -> TrainedModel:
    """A model of the kept POIs as training from a database makes it, of categories and of names with their category."""
    pois, kept = material.pois, material.kept
    named = np.flatnonzero(pois.name_id[kept] >= 0)
    pairs, of_pair = np.unique(
        np.column_stack([pois.name_id[kept][named], pois.text_id[kept][named]]), axis=0, return_inverse=True
    )
    count = np.bincount(of_pair.reshape(-1), minlength=len(pairs))
    frequent = np.sort(np.lexsort((np.arange(len(pairs)), -count))[: Source.names])
    row = np.full(len(pairs), -1, np.int32)
    row[frequent] = len(pois.texts) + np.arange(len(frequent))
    named_texts = [f"{pois.names[name]}, {pois.texts[text]}" for name, text in pairs[frequent]]
    name_id = np.full(len(kept), -1, np.int32)
    name_id[named] = row[of_pair.reshape(-1)]
    vectors = [material.vectors(pois.texts, "categories"), material.vectors(named_texts, "named texts")]
    samples = Samples(
        point_id=np.arange(len(pois)),
        lonlat=np.zeros((len(pois), 2)),
        metres=pois.metres,
        text_id=pois.text_id,
        texts=[*pois.texts, *named_texts],
        srid=27700,
        name_id=np.full(len(pois), -1, np.int32),
    )
    samples.name_id[kept] = name_id

    def encode(texts: list[str]) -> Array:
        return material.vectors(texts, "kinds")

    return fit_without(samples, np.concatenate(vectors), kept, config, material.reporter, encode)


def _retrieval(trained: TrainedModel, material: Material) -> dict[str, tuple[float, float]]:
    """Mean AUC over the labels with enough held-out POIs, asked by the text that the model reads and by the bare label."""
    pois, held_out = material.pois, material.held_out
    places = embed_places(trained, pois.metres[held_out])
    asked = {BARE: pois.labels, "AUC": _texts_of_labels(pois)}
    result = {}
    for column, texts in asked.items():
        vectors = embed_texts(trained, material.vectors(texts, "questions"))
        found = retrieval_auc(places, vectors, pois.label_id[held_out])
        result[column] = (100 * float(np.mean(list(found.values()))), 0.0)
    return result


def _texts_of_labels(pois: Pois) -> list[str]:
    """(L,) the text that the model reads for each label."""
    labels, first = np.unique(pois.label_id, return_index=True)
    assert len(labels) == len(pois.labels)
    return [pois.texts[number] for number in pois.text_id[first]]


def _figures(task: str, scores: list[Score]) -> dict[str, tuple[float, float]]:
    """Column -> mean and spread, times 100."""
    figure = MAIN["distribution" if task in LOWER else "classification"]
    return {f"{task} {score.split}": (100 * score.mean[figure], 100 * score.spread[figure]) for score in scores}


# Maps


def draw_maps(material: Material, row: Row, folder: Path) -> None:
    """What `callipper-db evaluate --map` draws, as london-land-use.png and london-ns-sec.png, in few colours."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for task, places in material.tasks.items():
        name = f"london-{task.lower().replace(' ', '-')}"
        labels = Labels(name, from_national_grid(places.metres), places.metres, places.targets, guessed=False, notes=[])
        path = folder / f"{name}.png"
        draw(Assessment(1, labels, material.seeds, row.scores[task]), path)
        Image.open(path).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


# The table


def judge(rows: list[Row]) -> dict[str, bool]:
    """Column -> whether the recipe's row reaches the bar; empty where the recipe was not measured."""
    recipe = next((row.figures for row in rows if row.name == RECIPE), {})
    return {column: _reaches(column, recipe[column][0]) for column in BAR if column in recipe}


def _reaches(column: str, value: float) -> bool:
    return value <= BAR[column] if column.startswith(LOWER) else value >= BAR[column]


def table(rows: list[Row], verdict: dict[str, bool], seeds: int) -> str:
    """Markdown, so that it can go into a page as it is."""
    lines = [
        "| x 100 | land use F1, random | blocks | NS-SeC KL, random | blocks | AUC | AUC, bare label |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(_line(row.name, [_shown(column, row.figures.get(column)) for column in COLUMNS]))
    lines.append(_line("**bar**", [_bar(column, verdict) for column in COLUMNS]))
    spread = f"mean ± standard deviation over {seeds} probe seeds" if seeds > 1 else "one probe seed"
    return "\n".join([*lines, "", f"{spread}; one training run a model. KL: lower is better."])


def _line(name: str, cells: list[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def _shown(column: str, found: tuple[float, float] | None) -> str:
    if found is None:
        return "-"
    digits = 2 if column.startswith(LOWER) else 1
    mean, spread = found
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread else "")


def _bar(column: str, verdict: dict[str, bool]) -> str:
    if column not in BAR:
        return "-"
    bar = f"{BAR[column]:.{2 if column.startswith(LOWER) else 1}f}"
    return bar if column not in verdict else f"{bar} {'holds' if verdict[column] else '**does not hold**'}"


def _result(material: Material, rows: list[Row], verdict: dict[str, bool]) -> dict[str, Any]:
    return {
        "pois": {"trained_on": len(material.kept), "held_out": len(material.held_out)},
        "labels": {task: len(places.targets) for task, places in material.tasks.items()},
        "probe_seeds": material.seeds,
        "rows": [
            {
                "name": row.name,
                "mean": {column: round(mean, 3) for column, (mean, _) in row.figures.items()},
                "spread": {column: round(spread, 3) for column, (_, spread) in row.figures.items() if spread},
            }
            | row.details
            for row in rows
        ],
        "bar": BAR,
        "reached": verdict,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "packages": {name: importlib.metadata.version(name) for name in ("callipper-db", "torch", "numpy")},
        "holds": all(verdict.values()),
    }
