"""The contrastive loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def symmetric_info_nce(place: Tensor, text: Tensor, text_id: Tensor, scale: Tensor, balance: float = 0.0) -> Tensor:
    """InfoNCE in both directions (Radford et al. 2021), where pairs with the same text are not negatives.

    place, text: (B, D) unit vectors; text_id: (B,) which text each row has; scale: the factor on the cosines, ();
    balance: a pair weighs as (rows with its text)^-balance, so that a few frequent texts are not nearly all that is learnt.
    A place is not told to be far from its own text because another place has it too.
    """
    loss: Tensor = SymmetricInfoNCE.apply(place, text, text_id, scale, balance)  # type: ignore[no-untyped-call]
    return loss


class SymmetricInfoNCE(torch.autograd.Function):
    """The loss with its gradient written out.

    Both directions share one matrix of logits, and its gradient is the mean of their softmaxes less the identity, each
    row and column times the weight of its pair: autograd would keep and walk four (B, B) matrices more, which on a CPU costs a
    tenth of the whole step.
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
        """The gradients by place, text and scale."""
        place, text, cosines, gradient, scale = ctx.saved_tensors
        by_scale = (gradient * cosines).sum() * outputs[0]
        by_cosine = gradient * (scale * outputs[0])
        return by_cosine @ text, by_cosine.T @ place, None, by_scale, None
