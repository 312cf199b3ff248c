"""What training minimises, from one batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from trainer.loss import symmetric_info_nce
from trainer.model import CaLLiPer


@dataclass(frozen=True)
class Places:
    """B places, on the device."""

    metres: Tensor  # (B, 2) float64 from the model's origin
    context: Tensor | None = None  # (B, C) standardised features of what lies around
    told: Tensor | None = None  # (B, W) what the embedding must tell, standardised and weighted (targets.py)


@dataclass(frozen=True)
class Batch:
    """B POIs and their texts, and places beside them; made by batches.Maker and nowhere else."""

    pois: Places
    text_id: Tensor  # (B,) int64
    text: Tensor  # (B, T) vectors of the sentence encoder
    name_id: Tensor | None = None  # (B,) int64, -1 where a POI has no name
    name: Tensor | None = None  # (B, T), anything where it has none
    background: Places | None = None


def own(rows: Tensor) -> Tensor:
    """The rows of one process are all there are."""
    return rows


def objective(model: CaLLiPer, batch: Batch, gather: Callable[[Tensor], Tensor] = own) -> Tensor:
    """The loss of one batch, (): the sum of terms()."""
    return torch.stack(list(terms(model, batch, gather).values())).sum()


def terms(model: CaLLiPer, batch: Batch, gather: Callable[[Tensor], Tensor] = own) -> dict[str, Tensor]:
    """What the loss is the sum of, each (): the contrasts with texts and names, and the telling of what lies around.

    `gather` puts the rows of all processes together where there are several. Their gradients are averaged, so each term is
    either a mean over the batch's own rows, or is computed from gathered ones in each process alike. It is computed in
    float32 whatever the network is, since half as many digits of a cosine times 100 are too few.
    """
    parts = [batch.pois] if batch.background is None else [batch.pois, batch.background]
    place = model.location(
        torch.cat([part.metres for part in parts]),
        None if batch.pois.context is None else torch.cat([part.context for part in parts if part.context is not None]),
    )
    text = model.embed_text(batch.text)
    name = None if batch.name is None else model.embed_text(batch.name)
    with torch.autocast(place.device.type, enabled=False):
        places = place.float().split([len(part.metres) for part in parts])
        pois = gather(places[0])
        texts, text_id = gather(text.float()), gather(batch.text_id)
        found = {"texts": symmetric_info_nce(pois, texts, text_id, model.scale().float(), model.balance)}
        if name is not None and batch.name_id is not None:
            names, name_id = gather(name.float()), gather(batch.name_id)
            named = name_id >= 0
            if int(named.sum()) > 1:
                scale = model.name_scale().float()
                contrast = symmetric_info_nce(pois[named], names[named], name_id[named], scale, model.balance)
                found["names"] = model.name_weight * contrast
        for key, vectors, part in zip(("context", "background"), places, parts, strict=False):
            if part.told is not None:
                found[key] = model.context_weight * functional.mse_loss(model.tell(vectors), part.told)
    return found
