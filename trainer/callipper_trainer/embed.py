"""Embeddings of many places or texts at once, both halves of them."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_array

from callipper_db.arrays import Array
from callipper_db.progress import Advance, silent
from callipper_db.tables import DIMENSIONS, PEAK_DIMENSIONS
from callipper_trainer.model import TrainedModel

BATCH = 16_384


@torch.inference_mode()
def embed_places(trained: TrainedModel, metres: Array, advance: Advance = silent) -> Array:
    """(N, 2) easting and northing in the model's CRS -> (N, 256) float32, unit length."""
    device = trained.model.logit_scale.device
    result = np.zeros((len(metres), DIMENSIONS), np.float32)
    for start in range(0, len(metres), BATCH):
        rows = slice(start, start + BATCH)
        batch = metres[rows] - trained.origin
        context = None if trained.pyramid is None else trained.context_of(metres[rows])
        second = trained.model.location(torch.from_numpy(batch).to(device), context).cpu().numpy()
        if trained.peaks is not None and context is not None:
            first = trained.peaks.embed_places(metres[rows], context.cpu().numpy(), second)
            result[rows, :PEAK_DIMENSIONS] = first
            second *= np.sqrt(np.maximum(0, 1 - (first**2).sum(axis=1, keepdims=True)))
        result[rows, PEAK_DIMENSIONS:] = second
        advance(len(batch))
    return result


@torch.inference_mode()
def embed_texts(trained: TrainedModel, vectors: Array, shared: csr_array | None = None) -> Array:
    """(V, T) vectors of the sentence encoder -> (V, 256) float32, unit length.

    shared: what peaks.shared_words() finds of the texts; without it only the vectors count. A text that asks for no kind of
    place has zeros in its first half.
    """
    device = trained.model.logit_scale.device
    result = np.zeros((len(vectors), DIMENSIONS), np.float32)
    for start in range(0, len(vectors), BATCH):
        rows = slice(start, start + BATCH)
        second = trained.model.embed_text(torch.from_numpy(vectors[rows]).to(device)).cpu().numpy()
        if trained.peaks is None:
            result[rows, PEAK_DIMENSIONS:] = second
        else:
            result[rows] = trained.peaks.join_text(
                trained.peaks.embed_texts(vectors[rows], None if shared is None else shared[rows]), second
            )
    return result
