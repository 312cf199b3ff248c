"""The figures of an evaluation: its tasks, how places are held out, and which figures are better when they are lower."""

from __future__ import annotations

TASKS = ("classification", "regression", "distribution")
SPLITS = ("random", "blocks")
LOWER_IS_BETTER = frozenset({"kl", "l1", "rmse", "mae"})
