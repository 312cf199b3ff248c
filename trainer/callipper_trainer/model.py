"""The CaLLiPer model (Wang et al. 2025): a location encoder aligned with a frozen sentence encoder.

Shapes: B rows a batch, F frequencies, H hidden, D embedding dimensions (128), T dimensions of the sentence encoder (384).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from callipper_db.arrays import Array
from callipper_db.tables import CONTEXT_DIMENSIONS
from callipper_trainer.config import TrainConfig
from callipper_trainer.context import Pyramid
from callipper_trainer.features import ContextFeatures, Feature, GridEncoding, make_features
from callipper_trainer.peaks import KindPeaks


class ResidualBlock(nn.Module):
    """Two linear layers with ReLU, dropout between them, added to the input (Mac Aodha et al. 2019)."""

    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(hidden, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H) -> (B, H)."""
        inner = self.dropout(functional.relu(self.first(x)))
        return x + functional.relu(self.second(inner))


class LocationEncoder(nn.Module):
    """Features, then an FCNet (Mac Aodha et al. 2019): a place -> a unit vector."""

    def __init__(self, config: TrainConfig, features: Sequence[Feature], *, joins: bool | None = None) -> None:
        """features: in the order in which the input layer reads them. joins: whether the output layer reads them too.

        By default it does when a feature is looked up. What depends linearly on the features then skips the ReLUs.
        """
        super().__init__()
        self.features = nn.ModuleList(features)
        self.joins = any(feature.looked_up for feature in features) if joins is None else joins
        width = sum(feature.width for feature in features)
        self.input = nn.Linear(width, config.hidden)
        self.blocks = nn.ModuleList(ResidualBlock(config.hidden, config.dropout) for _ in range(config.blocks))
        self.output = nn.Linear(config.hidden + (width if self.joins else 0), CONTEXT_DIMENSIONS)

    @property
    def encoding(self) -> GridEncoding:
        """The position encoding."""
        return next(feature for feature in self.features if isinstance(feature, GridEncoding))

    @property
    def context(self) -> ContextFeatures | None:
        """The context features; None for the coordinate encoder."""
        return next((feature for feature in self.features if isinstance(feature, ContextFeatures)), None)

    def forward(self, metres: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, 2) float64 metres from the model's origin and (B, C) standardised context -> (B, D) float32, unit length."""
        features = torch.cat([feature(metres, context) for feature in self.features], dim=1)
        x = functional.relu(self.input(features))
        for block in self.blocks:
            x = block(x)
        if not self.joins:
            return functional.normalize(self.output(x), dim=1)
        # Two products: the features are many and, unlike x, need no gradient.
        weight, hidden = self.output.weight, x.shape[1]
        joined = functional.linear(x, weight[:, :hidden], self.output.bias) + functional.linear(
            features, weight[:, hidden:]
        )
        return functional.normalize(joined, dim=1)

    def linear_layers(self) -> dict[str, nn.Linear]:
        """The linear layers in order, by their names in the database."""
        layers: dict[str, nn.Linear] = {"input": self.input}
        for number, block in enumerate(self.blocks):
            assert isinstance(block, ResidualBlock)
            layers |= {f"block{number}.first": block.first, f"block{number}.second": block.second}
        return layers | {"output": self.output}


class CaLLiPer(nn.Module):
    """The trained parts: location encoder, text projection, temperatures, and a head that predicts context."""

    def __init__(
        self,
        config: TrainConfig,
        text_dim: int,
        features: Sequence[Feature] | None = None,
        target_width: int = 0,
        *,
        joins: bool | None = None,
    ) -> None:
        """text_dim: T. features: None means those of the coordinate encoder. target_width: W, the outputs of the context head.

        joins: see LocationEncoder.
        """
        super().__init__()
        self.location = LocationEncoder(config, features or make_features(config), joins=joins)
        self.text_projection = nn.Linear(text_dim, CONTEXT_DIMENSIONS)
        self.context_head = nn.Linear(CONTEXT_DIMENSIONS, target_width) if target_width else None  # for training only
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / config.initial_temperature)))
        self.name_logit_scale = nn.Parameter(torch.tensor(math.log(1 / config.initial_temperature)))
        self.max_log_scale = math.log(config.logit_scale_max)

    def embed_text(self, vectors: Tensor) -> Tensor:
        """(B, T) sentence vectors -> (B, D), unit length."""
        return functional.normalize(self.text_projection(vectors), dim=1)

    def predict_context(self, places: Tensor) -> Tensor:
        """(B, D) embeddings of places -> (B, W) their context, standardised."""
        assert self.context_head is not None, "the model has no context head"
        # A unit vector has entries of about 1 / sqrt(D). The targets have entries of about 1.
        predicted: Tensor = self.context_head(places * math.sqrt(CONTEXT_DIMENSIONS))
        return predicted

    def scale(self) -> Tensor:
        """() 1 / temperature of the contrast with texts, clamped as in CLIP."""
        return self.logit_scale.clamp(max=self.max_log_scale).exp()

    def name_scale(self) -> Tensor:
        """() 1 / temperature of the contrast with names. A place predicts its name less well than its category."""
        return self.name_logit_scale.clamp(max=self.max_log_scale).exp()


@dataclass
class TrainedModel:
    """A model in evaluation mode, and what it needs to embed. fit() adds the figures of each epoch."""

    model: CaLLiPer
    origin: Array  # (2,) float64 metres
    pyramid: Pyramid | None  # None for the coordinate encoder
    best_epoch: int
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)  # by stage: features, fit
    rows_per_s: float = 0.0  # in the stage fit
    peaks: KindPeaks | None = None  # the first half of an embedding; zeros without it

    @torch.inference_mode()
    def context_of(self, metres: Array) -> Tensor:
        """(N, 2) easting and northing in the model's CRS -> (N, C) standardised context, on the model's device."""
        features = self.model.location.context
        assert self.pyramid is not None, "the model reads no context"
        assert features is not None, "the model reads no context"
        counted = torch.from_numpy(self.pyramid.features(metres - self.origin))
        return features.standardise(counted.to(self.model.logit_scale.device))
