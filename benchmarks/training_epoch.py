"""An epoch against the published procedure: the text encoder in every step and a float64 location encoder.

Written from the paper's description (Wang et al. 2025): each batch of 1,024 coordinate-text pairs passes its texts through
the frozen sentence encoder and its coordinates through the grid encoding and a residual network in float64.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.city import ENCODER, City
from callipper_trainer.config import TrainConfig
from callipper_trainer.data.batches import Resident
from callipper_trainer.fit import training_step
from callipper_trainer.model import CaLLiPer
from callipper_trainer.text_encoder import find_encoder

BAR = 60.0
ROUNDS = 3
OURS_A_ROUND = 20  # steps


def run(city: City) -> dict[str, Any]:
    """Time some steps of both in turn; an epoch is the same number of either."""
    config, samples = TrainConfig(), city.samples
    metres = samples.metres - samples.origin
    data = Resident(metres, samples.text_id, city.text_vectors, config, torch.device("cpu"))
    model = data.maker.model()
    data.standardise(model.location.context)
    batches = data.batches(1, config.batch_size)
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, fused=True)
    published = Published(config)
    random = np.random.default_rng(0)
    ours_s, published_s = [], []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        for _ in range(OURS_A_ROUND):
            training_step(model, next(batches), config, optimiser)
        between = time.perf_counter()
        rows = random.integers(0, len(samples), config.batch_size)
        published.step(metres[rows], [samples.texts[number] for number in samples.text_id[rows]])
        ours_s.append((between - started) / OURS_A_ROUND)
        published_s.append(time.perf_counter() - between)
    steps = len(samples) // config.batch_size
    ratio = float(np.median(np.array(published_s[1:]) / np.array(ours_s[1:])))
    return {
        "times_faster": round(ratio, 1),
        "epoch_s": round(steps * float(np.median(ours_s[1:])), 1),
        "published_epoch_s": round(steps * float(np.median(published_s[1:])), 1),
        "threads": torch.get_num_threads(),
        "bar": BAR,
        "holds": ratio >= BAR,
    }


class Published:
    """The published procedure's step."""

    def __init__(self, config: TrainConfig) -> None:
        self.encoder = find_encoder(ENCODER).transformer
        self.model = CaLLiPer(TrainConfig.of("coordinate"), 384)
        self.model.location.double()
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=config.learning_rate)

    def step(self, metres: np.ndarray[Any, Any], texts: list[str]) -> None:
        """One batch: encode, project, contrast, update."""
        vectors = torch.from_numpy(self.encoder.encode(texts, batch_size=len(texts), show_progress_bar=False))
        location = self.model.location
        angles = torch.from_numpy(metres).unsqueeze(2) / location.encoding.divisors
        x = torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1)  # float64, as everything after it
        x = functional.relu(location.input(x))
        for block in location.blocks:
            x = block(x)
        place = functional.normalize(location.output(x), dim=1).float()
        logits = self.model.scale() * place @ self.model.embed_text(vectors).T
        own = torch.arange(len(texts))
        loss = (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
