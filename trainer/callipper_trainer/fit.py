"""The training loop. It reads arrays or a file of rows, and no database."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from callipper_db.arrays import Array
from callipper_db.errors import BatchTooLarge, NotEnoughData
from callipper_db.progress import Reporter, Silent
from callipper_trainer.checkpoint import read_checkpoint, write_checkpoint
from callipper_trainer.config import TrainConfig
from callipper_trainer.data.batch_file import Streaming
from callipper_trainer.data.batches import Data, Resident, validation_rows
from callipper_trainer.data.sample_file import StoredSamples
from callipper_trainer.device import autocast, choose_device, free_bytes, tf32, uses_bf16
from callipper_trainer.distributed import ALONE, Ranks
from callipper_trainer.loss import Batch, loss_terms, objective
from callipper_trainer.model import CaLLiPer, TrainedModel
from callipper_trainer.stopwatch import Stopwatch

MINIMUM_SAMPLES = 20
# Bytes of memory a step takes, measured on a CPU with batches of 1,000 to 6,000. tests/trainer/test_fit.py measures it again.
PAIR_BYTES, PAIR_BYTES_WITH_NAMES, ROW_BYTES = 18, 26, 40_000


@dataclass(frozen=True)
class Run:
    """Where a fit reports, where it keeps its checkpoint, and which processes take part."""

    reporter: Reporter = field(default_factory=Silent)
    checkpoint: Path | None = None  # file of the state after each epoch
    fingerprint: str = ""  # identifies the data; fit refuses a checkpoint of other data
    resume: bool = False  # continue from the checkpoint
    ranks: Ranks = ALONE  # with several processes, each calls fit with the same arguments


def fit(
    metres: Array,
    text_id: Array,
    text_vectors: Array,
    origin: Array,
    config: TrainConfig,
    run: Run | None = None,
    name_id: Array | None = None,
) -> TrainedModel:
    """Train on N POIs with V distinct texts; all data is held on the device.

    metres: (N, 2) float64 in a projected CRS; text_id: (N,) rows of text_vectors; text_vectors: (V, T) float32 sentence
    vectors; origin: (2,) metres, the encoder's zero; name_id: (N,) rows of text_vectors, -1 for a POI without a name.
    Raises NotEnoughData, ConfigError for a device that is not there, CheckpointMissing, CheckpointMismatch,
    CheckpointDamaged, CheckpointUnwritable, PeerLost.
    """
    run = run or Run()
    _check_enough(len(metres), len(np.unique(text_id)), run.ranks)
    device, watch = choose_device(config.device), Stopwatch()
    check_batch(len(metres), config, device, run.ranks)
    run.reporter.stage("counting POIs around places")
    with watch.timing("features"):
        data = Resident(metres - origin, text_id, text_vectors, config, device, run.ranks, name_id)
    return _train(data, origin, config, device, run, watch)


def fit_stored(stored: StoredSamples, text_vectors: Array, config: TrainConfig, run: Run) -> TrainedModel:
    """fit() on rows that stay on disk. text_vectors: (V, T), those of stored.texts."""
    _check_enough(len(stored), int((stored.text_count > 0).sum()), run.ranks)
    device, watch = choose_device(config.device), Stopwatch()
    check_batch(len(stored), config, device, run.ranks)
    run.reporter.stage("counting POIs around places")
    with watch.timing("features"):
        data = Streaming(stored, text_vectors, config, device, run.ranks)
    return _train(data, stored.origin, config, device, run, watch)


def _check_enough(count: int, texts: int, ranks: Ranks) -> None:
    if count < MINIMUM_SAMPLES:
        raise NotEnoughData(reason=f"{count} POIs with a text were found, and at least {MINIMUM_SAMPLES} are needed.")
    if texts < 2:
        raise NotEnoughData(reason="all POIs have the same text, and a contrast needs at least two.")
    if count < MINIMUM_SAMPLES * ranks.world_size:
        raise NotEnoughData(reason=f"{count} POIs are too few for {ranks.world_size} processes. Start fewer.")


def check_batch(count: int, config: TrainConfig, device: torch.device, ranks: Ranks = ALONE) -> None:
    """Raise BatchTooLarge when a step of a run with `count` POIs needs more memory than is free.

    Without this check Linux grants the memory and kills the process when it uses it.
    """
    free = free_bytes(device)
    batch = config.batch_for(count - validation_rows(count, config.validation_share))
    sharing = ranks.world_size if device.type == "cpu" else 1  # processes in the same memory; each compares all pairs
    needed = sharing * step_bytes(batch, config)
    if free is None or needed <= free:
        return
    fits = batch
    while fits > 2 and sharing * step_bytes(fits, config) > 0.8 * free:  # leave a fifth free
        fits = int(0.95 * fits)
    raise BatchTooLarge(
        batch=f"{batch:,}", needed=f"{needed / 2**30:.1f}", free=f"{free / 2**30:.1f}", device=device, fits=fits
    )


def step_bytes(batch: int, config: TrainConfig) -> int:
    """About the memory of a step, without data and model: all pairs of a batch, and its rows in the network."""
    return (PAIR_BYTES_WITH_NAMES if config.name_weight else PAIR_BYTES) * batch**2 + ROW_BYTES * batch


def _train(
    data: Data, origin: Array, config: TrainConfig, device: torch.device, run: Run, watch: Stopwatch
) -> TrainedModel:
    torch.manual_seed(config.seed)
    model = data.maker.model()
    with watch.timing("features"):
        data.standardise(model.location.context)
    loop = Loop(model, data, config, device, run.ranks)
    result = TrainedModel(model, origin, data.pyramid, best_epoch=0, seconds=watch.seconds)
    best = copy.deepcopy(model.state_dict())
    if run.resume:
        state = read_checkpoint(run.checkpoint, run.fingerprint, loop.plan) if run.ranks.is_leader else None
        state = run.ranks.broadcast(state)
        loop.load_state(state)
        best, result.best_epoch, result.history = state["best"], state["best_epoch"], state["history"]
    done = len(result.history)
    run.reporter.stage("training", loop.epochs * loop.rows)
    run.reporter.advance(done * loop.rows)
    with watch.timing("fit"), tf32(config.precision, device):
        for epoch in range(done + 1, loop.epochs + 1):
            figures = loop.epoch(epoch, run.reporter)
            result.history.append(figures)
            if figures["validation_loss"] <= min(past["validation_loss"] for past in result.history):
                best, result.best_epoch = copy.deepcopy(model.state_dict()), epoch
            if run.checkpoint is not None and run.ranks.is_leader:
                state = {"best": best, "best_epoch": result.best_epoch, "history": result.history}
                write_checkpoint(run.checkpoint, loop.state() | state, run.fingerprint, loop.plan)
            run.reporter.epoch(figures)
    if not all(math.isfinite(figures["loss"] + figures["validation_loss"]) for figures in result.history):
        raise NotEnoughData(reason="the loss is not finite; the data or the settings give nothing to learn.")
    model.load_state_dict(best)
    model.eval()
    result.rows_per_s = (loop.epochs - done) * loop.rows / max(watch.seconds["fit"], 1e-9)
    return result


class Loop:
    """The model, its optimiser and its schedule: the state that an epoch changes."""

    def __init__(self, model: CaLLiPer, data: Data, config: TrainConfig, device: torch.device, ranks: Ranks) -> None:
        self.model, self.data, self.config, self.device, self.ranks = model, data, config, device, ranks
        self.bf16 = uses_bf16(config.precision, device)
        # All processes take equal shares of a batch.
        self.batch = max(1, config.batch_for(data.training) // ranks.world_size) * ranks.world_size
        self.epochs, self.steps = config.epochs_for(data.training), data.training // self.batch
        self.rows = self.steps * self.batch  # per epoch
        self.optimiser = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, config.learning_rate, total_steps=self.epochs * self.steps, cycle_momentum=False
        )

    @property
    def plan(self) -> dict[str, Any]:
        """What decides the steps, apart from the data. A checkpoint fits a run with the same plan only."""
        return self.config.to_dict() | {"batch": self.batch, "data": type(self.data).__name__}

    def epoch(self, epoch: int, reporter: Reporter) -> dict[str, Any]:
        """Train on each row once; return the epoch's figures."""
        started = time.monotonic()
        # Order and dropout depend on (seed, epoch) only. So a resumed run takes the same steps.
        torch.manual_seed(self.config.torch_seed(epoch, self.ranks.rank))
        self.model.train()
        losses = torch.zeros((), device=self.device)
        for number, batch in enumerate(self.data.batches(epoch, self.batch), start=1):
            losses += training_step(self.model, batch, self.config, self.optimiser, self.ranks, bf16=self.bf16)
            self.schedule.step()
            if number % 10 == 0 or number == self.steps:  # not each step, since reading the loss waits for the device
                reporter.advance(self.batch * ((number - 1) % 10 + 1), loss=float(losses) / number)
        loss = self.ranks.all_reduce(losses) / self.ranks.world_size
        return {
            "epoch": epoch,
            "epochs": self.epochs,
            "loss": round(float(loss) / self.steps, 5),
            **self.validation(),
            "rows_per_s": round(self.rows / (time.monotonic() - started)),
            "logit_scale": round(float(self.model.scale().detach()), 3),
        }

    @torch.no_grad()
    def validation(self) -> dict[str, float]:
        """The loss over the held-out rows, and its text term. The batch size is that of training, or all rows if fewer."""
        self.model.eval()
        total = torch.zeros(3, dtype=torch.float64)  # sum of losses, sum of text terms, number of batches
        for batch in self.data.held_out(min(self.batch, self.data.validation)):
            with autocast(self.device, self.bf16):
                terms = loss_terms(self.model, batch, self.config)
            total += torch.tensor([float(sum(terms.values())), float(terms["texts"]), 1], dtype=torch.float64)
        loss, texts, count = self.ranks.all_reduce(total).tolist()
        return {"validation_loss": round(loss / count, 5), "validation_loss_texts": round(texts / count, 5)}

    def state(self) -> dict[str, Any]:
        """The state as a checkpoint holds it."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])


def training_step(
    model: CaLLiPer,
    batch: Batch,
    config: TrainConfig,
    optimiser: torch.optim.Optimizer,
    ranks: Ranks = ALONE,
    *,
    bf16: bool = False,
) -> Tensor:
    """One step on a batch, or on this process's share of it. Returns the loss, (), on the device."""
    with autocast(batch.text.device, bf16):
        loss = objective(model, batch, config, ranks.gather)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    ranks.average_gradients(model)
    optimiser.step()
    return loss.detach()
