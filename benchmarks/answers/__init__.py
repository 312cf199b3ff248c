"""Do people believe the answers? search, describe and search_points beside what an afternoon's work gives.

Each city is loaded into a database of its own and trained on by `callipper-db train` as a user runs it. Questions, named places
and names lie in data/, with the rules by which they were made. docs/quality.md says what the figures mean.

    make bench ARGS=answers
    make bench ARGS="answers --cities monaco --parts questions"
    python -m benchmarks answers --home FOLDER --write FILE

With --home, databases, models and vectors stay, and the next run asks the same models again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.answers import held_out
from benchmarks.answers.baselines import Baselines
from benchmarks.answers.cities import SRID, AnswerCity, read_city
from benchmarks.answers.product import KEPT_OPTIONS, Product, ask
from benchmarks.answers.questions import BLIND, FRESH, Question, answerable, read_questions
from benchmarks.answers.score import Judge, Score, summarise
from benchmarks.answers.words import APT, WORDS, WordJudge, read_places, summarise_words
from benchmarks.city import City
from benchmarks.london_arrays import Vectors
from callipper_db.arrays import Array
from callipper_db.cli.console import make_reporter
from callipper_db.progress import Reporter
from callipper_db.server import EmbeddedServer

PARTS = ("questions", "describe", "points", "held-out")
NAMES = Path(__file__).parent / "data" / "names.toml"
EMBEDDING, SEARCH = "emb <-> text_embed", "search"
PRODUCT = (EMBEDDING, SEARCH)
GROUPS = (
    "dev",
    "test",
    "oblique",
    "category",
    "blind",
    "blind oblique",
    "fresh",
    "fresh oblique",
)  # the everyday questions by half, and the other kinds

# What the answers have to reach, on the test half; the baseline is the best of them.
TIMES_BASELINE = {EMBEDDING: 1.0, SEARCH: 1.3}  # G in London
LEAST = {"lift": 15.0, "hits": 15.0}  # medians of search in London
BELOW_1 = 1 / 25  # share of its questions
WORDS_TRUE, WORDS_UNSUPPORTED = 0.85, 0.02
PLACES_APT = 24
NAMES_FIRST, POINTS_RELEVANT = 0.95, 7


@dataclass
class Result:
    """Of a city."""

    rows: dict[str, dict[str, Score]] = field(default_factory=dict)  # row -> question -> score
    figures: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)  # for people


def run(city: City, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """The tables to stderr, their figures as the result; `--write` keeps each question's figures too."""
    options = _parse(arguments)
    questions, of_london = read_questions(), [*read_questions(BLIND), *read_questions(FRESH)]
    groups = {question.text: _group(question) for question in (*questions, *of_london)}
    if len(groups) < len(questions) + len(of_london):
        raise ValueError("two questions have the same text")
    results = {}
    with make_reporter(as_json=False) as reporter, _server(city, options.home) as server:
        for name in options.cities:
            reporter.note(f"{name} ...")
            results[name] = _measure(
                server, name, [*questions, *(of_london if name == "london" else [])], options, reporter
            )
    figures = {name: _figures(result, groups) for name, result in results.items()}
    for name, result in results.items():
        print("\n".join([f"\n{name}", "", *_table(figures[name].get("rows", {})), *result.lines]), file=sys.stderr)
    bars = judge(figures)
    print("\n" + "\n".join(f"{'holds' if held else 'MISSED'}: {bar}" for bar, held in bars.items()), file=sys.stderr)
    if options.write:
        details = {name: {row: _details(scores) for row, scores in r.rows.items()} for name, r in results.items()}
        told = {name: result.lines for name, result in results.items()}
        options.write.write_text(
            json.dumps(
                {"cities": figures, "bars": bars, "questions": details, "lines": told}, indent=1, ensure_ascii=False
            )
            + "\n",
            encoding="utf-8",
        )
    return {"cities": figures, "bars": bars, "holds": all(bars.values())}


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks answers", description=str(__doc__).splitlines()[0])
    parser.add_argument("--cities", default=",".join(SRID), help="some of %(default)s")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of %(default)s; the last three on London alone")
    parser.add_argument("--baselines-only", action="store_true", help="without the product: no training")
    parser.add_argument(
        "--home", type=Path, metavar="FOLDER", help="keep the databases there, and use those that it has"
    )
    parser.add_argument("--retrain", action="store_true", help="with --home: train new models")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="keep all figures as JSON, those of each question too"
    )
    options = parser.parse_args(arguments)
    for name, known in (("cities", SRID), ("parts", PARTS)):
        chosen = getattr(options, name).split(",")
        if unknown := set(chosen) - set(known):
            parser.error(f"--{name}: there is no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        setattr(options, name, chosen)
    return options


@contextmanager
def _server(city: City, home: Path | None) -> Iterator[EmbeddedServer]:
    """The benchmarks' own server, or one whose databases stay."""
    if home is None:
        city.server.start()
        yield city.server
        return
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o755)
    server = EmbeddedServer(home.absolute())
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _measure(
    server: EmbeddedServer, name: str, questions: list[Question], options: argparse.Namespace, reporter: Reporter
) -> Result:
    city = read_city(server, name)
    vectors = Vectors(reporter)
    result = Result()
    result.figures |= {"pois": len(city), "cells": len(city.cells)}
    asked = answerable(questions, city.names, city.categories, name)
    if "questions" in options.parts:
        _ask_baselines(result, city, asked, vectors, reporter)
    if options.baselines_only:
        return result
    if name == "london" and "held-out" in options.parts:
        reporter.stage("training without every tenth POI")
        with ask(city, KEPT_OPTIONS, again=options.retrain) as (product, _):
            reporter.stage("held-out POIs")
            found = held_out.measure(product, lambda texts: vectors(texts, f"answers-{name}"))
        result.figures["held_out"] = found
        result.lines += ["", "Held-out POIs:", *(f"- {row}: {figures}" for row, figures in found.items())]
    reporter.stage("training")
    with ask(city, again=options.retrain) as (product, seconds):
        result.figures["train_s"] = round(seconds, 1)
        if "questions" in options.parts:
            _ask_product(result, product, asked, reporter)
        if name == "london" and "describe" in options.parts:
            _describe(result, product, vectors, reporter)
        if name == "london" and "points" in options.parts:
            _search_points(result, product, asked, reporter)
    return result


# Questions


def _ask_baselines(
    result: Result, city: AnswerCity, asked: list[tuple[Question, Array]], vectors: Vectors, reporter: Reporter
) -> None:
    judge = Judge(city.metres, city.cells)
    texts = [question.text for question, _ in asked]
    baselines = Baselines(
        pois=city.metres,
        cells=city.cells,
        texts=city.texts,
        text_id=city.text_id,
        vectors=vectors(city.texts, f"answers-{city.name}"),
        questions=texts,
        asked=vectors(texts, "answers-questions"),
    )
    reporter.stage("baselines")
    for name, places in baselines.rows():
        result.rows[name] = {q.text: judge.score(best, hit) for (q, hit), best in zip(asked, places, strict=True)}
        reporter.advance(1)


def _ask_product(result: Result, product: Product, asked: list[tuple[Question, Array]], reporter: Reporter) -> None:
    judge = Judge(product.city.metres, product.city.cells)
    rows: dict[str, dict[str, Score]] = {name: {} for name in PRODUCT}
    reporter.stage("questions", len(asked))
    for question, relevant in asked:
        rows[EMBEDDING][question.text] = judge.score(product.by_embedding(question.text), relevant)
        rows[SEARCH][question.text] = judge.score(product.by_search(question.text), relevant)
        reporter.advance(1)
    result.rows |= rows
    remembered = [question.text for question, _ in asked if question.kind == "category"]  # every model knows these
    result.figures["search_ms"] = round(float(np.median([product.search_ms(text) for text in remembered])), 1)


def _group(question: Question) -> str:
    if question.half in ("blind", "fresh") and question.kind == "oblique":
        return f"{question.half} oblique"
    return question.half if question.kind == "everyday" else question.kind


def _figures(result: Result, groups: dict[str, str]) -> dict[str, Any]:
    """What is printed of a city as JSON: each row's summary by group."""
    rows: dict[str, dict[str, Any]] = {}
    for name, scores in result.rows.items():
        by_group = {group: [s for text, s in scores.items() if groups[text] == group] for group in GROUPS}
        rows[name] = {
            group: {key: round(value, 2) for key, value in asdict(summarise(found)).items()}
            for group, found in by_group.items()
            if found
        }
    return result.figures | ({"rows": rows} if rows else {})


def _details(scores: dict[str, Score]) -> dict[str, dict[str, float]]:
    return {text: {key: round(value, 3) for key, value in asdict(score).items()} for text, score in scores.items()}


def _table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Markdown: the test half in full, and G of the other questions."""
    if not rows:
        return []
    counts = next(iter(rows.values()))
    others = [group for group in GROUPS if group in counts and group not in ("dev", "test")]
    n = {group: counts[group]["questions"] for group in GROUPS if group in counts}
    lines = [
        f"| test half, {n['test']} questions | lift | hits | **G** | below 1 | cells with a hit | POIs near"
        f" | G dev ({n['dev']}) | below 1 | {' | '.join(f'G {group} ({n[group]})' for group in others)} |",
        "| --- " * (9 + len(others)) + "|",
    ]
    for name, row in rows.items():
        test, dev = row["test"], row["dev"]
        shown = f"**{name}**" if name in PRODUCT else name
        lines.append(
            f"| {shown} | {test['lift']:.1f} | {test['hits']:.1f} | **{test['g']:.1f}** | {test['below_1']}"
            f" | {test['found']:.0%} | {test['pois']:.0f} | {dev['g']:.1f} | {dev['below_1']}"
            f" | {' | '.join('{:.1f}'.format(row[group]['g']) for group in others)} |"
        )
    return lines


# describe and search_points


def _describe(result: Result, product: Product, vectors: Vectors, reporter: Reporter) -> None:
    """At random supported places, beside the plain local lift, and at places that everybody knows."""
    city = product.city
    judge = WordJudge(city, lambda texts: vectors(texts, f"answers-{city.name}"))
    cells = judge.random_places()
    named = read_places()
    reporter.stage("describe", len(cells) + len(named))
    said = []
    for lon, lat in product.lonlat(city.cells[cells]):
        said.append(product.describe(lon, lat, WORDS))
        reporter.advance(1)
    counts = {"callipper-db": said, "plain local lift": judge.local_lift(city.cells[cells])}
    summaries = {name: summarise_words(judge.judge(city.cells[cells], words)) for name, words in counts.items()}
    places, apt = {}, 0
    result.lines += ["", "describe at random places:", *(f"- {name}: {found}" for name, found in summaries.items())]
    result.lines += ["", "| place | words (apt ones bold) | apt |", "| --- | --- | --- |"]
    for place in named:
        words = product.describe(place.lon, place.lat, WORDS)
        good = place.apt_words(words)
        apt += len(good) >= APT
        places[place.name] = {"words": words, "apt": len(good)}
        shown = ", ".join(f"**{word}**" if word in good else word for word in words) or "(nothing)"
        result.lines.append(f"| {place.name} | {shown} | {len(good)} |")
        reporter.advance(1)
    result.figures["describe"] = {"random": summaries, "named": places, "apt_places": apt}


def _search_points(result: Result, product: Product, asked: list[tuple[Question, Array]], reporter: Reporter) -> None:
    """Relevant POIs among the first ten of each everyday question, and whether distinctive words find their name first."""
    everyday = [question for question, _ in asked if _group(question) in ("dev", "test")]
    probes = tomllib.loads(NAMES.read_text(encoding="utf-8"))["name"]
    reporter.stage("search_points", len(everyday) + len(probes))
    relevant: dict[str, list[int]] = {"dev": [], "test": []}
    for question in everyday:
        points = product.search_points(question.text)
        names, categories = [name for name, _ in points], [category for _, category in points]
        relevant[question.half].append(int(question.relevant(names, categories, product.city.name).sum()))
        reporter.advance(1)
    missed = []
    for probe in probes:
        points = product.search_points(probe["ask"], 1)
        if [name for name, _ in points] != [probe["name"]]:
            missed.append(f"{probe['ask']}: {points[0][0] if points else 'nothing'} for {probe['name']}")
        reporter.advance(1)
    found = {half: float(np.median(counts)) for half, counts in relevant.items()}
    first = len(probes) - len(missed)
    result.figures["search_points"] = {"relevant_of_ten": found, "names_first": first, "names": len(probes)}
    result.lines += [
        "",
        f"search_points: median of relevant POIs among the first ten: {found['test']:g} (test), {found['dev']:g} (dev);"
        f" {first} of {len(probes)} names come first",
        *(f"- {line}" for line in missed),
    ]


def judge(figures: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """What is to hold -> whether it does, of what was measured; on the test half."""
    bars: dict[str, bool] = {}
    for name, city in figures.items():
        rows = {row: found["test"] for row, found in city.get("rows", {}).items()}
        if SEARCH not in rows:
            continue
        best = max(found["g"] for row, found in rows.items() if row not in PRODUCT)
        for row, times in TIMES_BASELINE.items() if name == "london" else [(SEARCH, 1.0)]:
            bars[f"{name}: G of {row} is at least {times:g} times that of the best baseline"] = (
                rows[row]["g"] >= times * best
            )
        if name == "london":
            found = rows[SEARCH]
            for figure, least in LEAST.items():
                bars[f"london: median {figure} of search is at least {least:g}"] = found[figure] >= least
            share = found["below_1"] / found["questions"]
            bars["london: at most 1 question of 25 is below 1 by search"] = share <= BELOW_1
    if "describe" in (london := figures.get("london", {})):
        words = london["describe"]["random"]["callipper-db"]
        bars[f"describe: {WORDS_TRUE:.0%} of the words are over-represented"] = (
            words.get("over_represented", 0) >= WORDS_TRUE
        )
        bars[f"describe: at most {WORDS_UNSUPPORTED:.0%} are unsupported"] = (
            words.get("unsupported", 1) <= WORDS_UNSUPPORTED
        )
        bars[f"describe: {PLACES_APT} of 30 named places are apt"] = london["describe"]["apt_places"] >= PLACES_APT
    if "search_points" in london:
        points = london["search_points"]
        bars[f"search_points: {POINTS_RELEVANT} of the first ten are relevant"] = (
            points["relevant_of_ten"]["test"] >= POINTS_RELEVANT
        )
        bars[f"search_points: {NAMES_FIRST:.0%} of the names come first"] = (
            points["names_first"] >= NAMES_FIRST * points["names"]
        )
    return bars
