"""Probes, splits and figures, from arrays, against scikit-learn, scipy and torch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import rel_entr
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    mean_absolute_error,
    precision_recall_fscore_support,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from torch import nn

from callipper_db.arrays import Array
from callipper_db.errors import NotEnoughData
from callipper_trainer.evaluation import scores
from callipper_trainer.evaluation.neighbours import predict_neighbours
from callipper_trainer.evaluation.probe import BATCH, Adam, Stack, Weights, fit_probes
from callipper_trainer.evaluation.protocol import (
    MINIMUM_LABELS,
    Score,
    evaluate_embeddings,
    evaluate_floors,
    guess_task,
    make_targets,
)
from callipper_trainer.evaluation.retrieval import hold_out, retrieval_auc
from callipper_trainer.evaluation.splits import BLOCKS, Split, block_of, block_split, make_splits, random_split

RNG = np.random.default_rng(7)
COUNT = 600
PLACES = RNG.uniform([500_000, 150_000], [540_000, 200_000], (COUNT, 2))
NOISE = RNG.standard_normal((COUNT, 8))


def by_split(found: list[Score]) -> dict[str, Score]:
    return {score.split: score for score in found}


def shares(count: int, columns: int) -> Array:
    return RNG.dirichlet(np.ones(columns), count)


# Figures


@given(st.integers(2, 6), st.integers(1, 60), st.randoms(use_true_random=False))
def test_classification_figures_are_those_of_scikit_learn(
    classes: int, count: int, random: np.random.Generator
) -> None:
    truth = np.array([random.randint(0, classes - 1) for _ in range(count)])  # type: ignore[attr-defined]
    found = np.array([random.randint(0, classes - 1) for _ in range(count)])  # type: ignore[attr-defined]
    every = range(classes)
    matrix = scores.confusion(truth, found, classes)
    assert (matrix == confusion_matrix(truth, found, labels=every)).all()
    figures = scores.classification_scores(matrix)
    assert figures["accuracy"] == pytest.approx(accuracy_score(truth, found))
    assert figures["macro_f1"] == pytest.approx(f1_score(truth, found, average="macro"))
    columns = scores.per_class(matrix)
    expected = precision_recall_fscore_support(truth, found, labels=every, zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose(columns[name], values)


def test_divergence_is_that_of_scipy() -> None:
    truth, found = shares(200, 9), shares(200, 9)
    truth[::3, 2] = 0
    truth /= truth.sum(axis=1, keepdims=True)
    figures = scores.distribution_scores(truth, found)
    assert figures["kl"] == pytest.approx(rel_entr(truth, found).sum(axis=1).mean(), rel=1e-9)
    assert figures["l1"] == pytest.approx(np.abs(truth - found).sum(axis=1).mean())
    assert scores.distribution_scores(truth, truth) == {"kl": 0, "l1": 0}


def test_a_share_of_zero_in_the_prediction_costs_much_but_not_everything() -> None:
    assert 10 < scores.kl_divergence(np.array([[0.5, 0.5]]), np.array([[1.0, 0.0]]))[0] < 30


def test_regression_figures_are_those_of_scikit_learn() -> None:
    truth = RNG.standard_normal((300, 3)) * [1, 10, 100] + 5
    found = truth + RNG.standard_normal((300, 3)) * [0.5, 20, 3]
    figures = scores.regression_scores(truth, found)
    assert figures["r2"] == pytest.approx(r2_score(truth, found))
    assert figures["mae"] == pytest.approx(mean_absolute_error(truth, found))
    assert figures["rmse"] == pytest.approx(root_mean_squared_error(truth.ravel(), found.ravel()))


@given(
    arrays(np.int8, st.integers(2, 40), elements=st.integers(-3, 3)),  # ties abound
    st.data(),
)
def test_auc_is_that_of_scikit_learn(values: Array, data: st.DataObject) -> None:
    own = np.array(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    if own.all() or not own.any():
        own[0] = not own[0]
    expected = roc_auc_score(own, values)
    assert scores.auc(values[own].astype(float), values[~own].astype(float)) == pytest.approx(expected)


def test_retrieval_auc_of_each_label_is_that_of_scikit_learn() -> None:
    places, texts = RNG.standard_normal((500, 16)), RNG.standard_normal((6, 16))
    labels = RNG.choice([-1, 0, 1, 2, 3, 4, 5], 500, p=[0.1, 0.3, 0.2, 0.2, 0.15, 0.04, 0.01])
    found = retrieval_auc(places, texts, labels)
    assert set(found) == {label for label in range(6) if (labels == label).sum() >= 20}
    assert {0, 1, 2, 3} <= set(found) and 5 not in found
    for label, value in found.items():
        assert value == pytest.approx(roc_auc_score(labels == label, places @ texts[label]))


def test_retrieval_leaves_out_a_label_that_all_places_have() -> None:
    assert retrieval_auc(NOISE, NOISE[:2], np.zeros(COUNT, np.int64)) == {}


# Splits


def parts(split: Split) -> tuple[Array, Array, Array]:
    return split.train, split.validation, split.test


@pytest.mark.parametrize("name", ["random", "blocks"])
def test_parts_are_disjoint_and_whole(name: str) -> None:
    for split in make_splits(name, PLACES, 7):
        together = np.concatenate(parts(split))
        assert sorted(together) == list(range(COUNT))
        assert len(split.validation) == pytest.approx(0.1 * (COUNT - len(split.test)), abs=1)
        assert len(split.test) == pytest.approx(0.2 * COUNT, rel=0.4 if name == "blocks" else 0.01)


@pytest.mark.parametrize("name", ["random", "blocks"])
def test_five_seeds_test_each_place_once_and_the_next_five_otherwise(name: str) -> None:
    splits = make_splits(name, PLACES, 10)
    for five in (splits[:5], splits[5:]):
        assert sorted(np.concatenate([split.test for split in five])) == list(range(COUNT))
    assert not any(
        np.array_equal(first.test, second.test) for first, second in itertools.product(splits[:5], splits[5:])
    )


@given(
    arrays(np.float64, st.tuples(st.integers(5, 80), st.just(2)), elements=st.floats(-1e6, 1e6)),
    st.integers(0, 20),
)
def test_blocks_do_not_leak(places: Array, seed: int) -> None:
    """The blocks anew, in plain Python: none has both test places and others, and a fifth of them is the test."""
    low, high = places.min(axis=0), places.max(axis=0)
    side = [(most - least) / BLOCKS or 1.0 for least, most in zip(low, high, strict=True)]
    block = [
        tuple(min(int((x - least) // size), BLOCKS - 1) for x, least, size in zip(place, low, side, strict=True))
        for place in places
    ]
    if len(set(block)) < 2:
        with pytest.raises(NotEnoughData, match="one spot"):
            block_split(places, seed)
        return
    split = block_split(places, seed)
    test = {block[row] for row in split.test}
    assert not test & {block[row] for row in (*split.train, *split.validation)}
    assert len(test) in {len(set(block)) // min(5, len(set(block))), -(-len(set(block)) // min(5, len(set(block))))}


def test_there_are_ten_blocks_a_side() -> None:
    corners = np.array([[0.0, 0.0], [0.0, 100.0], [100.0, 0.0], [100.0, 100.0], [55.0, 9.99], [10.0, 10.0]])
    assert block_of(corners).tolist() == [0, 9, 90, 99, 50, 11]


def test_a_split_follows_from_the_seed() -> None:
    for first, second in zip(parts(random_split(COUNT, 3)), parts(random_split(COUNT, 3)), strict=True):
        assert np.array_equal(first, second)
    assert not np.array_equal(random_split(COUNT, 3).test, random_split(COUNT, 4).test)


def test_hold_out_is_a_tenth_and_disjoint() -> None:
    kept, held_out = hold_out(1000)
    assert len(held_out) == 100 and sorted([*kept, *held_out]) == list(range(1000))


# Neighbours


@pytest.mark.parametrize("task", ["classification", "regression", "distribution"])
def test_neighbours_are_those_of_scikit_learn(task: str) -> None:
    splits = make_splits("random", PLACES, 2)
    classes = RNG.integers(0, 4, COUNT)
    values = {"classification": np.eye(4)[classes], "regression": NOISE[:, :2], "distribution": shares(COUNT, 5)}[task]
    for split, found in zip(splits, predict_neighbours(PLACES, values, task, splits), strict=True):
        known = np.concatenate([split.train, split.validation])
        if task == "classification":
            reference = KNeighborsClassifier(5, weights="distance").fit(PLACES[known], classes[known])
            assert (found.argmax(axis=1) == reference.predict(PLACES[split.test])).all()
        else:
            regressor = KNeighborsRegressor(10, weights="distance").fit(PLACES[known], values[known])
            np.testing.assert_allclose(found, regressor.predict(PLACES[split.test]), atol=1e-9)


def test_a_label_at_the_same_place_decides_alone() -> None:
    places = np.repeat(PLACES[:100], 2, axis=0)
    values = np.repeat(np.eye(4)[RNG.integers(0, 4, 100)], 2, axis=0)
    split = Split(0, np.arange(0, 200, 2), np.array([], np.int64), np.arange(1, 200, 2))
    (found,) = predict_neighbours(places, values, "classification", [split])
    np.testing.assert_allclose(found, values[split.test], atol=1e-6)


# The probe


def reference_network(weights: Weights, number: int) -> nn.Sequential:
    """One probe of a stack as torch's own layers."""
    first = nn.Linear(weights.layout.inputs, weights.first.shape[2])
    second = nn.Linear(weights.second.shape[1], weights.layout.outputs)
    with torch.no_grad():
        for layer, weight, bias in (
            (first, weights.first, weights.first_bias),
            (second, weights.second, weights.second_bias),
        ):
            layer.weight.copy_(weight[number].T)
            layer.bias.copy_(bias[number, 0])
    return nn.Sequential(first, nn.ReLU(), second)


def flat(network: nn.Sequential, gradient: bool) -> torch.Tensor:
    first, _, second = network
    tensors = [first.weight, first.bias, second.weight, second.bias]
    values = [tensor.grad if gradient else tensor.detach() for tensor in tensors]
    assert all(value is not None for value in values)
    return torch.cat([(value.T if value.ndim == 2 else value).reshape(-1) for value in values])


@pytest.mark.parametrize("task", ["classification", "regression", "distribution"])
def test_gradient_and_steps_are_those_of_torch(task: str) -> None:
    """Three steps on a short batch, against torch's layers, losses, autograd and Adam."""
    values = {"classification": np.eye(3)[RNG.integers(0, 3, COUNT)], "regression": NOISE[:, :2] * 40 + 7}.get(
        task, shares(COUNT, 3)
    )
    splits = [random_split(COUNT, 0), random_split(COUNT, 1)]
    stack = Stack(NOISE, values, task, splits)
    weights = Weights(stack.layout, stack.best.clone())
    gradient, adam = weights.pick([0, 1]), Adam(weights.rows)
    networks = [reference_network(weights, number) for number in range(2)]
    optimisers = [torch.optim.Adam(network.parameters(), lr=1e-3) for network in networks]
    for step in range(3):
        rows = torch.from_numpy(np.stack([split.train[step * 50 : step * 50 + BATCH] for split in splits]))
        share = torch.zeros(2, BATCH, 1)
        share[:, :100] = 1 / 100
        with torch.no_grad():
            stack._gradient(weights, gradient, rows, share, [0, 1])
            adam.step(gradient.rows)
        for number, (split, network, optimiser) in enumerate(zip(splits, networks, optimisers, strict=True)):
            train, batch = split.train, rows[number, :100].numpy()
            scaled = (NOISE[batch] - NOISE[train].mean(axis=0)) / NOISE[train].std(axis=0)
            outputs = network(torch.from_numpy(scaled).float())
            if task == "regression":
                wanted = (values[batch] - values[train].mean(axis=0)) / values[train].std(axis=0)
                loss = nn.functional.mse_loss(outputs, torch.from_numpy(wanted).float())
            else:
                loss = nn.functional.cross_entropy(outputs, torch.from_numpy(values[batch]).float())
            optimiser.zero_grad()
            loss.backward()
            torch.testing.assert_close(gradient.rows[number], flat(network, True), atol=1e-6, rtol=1e-4)
            optimiser.step()
            torch.testing.assert_close(weights.rows[number], flat(network, False), atol=1e-6, rtol=1e-4)


def test_it_learns_classes_that_can_be_told_apart() -> None:
    classes = RNG.integers(0, 3, COUNT)
    features = RNG.standard_normal((3, 16))[classes] * 3 + RNG.standard_normal((COUNT, 16))
    names = np.array(["park", "pub", "school"])[classes]
    for score in evaluate_embeddings(features, PLACES, names, seeds=2):
        assert score.mean["macro_f1"] > 0.97
        assert [row["class"] for row in score.classes] == ["park", "pub", "school"]
        assert score.mean["macro_f1"] == pytest.approx(np.mean([row["f1"] for row in score.classes]), abs=1e-3)


def test_it_stays_at_chance_on_noise() -> None:
    classes = RNG.integers(0, 4, COUNT)
    for score in evaluate_embeddings(NOISE, PLACES, classes, "classification", seeds=5):
        assert score.mean["accuracy"] == pytest.approx(0.25, abs=0.06)
    numbers = RNG.standard_normal(COUNT)
    for score in evaluate_embeddings(NOISE, PLACES, numbers, seeds=5):
        assert -0.3 < score.mean["r2"] < 0.05


def test_it_reads_numbers_in_their_own_units() -> None:
    truth = NOISE[:, 0] * 50_000 + 300_000
    for score in evaluate_embeddings(NOISE, PLACES, truth, seeds=2):
        assert score.mean["r2"] > 0.9
        assert 1_000 < score.mean["mae"] < 20_000


def test_it_reads_distributions() -> None:
    logits = NOISE[:, :4] * 2
    truth = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = by_split(evaluate_embeddings(NOISE, PLACES, truth, seeds=2))
    constant = np.broadcast_to(truth.mean(axis=0), truth.shape)
    chance = rel_entr(truth, constant).sum(axis=1).mean()
    assert found["random"].mean["kl"] < 0.1 * chance
    for rows, predicted in found["random"].predictions:
        assert predicted.shape == (len(rows), 4)
        np.testing.assert_allclose(predicted.sum(axis=1), 1, atol=1e-5)


def test_the_same_seed_gives_the_same_figures() -> None:
    classes = RNG.integers(0, 4, COUNT)
    first, second = (evaluate_embeddings(NOISE, PLACES, classes, "classification", seeds=2) for _ in range(2))
    assert [score.runs for score in first] == [score.runs for score in second]


def test_probes_side_by_side_are_probes_alone() -> None:
    """Parts of different sizes and ends at different epochs do not touch each other."""
    values = np.eye(3)[(NOISE[:, 0] > 0).astype(int) + (NOISE[:, 1] > 0)]
    whole = random_split(COUNT, 0)
    short = Split(1, whole.train[:150], whole.validation[:20], whole.test)
    together = fit_probes(NOISE, values, "classification", [short, whole, random_split(COUNT, 2)])
    for number, split in ((0, short), (1, whole)):
        (alone,) = fit_probes(NOISE, values, "classification", [split])
        np.testing.assert_allclose(together[number], alone, atol=1e-3)


def test_features_that_do_not_vary_do_no_harm() -> None:
    classes = (NOISE[:, 0] > 0).astype(int)
    features = np.column_stack([NOISE, np.full(COUNT, 3e5), np.zeros(COUNT)])
    assert all(score.mean["macro_f1"] > 0.9 for score in evaluate_embeddings(features, PLACES, classes, seeds=2))


def test_features_that_are_not_finite_are_refused() -> None:
    features = NOISE.copy()
    features[3, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        evaluate_embeddings(features, PLACES, NOISE[:, 0])


# Floors


def test_the_floors_stand_beside_each_other_on_the_same_splits() -> None:
    west = (PLACES[:, 0] < 520_000).astype(int)
    reported: list[int] = []
    found = evaluate_floors(PLACES, west, seeds=2, features={"noise": NOISE}, advance=reported.append)
    assert [(score.name, score.split) for score in found] == [
        (name, split) for name in ("5 nearest neighbours", "coordinates", "noise") for split in ("random", "blocks")
    ]
    assert reported == [1, 1, 1]
    figures = {(score.name, score.split): score.mean["macro_f1"] for score in found}
    assert figures["coordinates", "random"] > 0.95 and figures["5 nearest neighbours", "random"] > 0.95
    assert figures["noise", "random"] < 0.65
    for first, second in zip(found[0].predictions, found[2].predictions, strict=True):
        assert np.array_equal(first.rows, second.rows)


def test_random_splits_leak_and_blocks_do_not() -> None:
    """Labels that are constant in patches smaller than a block: neighbours know them, unless the block is held out."""
    places = RNG.uniform(0, 10_000, (2000, 2))
    patch = (places // 500).astype(int)
    classes = np.random.default_rng(1).integers(0, 4, (20, 20))[patch[:, 0], patch[:, 1]]
    neighbours = by_split(evaluate_floors(places, classes, "classification", seeds=5)[:2])
    assert neighbours["random"].mean["macro_f1"] > 0.6
    assert neighbours["blocks"].mean["macro_f1"] < 0.4


# Targets


@pytest.mark.parametrize(
    ("values", "task"),
    [
        (np.array(["a", "b"] * 50), "classification"),
        (np.array([True, False] * 50), "classification"),
        (np.arange(100) % 3, "classification"),
        (np.arange(100) % 3 * 1.0, "classification"),
        (np.arange(100), "regression"),
        (np.arange(1000) % 40, "regression"),
        (np.linspace(0, 1, 100), "regression"),
        (np.arange(100) % 2 + 0.5, "regression"),
        (shares(100, 4), "distribution"),
        (shares(100, 4) * 100, "distribution"),
        (shares(100, 4) * 7, "regression"),
        (NOISE[:, :2], "regression"),
        (np.arange(100)[:, None] * 1.5, "regression"),
    ],
    ids=str,
)
def test_the_task_is_guessed(values: Array, task: str) -> None:
    assert guess_task(values) == task


def test_percentages_become_shares() -> None:
    values = shares(100, 3)
    np.testing.assert_allclose(make_targets(values * 100).values, values)


@pytest.mark.parametrize(
    ("values", "task", "message"),
    [
        (np.arange(MINIMUM_LABELS - 1) % 2, None, "49 labels, and at least 50 are needed"),
        (np.array(["park"] * 100), None, "all labels are 'park'"),
        (np.full(100, 2.5), None, "the same number"),
        (np.r_[np.arange(99) / 7, np.nan], None, "1 of the labels are missing or not finite"),
        (np.r_[shares(99, 3), [[np.inf, 0, 0]]], "distribution", "1 of the labels"),
    ],
    ids=str,
)
def test_what_cannot_be_a_target(values: Array, task: str | None, message: str) -> None:
    with pytest.raises(NotEnoughData, match=message):
        make_targets(values, task)


def test_labels_in_one_spot_cannot_be_held_out_by_area() -> None:
    places = np.broadcast_to(PLACES[0], PLACES.shape)
    with pytest.raises(NotEnoughData, match=r"one spot.*--split random"):
        evaluate_embeddings(NOISE, places, NOISE[:, 0])
    assert evaluate_embeddings(NOISE, places, NOISE[:, 0], split="random", seeds=1)[0].spread["r2"] == 0
