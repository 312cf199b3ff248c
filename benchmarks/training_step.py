"""The training step against its bare matrix products: what everything around them costs."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from benchmarks.city import City
from trainer.batches import Resident
from trainer.config import TrainConfig
from trainer.fit import training_step
from trainer.model import CaLLiPer

BAR = 0.6
ROUNDS = 30


def run(city: City) -> dict[str, Any]:
    """Time the step and its products in turn, for both encoders."""
    figures = {encoder: _share(city, encoder) for encoder in ("contextual", "coordinate")}
    return {"speed_of_bare_products": figures, "bar": BAR, "holds": min(figures.values()) >= BAR}


def _share(city: City, encoder: str) -> float:
    config, samples = TrainConfig(encoder=encoder), city.samples
    data = Resident(samples.metres - samples.origin, samples.text_id, city.text_vectors, config, torch.device("cpu"))
    width = data.pyramid.width if data.pyramid else 0
    model = CaLLiPer(config, city.text_vectors.shape[1], width)
    data.standardise(model.location)
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, fused=True)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(samples)))
    products = matrix_products(config, city.text_vectors.shape[1], width)
    step_s, products_s = [], []
    for number in range(ROUNDS):
        rows = order[number * config.batch_size : (number + 1) * config.batch_size]
        started = time.perf_counter()
        training_step(model, data.take(rows), optimiser)
        between = time.perf_counter()
        for left, right in products:
            left @ right
        step_s.append(between - started)
        products_s.append(time.perf_counter() - between)
    # The best of each: another process on the machine makes either slower, never faster.
    return round(min(products_s) / min(step_s), 3)


def matrix_products(config: TrainConfig, text_dim: int, context: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The operands of each product that the step cannot do without, forward and backward."""
    batch, hidden, dim = config.batch_size, config.hidden, 128
    layers = [(4 * config.frequencies + context, hidden), *[(hidden, hidden)] * 2 * config.blocks, (hidden, dim)]
    operands = []
    for inputs, outputs in [*layers, (text_dim, dim)]:
        x, weight, gradient = torch.randn(batch, inputs), torch.randn(outputs, inputs), torch.randn(batch, outputs)
        operands += [(x, weight.T), (gradient.T, x)]
        if inputs == hidden:  # the first layers' inputs are data: they need no gradient
            operands.append((gradient, weight))
    place, logits = torch.randn(batch, dim), torch.randn(batch, batch)
    return [*operands, (place, place.T), (logits, place), (logits.T, place)]
