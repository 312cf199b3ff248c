"""Several processes, started by torchrun, train one model. Each takes a share of every batch, and all see all negatives."""

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

STEP_TIMEOUT = timedelta(minutes=10)  # the longest wait of a process for another within a step
# The longest wait for the leader, which reads and encodes. If the leader ends, the others notice at once.
READ_TIMEOUT = timedelta(hours=12)


@dataclass(frozen=True)
class Ranks:
    """The place of this process among all processes. With one process, every method is the identity."""

    rank: int = 0
    world_size: int = 1
    slow_group: dist.ProcessGroup | None = None  # the same processes, with the longer timeout

    @property
    def is_leader(self) -> bool:
        """Whether this process reads, publishes and reports."""
        return self.rank == 0

    def local_rows(self, size: int) -> slice:
        """This process's rows of a batch; size is a multiple of `world_size`."""
        return slice(self.rank * size // self.world_size, (self.rank + 1) * size // self.world_size)

    def shard(self, items: Iterable[T]) -> Iterator[T]:
        """This process's share of some items: every `world_size`-th, beginning with the `rank`-th."""
        return islice(items, self.rank, None, self.world_size)

    def gather(self, rows: Tensor) -> Tensor:
        """(b, ...) in each process -> (world_size * b, ...), the same in all. Gradients flow to the process's own rows."""
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
        """Wait until all processes have called this."""
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
    """Gathers the rows of all processes.

    Every process computes the same terms from the gathered rows. So each has the whole gradient of its own rows, and backward
    needs no message. It multiplies the gradient by the number of processes, because gradients are averaged afterwards: then the
    terms of gathered rows add up, and means over own rows stay means.
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
        """The gradient of this process's own rows."""
        start = ctx.ranks.rank * ctx.count
        return outputs[0][start : start + ctx.count] * ctx.ranks.world_size, None


def launched() -> bool:
    """Whether torchrun started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """The processes that torchrun started, connected by NCCL on GPUs and Gloo on CPUs; without torchrun, ALONE.

    device: auto, cpu or cuda. Each process takes one GPU of its machine. Raises ConfigError if there are too few, and PeerLost
    when another process has ended: at once if its connection closes, else after STEP_TIMEOUT.
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
    except RuntimeError as error:  # from Gloo, NCCL or the store: closed connections and timeouts
        raise PeerLost(reason=" ".join(str(error).split())[:200]) from error
