"""The training step against its bare matrix products: what everything around them costs."""

from __future__ import annotations

import time
from itertools import islice
from typing import Any

import torch

from benchmarks.city import City
from callipper_trainer.config import TrainConfig
from callipper_trainer.data.batches import Resident
from callipper_trainer.fit import training_step
from callipper_trainer.model import CaLLiPer

BAR = 0.6
ROUNDS = 30


def run(city: City) -> dict[str, Any]:
    """Time the step and its products in turn, for both encoders."""
    figures = {encoder: _share(city, encoder) for encoder in ("contextual", "coordinate")}
    return {"speed_of_bare_products": figures, "bar": BAR, "holds": min(figures.values()) >= BAR}


def _share(city: City, encoder: str) -> float:
    config, samples = TrainConfig.of(encoder), city.samples
    data = Resident(samples.metres - samples.origin, samples.text_id, city.text_vectors, config, torch.device("cpu"))
    model = data.maker.model()
    data.standardise(model.location.context)
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, fused=True)
    products = matrix_products(model, config.batch_size, background=config.batch_size // 4 if data.pyramid else 0)
    step_s, products_s = [], []
    for batch in islice(data.batches(1, config.batch_size), ROUNDS):
        started = time.perf_counter()
        training_step(model, batch, config, optimiser)
        between = time.perf_counter()
        for left, right in products:
            left @ right
        step_s.append(between - started)
        products_s.append(time.perf_counter() - between)
    # The best of each: another process on the machine makes either slower, never faster.
    return round(min(products_s) / min(step_s), 3)


def matrix_products(model: CaLLiPer, batch: int, background: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The operands of each product that a step needs, forward and backward. background: places without POIs."""
    places = [*model.location.linear_layers().values(), *([model.context_head] if model.context_head else [])]
    # How many of a layer's inputs need a gradient: data do not.
    learnt = {
        model.location.input: 0,
        model.text_projection: 0,
        model.location.output: model.location.input.out_features,
    }
    operands = []
    for layer, rows in [*((layer, batch + background) for layer in places), (model.text_projection, batch)]:
        x, gradient = torch.randn(rows, layer.in_features), torch.randn(rows, layer.out_features)
        weight = torch.randn(layer.out_features, layer.in_features)
        operands += [(x, weight.T), (gradient.T, x)]
        if needed := learnt.get(layer, layer.in_features):
            operands.append((gradient, weight[:, :needed]))
    place, logits = torch.randn(batch, model.location.output.out_features), torch.randn(batch, batch)
    return [*operands, (place, place.T), (logits, place), (logits.T, place)]
