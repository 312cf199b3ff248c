"""The training loop, from arrays: no database here."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from callipper_db.errors import (
    CheckpointDamaged,
    CheckpointMismatch,
    CheckpointMissing,
    CheckpointUnwritable,
    ConfigError,
    NotEnoughData,
)
from callipper_db.progress import Reporter, Silent
from callipper_db.store import Array
from trainer.config import TrainConfig
from trainer.context import Pyramid, build_pyramid
from trainer.loss import symmetric_info_nce
from trainer.model import CaLLiPer

MINIMUM_SAMPLES = 20


@dataclass
class Trained:
    """What fit() returns: the best epoch's model, in evaluation mode, and what each epoch reached."""

    model: CaLLiPer
    origin: Array  # (2,) float64 metres
    pyramid: Pyramid | None  # of the contextual encoder
    best_epoch: int
    history: list[dict[str, Any]] = field(default_factory=list)


def fit(
    metres: Array,
    text_id: Array,
    text_vectors: Array,
    origin: Array,
    config: TrainConfig,
    *,
    reporter: Reporter | None = None,
    checkpoint: Path | None = None,
    fingerprint: str = "",
    resume: bool = False,
) -> Trained:
    """Train on N places with texts out of V.

    metres: (N, 2) float64 in a projected CRS; text_id: (N,) into text_vectors: (V, T) float32 of the sentence encoder;
    origin: (2,) from which the encoder counts metres. With `checkpoint`, the state after each epoch is kept there, and
    `resume` goes on from it; `fingerprint` names the data, and a checkpoint of other data is refused.
    Raises NotEnoughData, ConfigError for a device that is not there, CheckpointMissing, CheckpointMismatch,
    CheckpointDamaged, CheckpointUnwritable.
    """
    if len(metres) < MINIMUM_SAMPLES:
        raise NotEnoughData(f"{len(metres)} POIs with a text were found, and at least {MINIMUM_SAMPLES} are needed.")
    if len(np.unique(text_id)) < 2:
        raise NotEnoughData("all POIs have the same text, and a contrast needs at least two.")
    reporter = reporter or Silent()
    device = choose_device(config.device)
    training, validation = split(len(metres), config.validation_share, config.seed)
    batch, epochs = config.batch_for(len(training)), config.epochs_for(len(training))

    torch.manual_seed(config.seed)
    pyramid, context = None, None
    if config.encoder == "contextual":
        pyramid = build_pyramid(metres - origin, text_id, text_vectors)
        context = pyramid.features(metres - origin, own_code=pyramid.text_code(text_vectors)[text_id])
    model = CaLLiPer(config, text_vectors.shape[1], pyramid.width if pyramid else 0).to(device)
    data = Resident(metres - origin, text_id, text_vectors, device, context)
    if data.context is not None:
        model.location.fit_standardisation(data.context[torch.from_numpy(training).to(device)])
        data.context = model.location.standardise(data.context)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    steps = len(training) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.learning_rate, total_steps=epochs * steps, cycle_momentum=False
    )
    result = Trained(model, origin, pyramid, best_epoch=0)
    best = copy.deepcopy(model.state_dict())
    first_epoch = 1
    if resume:
        state = read_checkpoint(checkpoint, fingerprint, config)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        best, result.best_epoch, result.history = state["best"], state["best_epoch"], state["history"]
        first_epoch = len(result.history) + 1

    reporter.stage("training", epochs * steps * batch)
    reporter.advance((first_epoch - 1) * steps * batch)
    for epoch in range(first_epoch, epochs + 1):
        started = time.monotonic()
        # Order and dropout follow from (seed, epoch) alone, so that a resumed run takes the same steps.
        torch.manual_seed(config.seed * 1_000_003 + epoch)
        order = np.random.default_rng([config.seed, epoch]).permutation(training)
        model.train()
        losses = torch.zeros((), device=device)
        for number, rows in enumerate(batches(order, batch), start=1):
            loss = training_step(model, data, rows, optimiser)
            schedule.step()
            losses += loss
            if number % 10 == 0 or number == steps:  # reading the loss waits for the device
                reporter.advance(batch * ((number - 1) % 10 + 1), loss=float(losses) / number)
        figures = {
            "epoch": epoch,
            "epochs": epochs,
            "loss": round(float(losses) / steps, 5),
            "validation_loss": round(evaluate_loss(model, data, validation, batch), 5),
            "rows_per_s": round(steps * batch / (time.monotonic() - started)),
            "logit_scale": round(float(model.scale().detach()), 3),
        }
        result.history.append(figures)
        if figures["validation_loss"] <= min(past["validation_loss"] for past in result.history):
            best, result.best_epoch = copy.deepcopy(model.state_dict()), epoch
        if checkpoint is not None:
            state = {
                "model": model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "schedule": schedule.state_dict(),
            }
            state |= {"best": best, "best_epoch": result.best_epoch, "history": result.history}
            write_checkpoint(checkpoint, state, fingerprint, config)
        reporter.epoch(figures)
    if not all(math.isfinite(figures["loss"] + figures["validation_loss"]) for figures in result.history):
        raise NotEnoughData("the loss is not finite; the data or the settings give nothing to learn.")
    model.load_state_dict(best)
    model.eval()
    return result


def training_step(model: CaLLiPer, data: Resident, rows: Array, optimiser: torch.optim.Optimizer) -> Tensor:
    """One step on the given rows; returns the loss, still on the device."""
    metres, context, vectors, ids = data.take(rows)
    loss = symmetric_info_nce(model.location(metres, context), model.embed_text(vectors), ids, model.scale())
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return loss.detach()


class Resident:
    """All places and text vectors on the device; batches are rows of them."""

    def __init__(
        self, metres: Array, text_id: Array, text_vectors: Array, device: torch.device, context: Array | None = None
    ) -> None:
        self.device = device
        self.metres = torch.from_numpy(np.ascontiguousarray(metres)).to(device)
        self.text_id = torch.from_numpy(text_id.astype(np.int64)).to(device)
        self.text_vectors = torch.from_numpy(np.ascontiguousarray(text_vectors)).to(device)
        self.context = None if context is None else torch.from_numpy(context).to(device)

    def take(self, rows: Array) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Metres (B, 2), context (B, C), text vectors (B, T) and text ids (B,) of some rows."""
        index = torch.from_numpy(rows).to(self.device)
        ids = self.text_id[index]
        context = None if self.context is None else self.context[index]
        return self.metres[index], context, self.text_vectors[ids], ids


def split(count: int, validation_share: float, seed: int) -> tuple[Array, Array]:
    """Row numbers for training and validation, disjoint, at random."""
    order = np.random.default_rng(seed).permutation(count)
    held_out = max(2, round(count * validation_share))
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def batches(order: Array, size: int) -> Iterator[Array]:
    """Whole batches only: a smaller one has fewer negatives, hence another loss."""
    for start in range(0, len(order) - size + 1, size):
        yield order[start : start + size]


@torch.no_grad()
def evaluate_loss(model: CaLLiPer, data: Resident, rows: Array, batch: int) -> float:
    """Mean loss over the held-out rows, in batches of the training's size where there are enough."""
    model.eval()
    size = min(batch, len(rows))
    losses = []
    for chosen in batches(np.random.default_rng(0).permutation(rows), size):
        metres, context, vectors, ids = data.take(chosen)
        losses.append(
            symmetric_info_nce(model.location(metres, context), model.embed_text(vectors), ids, model.scale())
        )
    return float(torch.stack(losses).mean())


def choose_device(name: str) -> torch.device:
    """`auto` is the first GPU where there is one. Raises ConfigError for a device that cannot be used."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(name="--device", value=name, reason=str(error).splitlines()[0].rstrip(".")) from error
    return device


def write_checkpoint(path: Path, state: dict[str, Any], fingerprint: str, config: TrainConfig) -> None:
    """Replace the checkpoint in one step: a kill leaves the old one or the new one."""
    unfinished = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            torch.save(state | {"fingerprint": fingerprint, "config": config.to_dict()}, file)
        unfinished.replace(path)
    except OSError as error:
        raise CheckpointUnwritable(path=path, reason=error.strerror or str(error)) from error


def read_checkpoint(path: Path | None, fingerprint: str, config: TrainConfig) -> dict[str, Any]:
    """The state after the last whole epoch. Raises CheckpointMissing, CheckpointDamaged, CheckpointMismatch."""
    if path is None or not path.exists():
        raise CheckpointMissing(path=path)
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        found = state["fingerprint"], state["config"]
    except Exception as error:  # of half a dozen kinds, as the damage is
        raise CheckpointDamaged(path=path) from error
    if found[0] != fingerprint:
        raise CheckpointMismatch(path=path, what="data")
    if found[1] != config.to_dict():
        raise CheckpointMismatch(path=path, what="settings")
    return state
