"""The type of a numpy array, for all that computes with arrays: it needs no database."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]
