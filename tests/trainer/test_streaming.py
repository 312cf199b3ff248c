"""Training from rows on disk: the same rows, the same features, batches as well mixed, models as good as from memory."""

from __future__ import annotations

import json
import resource
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from scipy import stats

from callipper_db.errors import BadExtent, BadSource, CheckpointMismatch, NotEnoughData, RowsUnwritable
from callipper_db.progress import Silent
from callipper_trainer.config import TrainConfig
from callipper_trainer.context import build_pyramid
from callipper_trainer.data import batch_file as streaming
from callipper_trainer.data import sample_file as stored_module
from callipper_trainer.data.batch_file import Streaming, prefetched, pyramid_of
from callipper_trainer.data.batches import is_self_visible
from callipper_trainer.data.sample_file import ROW, StoredSamples, stored_samples
from callipper_trainer.data.samples import Samples
from callipper_trainer.data.source import Source, open_source, read_samples
from callipper_trainer.fit import Run, fit, fit_stored
from callipper_trainer.model import TrainedModel
from callipper_trainer.train import TrainOptions, TrainSummary, train
from fits import TEXTS, Interrupted, StopAfter, assert_same, city
from published import check_embeddings
from sessions import user_session
from stored import samples_of
from town import CONFIG, ENCODER, GRID_M, contents, train_town

CPU = torch.device("cpu")
QUICK = TrainConfig(hidden=32, blocks=1, frequencies=8, epochs=4, device="cpu")


@contextmanager
def kept(samples: Samples, folder: Path, seed: int = 42, rows: int = 300) -> Iterator[StoredSamples]:
    with stored_samples(folder / "rows", samples.chunks(rows), len(samples), seed) as stored:
        yield stored


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets, blocks and pools so small that a test's few rows fill many."""
    monkeypatch.setattr(stored_module, "BUCKET_ROWS", 700)
    monkeypatch.setattr(streaming, "BLOCK_ROWS", 64)
    monkeypatch.setattr(streaming, "POOL_BLOCKS", 4)


def learn(folder: Path, config: TrainConfig, count: int = 200, **run: Any) -> TrainedModel:
    """A run from disk on the city of test_fit."""
    metres, text_id, vectors, _ = city(count)
    with kept(samples_of(metres, text_id), folder, config.seed) as stored:
        return fit_stored(stored, vectors, config, Run(**run))


# The file


@pytest.mark.usefixtures("small")
def test_the_file_holds_the_same_rows_in_another_order(tmp_path: Path) -> None:
    metres, text_id, _, _ = city(2000)
    samples = samples_of(metres, text_id)
    with kept(samples, tmp_path) as stored:
        assert [path.name for path in stored.path.parent.iterdir()] == ["rows"]
        rows = stored.read(0, 5000)
        parts = list(stored.chunks(512))
    assert not (tmp_path / "rows").exists()
    assert not np.array_equal(rows["point_id"], samples.point_id)
    ordered = rows[np.argsort(rows["point_id"])]
    for name in ROW.names or ():
        assert np.array_equal(ordered[name], getattr(samples, name))
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), rows[name])
    assert (len(stored), stored.texts, stored.srid) == (2000, samples.texts, samples.srid)
    assert stored.content_hash() == samples.content_hash()
    assert stored.extent == samples.extent
    assert np.array_equal(stored.origin, samples.origin)
    assert stored.text_count.tolist() == [Counter(text_id.tolist())[number] for number in range(TEXTS)]


def test_the_order_follows_from_the_seed(tmp_path: Path) -> None:
    samples = samples_of(*city(500)[:2])
    orders = []
    for seed, rows in ((1, 100), (1, 100), (2, 100)):
        with kept(samples, tmp_path, seed, rows) as stored:
            orders.append(stored.read(0, 500)["point_id"].tolist())
    assert orders[0] == orders[1] != orders[2]


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    samples = samples_of(*city(5000)[:2])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # bytes a file; the rows take 220,000
    try:
        message = r"cannot be kept in .*rows: File too large\. Free some space"
        with pytest.raises(RowsUnwritable, match=message), kept(samples, tmp_path):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_known_beforehand(tmp_path: Path) -> None:
    stored = stored_samples(tmp_path / "rows", iter([]), 10**12, 0)
    with pytest.raises(RowsUnwritable, match=r"they take [\d.]{7} GiB, and [\d.]+ are free"), stored:
        pass


def test_what_a_killed_run_has_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "bucket77").write_bytes(b"old")
    with kept(samples_of(*city()[:2]), tmp_path) as stored:
        assert len(stored.read(0, 1000)) == 200
    assert not list(tmp_path.iterdir())


# What is computed from it


def test_the_pyramid_is_that_of_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metres, text_id, vectors, _ = city(3000)
    samples = samples_of(metres, text_id)
    expected = build_pyramid(metres - samples.origin, text_id, vectors, QUICK)
    chunks = StoredSamples.chunks
    monkeypatch.setattr(StoredSamples, "chunks", lambda stored: chunks(stored, 130))  # 24 parts
    with kept(samples, tmp_path) as stored:
        found = pyramid_of(stored, vectors, QUICK)
    assert np.array_equal(found.text_code.weight, expected.text_code.weight)
    assert np.array_equal(found.kind_code.weight, expected.kind_code.weight)
    for one, other in zip(found.levels, expected.levels, strict=True):
        assert np.array_equal(one.key, other.key)
        assert np.array_equal(one.ij, other.ij)
        assert np.array_equal(one.count, other.count)
        assert one.code_sum.dtype == np.float32
        np.testing.assert_allclose(one.code_sum, other.code_sum, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("size", [37, 100])
def test_an_epoch_shows_each_training_row_once_with_its_features(tmp_path: Path, size: int) -> None:
    metres, text_id, vectors, _ = city(2000)
    some = np.where(np.arange(2000) % 3, text_id, -1).astype(np.int32)  # a third has no name
    samples = replace(samples_of(metres, text_id), name_id=some)
    relative = metres - samples.origin
    pyramid = build_pyramid(relative, text_id, vectors, QUICK)
    context = pyramid.features(relative, pyramid.codes(vectors)[text_id])  # each without itself, but for some
    sees = is_self_visible(relative, QUICK.self_visible)
    assert 0.07 < sees.mean() < 0.13
    context[sees] = pyramid.features(relative[sees])
    row_of = {tuple(place): row for row, place in enumerate(relative.tolist())}
    with kept(samples, tmp_path) as stored:
        data = Streaming(stored, vectors, QUICK, CPU)
        model = data.maker.model()
        data.standardise(model.location.context)
        training = [row_of[tuple(place)] for place in (stored.read(200, 2000)["metres"] - stored.origin).tolist()]
        validation = [row_of[tuple(place)] for place in (stored.read(0, 200)["metres"] - stored.origin).tolist()]
        mean, deviation = context[training].mean(axis=0), context[training].std(axis=0, ddof=1)
        deviation[pyramid.counts_kinds] = np.maximum(deviation[pyramid.counts_kinds], 0.05)
        scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 1e-6)
        seen: list[int] = []
        for batch in data.batches(1, size):
            rows = [row_of[tuple(place)] for place in batch.pois.metres.tolist()]
            assert len(rows) == size
            assert batch.text_id.tolist() == text_id[rows].tolist()
            assert np.array_equal(batch.text.numpy(), vectors[text_id[rows]])
            assert batch.name_id is not None
            assert batch.name_id.tolist() == samples.name_id[rows].tolist()
            assert batch.pois.context is not None
            np.testing.assert_allclose(batch.pois.context, (context[rows] - mean) * scale, rtol=1e-3, atol=2e-3)
            seen += rows
        held_out = [row_of[tuple(place)] for batch in data.held_out(size) for place in batch.pois.metres.tolist()]
    assert len(seen) == len(set(seen)) == 1800 // size * size
    assert set(seen) <= set(training)
    assert held_out == validation[: 200 // size * size]
    assert not set(training) & set(validation)


@pytest.mark.usefixtures("small")
def test_batches_are_mixed_though_the_source_is_sorted_by_place(tmp_path: Path) -> None:
    """40 quarters of 500 rows, one after the other; a pool holds 256 rows, so that it does not hide what the file does."""
    quarter = np.repeat(np.arange(40), 500)
    metres = np.column_stack([quarter * 1000.0, np.arange(len(quarter)) * 1e-3])
    samples = samples_of(metres, quarter.astype(np.int32), texts=40)
    batches = []
    with kept(samples, tmp_path, rows=1000) as stored:
        config = replace(QUICK, encoder="coordinate")
        data = Streaming(stored, np.eye(40, 8, dtype=np.float32), config, CPU)
        data.standardise(None)
        for epoch in (1, 2):
            places = [rows["metres"][:, 1] for rows in data.shuffled(np.random.default_rng(epoch), 200)]
            batches.append([np.round((north + stored.origin[1]) * 1e3).astype(int) for north in places])
    # How often each quarter is in each batch, as if every row had been drawn at random.
    counts = np.array([np.bincount(rows // 500, minlength=40) for rows in batches[0]])
    assert counts.shape == (90, 40)
    assert stats.chi2_contingency(counts).pvalue > 1e-3
    # Nor does the place in the source decide when in the epoch a row comes.
    when = np.repeat(np.arange(90), 200)
    assert stats.pearsonr(np.concatenate(batches[0]), when).pvalue > 1e-3
    # And the next epoch makes other batches.
    assert not set(map(frozenset, batches[0])) & set(map(frozenset, batches[1]))


# The prefetching thread


def test_items_are_made_ahead_in_order() -> None:
    made: list[int] = []

    def work(item: int) -> int:
        made.append(item)
        return item * item

    results = prefetched(iter(range(50)), work, threads=3)
    assert next(results) == 0
    assert list(results) == [number**2 for number in range(1, 50)]
    assert sorted(made) == list(range(50))


@pytest.mark.parametrize("where", ["reading", "working"])
def test_an_error_in_a_thread_is_raised(where: str) -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        if where == "reading":
            raise OSError("the disk is gone")

    def work(item: int) -> int:
        if where == "working" and item == 3:
            raise OSError("the disk is gone")
        return item

    before = threading.active_count()
    with pytest.raises(OSError, match="the disk is gone"):
        list(prefetched(items(), work, 2))
    assert threading.active_count() == before


def test_no_thread_outlives_an_epoch_that_is_left() -> None:
    before = threading.active_count()
    results = prefetched(iter(range(10**9)), lambda item: item, 2)
    assert next(results) == 0
    assert threading.active_count() > before
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


# Training


@pytest.mark.parametrize("kind", ["coordinate", "contextual"])
def test_a_seed_decides_everything(tmp_path: Path, kind: str) -> None:
    config = replace(QUICK, encoder=kind, dropout=0.2)
    first = learn(tmp_path, config)
    torch.rand(3)
    assert_same(first, learn(tmp_path, config))
    other = learn(tmp_path, replace(config, seed=7))
    assert not torch.equal(first.model.text_projection.weight, other.model.text_projection.weight)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("last", [1, 3])
def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path: Path, last: int) -> None:
    config, checkpoint = replace(QUICK, dropout=0.2), tmp_path / "run.pt"
    whole = learn(tmp_path, config, 1000)
    with pytest.raises(Interrupted):
        learn(tmp_path, config, 1000, checkpoint=checkpoint, fingerprint="f", reporter=StopAfter(last))
    torch.rand(5)
    assert_same(whole, learn(tmp_path, config, 1000, checkpoint=checkpoint, fingerprint="f", resume=True))


def test_a_checkpoint_from_memory_is_not_resumed_from_disk(tmp_path: Path) -> None:
    options: dict[str, Any] = {"checkpoint": tmp_path / "run.pt", "fingerprint": "f"}
    with pytest.raises(Interrupted):
        fit(*city(), QUICK, Run(reporter=StopAfter(1), **options))
    with pytest.raises(CheckpointMismatch, match="belongs to other settings"):
        learn(tmp_path, QUICK, resume=True, **options)


@pytest.mark.usefixtures("small")
def test_it_learns_as_well_as_from_memory(tmp_path: Path) -> None:
    """Over seeds, since either holds out other rows; the pool is a quarter of the rows."""
    metres, text_id, vectors, origin = city(1000)
    order = np.argsort(metres[:, 0])  # sorted by place, as a source may be
    metres, text_id = metres[order], text_id[order]
    measures = ("validation_loss", "validation_loss_texts")
    losses: dict[str, list[list[float]]] = {"memory": [], "disk": []}
    for seed in range(3):
        config = replace(QUICK, seed=seed, batch_size=100)
        with kept(samples_of(metres, text_id), tmp_path, seed) as stored:
            disk = fit_stored(stored, vectors, config, Run())
        memory = fit(metres, text_id, vectors, origin, config)
        for name, trained in (("disk", disk), ("memory", memory)):
            losses[name].append([min(figures[measure] for figures in trained.history) for measure in measures])
    means = {name: np.mean(values, axis=0) for name, values in losses.items()}
    spread = np.std(losses["memory"] + losses["disk"], axis=0, ddof=2)
    assert (abs(means["disk"] - means["memory"]) < 3 * spread / np.sqrt(3) + 0.01).all(), losses
    assert means["disk"][1] < 2.5, losses  # of 4 by chance: it has learnt something


def test_too_little_to_learn_from(tmp_path: Path) -> None:
    with pytest.raises(NotEnoughData, match=r"19 POIs with a text were found, and at least 20 are needed\."):
        learn(tmp_path, QUICK, 19)
    metres, text_id, vectors, _ = city()
    same = kept(samples_of(metres, np.zeros_like(text_id)), tmp_path)
    with same as stored, pytest.raises(NotEnoughData, match="all POIs have the same text"):
        fit_stored(stored, vectors, QUICK, Run())


# From the database


def test_a_source_in_parts_is_the_source(shared_town: str) -> None:
    with user_session(shared_town, autocommit=True) as connection:
        whole = read_samples(connection, Source()).samples
        with open_source(connection, Source()) as opened:
            counted: list[int] = []
            parts = list(opened.parts(47, counted.append))
    assert opened.usable == len(whole) == sum(counted) == 300
    assert [len(part) for part in parts] == [47] * 6 + [18]
    for name in ("point_id", "lonlat", "metres", "text_id"):
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
    assert all(part.texts == whole.texts for part in parts)


def read_parts(dsn: str, source: Source, rows: int) -> list[Samples]:
    with user_session(dsn, autocommit=True) as connection, open_source(connection, source) as opened:
        return list(opened.parts(rows))


@pytest.mark.parametrize("rows", [2, 100])  # the two rows with one id come in two parts, and in one
def test_an_id_that_comes_twice_is_refused(shared_town: str, rows: int) -> None:
    query = "SELECT CASE WHEN n = 3 THEN 2 ELSE n END AS id, 'x' AS text, ST_SetSRID(ST_Point(5, 52), 4326) AS geom"
    with pytest.raises(BadSource, match=r"id 2 appears more than once\. Name a unique column with --id"):
        read_parts(shared_town, Source(f"{query} FROM generate_series(1, 9) AS n"), rows)


def test_a_point_out_of_reach_is_refused(shared_town: str) -> None:
    query = "SELECT n AS id, 'x' AS text, ST_SetSRID(ST_Point(3 + 90 * (n / 9), 0), 4326) AS geom"
    with pytest.raises(BadExtent, match=r"some POIs have no coordinates in EPSG:32631"):
        read_parts(
            shared_town,
            Source(f"{query} FROM generate_series(1, 9) AS n", srid=32631, keep_outliers=True, force_srid=True),
            4,
        )


def stream_town(dsn: str, folder: Path, config: TrainConfig = CONFIG, **options: Any) -> TrainSummary:
    return train(
        dsn,
        Source(),
        config,
        TrainOptions(
            text_encoder=ENCODER,
            checkpoint=folder / "checkpoint.pt",
            grid_size_m=GRID_M,
            index="none",
            text_tower=False,
            stream=True,
            **options,
        ),
        Silent(),
    )


@pytest.fixture
def in_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("train", "publish"):
        monkeypatch.setattr(f"callipper_trainer.{module}.CHUNK", 77)
    chunks = StoredSamples.chunks
    monkeypatch.setattr(StoredSamples, "chunks", lambda stored: chunks(stored, 77))


@pytest.mark.usefixtures("in_small_chunks", "small")
def test_a_streamed_model_is_published_whole(town: str, tmp_path: Path) -> None:
    summary = stream_town(town, tmp_path)
    assert (summary.version, summary.rows, summary.streamed) == (2, 300, True)
    assert not list(tmp_path.iterdir())
    with user_session(town) as connection:
        check_embeddings(connection, 2)
        # Both versions hold the same places and texts, and the same lattices: one was trained from memory.
        for what in (
            "SELECT point_id, text, geom FROM callipper.point_embedding WHERE version = {}",
            "SELECT cell_id FROM callipper.cell_embedding WHERE version = {}",
            "SELECT text FROM callipper.text_embedding WHERE version = {}",
            "SELECT level, i, j, n FROM callipper.context_cell WHERE version = {}",
            "SELECT ST_AsText(extent), srid, origin_easting, provenance ->> 'content_sha256' FROM callipper.model"
            " WHERE version = {}",
        ):
            one, other = (set(connection.execute(what.format(version).encode()).fetchall()) for version in (1, 2))
            assert one == other
            assert one
        sample = connection.execute(
            "SELECT count(*), bool_and(EXISTS (SELECT FROM callipper.cell_embedding e WHERE e.version = 2 AND e.emb = s.emb))"
            " FROM callipper.cell_sample s WHERE s.version = 2"
        ).fetchone()
        assert sample == (min(1000, summary.cells), True)
        best = connection.execute(
            "SELECT text FROM callipper.points WHERE text LIKE '%park%' IS NOT NULL"
            " ORDER BY emb <-> text_embed('park') LIMIT 20"
        ).fetchall()
    assert sum("park" in text for (text,) in best) >= 18


def test_a_run_that_fails_leaves_no_rows(town: str, tmp_path: Path) -> None:
    before = contents(town)

    class Failing(Silent):
        def stage(self, name: str, total: int | None = None) -> None:
            if name == "writing points":
                assert (tmp_path / "checkpoint.rows" / "rows").exists()
                raise Interrupted

    with pytest.raises(Interrupted):
        train(
            town,
            Source(),
            replace(CONFIG, epochs=1),
            TrainOptions(
                text_encoder=ENCODER,
                checkpoint=tmp_path / "checkpoint.pt",
                stream=True,
                text_tower=False,
            ),
            Failing(),
        )
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert contents(town) == before


def test_many_rows_are_streamed_unasked(town: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = replace(CONFIG, epochs=1)
    assert not train_town(town, tmp_path, quick).streamed
    monkeypatch.setattr("callipper_trainer.train.STREAM_FROM", 300)
    assert train_town(town, tmp_path, quick).streamed


def test_json_tells_of_each_stage(run: Callable[..., Result], town: str) -> None:
    options = ("--epochs", "2", "--no-text-tower", "--grid-size", "150", "--json")
    lines = [json.loads(line) for line in run("train", "--dsn", town, *options).stdout.splitlines()]
    # A stage that takes long prints several lines.
    stages = [stage for stage, _ in groupby(line.get("stage", line.get("epoch", "summary")) for line in lines)]
    publishing = [
        "finding peaks of kinds",
        "cutting the grid",
        "writing the model",
        "writing cells",
        "writing points",
        "summing up the cells",
        "activating",
    ]
    before = [
        "reading POIs",
        "encoding texts",
        "finding kinds of places",
        "counting POIs around places",
        "training",
    ]
    assert stages == [*before, 1, 2, *publishing, "summary"]
    assert next(line["total"] for line in lines if line.get("stage") == "encoding texts") == lines[-1]["texts"]


def test_the_command(run: Callable[..., Result], town: str) -> None:
    result = run("train", "--dsn", town, "--stream", "--epochs", "1", "--no-text-tower", "--grid-size", "150", "--json")
    summary = json.loads(result.stdout.splitlines()[-1])
    assert summary["streamed"] is True
    assert summary["rows_per_s"] > 0
    assert list(summary["seconds"]) == [
        "read",
        "encode",
        "features",
        "fit",
        "peaks",
        "grid",
        "write",
        "embed",
        "summary",
        "activate",
    ]
    said = run("train", "--dsn", town, "--no-stream", "--epochs", "1", "--no-text-tower", "--precision", "bf16").stdout
    assert "rows/s in training. read " in said
    assert ", features " in said and ", embed " in said
