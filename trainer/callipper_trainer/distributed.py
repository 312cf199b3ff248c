"""Several processes that train one model, started by torchrun: each takes a part of every batch, and all see all negatives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from callipper_db.errors import ConfigError, PeerLost

T = TypeVar("T")

STEP_TIMEOUT = timedelta(minutes=10)  # how long a process waits for another within a step
# How long the others wait while the leader reads and encodes. If it ends, they notice at once.
READ_TIMEOUT = timedelta(hours=12)


@dataclass(frozen=True)
class Ranks:
    """This process among all. If there is only one, every method is the identity."""

    rank: int = 0
    world_size: int = 1
    slow_group: dist.ProcessGroup | None = None  # the same processes, with the longer timeout

    @property
    def is_leader(self) -> bool:
        """Whether this process reads, publishes and reports."""
        return self.rank == 0

    def local_rows(self, size: int) -> slice:
        """This process's rows of a batch; its size is a multiple of `world_size`."""
        return slice(self.rank * size // self.world_size, (self.rank + 1) * size // self.world_size)

    def shard(self, items: Iterable[T]) -> Iterator[T]:
        """This process's share of some items: every `world_size`-th, beginning with the `rank`-th."""
        return islice(items, self.rank, None, self.world_size)

    def gather(self, rows: Tensor) -> Tensor:
        """(b, ...) of each process -> (world_size * b, ...), the same in all. Gradients flow to the process's own rows."""
        if self.world_size == 1:
            return rows
        gathered: Tensor = Gather.apply(rows, self)  # type: ignore[no-untyped-call]
        return gathered

    def average_gradients(self, model: nn.Module) -> None:
        """Replace each gradient by its mean over the processes, in one message."""
        if self.world_size == 1:
            return
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        joined = torch.cat([gradient.flatten() for gradient in gradients])
        with _peers():
            dist.all_reduce(joined)
        joined /= self.world_size
        for gradient, mean in zip(
            gradients, torch.split(joined, [gradient.numel() for gradient in gradients]), strict=True
        ):
            gradient.copy_(mean.view_as(gradient))

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum of a tensor over the processes."""
        if self.world_size > 1:
            with _peers():
                dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.world_size > 1:
            with _peers():
                dist.barrier(group=self.slow_group)

    def broadcast(self, value: T | None) -> T:
        """The leader's value, in all processes; pickled, through main memory."""
        box = [value]
        if self.world_size > 1:
            with _peers():
                dist.broadcast_object_list(box, src=0, group=self.slow_group, device=torch.device("cpu"))
        return box[0]  # type: ignore[return-value]


ALONE = Ranks()


class Gather(torch.autograd.Function):
    """All processes' rows.

    What is computed from them is computed in every process, so each has the whole gradient of its own rows at hand and
    nothing need be sent back. It is multiplied by the number of processes because the gradients are averaged afterwards:
    then the parts that come from gathered rows add up, and means over own rows stay means.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: Ranks) -> Tensor:
        """(b, ...) -> (world_size * b, ...)."""
        ctx.ranks, ctx.count = ranks, len(rows)
        gathered = [torch.empty_like(rows) for _ in range(ranks.world_size)]
        with _peers():
            dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> tuple[Tensor, None]:
        """The gradient of the own rows."""
        start = ctx.ranks.rank * ctx.count
        return outputs[0][start : start + ctx.count] * ctx.ranks.world_size, None


def launched() -> bool:
    """Whether torchrun started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """The processes that torchrun started, by NCCL on GPUs and Gloo on CPUs; this one alone if it did not.

    device: auto, cpu or cuda; of the GPUs of a machine each process takes one. Raises ConfigError where that cannot be, and
    PeerLost when another process has gone: at once where its connection says so, else after STEP_TIMEOUT.
    """
    if not launched():
        yield ALONE
        return
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        _take_gpu(device)
    with _peers():
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=STEP_TIMEOUT)
        slow_group = dist.new_group(backend="gloo", timeout=READ_TIMEOUT)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), slow_group)
    finally:
        dist.destroy_process_group()


def _take_gpu(device: str) -> None:
    number, there = dist.get_node_local_rank(), torch.cuda.device_count()
    if ":" in device:
        reason = "each process takes a GPU of its own. Leave the number away"
        raise ConfigError(name="--device", value=device, reason=reason)
    if number >= there:
        reason = f"there are {there} GPUs for more processes. Start fewer, or say --device cpu"
        raise ConfigError(name="--device", value=device, reason=reason)
    torch.cuda.set_device(number)


@contextmanager
def _peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of Gloo, NCCL or the store: closed connections and timeouts
        raise PeerLost(reason=" ".join(str(error).split())[:200]) from error
