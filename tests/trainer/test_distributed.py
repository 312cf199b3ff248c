"""Two processes train as one does with the whole batch; when one is lost, the other does not wait for ever."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from callipper_db.errors import NotEnoughData, PeerLost
from callipper_db.progress import Silent
from callipper_trainer.config import TrainConfig
from callipper_trainer.data.batches import Resident
from callipper_trainer.data.sample_file import stored_samples
from callipper_trainer.distributed import Ranks, joined
from callipper_trainer.fit import Run, fit, fit_stored
from callipper_trainer.loss import objective
from callipper_trainer.model import TrainedModel
from fits import Interrupted, StopAfter, city, without_time
from processes import CONTEXT
from sessions import user_session
from stored import samples_of
from town import GRID_M, contents

QUICK = TrainConfig(hidden=32, blocks=1, frequencies=8, epochs=3, batch_size=40, device="cpu")
CPU = torch.device("cpu")
PATIENCE_S = 120  # of a test; nothing is waited for so long


def start(folder: Path, job: Callable[..., Any], *arguments: Any, world: int = 2) -> list[BaseProcess]:
    """Processes as torchrun starts them, each of which leaves what job() returns in the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        CONTEXT.Process(target=_process, args=(rank, world, port, folder, job, arguments)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    return processes


def _process(
    rank: int, world: int, port: int, folder: Path, job: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
    }
    torch.set_num_threads(1)
    torch.save(job(*arguments), folder / f"{rank}.pt")


def end(processes: list[BaseProcess]) -> list[int | None]:
    """Wait for all; their exit codes."""
    deadline = time.monotonic() + PATIENCE_S
    for process in processes:
        process.join(max(0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes


def results(folder: Path, job: Callable[..., Any], *arguments: Any, world: int = 2) -> list[Any]:
    """What job() returns in each process."""
    assert end(start(folder, job, *arguments, world=world)) == [0] * world
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def gradients(ranks: Ranks, config: TrainConfig) -> dict[str, Tensor]:
    """Of the first batch, and its loss."""
    metres, text_id, vectors, origin = city(600)
    data = Resident(metres - origin, text_id, vectors, config, CPU, ranks)
    torch.manual_seed(1)
    model = data.maker.model()
    data.standardise(model.location.context)
    loss = objective(model, next(iter(data.batches(1, 120))), config, ranks.gather)
    loss.backward()  # type: ignore[no-untyped-call]
    ranks.average_gradients(model)
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return found | {"loss": ranks.all_reduce(loss.detach()) / ranks.world_size}


def job_gradients(config: TrainConfig) -> dict[str, Tensor]:
    with joined("cpu") as ranks:
        return gradients(ranks, config)


@pytest.mark.parametrize(("kind", "world"), [("contextual", 2), ("coordinate", 3)])
def test_gradients_are_those_of_the_whole_batch(tmp_path: Path, kind: str, world: int) -> None:
    config = replace(QUICK, encoder=kind)
    whole = gradients(Ranks(), config)
    for found in results(tmp_path, job_gradients, config, world=world):
        assert found.keys() == whole.keys()
        for name, gradient in whole.items():
            assert gradient.abs().max() > 1e-3, f"{name} tells nothing"
            torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)


def outcome(trained: TrainedModel) -> dict[str, Any]:
    return {"history": trained.history, "weights": trained.model.state_dict(), "best": trained.best_epoch}


def job_fit(config: TrainConfig, **run: Any) -> dict[str, Any]:
    with joined("cpu") as ranks:
        return outcome(fit(*city(600), config, Run(ranks=ranks, **run)))


def assert_like(found: list[dict[str, Any]], whole: dict[str, Any]) -> None:
    """All processes end with the same weights, after the epochs that one process goes through."""
    for other in found[1:]:
        assert without_time(other["history"]) == without_time(found[0]["history"])
        assert all(torch.equal(value, found[0]["weights"][name]) for name, value in other["weights"].items())
    for figures, expected in zip(found[0]["history"], whole["history"], strict=True):
        for name in ("loss", "validation_loss", "logit_scale"):
            assert figures[name] == pytest.approx(expected[name], abs=2e-3)


def test_a_run_of_two_is_a_run_of_one(tmp_path: Path) -> None:
    whole = outcome(fit(*city(600), QUICK))
    assert_like(results(tmp_path, job_fit, QUICK), whole)
    assert whole["history"][-1]["loss"] < whole["history"][0]["loss"] - 0.1


def job_stream(folder: Path, config: TrainConfig) -> dict[str, Any]:
    """The first process writes the rows, all read them."""
    metres, text_id, vectors, _ = city(600)
    samples = samples_of(metres, text_id)
    with joined("cpu") as ranks:
        if not ranks.is_leader:
            return outcome(fit_stored(ranks.broadcast(None), vectors, config, Run(ranks=ranks)))
        with stored_samples(folder / "rows", samples.chunks(100), len(samples), config.seed) as stored:
            return outcome(fit_stored(ranks.broadcast(stored), vectors, config, Run(ranks=ranks)))


def test_two_may_stream(tmp_path: Path) -> None:
    metres, text_id, vectors, _ = city(600)
    samples = samples_of(metres, text_id)
    with stored_samples(tmp_path / "alone", samples.chunks(100), len(samples), QUICK.seed) as stored:
        whole = outcome(fit_stored(stored, vectors, QUICK, Run()))
    assert_like(results(tmp_path, job_stream, tmp_path, QUICK), whole)


def job_interrupted(config: TrainConfig, checkpoint: Path) -> str:
    """Both stop after the first epoch."""
    with joined("cpu") as ranks:
        try:
            fit(*city(600), config, Run(ranks=ranks, checkpoint=checkpoint, reporter=StopAfter(1)))
        except Interrupted:
            return "interrupted"
    return "whole"


def job_resume(config: TrainConfig, checkpoint: Path) -> dict[str, Any]:
    # The other process's machine need not have the file.
    with joined("cpu") as ranks:
        where = checkpoint if ranks.is_leader else None
        return outcome(fit(*city(600), config, Run(ranks=ranks, checkpoint=where, resume=True)))


def test_two_resume_to_the_same_result(tmp_path: Path) -> None:
    config = replace(QUICK, dropout=0.2)
    whole = results(tmp_path, job_fit, config)
    checkpoint = tmp_path / "run.pt"
    assert results(tmp_path, job_interrupted, config, checkpoint) == ["interrupted"] * 2
    resumed = results(tmp_path, job_resume, config, checkpoint)
    for one, other in zip(whole, resumed, strict=True):
        assert without_time(one["history"]) == without_time(other["history"])
        assert all(torch.equal(value, other["weights"][name]) for name, value in one["weights"].items())


# A process that is lost


class DyingAfter(Silent):
    """Ends the process as a crash does, after the first epoch."""

    def epoch(self, figures: dict[str, Any]) -> None:
        os._exit(9)


def job_lose(victim: int) -> str:
    """The message of the process that is left."""
    with joined("cpu") as ranks:
        reporter = DyingAfter() if ranks.rank == victim else Silent()
        try:
            fit(*city(600), replace(QUICK, epochs=10_000), Run(ranks=ranks, reporter=reporter))
        except PeerLost as error:
            return str(error)
    return "nothing"


@pytest.mark.parametrize("victim", [0, 1])
def test_the_other_is_told_of_a_loss(tmp_path: Path, victim: int) -> None:
    codes = end(start(tmp_path, job_lose, victim))
    assert codes[victim] == 9
    assert codes[1 - victim] == 0
    message = torch.load(tmp_path / f"{1 - victim}.pt")
    assert message.startswith("Another process of this training run has ended or does not answer (")
    assert message.endswith("run the same command again.")


def test_too_few_places_for_so_many_processes() -> None:
    with pytest.raises(NotEnoughData, match=r"30 POIs are too few for 2 processes\. Start fewer"):
        fit(*city(30), QUICK, Run(ranks=Ranks(0, 2)))


# The command


def job_command(home: Path, arguments: list[str]) -> int:
    """`callipper-db ARGUMENTS`; what a process says goes to a file of its own."""
    from callipper_db.cli.main import main

    os.environ["CALLIPPER_HOME"] = str(home)
    with (home / f"said{os.environ['RANK']}.txt").open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        main(arguments, "callipper-db")
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def train_command(dsn: str, *options: str) -> list[str]:
    return ["train", "--dsn", dsn, "--epochs", "2", "--no-text-tower", "--grid-size", f"{GRID_M}", "--json", *options]


@pytest.mark.parametrize("mode", ["--no-stream", "--stream"])
def test_the_command_in_two_processes(module_town: str, tmp_path: Path, mode: str) -> None:
    before = contents(module_town)["active"]
    assert results(tmp_path, job_command, tmp_path, train_command(module_town, mode)) == [0, 0]
    lines = [json.loads(line) for line in (tmp_path / "said0.txt").read_text().splitlines()]
    lines = [line for line in lines if "stage" not in line]
    assert (tmp_path / "said1.txt").read_text() == ""
    assert [line.get("epoch") for line in lines] == [1, 2, None]
    after = contents(module_town)["active"]
    assert len(after) == len(before) + 1  # one version, though two have trained it
    assert after[-1] == (lines[-1]["version"], "active")
    with user_session(module_town) as connection:
        row = connection.execute(
            "SELECT provenance -> 'processes' FROM callipper.model ORDER BY version DESC"
        ).fetchone()
    assert row == (2,)


def test_what_the_first_cannot_read_ends_both(module_town: str, tmp_path: Path) -> None:
    codes = results(tmp_path, job_command, tmp_path, train_command(module_town, "--source", "public.nowhere"))
    assert codes[0] == 1
    said = (tmp_path / "said0.txt").read_text().splitlines()
    assert said[-1].startswith("Error: --source public.nowhere: there is no such table")
    assert (tmp_path / "said1.txt").read_text() == ""


def test_a_killed_first_process_leaves_nothing(module_town: str, tmp_path: Path) -> None:
    before = contents(module_town)
    processes = start(tmp_path, job_command, tmp_path, [*train_command(module_town, "--stream"), "--epochs", "100000"])
    said, deadline = tmp_path / "said0.txt", time.monotonic() + PATIENCE_S
    while not (said.exists() and '{"epoch": 2' in said.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes[0].pid is not None
    os.kill(processes[0].pid, signal.SIGKILL)
    assert end(processes) == [-signal.SIGKILL, 0]
    assert '{"epoch": 2' in said.read_text()
    assert (tmp_path / "said1.txt").read_text() == ""
    assert contents(module_town) == before
