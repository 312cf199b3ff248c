"""The probe: a small network that predicts a target from an embedding. How well it does so measures the embedding.

One probe is so small that a training step is mostly overhead. So the probes of all seeds train together, as slices of the same
tensors. The gradient is written out for the same reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from callipper_db.arrays import Array
from callipper_trainer.evaluation.splits import Split

HIDDEN = 64
LEARNING_RATE = 1e-3  # of Adam
BETAS = (0.9, 0.999)
EPSILON = 1e-8
BATCH = 128
EPOCHS = 300  # at most
PATIENCE = 10  # epochs without a better validation loss
ROWS = 4096  # rows read at once outside of training


def fit_probes(features: Array, targets: Array, task: str, splits: list[Split]) -> list[Array]:
    """Train one probe per split; returns the predictions for the test rows of each split, (T, C).

    features: (N, D) finite; they are standardised here, by the training rows. targets: (N, C), one-hot for classification,
    shares that sum to 1 for a distribution, numbers for regression. Predictions are probabilities or shares, or numbers in the
    units of the target. The same input gives the same output on the same machine.
    """
    order = sorted(range(len(splits)), key=lambda number: -len(splits[number].train))
    stack = Stack(features, targets, task, [splits[number] for number in order])
    stack.train()
    predictions = dict(zip(order, stack.predict(), strict=True))
    return [predictions[number] for number in range(len(splits))]


@dataclass
class Layout:
    """The layout of a probe's row of parameters: D x H, H, H x C, C."""

    inputs: int
    outputs: int

    def initial(self, seed: int) -> Tensor:
        """(size,) initialised as torch.nn.Linear: uniform within +-1 / sqrt(inputs)."""
        generator = torch.Generator().manual_seed(seed)
        parts = ((self.inputs, (self.inputs + 1) * HIDDEN), (HIDDEN, (HIDDEN + 1) * self.outputs))
        uniform = [(torch.rand(count, generator=generator) * 2 - 1) / math.sqrt(fan_in) for fan_in, count in parts]
        return torch.cat(uniform)


class Weights:
    """The parameters of S probes, one row each, or their gradient. The layers are views of the rows."""

    def __init__(self, layout: Layout, rows: Tensor) -> None:
        self.layout, self.rows = layout, rows  # rows: (S, size)
        shapes = ((layout.inputs, HIDDEN), (1, HIDDEN), (HIDDEN, layout.outputs), (1, layout.outputs))
        parts = torch.split(rows, [height * width for height, width in shapes], dim=1)
        self.first, self.first_bias, self.second, self.second_bias = (
            part.view(len(rows), *shape) for part, shape in zip(parts, shapes, strict=True)
        )
        self._heads: dict[int, Weights] = {len(rows): self}

    def head(self, count: int) -> Weights:
        """A view of the first `count` probes."""
        if count not in self._heads:
            self._heads[count] = Weights(self.layout, self.rows[:count])
        return self._heads[count]

    def pick(self, places: list[int]) -> Weights:
        """A copy of some of the probes."""
        return Weights(self.layout, self.rows[places])


class Stack:
    """S probes and their data. Those with more training rows come first."""

    def __init__(self, features: Array, targets: Array, task: str, splits: list[Split]) -> None:
        self.task, self.splits = task, splits
        self.layout = Layout(features.shape[1], targets.shape[1])
        self.features = torch.from_numpy(np.ascontiguousarray(features, np.float32))
        self.targets = torch.from_numpy(np.ascontiguousarray(targets, np.float32))
        self.centre, self.scale = _standardisation(features, splits)
        shift, spread = _standardisation(targets, splits)
        if task != "regression":
            shift, spread = torch.zeros_like(shift), torch.ones_like(spread)
        self.shift, self.spread = shift, spread  # mean of the targets, and 1 / standard deviation
        self.best = torch.stack([self.layout.initial(split.seed) for split in splits])

    @torch.no_grad()
    def train(self) -> None:
        """Train each probe until its validation loss has not fallen for PATIENCE epochs, and keep its best weights."""
        alive = list(range(len(self.splits)))
        generators = [np.random.default_rng([split.seed, 1]) for split in self.splits]
        weights = Weights(self.layout, self.best.clone())
        gradient = weights.pick(alive)
        adam = Adam(weights.rows)
        lowest = np.full(len(alive), np.inf)
        stale = np.zeros(len(alive), np.int64)
        for _ in range(EPOCHS):
            orders = [generators[number].permutation(self.splits[number].train) for number in alive]
            for rows, share in _batches(orders):
                count = len(rows)  # the first probes have the most rows, so these have rows left in this epoch
                self._gradient(weights.head(count), gradient.head(count), rows, share, alive[:count])
                adam.step(gradient.rows[:count])
            losses = self._losses(weights, alive)
            for place, number in enumerate(alive):
                stale[number] += 1
                if losses[place] < lowest[number]:
                    lowest[number], stale[number] = losses[place], 0
                    self.best[number] = weights.rows[place]
            keep = [place for place, number in enumerate(alive) if stale[number] < PATIENCE]
            if not keep:
                break
            if len(keep) < len(alive):
                alive = [alive[place] for place in keep]
                weights, gradient = weights.pick(keep), gradient.pick(keep)
                adam = adam.pick(keep, weights.rows)

    @torch.no_grad()
    def predict(self) -> list[Array]:
        """(T, C) for the test rows of each probe, with its best weights."""
        result = []
        for number, split in enumerate(self.splits):
            parts = []
            for start in range(0, len(split.test), ROWS):
                rows = torch.from_numpy(split.test[start : start + ROWS])[None]
                outputs = self._outputs(Weights(self.layout, self.best[number : number + 1]), rows, [number])[0]
                outputs = outputs / self.spread[number] + self.shift[number]
                parts.append(outputs if self.task == "regression" else outputs.softmax(dim=1))
            result.append(torch.cat(parts).double().numpy())
        return result

    def _read_features(self, rows: Tensor, numbers: list[int]) -> Tensor:
        """(S, B) row numbers -> (S, B, D), standardised."""
        return self.features[rows].sub_(self.centre[_index(numbers)]).mul_(self.scale[_index(numbers)])

    def _read_targets(self, rows: Tensor, numbers: list[int]) -> Tensor:
        """(S, B) row numbers -> (S, B, C), standardised for regression."""
        targets = self.targets[rows]
        if self.task == "regression":
            targets.sub_(self.shift[_index(numbers)]).mul_(self.spread[_index(numbers)])
        return targets

    def _outputs(self, weights: Weights, rows: Tensor, numbers: list[int]) -> Tensor:
        """(S, B) row numbers -> (S, B, C), before the softmax."""
        inner = torch.baddbmm(weights.first_bias, self._read_features(rows, numbers), weights.first).relu_()
        return torch.baddbmm(weights.second_bias, inner, weights.second)

    def _gradient(self, weights: Weights, result: Weights, rows: Tensor, share: Tensor, numbers: list[int]) -> None:
        """Write the gradient of the mean loss (cross-entropy or squared error) over rows (S, B) into `result`.

        share: (S, B, 1) the weight of each row, which sums to 1.
        """
        features, targets = self._read_features(rows, numbers), self._read_targets(rows, numbers)
        inner = torch.baddbmm(weights.first_bias, features, weights.first).relu_()
        outputs = torch.baddbmm(weights.second_bias, inner, weights.second)
        if self.task == "regression":
            error = outputs.sub_(targets).mul_(share * (2 / self.layout.outputs))
        else:
            error = outputs.softmax(dim=2).sub_(targets).mul_(share)
        result.second.copy_(inner.mT @ error)
        torch.sum(error, dim=1, keepdim=True, out=result.second_bias)
        back = (error @ weights.second.mT).mul_(inner > 0)
        result.first.copy_(features.mT @ back)
        torch.sum(back, dim=1, keepdim=True, out=result.first_bias)

    def _losses(self, weights: Weights, numbers: list[int]) -> Array:
        """(S,) mean loss of each probe over its validation rows."""
        total = torch.zeros(len(numbers))
        for rows, share in _padded([self.splits[number].validation for number in numbers], ROWS):
            outputs, targets = self._outputs(weights, rows, numbers), self._read_targets(rows, numbers)
            if self.task == "regression":
                loss = (outputs - targets).square().mean(dim=2)
            else:
                loss = -(targets * outputs.log_softmax(dim=2)).sum(dim=2)
            total += (loss * share).sum(dim=1)
        losses: Array = total.numpy()
        return losses


class Adam:
    """Adam (Kingma and Ba 2015) for S probes, one row of parameters each. Each probe has its own step count."""

    def __init__(self, parameters: Tensor) -> None:
        self.parameters = parameters  # (S, size)
        self.mean, self.square = torch.zeros_like(parameters), torch.zeros_like(parameters)
        self.steps = torch.zeros(len(parameters), 1)

    def step(self, gradient: Tensor) -> None:
        """Update the first S' probes by their gradient, (S', size)."""
        rows = slice(len(gradient))
        steps = self.steps[rows].add_(1)
        mean = self.mean[rows].lerp_(gradient, 1 - BETAS[0])
        square = self.square[rows].mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        deviation = square.div(1 - BETAS[1] ** steps).sqrt_().add_(EPSILON)
        self.parameters[rows].sub_((mean / deviation).mul_(LEARNING_RATE / (1 - BETAS[0] ** steps)))

    def pick(self, places: list[int], parameters: Tensor) -> Adam:
        """The state of some of the probes, for the given parameters."""
        picked = Adam(parameters)
        picked.mean, picked.square, picked.steps = self.mean[places], self.square[places], self.steps[places]
        return picked


def _index(numbers: list[int]) -> slice | list[int]:
    """A slice for consecutive numbers, because indexing by a slice copies nothing."""
    runs_on = numbers[-1] - numbers[0] + 1 == len(numbers)
    return slice(numbers[0], numbers[-1] + 1) if runs_on else numbers


def _standardisation(values: Array, splits: list[Split]) -> tuple[Tensor, Tensor]:
    """(S, 1, D) mean and 1 / standard deviation of each column, over the training rows of each split."""
    parts = [values[split.train].astype(np.float64) for split in splits]
    centre = np.stack([part.mean(axis=0) for part in parts])
    deviation = np.stack([part.std(axis=0) for part in parts])
    scale = np.divide(1, deviation, out=np.ones_like(deviation), where=deviation > 1e-6 * (1e-6 + np.abs(centre)))
    return torch.from_numpy(centre).float().unsqueeze(1), torch.from_numpy(scale).float().unsqueeze(1)


def _batches(orders: list[Array]) -> Iterator[tuple[Tensor, Tensor]]:
    """Row numbers (S', BATCH), and the weight of each row in its batch, (S', BATCH, 1).

    The last batch of a probe may be short. S' falls when probes with fewer rows have finished the epoch.
    """
    counts = torch.tensor([len(order) for order in orders])[:, None]
    width = -(-int(counts.max()) // BATCH) * BATCH
    rows = torch.from_numpy(_pad(orders, width))
    full = torch.full((len(orders), BATCH, 1), 1 / BATCH)
    for start in range(0, width, BATCH):
        chosen = rows[:, start : start + BATCH]
        if start + BATCH <= int(counts.min()):
            yield chosen, full
            continue
        left = (counts - start).clamp(0, BATCH)
        live = int((left > 0).sum())
        yield chosen[:live], ((torch.arange(BATCH) < left[:live]) / left[:live]).unsqueeze(2)


def _padded(orders: list[Array], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Row numbers (S, B) in parts, and the weight of each row among its probe's rows, (S, B); padding has weight 0."""
    counts = torch.tensor([len(order) for order in orders])[:, None]
    rows = torch.from_numpy(_pad(orders, int(counts.max())))
    for start in range(0, rows.shape[1], size):
        part = rows[:, start : start + size]
        yield part, (torch.arange(start, start + part.shape[1]) < counts) / counts


def _pad(orders: list[Array], width: int) -> Array:
    rows = np.zeros((len(orders), width), np.int64)
    for place, order in enumerate(orders):
        rows[place, : len(order)] = order
    return rows
