"""The training loss of one batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from callipper_trainer.config import TrainConfig
from callipper_trainer.model import CaLLiPer


@dataclass(frozen=True)
class Places:
    """B places, on the device."""

    metres: Tensor  # (B, 2) float64 from the model's origin
    context: Tensor | None = None  # (B, C) standardised context features
    context_target: Tensor | None = None  # (B, W) what the context head must predict (context_targets.py)


@dataclass(frozen=True)
class Batch:
    """B POIs with their texts, and background places. Only BatchMaker makes one."""

    pois: Places
    text_id: Tensor  # (B,) int64
    text: Tensor  # (B, T) sentence vectors
    name_id: Tensor | None = None  # (B,) int64, -1 for a POI without a name
    name: Tensor | None = None  # (B, T) sentence vectors; a row with name_id -1 has no meaning
    background: Places | None = None  # random places without a text


def gather_local(rows: Tensor) -> Tensor:
    """The gather of a run with one process: its rows are all rows."""
    return rows


def objective(
    model: CaLLiPer, batch: Batch, config: TrainConfig, gather: Callable[[Tensor], Tensor] = gather_local
) -> Tensor:
    """The loss of one batch, (): the sum of its terms."""
    return torch.stack(list(loss_terms(model, batch, config, gather).values())).sum()


def loss_terms(
    model: CaLLiPer, batch: Batch, config: TrainConfig, gather: Callable[[Tensor], Tensor] = gather_local
) -> dict[str, Tensor]:
    """The terms of the loss by name, each (): contrasts with texts and names, and the errors of the context head.

    `gather` joins the rows of all processes. The gradients of the processes are averaged. So a term is either a mean over the
    process's own rows, or every process computes it from the same gathered rows. The terms are in float32 also when the network
    runs in bf16, because bf16 has too few digits for a cosine times 100.
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
        terms = {"texts": symmetric_info_nce(pois, texts, text_id, model.scale().float(), config.balance)}
        if name is not None and batch.name_id is not None:
            names, name_id = gather(name.float()), gather(batch.name_id)
            named = name_id >= 0
            if int(named.sum()) > 1:
                scale = model.name_scale().float()
                contrast = symmetric_info_nce(pois[named], names[named], name_id[named], scale, config.balance)
                terms["names"] = config.name_weight * contrast
        for key, vectors, part in zip(("context", "background"), places, parts, strict=False):
            if part.context_target is not None:
                terms[key] = config.context_weight * functional.mse_loss(
                    model.predict_context(vectors), part.context_target
                )
    return terms


def symmetric_info_nce(place: Tensor, text: Tensor, text_id: Tensor, scale: Tensor, balance: float = 0.0) -> Tensor:
    """InfoNCE in both directions (Radford et al. 2021). Two rows with the same text are not negatives of each other.

    place, text: (B, D) unit vectors; text_id: (B,) the text of each row; scale: () the factor on the cosines;
    balance: a pair has the weight (rows with its text)^-balance, so that a few frequent texts do not dominate.
    """
    loss: Tensor = SymmetricInfoNCE.apply(place, text, text_id, scale, balance)  # type: ignore[no-untyped-call]
    return loss


class SymmetricInfoNCE(torch.autograd.Function):
    """The loss with its gradient written out.

    Both directions share one (B, B) matrix of logits. Its gradient is the mean of their two softmaxes minus the identity,
    weighted by pair. Autograd would keep four more (B, B) matrices, which costs a tenth of a step on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, place: Tensor, text: Tensor, text_id: Tensor, scale: Tensor, balance: float) -> Tensor:
        """(B, D), (B, D), (B,), (), exponent -> ()."""
        cosines = place @ text.T  # (B, B)
        logits = cosines * scale
        same = text_id.unsqueeze(0) == text_id.unsqueeze(1)
        weight = same.sum(1).to(logits.dtype) ** -balance
        weight /= weight.sum()  # (B,)
        logits.masked_fill_(same.fill_diagonal_(False), -torch.inf)
        own = logits.diagonal().clone()
        row_max, column_max = logits.amax(1, keepdim=True), logits.amax(0, keepdim=True)
        rows = (logits - row_max).exp_()
        columns = logits.sub_(column_max).exp_()
        row_sum, column_sum = rows.sum(1, keepdim=True), columns.sum(0, keepdim=True)
        places_to_texts = row_max + row_sum.log()  # log of the partition function of each place
        texts_to_places = column_max + column_sum.log()
        gradient = rows.mul_(0.5 * weight.unsqueeze(1) / row_sum).add_(columns.mul_(0.5 * weight / column_sum))
        gradient.diagonal().sub_(weight)
        ctx.save_for_backward(place, text, cosines, gradient, scale)
        return weight @ ((places_to_texts.squeeze(1) + texts_to_places.squeeze(0)) / 2 - own)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> tuple[Tensor | None, ...]:
        """The gradients with respect to place, text and scale."""
        place, text, cosines, gradient, scale = ctx.saved_tensors
        by_scale = (gradient * cosines).sum() * outputs[0]
        by_cosine = gradient * (scale * outputs[0])
        return by_cosine @ text, by_cosine.T @ place, None, by_scale, None
