"""`python -m benchmarks [NAME...]`: one JSON line per benchmark; exit status 1 when a bar is missed.

A benchmark of WITH_OPTIONS, named alone, takes options: `python -m benchmarks quality --help`.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from itertools import takewhile
from pathlib import Path

from benchmarks.city import City, missing_data
from callipper_db.server import EmbeddedServer

NAMES = (
    "load_csv",
    "load_overture",
    "training_step",
    "training_epoch",
    "gpu_training",
    "stream_memory",
    "read_stream",
    "write_embeddings",
    "loc_embed",
    "text_embed",
    "own_places",
    "london",
    "top_texts",
    "index_pays",
    "map",
    "search",
    "quality",
    "other_city",
    "answers",
    "changes",
    "few_shot",
    "languages",
    "city_languages",
    "spark",
    "scale",
    "globe",
)
WITH_OPTIONS = (
    "quality",
    "other_city",
    "answers",
    "changes",
    "few_shot",
    "languages",
    "city_languages",
    "spark",
    "scale",
    "globe",
)


def main(arguments: list[str]) -> int:
    """Run the chosen benchmarks, all when none is named, on an embedded server of their own."""
    chosen = list(takewhile(lambda argument: not argument.startswith("-"), arguments))
    options = arguments[len(chosen) :]
    if unknown := set(chosen) - set(NAMES):
        print(f"There is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}.", file=sys.stderr)
        return 2
    if options and (len(chosen) != 1 or chosen[0] not in WITH_OPTIONS):
        print(f"Options go with one of {', '.join(WITH_OPTIONS)}, named alone.", file=sys.stderr)
        return 2
    if (missing := missing_data()) is not None:
        print(f"Skipped: the benchmarks need {missing}, which is not there.", file=sys.stderr)
        return 0
    missed = 0
    with tempfile.TemporaryDirectory(prefix="callipper-bench-") as folder:
        home = Path(folder)
        home.chmod(0o755)
        server = EmbeddedServer(home)
        city = City(server)
        try:
            for name in chosen or NAMES:
                print(f"{name} ...", file=sys.stderr)
                run = importlib.import_module(f"benchmarks.{name}").run
                figures = run(city, options) if options else run(city)
                missed += not figures.get("holds", True)
                print(json.dumps({"benchmark": name} | figures), flush=True)
        finally:
            server.stop()
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
