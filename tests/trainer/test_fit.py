"""Training: the same every time, better than chance on a real town, and resumable to the same bits."""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from callipper_db.arrays import Array
from callipper_db.errors import (
    BatchTooLarge,
    CheckpointDamaged,
    CheckpointMismatch,
    CheckpointMissing,
    CheckpointUnwritable,
    ConfigError,
    NotEnoughData,
)
from callipper_db.load import load
from callipper_db.progress import Silent
from callipper_trainer.config import TrainConfig
from callipper_trainer.data.batches import Resident, batches, split
from callipper_trainer.data.samples import Samples
from callipper_trainer.data.source import Source, read_samples
from callipper_trainer.distributed import Ranks
from callipper_trainer.embed import embed_places, embed_texts
from callipper_trainer.fit import Run, check_batch, fit, step_bytes, training_step
from callipper_trainer.model import TrainedModel
from callipper_trainer.text_encoder import TextEncoder, encode_cached
from fits import Interrupted, StopAfter, assert_same, city
from processes import CONTEXT
from sessions import user_session

MONACO = Path(__file__).parents[2] / "demo" / "monaco.osm.pbf"
ENCODERS = ("coordinate", "contextual")
QUICK = TrainConfig(hidden=32, blocks=1, frequencies=8, epochs=4, device="cpu")


# Memory


def peak_of_a_step(batch: int, config: TrainConfig) -> int:
    """The most bytes that one step takes, measured in a process of its own."""
    metres, text_id, vectors, _ = city(count=9 * batch)
    names = np.arange(len(metres)) % len(vectors)
    data = Resident(metres, text_id, vectors, config, torch.device("cpu"), name_id=names)
    model = data.maker.model()
    data.standardise(model.location.context)
    optimiser = torch.optim.AdamW(model.parameters())
    training_step(model, next(data.batches(1, 64)), config, optimiser)
    rows = next(data.batches(1, batch))
    Path("/proc/self/clear_refs").write_text("5")  # the highest from now on
    before = resident_kb("VmRSS")
    training_step(model, rows, config, optimiser)
    return 1024 * (resident_kb("VmHWM") - before)


def resident_kb(name: str) -> int:
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux says what a process takes")
@pytest.mark.parametrize("encoder", ENCODERS)
def test_what_a_step_takes_is_foreseen(encoder: str) -> None:
    config = TrainConfig.of(encoder, device="cpu")
    with CONTEXT.Pool(1) as pool:
        taken = pool.apply(peak_of_a_step, (4000, config))
    assert 0.6 * step_bytes(4000, config) < taken < 1.1 * step_bytes(4000, config)


def test_a_batch_that_memory_cannot_hold_is_refused() -> None:
    config, cpu = TrainConfig(batch_size=2_000_000), torch.device("cpu")
    with pytest.raises(BatchTooLarge) as caught:
        check_batch(20_000_000, config, cpu)
    found = re.fullmatch(
        r"A step with a batch of 2,000,000 POIs takes about [\d.]+ GiB of memory, and [\d.]+ GiB are free \(cpu\)."
        r" Give --batch-size (\d+) or less.",
        str(caught.value),
    )
    assert found
    check_batch(20_000_000, replace(config, batch_size=int(found[1])), cpu)
    check_batch(8_000, config, cpu)  # which make batches of 900 at most
    with pytest.raises(BatchTooLarge):
        check_batch(20_000_000, replace(config, batch_size=int(found[1])), cpu, Ranks(0, 4))


def test_it_is_refused_before_anything_is_read(run: Any, database: str) -> None:
    query = "SELECT ST_SetSRID(ST_Point(n / 1e6, 50), 4326) AS geom, 'kind ' || n % 9 AS text, n AS id"
    source = f"{query} FROM generate_series(1, 1600000) AS n"
    result = run(
        *("train", "--dsn", database, "--source", source, "--srid", "32631", "--batch-size", "2000000"), exit_code=1
    )
    assert "A step with a batch of 180,000 POIs takes about" in result.stderr
    assert "encoding" not in result.stderr


# The same every time


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_seed_decides_everything(kind: str) -> None:
    config = replace(QUICK, encoder=kind, dropout=0.2)
    first = fit(*city(), config)
    torch.rand(3)
    np.random.default_rng().random()
    assert_same(first, fit(*city(), config))
    other = fit(*city(), replace(config, seed=7))
    assert not torch.equal(first.model.text_projection.weight, other.model.text_projection.weight)


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("last", [1, 2, 4])
def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path: Path, kind: str, last: int) -> None:
    config = replace(QUICK, encoder=kind, dropout=0.2)
    whole = fit(*city(), config)
    checkpoint = tmp_path / "deep" / "run.pt"
    with pytest.raises(Interrupted):
        fit(*city(), config, Run(checkpoint=checkpoint, fingerprint="f", reporter=StopAfter(last)))
    torch.rand(5)
    resumed = fit(*city(), config, Run(checkpoint=checkpoint, fingerprint="f", resume=True))
    assert len(resumed.history) == 4
    assert_same(whole, resumed)
    assert [path.name for path in checkpoint.parent.iterdir()] == ["run.pt"]


def test_a_run_that_is_interrupted_twice(tmp_path: Path) -> None:
    options: dict[str, Any] = {"checkpoint": tmp_path / "run.pt", "fingerprint": "f"}
    for last in (1, 3):
        with pytest.raises(Interrupted):
            fit(*city(), QUICK, Run(reporter=StopAfter(last), resume=last > 1, **options))
    assert_same(fit(*city(), QUICK), fit(*city(), QUICK, Run(resume=True, **options)))


# Checkpoints that do not fit


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A run that was interrupted after its first epoch."""
    path = tmp_path / "run.pt"
    with pytest.raises(Interrupted):
        fit(*city(), QUICK, Run(checkpoint=path, fingerprint="these", reporter=StopAfter(1)))
    return path


def resume(checkpoint: Path | None, fingerprint: str = "these", config: TrainConfig = QUICK) -> TrainedModel:
    return fit(*city(), config, Run(checkpoint=checkpoint, fingerprint=fingerprint, resume=True))


def test_a_checkpoint_of_other_data_is_refused(checkpoint: Path) -> None:
    with pytest.raises(CheckpointMismatch, match=r"run\.pt belongs to other data\. Run without --resume to start over"):
        resume(checkpoint, fingerprint="others")


@pytest.mark.parametrize("change", [{"epochs": 9}, {"learning_rate": 0.1}, {"hidden": 16}, {"seed": 1}])
def test_a_checkpoint_of_other_settings_is_refused(checkpoint: Path, change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointMismatch, match=r"run\.pt belongs to other settings"):
        resume(checkpoint, config=replace(QUICK, **change))


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissing, match=r"There is nothing to resume: .*run\.pt does not exist"):
        resume(tmp_path / "run.pt")
    with pytest.raises(CheckpointMissing):
        resume(None)


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text", "other"])
def test_a_damaged_checkpoint_says_so(checkpoint: Path, damage: str) -> None:
    content = checkpoint.read_bytes()
    if damage == "other":
        torch.save({"weights": torch.zeros(2)}, checkpoint)
    else:
        changed = {"empty": b"", "cut": content[:5000], "flipped": b"\xff" * 100 + content[100:], "text": b"hello\n"}
        checkpoint.write_bytes(changed[damage])
    with pytest.raises(CheckpointDamaged, match=r"run\.pt cannot be read: .* Run without --resume to start over"):
        resume(checkpoint)


def test_a_checkpoint_cannot_run_code(checkpoint: Path) -> None:
    torch.save({"fingerprint": "these", "config": Evil(checkpoint.with_name("evil"))}, checkpoint)
    with pytest.raises(CheckpointDamaged):
        resume(checkpoint)
    assert not checkpoint.with_name("evil").exists()


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointUnwritable, match=r"cannot be written: .* point CALLIPPER_HOME at a folder of yours"):
        fit(*city(), QUICK, Run(checkpoint=tmp_path / "file" / "run.pt"))


def test_starting_over_replaces_the_checkpoint(checkpoint: Path) -> None:
    checkpoint.write_bytes(b"damaged")
    fit(*city(), QUICK, Run(checkpoint=checkpoint, fingerprint="these"))
    assert len(resume(checkpoint).history) == 4


# Data that teach nothing


def test_too_few_places() -> None:
    with pytest.raises(NotEnoughData, match=r"19 POIs with a text were found, and at least 20 are needed\."):
        fit(*city(19), QUICK)


def test_one_text_only() -> None:
    metres, text_id, vectors, origin = city()
    with pytest.raises(NotEnoughData, match="all POIs have the same text, and a contrast needs at least two"):
        fit(metres, np.zeros_like(text_id), vectors, origin, QUICK)


def test_vectors_that_are_not_finite() -> None:
    metres, text_id, vectors, origin = city()
    with pytest.raises(NotEnoughData, match="the loss is not finite"):
        fit(metres, text_id, np.full_like(vectors, np.nan), origin, replace(QUICK, encoder="coordinate"))


@pytest.mark.parametrize("name", ["banana", "cuda:99", "meta:x"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(ConfigError, match=f"Setting --device='{name}' is not usable"):
        fit(*city(), replace(QUICK, device=name))


@pytest.mark.parametrize("kind", ENCODERS)
def test_all_places_on_one_spot(kind: str) -> None:
    metres, text_id, vectors, origin = city()
    trained = fit(np.full_like(metres, metres[0]), text_id, vectors, origin, replace(QUICK, encoder=kind))
    assert all(np.isfinite(figures["validation_loss"]) for figures in trained.history)
    assert np.isfinite(embed_places(trained, metres[:5])).all()


@pytest.mark.parametrize("count", [20, 21, 30])
def test_the_smallest_sources_train(count: int) -> None:
    trained = fit(*city(count), replace(QUICK, epochs=2))
    assert len(trained.history) == 2


# What comes out


def test_the_best_epoch_is_kept(tmp_path: Path) -> None:
    # Steps this long soon do harm, so that the last epoch is not the best.
    config = replace(QUICK, encoder="coordinate", epochs=12, learning_rate=0.05, weight_decay=1e-4)
    trained = fit(*city(), config)
    losses = [figures["validation_loss"] for figures in trained.history]
    assert losses[trained.best_epoch - 1] == min(losses)
    assert trained.best_epoch < 12
    assert not trained.model.training
    checkpoint = tmp_path / "run.pt"
    with pytest.raises(Interrupted):
        fit(*city(), config, Run(checkpoint=checkpoint, reporter=StopAfter(trained.best_epoch)))
    then = torch.load(checkpoint, weights_only=True)["model"]
    assert all(torch.equal(value, then[name]) for name, value in trained.model.state_dict().items())


def test_embeddings_are_unit_length_and_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    metres, text_id, vectors, origin = city()
    trained = fit(metres, text_id, vectors, origin, QUICK)
    places = embed_places(trained, metres)
    assert places.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(places, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(embed_texts(trained, vectors), axis=1), 1, atol=1e-6)
    monkeypatch.setattr("callipper_trainer.embed.BATCH", 7)
    counted: list[int] = []
    np.testing.assert_allclose(embed_places(trained, metres, counted.append), places, atol=1e-6)
    assert sum(counted) == len(metres)


def test_progress_adds_up_to_the_total() -> None:
    class Counting(Silent):
        total = done = 0

        def stage(self, name: str, total: int | None = None) -> None:
            self.total += total or 0

        def advance(self, units: int, **figures: float) -> None:
            self.done += units

    counting = Counting()
    fit(*city(500), QUICK, Run(reporter=counting))
    assert counting.total == counting.done > 0


def test_split_is_disjoint_and_whole() -> None:
    training, validation = split(1000, TrainConfig(seed=42))
    assert sorted([*training, *validation]) == list(range(1000))
    assert len(validation) == 100
    assert split(1000, TrainConfig(seed=42))[0].tolist() == training.tolist()
    assert split(1000, TrainConfig(seed=43))[0].tolist() != training.tolist()


def test_batches_are_whole() -> None:
    chosen = list(batches(torch.arange(10), 4))
    assert [batch.tolist() for batch in chosen] == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    ("count", "batch", "epochs"), [(18, 2, 34), (800, 100, 38), (8192, 512, 19), (200_000, 512, 6)]
)
def test_small_sources_get_smaller_batches_and_more_epochs(count: int, batch: int, epochs: int) -> None:
    assert TrainConfig().batch_for(count) == batch
    assert TrainConfig().epochs_for(count) == epochs
    assert TrainConfig(epochs=3).epochs_for(count) == 3


# A real town


@pytest.fixture(scope="module")
def monaco(module_database: str, encoder: TextEncoder) -> tuple[Samples, Array]:
    load(module_database, [MONACO])
    with user_session(module_database, autocommit=True) as connection:
        samples = read_samples(connection, Source(template="A place of {category}")).samples
    return samples, encode_cached(module_database, encoder, samples.texts)


def chance(samples: Samples, validation: Array, batch: int) -> float:
    """The loss of a model that knows nothing: log of how many texts a place could have, in batches as they are made."""
    losses = []
    for rows in batches(torch.from_numpy(np.random.default_rng(0).permutation(validation)), batch):
        ids = samples.text_id[rows]
        losses.append(np.log(1 + (ids[:, None] != ids[None, :]).sum(axis=1)).mean())
    return float(np.mean(losses))


@pytest.mark.parametrize(("kind", "margin"), [("coordinate", 0.15), ("contextual", 0.3)])
def test_it_learns_a_real_town(monaco: tuple[Samples, Array], kind: str, margin: float) -> None:
    samples, vectors = monaco
    assert len(samples) > 500
    config = TrainConfig(encoder=kind, epochs=12, device="cpu", hidden=128, blocks=2)
    trained = fit(samples.metres, samples.text_id, vectors, samples.origin, config)
    training, validation = split(len(samples), config)
    batch = min(config.batch_for(len(training)), len(validation))
    reached = min(figures["validation_loss_texts"] for figures in trained.history)
    assert reached < chance(samples, validation, batch) - margin
    losses = [figures["loss"] for figures in trained.history]
    assert losses[-1] < losses[0]
    assert all(later < earlier + 0.2 for earlier, later in itertools.pairwise(losses))
