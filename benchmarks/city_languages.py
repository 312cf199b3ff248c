"""Cities asked in their own language: the encoder of many languages against English questions with the default encoder.

Each city is cut from the data folder's global amenities and trained twice by `callipper-db train`: for English with the default
encoder, and for the city's language and English with the other one. The questions of city_languages.toml are asked in English
of the first model, and in both languages of the second. G is that of the answers (benchmarks/answers/score.py), of ten cells.
Bar: by `search`, in no city is G lower in its own language than in English with the default encoder.

    make bench ARGS="city_languages --cities berlin --epochs 4"
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.answers.score import Judge, Score, summarise
from benchmarks.city import ENCODER, City
from benchmarks.other_city import AMENITIES, CITIES, cut, new_database
from benchmarks.sessions import user_session
from callipper_db.arrays import Array
from callipper_db.languages import ENGLISH
from callipper_db.load import LoadOptions, load
from callipper_db.server import EmbeddedServer
from callipper_trainer.text_encoder import NGRAMS

LANGUAGES = {"berlin": "de", "tokyo": "ja", "madrid": "es", "algiers": "ar"}
BOXES = CITIES | {"madrid": (-3.84, 40.30, -3.55, 40.55), "algiers": (2.90, 36.65, 3.30, 36.85)}
QUESTIONS = Path(__file__).with_suffix(".toml")
FEWEST = 5  # POIs that answer a question
BY = {
    "search": "SELECT geom FROM callipper.search(%(text)s, 10, model => %(version)s)",
    "embedding": "SELECT c.geom FROM callipper.cell_embedding e JOIN callipper.cell c USING (cell_id)"
    " WHERE e.version = %(version)s ORDER BY e.emb <-> callipper.text_embed(%(text)s, %(version)s) LIMIT 10",
}
CENTRES = (
    "SELECT ST_X(m), ST_Y(m) FROM ({}) AS a, LATERAL (SELECT ST_Transform(ST_Centroid(a.geom), %(srid)s) AS m) AS t"
)
POIS = "SELECT ST_X(m), ST_Y(m), p.category FROM callipper.poi p, LATERAL (SELECT ST_Transform(p.geom, %s) AS m OFFSET 0) AS t"
CELLS = (
    "SELECT ST_X(m), ST_Y(m) FROM callipper.cells c, LATERAL (SELECT ST_Transform(ST_Centroid(c.geom), %s) AS m) AS t"
)


@dataclass(frozen=True)
class Question:
    """In several languages, and the categories that answer it."""

    said: dict[str, str]
    categories: frozenset[str]
    half: str


def run(city: City, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """G of both models of each city; `both` is the second one asked in English."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks city_languages", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--cities", default=",".join(LANGUAGES), help=f"some of {','.join(LANGUAGES)}")
    parser.add_argument("--epochs", help="instead of the recipe's own, for a quick look")
    options = parser.parse_args(arguments)
    names = options.cities.split(",")
    if unknown := set(names) - set(LANGUAGES):
        parser.error(f"there is no city {', '.join(sorted(unknown))}; there are {', '.join(LANGUAGES)}")
    if not AMENITIES.exists():
        print(f"Skipped: {AMENITIES.name} is not there.", file=sys.stderr)
        return {"skipped": AMENITIES.name}
    city.server.start()
    figures = {}
    for name in names:
        figures[name] = measure(city.server, name, options.epochs)
        print(json.dumps({name: figures[name]}, ensure_ascii=False), file=sys.stderr, flush=True)
    holds = all(found["own"]["search"]["g"] >= found["english"]["search"]["g"] for found in figures.values())
    return {"cities": figures, "holds": holds}


def measure(server: EmbeddedServer, name: str, epochs: str | None) -> dict[str, Any]:
    """Load a city, train both models, and ask them."""
    dsn, language = new_database(server, name), LANGUAGES[name]
    with tempfile.TemporaryDirectory(prefix="callipper-city-") as folder:
        pois = cut(BOXES[name], Path(folder) / f"{name}.csv")
        load(dsn, [pois], LoadOptions(source="osm", rejects=Path(folder) / "rejects.csv"))
        models = {
            "english": train(dsn, Path(folder), ENCODER, ENGLISH, epochs),
            "own": train(dsn, Path(folder), NGRAMS, f"{language},{ENGLISH}", epochs),
        }
    asked = {
        "english": (models["english"], ENGLISH),
        "own": (models["own"], language),
        "both": (models["own"], ENGLISH),
    }
    return {"language": language} | {
        what: {by: summary(ask(dsn, version, said, by)) for by in BY} for what, (version, said) in asked.items()
    }


def train(dsn: str, home: Path, encoder: str, languages: str, epochs: str | None) -> int:
    """The version that the command makes."""
    command = [sys.executable, "-m", "callipper_db", "train", "--dsn", dsn, "--json", "--text-encoder", encoder]
    command += ["--languages", languages, *(["--epochs", epochs] if epochs else [])]
    environment = os.environ | {"CALLIPPER_HOME": str(home)}
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return int(json.loads(finished.stdout.splitlines()[-1])["version"])


def questions() -> list[Question]:
    """Of the file."""
    entries = tomllib.loads(QUESTIONS.read_text(encoding="utf-8"))["question"]
    return [Question(entry, frozenset(entry["categories"]), entry["half"]) for entry in entries]


def ask(dsn: str, version: int, language: str, by: str) -> list[tuple[Question, Score]]:
    """The questions that at least FEWEST POIs answer, with the scores of a version's answers; by: one of BY."""
    with user_session(dsn, autocommit=True) as connection:
        (srid,) = connection.one("SELECT srid FROM callipper.model WHERE version = %s", [version])
        rows = connection.execute(POIS, [srid]).fetchall()
        categories = np.array([category for _, _, category in rows])
        judge = Judge(np.array([row[:2] for row in rows]), np.array(connection.execute(CELLS, [srid]).fetchall()))
        found = []
        for question in questions():
            relevant: Array = np.isin(categories, list(question.categories))
            if relevant.sum() >= FEWEST:
                values = {"text": question.said[language], "version": version, "srid": srid}
                places = connection.execute(CENTRES.format(BY[by]).encode(), values).fetchall()
                score = judge.score(np.array(places, np.float64).reshape(-1, 2), relevant)
                found.append((question, score))
    return found


def summary(found: list[tuple[Question, Score]]) -> dict[str, Any]:
    """G of all questions and of each half, how many are worse than chance, and the quality of each."""
    halves = {half: [score for question, score in found if question.half == half] for half in ("dev", "test")}
    whole = summarise([score for _, score in found])
    return {
        "questions": whole.questions,
        "g": round(whole.g, 2),
        **{f"g_{half}": round(summarise(scores).g, 2) for half, scores in halves.items()},
        "below_1": whole.below_1,
        "quality": {question.said[ENGLISH]: round(score.quality, 1) for question, score in found},
    }
