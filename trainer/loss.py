"""The contrastive loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def symmetric_info_nce(place: Tensor, text: Tensor, text_id: Tensor, scale: Tensor) -> Tensor:
    """InfoNCE in both directions (Radford et al. 2021), where pairs with the same text are not negatives.

    place, text: (B, D) unit vectors; text_id: (B,) which text each row has; scale: the factor on the cosines.
    A place is not told to be far from its own text because another place has it too.
    """
    logits = scale * place @ text.T  # (B, B)
    same = text_id.unsqueeze(0) == text_id.unsqueeze(1)
    same.fill_diagonal_(False)
    logits = logits.masked_fill(same, -torch.inf)
    own = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2
