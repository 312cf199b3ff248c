"""The CaLLiPer model (Wang et al. 2025): a location encoder aligned with a frozen sentence encoder.

Shapes: B rows a batch, F frequencies, H hidden, D embedding dimensions (128), T dimensions of the sentence encoder (384).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from callipper_db.tables import DIMENSIONS
from callipper_trainer.config import TrainConfig

MINIMUM_DEVIATION = 1e-6  # a feature that varies less says nothing, and is left out


class GridEncoding(nn.Module):
    """Space2Vec's "grid" encoding (Mai et al. 2020): sines and cosines of easting and northing at F wavelengths.

    The metres are divided by geometrically spaced divisors. The angles are reduced to one turn in float64, since a float32
    angle of a national grid's northing at the shortest wavelength would be off by 1e-3; all after that is float32.
    """

    divisors: Tensor

    def __init__(self, frequencies: int, shortest_m: float, longest_m: float) -> None:
        super().__init__()
        ratio = math.log(longest_m / shortest_m) / max(frequencies - 1, 1)
        steps = torch.arange(frequencies, dtype=torch.float64)
        self.register_buffer("divisors", shortest_m * torch.exp(ratio * steps), persistent=False)

    def forward(self, metres: Tensor) -> Tensor:
        """(B, 2) float64 metres from the model's origin -> (B, 4F) float32: sin e, cos e, sin n, cos n."""
        turns = metres.unsqueeze(2) / (2 * math.pi * self.divisors)  # (B, 2, F)
        angles = ((turns - turns.floor()) * (2 * math.pi)).float()
        return torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1)


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
    """Features and FCNet (Mac Aodha et al. 2019): a place -> a unit vector.

    The features are the position encoding and, for the contextual encoder, C numbers about what lies around the place.
    """

    context_mean: Tensor
    context_scale: Tensor

    def __init__(self, config: TrainConfig, context_width: int = 0, *, joins: bool | None = None) -> None:
        """context_width: C, 0 for the coordinate encoder. joins: whether the output layer reads the features once more.

        It does in the contextual encoder, so that what is linear in the features need not pass through ReLUs.
        """
        super().__init__()
        self.joins = context_width > 0 if joins is None else joins
        self.register_buffer("context_mean", torch.zeros(context_width))
        self.register_buffer("context_scale", torch.ones(context_width))
        self.encoding = GridEncoding(config.frequencies, config.wavelength_min_m, config.wavelength_max_m)
        width = 4 * config.frequencies + context_width
        self.input = nn.Linear(width, config.hidden)
        self.blocks = nn.ModuleList(ResidualBlock(config.hidden, config.dropout) for _ in range(config.blocks))
        self.output = nn.Linear(config.hidden + (width if self.joins else 0), DIMENSIONS)

    def fit_standardisation(self, context: Tensor) -> None:
        """Take mean and deviation of each feature from those of the training places, (N, C)."""
        self.set_standardisation(context.mean(dim=0), context.std(dim=0))

    def set_standardisation(self, mean: Tensor, deviation: Tensor) -> None:
        """The same from mean and deviation of each feature, (C,)."""
        self.context_mean.copy_(mean)
        self.context_scale.copy_(torch.where(deviation > MINIMUM_DEVIATION, 1 / deviation, 0))

    def standardise(self, context: Tensor) -> Tensor:
        """(B, C) features as they are counted -> as forward() reads them. Once per place, so it is no part of the step."""
        return (context - self.context_mean) * self.context_scale

    def forward(self, metres: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, 2) float64 metres from the model's origin, (B, C) standardised context -> (B, D) float32, unit length."""
        features = self.encoding(metres)
        if context is not None:
            features = torch.cat([features, context], dim=1)
        x = functional.relu(self.input(features))
        for block in self.blocks:
            x = block(x)
        if not self.joins:
            return functional.normalize(self.output(x), dim=1)
        # In two products, since beside x the features need no gradient, and are many.
        weight, hidden = self.output.weight, x.shape[1]
        joined = functional.linear(x, weight[:, :hidden], self.output.bias) + functional.linear(
            features, weight[:, hidden:]
        )
        return functional.normalize(joined, dim=1)

    def linear_layers(self) -> dict[str, nn.Linear]:
        """The layers with weights by the names they have in the database, in order."""
        layers: dict[str, nn.Linear] = {"input": self.input}
        for number, block in enumerate(self.blocks):
            assert isinstance(block, ResidualBlock)
            layers |= {f"block{number}.first": block.first, f"block{number}.second": block.second}
        return layers | {"output": self.output}


class CaLLiPer(nn.Module):
    """Both towers after their frozen parts, the learned temperature, and what reads the surroundings off an embedding."""

    def __init__(
        self,
        config: TrainConfig,
        text_dim: int,
        context_width: int = 0,
        target_width: int = 0,
        *,
        joins: bool | None = None,
    ) -> None:
        """text_dim: T; context_width: C; target_width: W, how many numbers of its context an embedding predicts.

        joins: see LocationEncoder.
        """
        super().__init__()
        self.location = LocationEncoder(config, context_width, joins=joins)
        self.text_projection = nn.Linear(text_dim, DIMENSIONS)
        self.context_head = nn.Linear(DIMENSIONS, target_width) if target_width else None  # of use in training only
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / config.initial_temperature)))
        self.name_logit_scale = nn.Parameter(torch.tensor(math.log(1 / config.initial_temperature)))
        self.max_log_scale = math.log(config.logit_scale_max)

    def embed_text(self, vectors: Tensor) -> Tensor:
        """(B, T) vectors of the sentence encoder -> (B, D), unit length."""
        return functional.normalize(self.text_projection(vectors), dim=1)

    def predict_context(self, places: Tensor) -> Tensor:
        """(B, D) embeddings of places -> (B, W) what lies around them, standardised."""
        assert self.context_head is not None, "the model has no context head"
        predicted: Tensor = self.context_head(
            places * math.sqrt(DIMENSIONS)
        )  # entries of size one, as those of the targets
        return predicted

    def scale(self) -> Tensor:
        """The factor on the cosines, 1 / temperature, clamped as in CLIP."""
        return self.logit_scale.clamp(max=self.max_log_scale).exp()

    def name_scale(self) -> Tensor:
        """The same for names, of which a place knows less than of categories."""
        return self.name_logit_scale.clamp(max=self.max_log_scale).exp()
