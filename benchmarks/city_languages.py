"""Cities asked in their own language: the encoder of many languages against English questions with the default encoder.

Each city is cut from the data folder's global amenities and trained twice by `callipper-db train`. The same questions are asked
in English of the default encoder's model, and in the city's language of the other one's, which has the words for places in
it. G is the geometric mean of lift + 0.1
over the questions; the lift is that of benchmarks/other_city.py. Bar: in no city is G lower in its own language.

    make bench ARGS="city_languages --cities berlin --epochs 4"
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.city import ENCODER, City
from benchmarks.other_city import AMENITIES, CITIES, ask, cut, new_database
from callipper_db.load import LoadOptions, load
from callipper_trainer.text_encoder import NGRAMS

LANGUAGES = {"berlin": "de", "tokyo": "ja", "madrid": "es", "algiers": "ar"}
BOXES = CITIES | {"madrid": (-3.84, 40.30, -3.55, 40.55), "algiers": (2.90, 36.65, 3.30, 36.85)}
# The kinds that answer a question, and the question in each language.
QUESTIONS: list[tuple[tuple[str, ...], dict[str, str]]] = [
    (("clinic", "doctors"), {"en": "hospital", "de": "Krankenhaus", "ja": "病院", "es": "hospital", "ar": "مستشفى"}),
    (("college", "university"), {"en": "school", "de": "Hochschule", "ja": "大学", "es": "universidad", "ar": "جامعة"}),
    (("library",), {"en": "borrow books", "de": "Bücher ausleihen", "ja": "本を借りる", "es": "tomar prestados libros",
                    "ar": "استعارة الكتب"}),
    (("dentist",), {"en": "toothache", "de": "Zahnschmerzen", "ja": "歯が痛い", "es": "dolor de muelas", "ar": "ألم الأسنان"}),
    (("theatre",), {"en": "an evening at a play", "de": "ein Theaterabend", "ja": "演劇を見る夜", "es": "una noche de teatro",
                    "ar": "أمسية في المسرح"}),
    (("fire station",), {"en": "put out a fire", "de": "ein Feuer löschen", "ja": "火事を消す", "es": "apagar un incendio",
                         "ar": "إطفاء حريق"}),
]  # fmt: skip


def run(city: City, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """G and the lifts of both models of each city; `both` is the second one asked in English."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks city_languages")
    parser.add_argument("--cities", default=",".join(LANGUAGES), help=f"some of {','.join(LANGUAGES)}")
    parser.add_argument("--epochs", help="instead of the recipe's own, for a quick look")
    options = parser.parse_args(arguments)
    if not AMENITIES.exists():
        print(f"Skipped: {AMENITIES.name} is not there.", file=sys.stderr)
        return {"skipped": AMENITIES.name}
    city.server.start()
    figures = {}
    for name in options.cities.split(","):
        dsn = new_database(city.server, name)
        with tempfile.TemporaryDirectory(prefix="callipper-city-") as folder:
            pois = cut(BOXES[name], Path(folder) / f"{name}.csv")
            load(dsn, [pois], LoadOptions(source="osm", rejects=Path(folder) / "rejects.csv"))
            english = _lifts(dsn, Path(folder), ENCODER, "en", options.epochs)
            own = _lifts(dsn, Path(folder), NGRAMS, LANGUAGES[name], options.epochs)
            both = _lifts(dsn, Path(folder), NGRAMS, "en", options.epochs, train=False)
        figures[name] = {
            "language": LANGUAGES[name],
            "G_english": _mean(english),
            "G_own": _mean(own),
            "G_both": _mean(both),
        }
        figures[name] |= {"lift_english": english, "lift_own": own, "lift_both": both}
        print(json.dumps({name: figures[name]}, ensure_ascii=False), file=sys.stderr, flush=True)
    return {"cities": figures, "holds": all(found["G_own"] >= found["G_english"] for found in figures.values())}


def _lifts(
    dsn: str, home: Path, encoder: str, language: str, epochs: str | None, *, train: bool = True
) -> dict[str, float]:
    """Train, make the version active, and ask; or ask the active one. Question -> lift."""
    if train:
        words = ",".join(dict.fromkeys([language, "en"]))
        command = [sys.executable, "-m", "callipper_db", "train", "--dsn", dsn, "--json", "--text-encoder", encoder]
        command += ["--languages", words, *(["--epochs", epochs] if epochs else [])]
        subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | {"CALLIPPER_HOME": str(home)})
    return {said[language]: round(ask(dsn, said[language], kinds).lift, 1) for kinds, said in QUESTIONS}


def _mean(lifts: dict[str, float]) -> float:
    return round(math.exp(sum(math.log(lift + 0.1) for lift in lifts.values()) / len(lifts)), 2)
