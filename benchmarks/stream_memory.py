"""Peak memory of training from memory and from disk, by the number of rows: what a million more of them take.

Each run is a process of its own with a small network, since memory goes by rows and not by weights.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import synthetic
from benchmarks.city import City
from callipper_trainer.config import TrainConfig
from callipper_trainer.data.sample_file import stored_samples
from callipper_trainer.fit import Run, fit, fit_stored

ROWS = (100_000, 300_000)
TEXTS = 2000
BAR = 0.15  # of the memory that a row takes when all are in memory
# As many background places for any number of rows: they would grow until there are 130,000 rows, and no further.
CONFIG = TrainConfig(hidden=16, blocks=1, frequencies=4, epochs=1, background_most=4096, device="cpu")


def run(city: City) -> dict[str, Any]:
    """Peaks of both modes for both numbers of rows; the slope is what a row takes."""
    peaks = {mode: [_peak(mode, rows) for rows in ROWS] for mode in ("memory", "disk")}
    per_row = {mode: (peak[1] - peak[0]) / (ROWS[1] - ROWS[0]) for mode, peak in peaks.items()}
    return {
        "peak_mib": {
            mode: {f"{rows:,} rows": round(bytes_ / 2**20) for rows, bytes_ in zip(ROWS, peak, strict=True)}
            for mode, peak in peaks.items()
        },
        "bytes_a_row": {mode: round(value) for mode, value in per_row.items()},
        "bar": BAR,
        "holds": per_row["disk"] <= BAR * per_row["memory"],
    }


def _peak(mode: str, rows: int) -> int:
    command = [sys.executable, "-m", "benchmarks.stream_memory", mode, str(rows)]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(json.loads(finished.stdout)["peak"])


def measure(mode: str, rows: int) -> int:
    """Train once; the most bytes that this process has held."""
    vectors = synthetic.texts(TEXTS)
    parts = synthetic.parts(rows, TEXTS)
    if mode == "memory":
        whole = list(parts)
        metres, text_id = (np.concatenate([getattr(part, name) for part in whole]) for name in ("metres", "text_id"))
        fit(metres, text_id, vectors, synthetic.ORIGIN, CONFIG)
    else:
        with (
            tempfile.TemporaryDirectory() as folder,
            stored_samples(Path(folder) / "rows", parts, rows, CONFIG.seed) as stored,
        ):
            fit_stored(stored, vectors, CONFIG, Run())
    return _high_water()


def _high_water() -> int:
    """Of this process alone; getrusage would count what its parent held before."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


if __name__ == "__main__":
    print(json.dumps({"peak": measure(sys.argv[1], int(sys.argv[2]))}))
