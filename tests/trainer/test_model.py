"""The network and its loss against independent references in numpy and plain torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from callipper_db.arrays import Array
from callipper_trainer.config import TrainConfig
from callipper_trainer.features import ContextFeatures, GridEncoding, make_features
from callipper_trainer.loss import symmetric_info_nce
from callipper_trainer.model import CaLLiPer, LocationEncoder

SMALL = TrainConfig(frequencies=8, hidden=32, blocks=3)
NATIONAL_GRID_M = 5e5


def reference_encoding(metres: Array, frequencies: int, shortest_m: float, longest_m: float) -> Array:
    """Space2Vec's grid encoding as its paper writes it, in float64."""
    divisors = shortest_m * (longest_m / shortest_m) ** (np.arange(frequencies) / max(frequencies - 1, 1))
    angles = metres[:, :, None] / divisors  # (B, 2, F)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=2).reshape(len(metres), -1)


def reference_location(model: LocationEncoder, config: TrainConfig, metres: Array, context: Array | None) -> Array:
    """The forward pass in float64."""
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}

    def linear(name: str, x: Array) -> Array:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    x = reference_encoding(metres, config.frequencies, config.wavelength_min_m, config.wavelength_max_m)
    if context is not None:
        x = np.hstack([x, (context - context.mean(axis=0)) / context.std(axis=0, ddof=1)])
    features = x
    x = np.maximum(linear("input", x), 0)
    for number in range(config.blocks):
        inner = np.maximum(linear(f"blocks.{number}.first", x), 0)
        x = x + np.maximum(linear(f"blocks.{number}.second", inner), 0)
    x = linear("output", x if context is None else np.hstack([x, features]))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def random_metres(count: int, reach_m: float, seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(-reach_m, reach_m, (count, 2))


@pytest.mark.parametrize("frequencies", [1, 2, 32])
def test_grid_encoding_matches_numpy(frequencies: int) -> None:
    metres = random_metres(500, NATIONAL_GRID_M)
    found = GridEncoding(frequencies, 100.0, 10_000.0)(torch.from_numpy(metres))
    assert found.dtype == torch.float32
    assert found.shape == (500, 4 * frequencies)
    np.testing.assert_allclose(found.numpy(), reference_encoding(metres, frequencies, 100.0, 10_000.0), atol=1e-6)


@given(st.lists(st.tuples(*[st.floats(-2e7, 2e7)] * 2), min_size=1, max_size=20))
def test_grid_encoding_matches_numpy_anywhere_on_earth(places: list[tuple[float, float]]) -> None:
    metres = np.array(places)
    found = GridEncoding(32, 100.0, 10_000.0)(torch.from_numpy(metres)).numpy()
    np.testing.assert_allclose(found, reference_encoding(metres, 32, 100.0, 10_000.0), atol=2e-6)


def test_grid_encoding_is_more_exact_than_float32_angles_at_national_grid_scale() -> None:
    metres = NATIONAL_GRID_M + random_metres(2000, 10_000.0)
    exact = reference_encoding(metres, 32, 100.0, 10_000.0)
    divisors = torch.from_numpy(100.0 * 100.0 ** (np.arange(32) / 31)).float()
    angles = torch.from_numpy(metres).float().unsqueeze(2) / divisors
    in_float32 = torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1)
    error = np.abs(GridEncoding(32, 100.0, 10_000.0)(torch.from_numpy(metres)).numpy() - exact).max()
    error_in_float32 = np.abs(in_float32.numpy() - exact).max()
    assert error < 1e-6
    assert error_in_float32 > 100 * error


@pytest.mark.parametrize("context_width", [0, 7])
def test_location_encoder_matches_numpy(context_width: int) -> None:
    torch.manual_seed(1)
    context_features = [ContextFeatures(context_width)] if context_width else []
    model = LocationEncoder(SMALL, [*make_features(SMALL), *context_features]).eval()
    metres = random_metres(200, 20_000.0)
    context = torch.randn(200, context_width) * 3 + 1 if context_width else None
    with torch.no_grad():
        if context is not None and model.context is not None:
            model.context.set_standardisation(context.mean(dim=0), context.std(dim=0))
            standardised = model.context.standardise(context)
        found = model(torch.from_numpy(metres), None if context is None else standardised).numpy()
    expected = reference_location(model, SMALL, metres, None if context is None else context.double().numpy())
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_a_context_feature_that_never_varies_is_left_out() -> None:
    model = ContextFeatures(2)
    context = torch.tensor([[5.0, 1.0], [5.0, 3.0]])
    model.set_standardisation(context.mean(dim=0), context.std(dim=0))
    found = model.standardise(torch.tensor([[5.0, 2.0], [9.0, 2.0 + 2**0.5]]))
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0], [0.0, 1.0]]))


def test_embed_text_is_the_projection_at_unit_length() -> None:
    model = CaLLiPer(SMALL, 16)
    vectors = torch.randn(50, 16)
    with torch.no_grad():
        found = model.embed_text(vectors).numpy()
        weight, bias = model.text_projection.weight.numpy(), model.text_projection.bias.numpy()
    projected = vectors.numpy() @ weight.T + bias
    np.testing.assert_allclose(found, projected / np.linalg.norm(projected, axis=1, keepdims=True), atol=1e-6)


def test_scale_starts_at_the_temperature_and_is_bounded() -> None:
    model = CaLLiPer(SMALL, 16)
    assert float(model.scale().detach()) == pytest.approx(1 / SMALL.initial_temperature, rel=1e-6)
    with torch.no_grad():
        model.logit_scale.fill_(50.0)
    assert float(model.scale().detach()) == pytest.approx(SMALL.logit_scale_max, rel=1e-6)


def test_linear_layers_are_all_the_weights_there_are() -> None:
    model = LocationEncoder(SMALL, [*make_features(SMALL), ContextFeatures(3)])
    layers = model.linear_layers()
    assert [*layers][:3] == ["input", "block0.first", "block0.second"]
    found = {id(parameter) for layer in layers.values() for parameter in layer.parameters()}
    assert found == {id(parameter) for parameter in model.parameters()}


def reference_loss(
    place: torch.Tensor, text: torch.Tensor, text_id: torch.Tensor, scale: torch.Tensor, balance: float = 0.0
) -> torch.Tensor:
    """Cross-entropy both ways over the logits, those of the same text taken out; frequent texts weigh less."""
    logits = place @ text.T * scale
    same = (text_id[:, None] == text_id[None, :]) & ~torch.eye(len(text_id), dtype=torch.bool)
    logits = logits.masked_fill(same, -math.inf)
    own = torch.arange(len(text_id))
    both = [functional.cross_entropy(matrix, own, reduction="none") for matrix in (logits, logits.T)]
    weight = torch.bincount(text_id)[text_id].double() ** -balance
    return ((both[0] + both[1]) / 2 * weight).sum() / weight.sum()


def random_pairs(count: int, texts: int, seed: int, dimensions: int = 6) -> tuple[torch.Tensor, ...]:
    """Unit vectors of places and texts, ids of `texts` texts, a scale; float64, with gradients."""
    random = torch.Generator().manual_seed(seed)
    text_id = torch.randint(texts, (count,), generator=random)
    place = functional.normalize(torch.randn(count, dimensions, dtype=torch.float64, generator=random), dim=1)
    each = functional.normalize(torch.randn(texts, dimensions, dtype=torch.float64, generator=random), dim=1)
    scale = torch.tensor(14.0, dtype=torch.float64)
    return place.requires_grad_(), each[text_id].requires_grad_(), text_id, scale.requires_grad_()


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 12), texts=st.integers(1, 8), seed=st.integers(0, 2**31), balance=st.sampled_from([0, 0.5, 1])
)
def test_loss_and_gradients_match_cross_entropy(count: int, texts: int, seed: int, balance: float) -> None:
    place, text, text_id, scale = random_pairs(count, texts, seed)
    loss, expected = (compute(place, text, text_id, scale, balance) for compute in (symmetric_info_nce, reference_loss))
    torch.testing.assert_close(loss, expected)
    inputs = (place, text, scale)
    # Times three, since what comes in from behind need not be one.
    torch.testing.assert_close(torch.autograd.grad(3 * loss, inputs), torch.autograd.grad(3 * expected, inputs))


def test_loss_matches_cross_entropy_in_float32_at_the_largest_scale() -> None:
    place, text, text_id, _ = (tensor.detach() for tensor in random_pairs(256, 40, 0, dimensions=128))
    scale = torch.tensor(100.0)
    found = symmetric_info_nce(place.float(), text.float(), text_id, scale)
    torch.testing.assert_close(found.double(), reference_loss(place, text, text_id, scale.double()), rtol=1e-5, atol=0)


def test_gradients_match_finite_differences() -> None:
    place, text, text_id, scale = random_pairs(7, 4, 3)
    assert torch.autograd.gradcheck(symmetric_info_nce, (place, text, text_id, scale, 0.5))


def test_rows_with_the_same_text_are_not_negatives() -> None:
    place = torch.eye(3)
    text = torch.eye(3)[[0, 0, 1]]  # the first two rows share a text
    ids = torch.tensor([4, 4, 9])
    scale = torch.tensor(5.0)
    found = symmetric_info_nce(place[:2], text[:2], ids[:2], scale)
    assert float(found) == 0, "a pair that has no negatives has nothing to learn"
    moved = place.clone()
    moved[1] = torch.tensor([-1.0, 0.0, 0.0])  # the second place goes far from the text that the first shares with it

    def gradient_of_first_text(places: torch.Tensor) -> torch.Tensor:
        vectors = text.clone().requires_grad_()
        symmetric_info_nce(places, vectors, ids, scale).backward()
        assert vectors.grad is not None
        return vectors.grad[0]

    torch.testing.assert_close(gradient_of_first_text(place), gradient_of_first_text(moved))
    assert not torch.allclose(
        symmetric_info_nce(place, text, ids, scale), symmetric_info_nce(place, text, torch.tensor([4, 5, 9]), scale)
    )
