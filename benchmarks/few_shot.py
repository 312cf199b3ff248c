"""More like these: a simulated user clicks 5 places of a kind and 5 of others. How well do the clicks find the other places?

The places are London's POIs that the model has not seen, and the points of the land-use data. Half of them may be clicked; the
AUC of each kind is over the other half. Next to the clicks stand the text query that a user would type in their place, and a
probe of all places that may be clicked, which no user would click.

    make bench ARGS=few_shot
    make bench ARGS="few_shot --pois 10000 --users 3"
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.city import City
from benchmarks.london_arrays import Vectors, read_landuse, read_pois
from benchmarks.quality import Material, train_recipe
from callipper_db.arrays import Array
from callipper_db.city import fit_few_shot_probe
from callipper_db.cli.console import make_reporter
from callipper_trainer.config import TrainConfig
from callipper_trainer.embed import embed_places, embed_texts
from callipper_trainer.evaluation.retrieval import hold_out
from callipper_trainer.evaluation.scores import auc

CLICKS = 5  # of the kind, and as many of others
LEAST = 20  # places of a kind in each half
DISLIKED = 0.5  # weight of the dislikes, as search_by_examples() has it
WAYS = ("text", "clicks", "text and clicks", "probe of the clicks", "probe of all")
SHOWN = (
    "School/college/university",
    "Primary school",
    "Pub",
    "Library",
    "Railway station",
    "Recreational land",
    "Water",
)


@dataclass(frozen=True)
class Places:
    """N places that the model was not trained with."""

    emb: Array  # (N, D) float32, unit length
    kind: Array  # (N,) index into texts
    texts: list[str]  # (L,)
    text_emb: Array  # (L, D) float32


def run(city: City, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Macro AUC of each way to ask, for POIs by their label and for points by their land use; the table to stderr."""
    options = _parse(arguments)
    with make_reporter(as_json=False) as reporter:
        pois = read_pois().first(options.pois)
        kept, held_out = hold_out(len(pois))
        material = Material(pois, kept, held_out, {}, Vectors(reporter), 1, reporter)
        trained = train_recipe(
            material, replace(TrainConfig(), **({"epochs": options.epochs} if options.epochs else {}))
        )

        def texts(names: list[str]) -> Array:
            return embed_texts(trained, material.vectors(names, "questions"))

        landuse = read_landuse()
        targets = landuse.targets
        groups = {
            "POIs": Places(
                embed_places(trained, pois.metres[held_out]), pois.label_id[held_out], pois.labels, texts(pois.labels)
            ),
            "land use": Places(
                embed_places(trained, landuse.metres),
                targets.values.argmax(axis=1),
                targets.names,
                texts(targets.names),
            ),
        }
        reporter.stage("asking", sum(len(group.texts) for group in groups.values()))
        found = {name: ask_all(places, options.users, reporter.advance) for name, places in groups.items()}
    print(table(found), file=sys.stderr)
    return {
        "clicks": CLICKS,
        "users": options.users,
        "kinds": {name: len(kinds) for name, kinds in found.items()},
        "macro_auc": {
            name: {way: round(value, 1) for way, value in macro(kinds).items()} for name, kinds in found.items()
        },
    }


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks few_shot", description=str(__doc__).splitlines()[0])
    parser.add_argument("--users", type=int, default=20, help="who click for each kind (%(default)s)")
    parser.add_argument("--pois", type=int, help="number of POIs in place of all, for a quick look")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's own, for a quick look")
    return parser.parse_args(arguments)


def ask_all(places: Places, users: int, advance: Callable[[int], None]) -> dict[str, dict[str, float]]:
    """Kind -> way to ask -> AUC times 100, for the kinds with enough places in both halves."""
    order = np.random.default_rng(0).permutation(len(places.kind))
    clickable, test = np.array_split(order, 2)
    found = {}
    for number, text in enumerate(places.texts):
        if min(np.sum(places.kind[clickable] == number), np.sum(places.kind[test] == number)) >= LEAST:
            found[text] = _ask(places, number, clickable, test, users)
        advance(1)
    return found


def _ask(places: Places, number: int, clickable: Array, test: Array, users: int) -> dict[str, float]:
    own = places.kind[test] == number

    def rate(scores: Array) -> float:
        return 100 * auc(scores[own], scores[~own])

    text, seen = places.text_emb[number], places.emb[test]
    rated: dict[str, list[float]] = {way: [] for way in WAYS}
    rated["text"].append(rate(seen @ text))
    rated["probe of all"].append(rate(_probe(places, clickable, number, seen)))
    for user in range(users):
        clicks = click(places.kind[clickable] == number, np.random.default_rng([number, user]))
        chosen = clickable[clicks]
        liked, disliked = places.emb[chosen[:CLICKS]], places.emb[chosen[CLICKS:]].mean(axis=0)
        rated["clicks"].append(rate(seen @ (liked.mean(axis=0) - DISLIKED * disliked)))
        with_text = np.vstack([liked, text]).mean(axis=0)
        rated["text and clicks"].append(rate(seen @ (with_text - DISLIKED * disliked)))
        rated["probe of the clicks"].append(rate(_probe(places, chosen, number, seen)))
    return {way: float(np.mean(values)) for way, values in rated.items()}


def click(is_own: Array, random: np.random.Generator) -> Array:
    """(N,) whether a place is of the kind -> CLICKS rows of the kind, then CLICKS of others."""
    sides = (np.flatnonzero(is_own), np.flatnonzero(~is_own))
    return np.concatenate([random.choice(side, CLICKS, replace=False) for side in sides])


def _probe(places: Places, rows: Array, number: int, seen: Array) -> Array:
    """The log odds of a kind at `seen`, (T, D), by the probe of City.label_cells() on these rows."""
    probe = fit_few_shot_probe(places.emb[rows], places.kind[rows] == number)
    odds: Array = probe.decision_function(seen * np.sqrt(seen.shape[1]))
    return odds


def macro(kinds: dict[str, dict[str, float]]) -> dict[str, float]:
    """Way to ask -> mean over the kinds."""
    return {way: float(np.mean([values[way] for values in kinds.values()])) for way in WAYS}


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown, so that it can go into a page as it is."""
    lines = [f"| AUC x 100 | {' | '.join(WAYS)} |", "| --- |" + " --- |" * len(WAYS)]
    for name, kinds in found.items():
        rows = {f"**{name}**, {len(kinds)} kinds": macro(kinds)} | {
            kind: kinds[kind] for kind in SHOWN if kind in kinds
        }
        lines += [
            f"| {kind} | " + " | ".join(f"{values[way]:.1f}" for way in WAYS) + " |" for kind, values in rows.items()
        ]
    return "\n".join(lines)
