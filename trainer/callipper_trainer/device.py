"""The device of a run, its memory, and the precision of its arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from callipper_db.errors import ConfigError


def autocast(device: torch.device, bf16: bool) -> torch.autocast:
    """Forward passes in this block multiply in bfloat16, if so; weights and sums stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def uses_bf16(precision: str, device: torch.device) -> bool:
    """`auto`: on a GPU that computes in bfloat16 by itself: Ampere and later."""
    if precision != "auto":
        return precision == "bf16"
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


@contextmanager
def tf32(precision: str, device: torch.device) -> Iterator[None]:
    """Let a GPU round the factors of float32 products to ten bits, unless float32 was asked for.

    In training only: embeddings are made with all digits, since the database computes the same ones to 1e-5.
    """
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda" and precision != "float32":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def choose_device(name: str) -> torch.device:
    """`auto` is the first GPU where there is one. Raises ConfigError for a device that cannot be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:  # by its number, which holds in every thread
            device = torch.device("cuda", torch.cuda.current_device())
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(name="--device", value=name, reason=str(error).splitlines()[0].rstrip(".")) from error
    return device


def free_bytes(device: torch.device) -> int | None:
    """Memory that a process can still have: a GPU's, else the machine's or, where that is less, the container's.

    None where the system does not say (it does on Linux).
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = []
    with suppress(OSError, KeyError):
        found.append(1024 * _numbers(Path("/proc/meminfo"))["MemAvailable:"])
    control = Path("/sys/fs/cgroup")
    with suppress(OSError, KeyError, ValueError):  # "max": no limit
        limit, used = (int((control / name).read_text()) for name in ("memory.max", "memory.current"))
        # Files that were read count as used, and give way.
        found.append(limit - used + _numbers(control / "memory.stat")["inactive_file"])
    return min(found, default=None)


def _numbers(path: Path) -> dict[str, int]:
    """First and second word of each line."""
    return {words[0]: int(words[1]) for words in map(str.split, path.read_text().splitlines()) if len(words) > 1}
