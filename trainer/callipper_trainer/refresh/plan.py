"""What a refresh is about to write."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from callipper_db.arrays import Array
from callipper_db.grid import Grid
from callipper_trainer.data.samples import Samples
from callipper_trainer.embed import embed_places
from callipper_trainer.kinds import KindRows, Kinds
from callipper_trainer.model import TrainedModel
from callipper_trainer.refresh.diff import LatticeDiff, PointDiff


@dataclass(frozen=True)
class Evidence:
    """The kinds and names of the POIs that were added or changed."""

    kinds: Kinds
    new_kinds: KindRows
    samples: Samples
    # (V, T) of the samples' texts, zeros for those not used; None for a version without names
    text_vectors: Array | None


@dataclass(frozen=True)
class RefreshPlan:
    """What a refresh writes for one version."""

    version: int
    seed: int  # of the sample of cells
    trained: TrainedModel  # with the lattices of today
    before: TrainedModel  # with those in the database
    samples: Samples
    found: PointDiff
    lattices: list[LatticeDiff]
    grid: Grid
    cells: Array  # rows of the grid
    cell_vectors: Array  # (len(cells), D)
    points: Array  # rows of the samples
    point_vectors: Array  # (len(points), D)
    words: list[str]  # new to the vocabulary
    texts: list[str]  # texts that may be new to the version, with the words first
    text_vectors: Array  # (len(texts), D)
    evidence: Evidence | None = None  # None for a version of an earlier program, which has none
    new_cells: int = 0  # the last rows of the grid, which the database has no embeddings of

    @property
    def lattice_cells(self) -> int:
        """The number of rows of context_cell that differ."""
        return sum(len(lattice.now.key) for lattice in self.lattices)

    @property
    def anything(self) -> bool:
        """Whether there is something to write."""
        parts = (self.cells, self.points, self.found.removed, self.words)
        return bool(self.lattice_cells) or any(len(part) for part in parts)

    def with_new_cells(self, grid: Grid) -> RefreshPlan:
        """The same plan with the new cells of a larger grid, embedded."""
        new = ~np.isin(grid.cell_id, self.grid.cell_id)
        first, vectors = len(self.grid.cell_id), embed_places(self.trained, grid.centre[new])
        cell_id = np.concatenate([self.grid.cell_id, grid.cell_id[new]])
        return replace(
            self,
            grid=Grid(grid.grid_id, cell_id, np.concatenate([self.grid.centre, grid.centre[new]])),
            cells=np.concatenate([self.cells, np.arange(first, len(cell_id))]),
            cell_vectors=np.concatenate([self.cell_vectors, vectors]),
            new_cells=int(new.sum()),
        )
