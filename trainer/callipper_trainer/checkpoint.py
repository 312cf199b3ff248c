"""The state of a fit after each epoch, in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from callipper_db.errors import CheckpointDamaged, CheckpointMismatch, CheckpointMissing, CheckpointUnwritable


def write_checkpoint(path: Path, state: dict[str, Any], fingerprint: str, plan: dict[str, Any]) -> None:
    """Replace the checkpoint in one step: a kill leaves the old one or the new one."""
    unfinished = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            torch.save(state | {"fingerprint": fingerprint, "plan": plan}, file)
        unfinished.replace(path)
    except OSError as error:
        raise CheckpointUnwritable(path=path, reason=error.strerror or str(error)) from error


def read_checkpoint(path: Path | None, fingerprint: str, plan: dict[str, Any]) -> dict[str, Any]:
    """The state after the last whole epoch. Raises CheckpointMissing, CheckpointDamaged, CheckpointMismatch."""
    if path is None or not path.exists():
        raise CheckpointMissing(path=path)
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        found = state["fingerprint"], state["plan"]
    except Exception as error:  # of half a dozen kinds, as the damage is
        raise CheckpointDamaged(path=path) from error
    if found[0] != fingerprint:
        raise CheckpointMismatch(path=path, what="data")
    if found[1] != plan:
        raise CheckpointMismatch(path=path, what="settings")
    return state
