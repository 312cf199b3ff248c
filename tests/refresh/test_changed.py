"""changed(): where the town has changed between two states, by which POIs, and that nothing else has moved.

The reference reads all embeddings and POIs before and after each change, and counts and measures by itself, in numpy.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from test_refresh import FAR, execute, fetch, insert, renew  # noqa: F401  (a fixture)

from callipper_db import changes, models
from callipper_db.arrays import Array
from callipper_db.errors import StatesUnusable
from callipper_trainer.refresh.refresh import RefreshSummary
from callipper_trainer.refresh.watch import Watch
from evidence import REACH_M
from sessions import user_session
from town import QUARTERS, SRID

Renew = Callable[..., RefreshSummary]
CHANGED = "SELECT cell_id, moved, towards, away, added, removed, changed FROM changed({})"
EVERY_CELL = 100_000


@dataclass(frozen=True)
class Town:
    """A state of the town."""

    emb: dict[int, Array]  # cell -> embedding
    centres: dict[int, Array]  # cell -> metres
    pois: dict[int, tuple[str, str, float, float]]  # poi_id -> name, category, metres

    @classmethod
    def read(cls, dsn: str) -> Town:
        centre = f"ST_Transform(ST_Centroid(geom), {SRID})"
        cells = fetch(dsn, f"SELECT cell_id, emb::text, ST_X(c), ST_Y(c) FROM (SELECT *, {centre} AS c FROM cells) q")
        pois = fetch(
            dsn,
            "SELECT poi_id, coalesce(name, ''), category, ST_X(p), ST_Y(p)"
            f" FROM (SELECT *, ST_Transform(geom, {SRID}) AS p FROM poi) q",
        )
        return cls(
            {cell: np.array(json.loads(emb)) for cell, emb, *_ in cells},
            {cell: np.array(centre) for cell, _, *centre in cells},
            {poi: tuple(about) for poi, *about in pois},
        )

    def near(self, cell: int) -> set[int]:
        """POIs within 250 m of the middle of a cell."""
        return {
            poi
            for poi, (*_, x, y) in self.pois.items()
            if np.hypot(*(self.centres[cell] - np.array([x, y]))) <= REACH_M
        }

    def kinds(self, cell: int) -> Counter[str]:
        return Counter(self.pois[poi][1] for poi in self.near(cell))


def differing(old: Town, new: Town) -> set[int]:
    return {poi for poi in old.pois | new.pois if old.pois.get(poi) != new.pois.get(poi)}


def near_changes(old: Town, new: Town) -> dict[int, set[int]]:
    """Cell -> POIs within 250 m that differ."""
    differ = differing(old, new)
    return {cell: (old.near(cell) | new.near(cell)) & differ for cell in old.emb}


def check(rows: list[tuple[Any, ...]], old: Town, new: Town, start: dict[int, Array] | None = None) -> None:
    """The rows are the cells that moved most of those near each POI that differs, with their distances, kinds and numbers.

    start: embeddings from which the cells count, those of the old state by default.
    """
    start = start or old.emb
    distance = {cell: float(np.linalg.norm(new.emb[cell] - start[cell])) for cell in old.emb}
    near = near_changes(old, new)
    expected = {
        max(
            (cell for cell in near if poi in near[cell] and distance[cell] > 0),
            key=lambda cell: (distance[cell], -cell),
        )
        for poi in set().union(*near.values())
    }
    assert {row[0] for row in rows} == expected
    assert [row[1] for row in rows] == sorted((row[1] for row in rows), reverse=True)
    for cell, moved, towards, away, added, removed, changed in rows:
        assert moved == pytest.approx(distance[cell], abs=1e-5)
        before, after = old.kinds(cell), new.kinds(cell)
        more = {f"{kind} {before[kind]} -> {after[kind]}" for kind in after if after[kind] > before[kind]}
        less = {f"{kind} {before[kind]} -> {after[kind]}" for kind in before if after[kind] < before[kind]}
        assert more <= set(towards.split("; ") if towards else ()), "each category; names may say more"
        assert less <= set(away.split("; ") if away else ())
        assert (towards is None, away is None) == (not more, not less)
        assert (added is not None) == bool(near[cell] - old.pois.keys())
        assert (removed is not None) == bool(near[cell] - new.pois.keys())
        assert (changed is not None) == bool(near[cell] & old.pois.keys() & new.pois.keys())


def ask(dsn: str, arguments: str = f"k => {EVERY_CELL}") -> list[tuple[Any, ...]]:
    return fetch(dsn, CHANGED.format(arguments))


def close_schools(dsn: str) -> None:
    """A third of the schools close, cafes open in their quarter, and two POIs change."""
    assert execute(dsn, "DELETE FROM poi WHERE category = 'school' AND poi_id % 3 = 0".replace("%", "%%")) == 20
    _, east, north = QUARTERS["school"]
    for number in range(4):
        insert(dsn, f"Cafe New {number}", "cafe", east + 0.0005 * number, north, group="food")
    execute(
        dsn, "UPDATE poi SET category = 'school' WHERE poi_id = (SELECT min(poi_id) FROM poi WHERE category = 'park')"
    )
    first = "(SELECT min(poi_id) FROM poi WHERE category = 'factory')"
    execute(dsn, f"UPDATE poi SET geom = ST_Translate(geom, 0.002, 0) WHERE poi_id = {first}")


def test_where_by_what_and_nowhere_else(town: str, renew: Renew, run: Callable[..., Result]) -> None:  # noqa: F811
    old = Town.read(town)
    with pytest.raises(StatesUnusable, match=r"has kept no earlier state .* with: callipper-db refresh --keep"):
        changes.changed_cells(town)
    assert renew(town, keep=1, compare=True).kept == 0, "nothing was replaced"
    close_schools(town)
    summary = renew(town, keep=1)
    assert (summary.kept, summary.added, summary.changed, summary.removed) == (1, 4, 2, 20)
    new = Town.read(town)
    rows = ask(town)
    check(rows, old, new)
    assert len(ask(town, "k => 2")) == 2
    assert ask(town, "k => 2") == rows[:2]
    everywhere = {row[0] for row in rows}
    east = "ST_MakeEnvelope(5.135, 52.05, 5.16, 52.15, 4326)"
    touching = {cell for (cell,) in fetch(town, f"SELECT cell_id FROM cell WHERE ST_Intersects(geom, {east})")}
    inside = {row[0] for row in ask(town, f"k => {EVERY_CELL}, within => {east}")}
    assert inside == everywhere & touching
    assert 0 < len(inside) < len(everywhere)

    said = run("changes", "--dsn", town, "-k", "1").stdout.splitlines()
    first = rows[0]
    assert said[0].startswith(f"  1.  cell {first[0]} at 52.")
    assert said[0].endswith(f"moved {first[1]:.3f}")
    assert any(line.split(maxsplit=1) == ["less", first[3]] for line in said)
    assert "school" in first[3]
    [found] = json.loads(run("changes", "--dsn", town, "-k", "1", "--json").stdout)
    assert (found["cell_id"], found["removed"]) == (first[0], first[5])
    assert "26" in run("changes", "--dsn", town, "--list").stdout  # POIs that differ


def test_where_nothing_has_changed_nothing_moves(town: str, renew: Renew) -> None:  # noqa: F811
    """POIs that change and change back, and those that change in what the model does not read."""
    execute(town, "UPDATE poi SET category = 'mill' WHERE category = 'park'")
    columns = "source, source_id, name, category, category_group, geom"
    execute(town, "CREATE TABLE public.gone AS SELECT * FROM poi WHERE category = 'cafe'")
    assert renew(town, keep=1).kept == 1
    assert len(ask(town)) > 3
    execute(town, "UPDATE poi SET category = 'park' WHERE category = 'mill'")
    renew(town)
    assert ask(town) == []
    execute(town, "UPDATE poi SET attributes = '{\"open\": true}'")
    renew(town)
    assert ask(town) == []
    # A correction moves embeddings, and is no change that anybody sees there.
    corrected = "UPDATE poi SET geom = ST_Translate(geom, 0.0003, 0) WHERE category = 'park'"
    assert execute(town, corrected) == 60
    assert renew(town).changed == 60
    assert ask(town) == []
    # The same POIs under other numbers, as of a new file: they differ, but no place has moved.
    execute(town, "DELETE FROM poi WHERE category = 'cafe'")
    execute(town, f"INSERT INTO poi ({columns}) SELECT {columns} FROM public.gone")
    assert renew(town).added == 60
    assert ask(town) == []


def test_states_follow_each_other(town: str, renew: Renew) -> None:  # noqa: F811
    """What changed() says of two kept states is what it said when the second was today's."""
    old = Town.read(town)
    close_schools(town)
    assert renew(town, keep=5).kept == 1
    middle, first = Town.read(town), ask(town)
    # Half of them: of a kind that is no category any more, names would count.
    turned = "UPDATE poi SET category = 'cafe' WHERE category = 'hospital' AND poi_id % 2 = 0"
    assert execute(town, turned.replace("%", "%%")) == 30
    execute(town, "DELETE FROM poi WHERE name LIKE 'Cafe New%%'")
    renewed = renew(town, keep=5)
    assert renewed.kept == 2
    new = Town.read(town)
    assert ask(town, f"old => 1, new => 2, k => {EVERY_CELL}") == first
    assert ask(town) == ask(town, f"old => 2, k => {EVERY_CELL}")
    check(ask(town), middle, new)
    # Over both: a cafe that came and went is no change. A cell near the later changes alone counts from these on.
    both = ask(town, f"old => 1, k => {EVERY_CELL}")
    assert all("Cafe New" not in str(row) for row in both)
    assert {row[5] is None for row in both} == {True, False}
    assert {poi for row in first for poi in [row[0]]} & {row[0] for row in both}
    assert differing(old, new) != differing(middle, new)
    assert fetch(town, "SELECT state, pois FROM list_states()") == [(1, 26), (2, 34)]

    # Without keep, a refresh adds to the newest state; with it, all but the newest are forgotten.
    removed = fetch(
        town, "DELETE FROM poi WHERE category = 'factory' AND poi_id % 2 = 0 RETURNING poi_id".replace("%", "%%")
    )
    renew(town)
    assert fetch(town, "SELECT state, pois FROM list_states()") == [(1, 26), (2, 34 + len(removed))]
    # A cell that no state has counts from just before the first change near it.
    kept = [near_changes(old, middle), near_changes(middle, new)]
    start = {cell: (middle if any(near[cell] for near in kept) else new).emb[cell] for cell in new.emb}
    check(ask(town), middle, Town.read(town), start)
    assert ask(town, f"old => 1, new => 2, k => {EVERY_CELL}") == first
    assert renew(town, keep=1).kept == 0
    assert fetch(town, "SELECT state FROM list_states()") == [(2,)]
    insert(town, None, "cafe", group="food")
    assert renew(town, keep=1).kept == 3
    assert fetch(town, "SELECT state, pois FROM list_states()") == [(3, 1)]
    for old_state, new_state in ((2, None), (None, 3), (3, 3), (1, 9)):
        with pytest.raises(StatesUnusable, match=r"3"):
            changes.changed_cells(town, old_state, new_state)
    assert renew(town, keep=0).kept == 0
    assert fetch(town, "SELECT (SELECT count(*) FROM kept_point) + (SELECT count(*) FROM kept_cell)") == [(0,)]


def test_a_poi_outside_the_grid(town: str, renew: Renew) -> None:  # noqa: F811
    """Its cells are new. They moved from where they would have been."""
    place = "(SELECT ST_Centroid(geom) FROM poi WHERE category = 'observatory')"
    far = insert(town, "Far Out", "observatory", FAR, FAR)
    [(before,)] = fetch(town, f"SELECT loc_embed({place})::text")
    assert renew(town, keep=1).new_cells == 25
    [(cell, moved, towards, away, added, *_)] = ask(town)
    assert (towards, away, added) == ("observatory 0 -> 1", None, "Far Out (observatory)")
    [(emb,)] = fetch(town, "SELECT emb::text FROM cells WHERE cell_id = %s", cell)
    assert moved > 0.01
    # The place of the POI is not the middle of the cell, so the two are only about the same.
    assert np.linalg.norm(np.subtract(json.loads(emb), json.loads(before))) == pytest.approx(moved, rel=0.5)
    execute(town, "DELETE FROM poi WHERE poi_id = %s", far)
    renew(town)
    assert ask(town) == []


def test_they_go_with_the_version(town: str, renew: Renew) -> None:  # noqa: F811
    insert(town, None, "cafe", group="food")
    renew(town, keep=1)
    with user_session(town) as connection:
        assert len(connection.execute("SELECT * FROM changed(model => 1)").fetchall()) == 1
    models.drop_model(town, 1, force=True)
    assert fetch(town, "SELECT (SELECT count(*) FROM kept_state), (SELECT count(*) FROM kept_cell)") == [(0, 0)]


def test_a_model_without_evidence(town: str, renew: Renew) -> None:  # noqa: F811
    """One of an earlier program knows no kinds. It says where, and by which POIs."""
    execute(town, "ALTER TABLE callipper.point_kind DETACH PARTITION callipper.point_kind_v1")
    execute(town, "DROP TABLE callipper.point_kind_v1")
    execute(town, "DELETE FROM callipper.kind")
    execute(town, "UPDATE callipper.model SET arch = arch - 'peaks'")
    renew(town, compare=True)
    insert(town, "Right Here", "lighthouse")
    assert renew(town, keep=1).kept == 1
    [(_, moved, *words_and_pois)] = ask(town)
    assert moved > 0
    assert words_and_pois == [None, None, "Right Here (lighthouse)", None, None]


def test_watch_keeps_what_its_first_changes_replaced(town: str, renew: Renew, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """And adds to that state what it replaces later."""
    calls: list[int | None] = []

    def refresh(dsn: str, reporter: Any, *, keep: int | None, **_: Any) -> RefreshSummary:
        calls.append(keep)
        return renew(dsn, keep=keep)

    monkeypatch.setattr("callipper_trainer.refresh.watch.refresh", refresh)
    steps = iter([None, lambda: insert(town, None, "cafe", group="food"), lambda: insert(town, None, "park", 0.01)])

    def wait(*_: Any) -> bool:
        step = next(steps, None)
        if step is None:
            raise KeyboardInterrupt
        step()
        return True

    watch = Watch(town, None, lambda _: None, keep=1)  # type: ignore[arg-type]
    next(steps)
    monkeypatch.setattr("callipper_trainer.refresh.watch.wait_for_change", wait)
    with pytest.raises(KeyboardInterrupt):
        watch.run()
    assert calls == [1, 1, None]
    assert fetch(town, "SELECT state, pois FROM list_states()") == [(1, 2)]
