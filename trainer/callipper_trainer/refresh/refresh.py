"""`callipper-db refresh`: bring the active model up to date with its POIs, without training.

The weights and the codes of texts stay, and the context is data. So a refresh reads the source, counts the lattices again and
compares them with the stored ones. It embeds each place again that reads a differing cell. It never adds to stored sums, so the
result equals a model that is published today with the same weights.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from psycopg.types.json import Jsonb

from callipper_db import db, partitions
from callipper_db.arrays import Array
from callipper_db.errors import ModelUnreadable, NoActiveModel, NotEnoughData, SourceEmpty
from callipper_db.grid import H3, covers, ensure_grid, read_grid
from callipper_db.languages import ENGLISH
from callipper_db.progress import Reporter
from callipper_trainer.data.source import POI_TABLE, Snapshot, read_samples, source_of_model
from callipper_trainer.embed import embed_places, embed_texts
from callipper_trainer.fit_peaks import point_kinds
from callipper_trainer.kinds import KindRows, Kinds, read_kinds
from callipper_trainer.lock import only_trainer
from callipper_trainer.model_rows import LoadedModel, load_model
from callipper_trainer.peaks import shared_words
from callipper_trainer.refresh.diff import LatticeDiff, PointDiff, compare_level, compare_points
from callipper_trainer.refresh.keep import begin_state, forget_states
from callipper_trainer.refresh.plan import Evidence, RefreshPlan
from callipper_trainer.refresh.write import version_locked, write_plan
from callipper_trainer.text_encoder import TextEncoder, encode_cached, find_model_encoder

# Metres per cell side. In coarser lattices one POI hardly matters, and half of the city reads its cell.
NEARBY_M = 800.0
POSTPONED_FROM = 20_000  # cells and points to embed, from which `nearby` leaves the coarser lattices for later
DRIFT_ADVISED = 0.2  # share of POIs unknown to the training, from which the summary advises to train again


@dataclass(frozen=True)
class RefreshSummary:
    """What a refresh found and did."""

    version: int
    pois: int
    added: int = 0
    changed: int = 0  # moved, or with another text
    removed: int = 0
    texts: int = 0  # new texts that text_embed remembers
    lattice_cells: int = 0  # rows of context_cell that were written or deleted
    cells: int = 0  # grid cells embedded
    new_cells: int = 0  # those of `cells` that are new to the grid
    points: int = 0  # POIs embedded
    postponed: int = 0  # cells and points that a later refresh must embed again, for changes far from them
    drift: float = 0.0  # share of the POIs that the model was not trained with
    kept: int = 0  # number of the state that was kept, 0 for none
    seconds: float = 0.0

    @property
    def anything(self) -> bool:
        """Whether something was written."""
        return any((self.added, self.changed, self.removed, self.texts, self.lattice_cells, self.cells, self.points))

    @property
    def training_advised(self) -> bool:
        """Whether the POIs have drifted so far that the model should be trained again."""
        return self.drift > DRIFT_ADVISED

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON."""
        return asdict(self) | {"training_advised": self.training_advised}


@dataclass
class RefreshCache:
    """What one refresh keeps for the next one in the same process, so that it need not code texts again."""

    version: int | None = None
    codes: dict[str, Array] = field(default_factory=dict)  # text -> (code,)
    encoder: TextEncoder | None = None


@dataclass(frozen=True)
class PendingChanges:
    """The active version, and the changes that the triggers have noted for it."""

    version: int
    complete: bool  # whether the triggers note every change
    changes: str  # multirange of the change_ids in poi_change
    pois: int
    drift: float

    @property
    def is_empty(self) -> bool:
        """Whether the version is certainly up to date."""
        return self.complete and self.changes == "{}"


def refresh(
    dsn: str,
    reporter: Reporter,
    *,
    text_encoder: str | None = None,
    compare: bool = False,
    wait: bool = False,
    cache: RefreshCache | None = None,
    nearby: bool = False,
    keep: int | None = None,
) -> RefreshSummary:
    """Bring the active model up to date with its source, in one transaction.

    compare: compare with the source even if the triggers have noted no change. text_encoder: the folder of the model's
    encoder, if its name is no folder. nearby: if more than POSTPONED_FROM embeddings would change, keep the stored lattices
    coarser than NEARBY_M and leave them to a later call; all embeddings still match the lattices in the database. keep: if POIs
    differ, keep the state that this refresh replaces, for `changed()`; the `keep` newest states stay, for 0 none.
    Raises NoActiveModel, TrainerBusy, BadSource, BadExtent, SourceEmpty, TextEncoderMissing, ModelUnreadable.
    """
    began = time.monotonic()
    cache = cache or RefreshCache()
    with db.session(dsn, autocommit=True) as connection:
        pending = _read_pending(connection)
        if keep is not None:
            forget_states(connection, pending.version, keep)
    if pending.is_empty and not compare:
        return RefreshSummary(pending.version, pending.pois, drift=pending.drift, seconds=_since(began))
    lock = only_trainer(dsn, wait=wait, reporter=reporter)
    with lock as check_lock, db.session(dsn, autocommit=True) as connection:
        # Read before the source: a change that comes in between is read too, and its note stays for the next refresh.
        pending = _read_pending(connection)
        loaded = load_model(connection, pending.version)
        snapshot = _read_source(connection, loaded, reporter)
        planner = _Planner(dsn, connection, loaded, snapshot, cache, reporter, text_encoder)
        plan, outgrown = planner.compute(nearby)
        summary = _summarise(plan, loaded, planner.postponed)
        with version_locked(connection, loaded.version):
            check_lock()  # without the lock, another refresh may have changed the rows that this one compared with
            if keep and plan.found.anything:
                summary = replace(summary, kept=begin_state(connection, loaded.version, keep))
            summary = replace(_write(connection, plan, summary, outgrown, reporter), seconds=_since(began))
            _record(connection, summary, pending, snapshot)
    return summary


def _write(
    connection: db.Connection,
    plan: RefreshPlan,
    summary: RefreshSummary,
    outgrown: tuple[str, float] | None,
    reporter: Reporter,
) -> RefreshSummary:
    """Write the plan; outgrown: kind and size of the grid if it lacks cells."""
    if outgrown:
        reporter.stage("extending the grid")
        plan, summary = _extend_grid(connection, plan, summary, *outgrown)
    if plan.anything:
        reporter.stage("writing")
        summary = replace(summary, texts=write_plan(connection, plan))
    return summary


def _read_source(connection: db.Connection, loaded: LoadedModel, reporter: Reporter) -> Snapshot:
    """Raises ModelUnreadable, SourceEmpty."""
    if not loaded.provenance.get("source") or not loaded.provenance.get("text"):
        raise ModelUnreadable(version=loaded.version, reason="it does not say where its POIs are. Train again.")
    source = source_of_model(loaded.provenance, loaded.srid)
    reporter.stage("reading POIs")
    try:
        return read_samples(connection, source, reporter.advance)
    except NotEnoughData as error:
        raise SourceEmpty(source=source.relation, version=loaded.version) from error


def active_source(connection: db.Connection) -> str | None:
    """The source of the active version. Raises NoActiveModel."""
    row = connection.execute("SELECT provenance ->> 'source' FROM callipper.model WHERE status = 'active'").fetchone()
    if row is None:
        raise NoActiveModel
    return None if row[0] is None else str(row[0])


def _read_pending(connection: db.Connection) -> PendingChanges:
    row = connection.execute(
        "SELECT m.version, m.follows_changes,"
        " (SELECT coalesce(range_agg(int8range(c.change_id, c.change_id, '[]')), '{}')::text FROM callipper.poi_change c),"
        " coalesce(m.provenance -> 'refreshed' -> 'pois', m.provenance -> 'rows')::int8,"
        " coalesce(m.provenance -> 'refreshed' -> 'drift', '0')::float8"
        " FROM callipper.model m WHERE m.status = 'active'"
    ).fetchone()
    if row is None:
        raise NoActiveModel
    return PendingChanges(*row)


class _Planner:
    """Computes what to write, without a lock."""

    def __init__(
        self,
        dsn: str,
        connection: db.Connection,
        loaded: LoadedModel,
        snapshot: Snapshot,
        cache: RefreshCache,
        reporter: Reporter,
        text_encoder: str | None,
    ) -> None:
        self.dsn, self.connection, self.loaded, self.reporter = dsn, connection, loaded, reporter
        self.samples, self.source, self.text_encoder = snapshot.samples, snapshot.name, text_encoder
        self.cache, self.trained, self.postponed = cache, loaded.trained, 0
        if cache.version != loaded.version:
            cache.version, cache.codes = loaded.version, {}

    def compute(self, nearby: bool) -> tuple[RefreshPlan, tuple[str, float] | None]:
        """The plan; and kind and size of the grid, if it lacks cells around POIs."""
        version, metres, reporter = self.loaded.version, self.samples.metres, self.reporter
        spoken = tuple(self.loaded.provenance.get("languages", [ENGLISH]))  # earlier programs knew English alone
        countries = frozenset[str](self.loaded.provenance.get("brands_of", []))
        kinds = read_kinds(self.connection, version, spoken, countries)
        found = compare_points(self.connection, version, self.samples, names=kinds is not None)
        lattices = self._compare_lattices()
        evidence = None if kinds is None else self._find_kinds(kinds, found)
        squares = self._move_peaks(found, evidence)
        words, texts = self._new_texts(found)
        shared = shared_words(self.connection, version, self.trained.peaks, texts)
        text_vectors = embed_texts(self.trained, self._vectors(texts), shared)
        grid, kind, size_m = read_grid(self.connection, version)
        cells, points = self._touched(lattices, grid.centre, squares), self._touched(lattices, metres, squares, found)
        if nearby and len(cells) + len(points) > POSTPONED_FROM:
            lattices, coarse = self._postpone(lattices)
            self.postponed = sum(len(self._touched(coarse, places, squares[:0])) for places in (grid.centre, metres))
            cells = self._touched(lattices, grid.centre, squares)
            points = self._touched(lattices, metres, squares, found)
        reporter.stage("embedding", len(cells) + len(points))
        cell_vectors = embed_places(self.trained, grid.centre[cells], reporter.advance)
        point_vectors = embed_places(self.trained, metres[points], reporter.advance)
        states = (self.trained, self.loaded.trained, self.samples, found, lattices)
        places = (grid, cells, cell_vectors, points, point_vectors)
        said = (words, texts, text_vectors, evidence)
        plan = RefreshPlan(version, self.loaded.config.seed, *states, *places, *said)
        covered = covers(grid, self.samples.lonlat if kind == H3 else metres, size_m)
        return plan, None if covered else (kind, size_m)

    def _compare_lattices(self) -> list[LatticeDiff]:
        before = self.trained.pyramid
        if before is None:
            return []
        codes = self._codes()[self.samples.text_id]
        now = before.rebuild(self.samples.metres - self.trained.origin, codes)
        self.trained = replace(self.trained, pyramid=now)
        pairs = zip(before.levels, now.levels, strict=True)
        return [compare_level(number, *levels) for number, levels in enumerate(pairs)]

    def _codes(self) -> Array:
        """(V, C + K) codes of the source's texts; zeros for those of names."""
        assert self.trained.pyramid is not None
        known, numbers = self.cache.codes, np.unique(self.samples.text_id)
        texts = [self.samples.texts[number] for number in numbers]
        missing = [text for text in texts if text not in known]
        fresh = self.trained.pyramid.codes(self._vectors(missing))
        known = known | dict(zip(missing, fresh, strict=True))
        self.cache.codes = {text: known[text] for text in texts}
        codes = np.stack(list(self.cache.codes.values()))
        result = np.zeros((len(self.samples.texts), codes.shape[1]), codes.dtype)
        result[numbers] = codes
        return result

    def _find_kinds(self, kinds: Kinds, found: PointDiff) -> Evidence:
        """The kinds of the added and changed POIs. A kind that is new to the version gets the next number."""
        samples = self.samples.take(np.concatenate([found.added, found.changed]))
        first, texts = len(kinds.names), samples.texts
        numbers = np.unique(samples.name_id[samples.name_id >= 0])
        named = [texts[number] for number in numbers]
        vectors = self._vectors(named)
        kinds.read_texts([texts[number] for number in np.unique(samples.text_id)])
        kinds.read_named_texts(named, vectors, self._vectors)
        names = None
        if partitions.has_partition(self.connection, "point_name", self.loaded.version):
            names = np.zeros((len(texts), vectors.shape[1]), np.float32)
            names[numbers] = vectors
        return Evidence(kinds, KindRows.of(kinds, first, self._vectors), samples, names)

    def _new_texts(self, found: PointDiff) -> tuple[list[str], list[str]]:
        """The words that the vocabulary lacks; and these words with the texts that the version may not know."""
        rows = np.concatenate([found.added, found.changed])
        texts = [self.samples.texts[number] for number in np.unique(self.samples.text_id[rows])]
        words = new_words(self.connection, self.loaded.version, self.source)
        return words, list(dict.fromkeys([*words, *texts]))

    def _vectors(self, texts: list[str]) -> Array:
        """(V,) texts -> (V, T) sentence vectors."""
        if not texts:
            return np.empty((0, self.trained.model.text_projection.in_features), np.float32)
        self.reporter.stage("encoding texts", len(texts))
        return encode_cached(self.dsn, self._encoder(), texts, self.reporter.advance)

    def _encoder(self) -> TextEncoder:
        """The version's encoder, under the version's name for it, in whatever folder it is."""
        kept = self.cache.encoder
        if kept is None or (kept.name, kept.revision) != self.loaded.text_encoder:
            kept = self.cache.encoder = find_model_encoder(self.loaded.text_encoder, self.text_encoder)
        return kept

    def _postpone(self, lattices: list[LatticeDiff]) -> tuple[list[LatticeDiff], list[LatticeDiff]]:
        """Make the model read the stored coarse lattices. Returns the differences of fine and of coarse lattices."""
        before, now = self.loaded.trained.pyramid, self.trained.pyramid
        assert before is not None
        assert now is not None
        pairs = zip(before.levels, now.levels, strict=True)
        levels = [old if old.size_m > NEARBY_M else new for old, new in pairs]
        self.trained = replace(self.trained, pyramid=replace(now, levels=levels))
        fine = [lattice for lattice in lattices if lattice.now.size_m <= NEARBY_M]
        return fine, [lattice for lattice in lattices if lattice.now.size_m > NEARBY_M]

    def _move_peaks(self, found: PointDiff, evidence: Evidence | None) -> Array:
        """Have the model count the kinds of today's POIs; (S, 2) the squares in which these differ."""
        before = self.trained.peaks
        if before is None or evidence is None:
            return np.empty((0, 2), np.int64)
        differing = np.concatenate([found.removed, evidence.samples.point_id])
        now = before.points.without(differing).plus(point_kinds(evidence.kinds, iter([evidence.samples])))
        self.trained = replace(self.trained, peaks=before.over(now))
        return before.points.changed_squares(now)

    def _touched(
        self, lattices: list[LatticeDiff], metres: Array, squares: Array, found: PointDiff | None = None
    ) -> Array:
        """(N, 2) easting and northing -> rows that read a differing cell or square. With `found`, also the POIs that differ."""
        peaks = self.trained.peaks
        touched = np.zeros(len(metres), bool) if peaks is None else peaks.reads(metres, squares)
        for lattice in lattices:
            touched |= lattice.is_read_by(metres - self.trained.origin)
        if found is not None:
            touched[found.added] = touched[found.changed] = True
        return np.flatnonzero(touched)


def _summarise(plan: RefreshPlan, loaded: LoadedModel, postponed: int) -> RefreshSummary:
    found, pois = plan.found, len(plan.samples)
    return RefreshSummary(
        plan.version,
        pois,
        added=len(found.added),
        changed=len(found.changed),
        removed=len(found.removed),
        lattice_cells=plan.lattice_cells,
        cells=len(plan.cells),
        points=len(plan.points),
        postponed=postponed,
        drift=round(drift_of(found.as_trained, pois, int(loaded.provenance.get("rows", pois))), 4),
    )


def _extend_grid(
    connection: db.Connection, plan: RefreshPlan, summary: RefreshSummary, kind: str, size_m: float
) -> tuple[RefreshPlan, RefreshSummary]:
    """Add cells for the POIs outside the grid. No cell is removed, even if its last POI is gone."""
    samples = plan.samples
    places = samples.lonlat if kind == H3 else samples.metres
    plan = plan.with_new_cells(ensure_grid(connection, places, samples.srid, size_m, kind))
    new = len(plan.cells) - summary.cells
    return plan, replace(summary, cells=len(plan.cells), new_cells=new)


def _record(connection: db.Connection, summary: RefreshSummary, pending: PendingChanges, snapshot: Snapshot) -> None:
    """Record the refresh with the version, and delete the notes of the changes that it has covered."""
    own = snapshot.name == POI_TABLE
    if not summary.anything and (pending.is_empty or not own):
        return
    figures = {name: value for name, value in summary.to_dict().items() if name != "version"}
    connection.execute(
        "UPDATE callipper.model SET provenance = provenance || jsonb_build_object('refreshed', %s::jsonb),"
        " follows_changes = %s WHERE version = %s",
        [Jsonb({"at": snapshot.taken_at} | figures), own and not summary.postponed, summary.version],
    )
    if own and not summary.postponed:
        # Other versions cannot see the deleted notes any more.
        connection.execute(
            "UPDATE callipper.model SET follows_changes = false WHERE follows_changes AND version <> %s",
            [summary.version],
        )
        connection.execute("DELETE FROM callipper.poi_change WHERE change_id <@ %s::int8multirange", [pending.changes])


def new_words(connection: db.Connection, version: int, source: str) -> list[str]:
    """Categories and groups of callipper.poi that the version's vocabulary lacks."""
    if source != POI_TABLE:
        return []
    rows = connection.execute(
        "SELECT word FROM (SELECT category FROM callipper.poi UNION SELECT category_group FROM callipper.poi) AS p(word)"
        " WHERE word <> '' AND NOT EXISTS (SELECT FROM callipper.text_embedding t WHERE t.version = %s AND t.vocabulary"
        " AND t.text = callipper._text_key(word)) ORDER BY 1",
        [version],
    ).fetchall()
    return [str(word) for (word,) in rows]


def drift_of(as_trained: int, now: int, trained_with: int) -> float:
    """How far the POIs are from those of the training, 0 to 1.

    The larger of two shares: the POIs of the training that are gone or changed, and today's POIs that are new or changed.
    """
    return max(1 - as_trained / trained_with, 1 - as_trained / now)


def _since(began: float) -> float:
    return round(time.monotonic() - began, 3)
