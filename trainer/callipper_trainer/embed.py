"""Embeddings of many places or texts at once."""

from __future__ import annotations

import numpy as np
import torch

from callipper_db.arrays import Array
from callipper_db.progress import Advance, silent
from callipper_trainer.model import TrainedModel

BATCH = 16_384


@torch.inference_mode()
def embed_places(trained: TrainedModel, metres: Array, advance: Advance = silent) -> Array:
    """(N, 2) easting and northing in the model's CRS -> (N, 128) float32, unit length."""
    device, features = trained.model.logit_scale.device, trained.model.location.context
    result = np.empty((len(metres), trained.model.location.output.out_features), np.float32)
    for start in range(0, len(metres), BATCH):
        rows = slice(start, start + BATCH)
        batch = metres[rows] - trained.origin
        context = None
        if trained.pyramid is not None and features is not None:
            context = features.standardise(torch.from_numpy(trained.pyramid.features(batch)).to(device))
        result[rows] = trained.model.location(torch.from_numpy(batch).to(device), context).cpu().numpy()
        advance(len(batch))
    return result


@torch.inference_mode()
def embed_texts(trained: TrainedModel, vectors: Array) -> Array:
    """(V, T) vectors of the sentence encoder -> (V, 128) float32, unit length."""
    device = trained.model.logit_scale.device
    result = np.empty((len(vectors), trained.model.text_projection.out_features), np.float32)
    for start in range(0, len(vectors), BATCH):
        rows = slice(start, start + BATCH)
        result[rows] = trained.model.embed_text(torch.from_numpy(vectors[rows]).to(device)).cpu().numpy()
    return result
