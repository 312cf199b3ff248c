"""Training from arrays, without a database: rows/s, the share of matrix products, and the time to convergence.

On a machine with a GPU and nothing else:  python -m benchmarks.gpu_training --rows 2000000 --batch 8192
Several GPUs:  torchrun --nproc-per-node 4 -m benchmarks.gpu_training --rows 2000000 --batch 32768
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import synthetic
from callipper_db.arrays import Array
from callipper_db.progress import Silent
from callipper_trainer.config import TrainConfig
from callipper_trainer.data.sample_file import stored_samples
from callipper_trainer.distributed import ALONE, Ranks, joined
from callipper_trainer.fit import Run, fit, fit_stored

PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_addmm_activation"}
PROFILED_BATCHES = 40
NEAR = 0.02  # nats from the best held-out loss: converged


class Clock(Silent):
    """When each epoch ended, in seconds since the training began."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def stage(self, name: str, total: int | None = None) -> None:
        """The training begins."""
        self.began = time.perf_counter()

    def epoch(self, figures: dict[str, Any]) -> None:
        """An epoch has ended."""
        self.ends.append(time.perf_counter() - self.began)


def run(city: object) -> dict[str, Any]:
    """With so few rows that a CPU can do it."""
    return measure(20_000, 500, TrainConfig(epochs=4, batch_size=512))


def measure(rows: int, text_count: int, config: TrainConfig, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Train on synthetic POIs from memory and from disk."""
    vectors = synthetic.texts(text_count)
    metres, text_id = synthetic.places(rows, text_count, 0)
    arrays = (metres, text_id, vectors, synthetic.ORIGIN)
    fit(*(values[:2000] for values in arrays[:2]), *arrays[2:], replace(config, epochs=1), Run(ranks=ranks))  # warms up
    clock = Clock()
    trained = fit(*arrays, config, Run(reporter=clock, ranks=ranks))
    losses = np.array([figures["validation_loss"] for figures in trained.history])
    figures = {
        "device": _device(trained.model.logit_scale.device),
        "processes": ranks.world_size,
        "rows": rows,
        "epochs": len(losses),
        "rows_per_s": round(trained.rows_per_s),
        "features_s": round(trained.seconds["features"], 2),
        "held_out_loss": round(float(losses.min()), 4),
        "converged_s": round(clock.ends[int(np.argmax(losses < losses.min() + NEAR))], 2),
    }
    if ranks.world_size == 1:
        figures |= _products(arrays, config, trained.rows_per_s)
        figures["streamed_rows_per_s"] = _streamed(rows, text_count, vectors, config)
    return figures


def _products(arrays: tuple[Array, ...], config: TrainConfig, rows_per_s: float) -> dict[str, Any]:
    """Of some steps: the share of the time that matrix products take by themselves, and how fast they are."""
    metres, text_id, vectors, origin = arrays
    few = slice(0, PROFILED_BATCHES * config.batch_size)
    config = replace(config, epochs=1)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=activities) as profiled:
        trained = fit(metres[few], text_id[few], vectors, origin, config)
    on_gpu = trained.model.logit_scale.device.type == "cuda"
    rows = trained.rows_per_s * trained.seconds["fit"]
    seconds = 1e-6 * sum(
        event.self_device_time_total if on_gpu else event.self_cpu_time_total
        for event in profiled.key_averages()
        if event.key in PRODUCTS
    )
    with FlopCounterMode(display=False) as counter:
        fit(metres[few], text_id[few], vectors, origin, config)
    operations = counter.get_total_flops() / rows
    return {
        "share_of_products": round(seconds / rows * rows_per_s, 3),
        "teraflops": round(operations * rows_per_s / 1e12, 3),
        "teraflops_of_products": round(operations * rows / seconds / 1e12, 3),
    }


def _streamed(rows: int, text_count: int, vectors: Array, config: TrainConfig) -> int:
    with (
        tempfile.TemporaryDirectory() as folder,
        stored_samples(Path(folder) / "rows", synthetic.parts(rows, text_count), rows, config.seed) as stored,
    ):
        trained = fit_stored(stored, vectors, replace(config, epochs=1), Run())
    return round(trained.rows_per_s)


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


@click.command()
@click.option("--rows", default=1_000_000, show_default=True, help="POIs.")
@click.option("--texts", default=20_000, show_default=True, help="Distinct texts.")
@click.option("--batch", default=4096, show_default=True, help="POIs a step.")
@click.option("--epochs", default=8, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--precision", default=["auto"], multiple=True, show_default=True, help="May be repeated.")
def main(rows: int, texts: int, batch: int, epochs: int, device: str, precision: tuple[str, ...]) -> None:
    """One JSON line for each precision."""
    with joined(device) as ranks:
        for name in precision:
            config = TrainConfig(epochs=epochs, batch_size=batch, device=device, precision=name)
            figures = measure(rows, texts, config, ranks)
            if ranks.is_leader:
                click.echo(json.dumps({"precision": name} | figures))


if __name__ == "__main__":
    main()
