"""search(), search_points() and describe() of a version with evidence, against a reference in Python over every POI."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from callipper_db import db
from callipper_db.arrays import Array
from conftest import _database
from evidence import KINDS, QUESTIONS, REACH_M, SIDE_M, UNSAID, Candidate, Evidence, write_town
from handmade import ORIGIN, SRID, Model
from sessions import rolled_back, user_session

TURNS = 50  # answers that come in turn; the others follow by their scores
TIE = 1e-5  # scores closer than this, relatively, are the same: densities are float32
SIZES = {"squares": 100.0, "large cells": 330.0}
UNHEARD = "waste basket"  # its embedding is known, not its vector
IN_ONE_TRANSACTION = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PLACE = st.tuples(st.floats(-300, SIDE_M + 300), st.floats(-300, SIDE_M + 300)).map(lambda place: ORIGIN + place)


@dataclass(frozen=True)
class Town:
    """A version with evidence, as Python knows it."""

    model: Model
    size_m: float
    evidence: Evidence
    questions: dict[str, Array]
    cell_of: dict[tuple[int, int], int]  # (i, j) -> cell_id

    def candidates(self, text: str, k: int, *, everywhere: bool = True) -> dict[int, Candidate]:
        """By cell_id; those that are tried for k answers from the whole city, or all."""
        tried = math.ceil((3 * k + 20) * max(1, self.size_m / 100) ** 2) if everywhere else None
        found = self.evidence.candidates(self.questions[text], text, self.size_m, k, tried)
        return {self.cell_of[cell]: candidate for cell, candidate in found.items()}

    def similarity(self, text: str) -> dict[int, float]:
        """By cell_id."""
        found = self.model.cells.astype(np.float64) @ self.model.texts[text].astype(np.float64)
        return dict(zip(self.model.grid.cell_id.tolist(), found.tolist(), strict=True))


@pytest.fixture(scope="module", params=SIZES)
def made(request: pytest.FixtureRequest, cluster_dsn: str, template_database: str) -> Iterator[tuple[str, Town]]:
    size_m = SIZES[request.param]
    with _database(cluster_dsn, template_database) as dsn:
        with user_session(dsn) as connection:
            model, questions = write_town(connection, size_m)
            cells = connection.execute("SELECT i, j, cell_id FROM callipper.cell").fetchall()
            evidence = Evidence.read(connection, model.version, 4)
        yield dsn, Town(model, size_m, evidence, questions, {(i, j): cell_id for i, j, cell_id in cells})


@pytest.fixture
def town(made: tuple[str, Town]) -> Town:
    return made[1]


@pytest.fixture
def asking(made: tuple[str, Town]) -> Iterator[db.Connection]:
    """A transaction in the town that is rolled back."""
    with rolled_back(made[0]) as connection:
        yield connection


def search(connection: db.Connection, text: str, k: int, area: str | None = None) -> list[Any]:
    return connection.execute(
        "SELECT cell_id, similarity, percentile, relevant, lift, because"
        " FROM callipper.search(%s, %s, ST_GeomFromEWKT(%s))",
        [text, k, area],
    ).fetchall()


def check(rows: list[Any], town: Town, text: str, k: int, inside: set[int] | None = None) -> None:
    """First the k best cells with evidence and what there is to say of them, then the nearest of the others."""
    similarity = town.similarity(text)
    counts = set(similarity) if inside is None else inside
    found = town.candidates(text, k, everywhere=inside is None) if text != UNHEARD else {}
    found = {cell: candidate for cell, candidate in found.items() if cell in counts}
    ids = [row[0] for row in rows]
    assert len(ids) == min(k, len(counts)) == len(set(ids)) and set(ids) <= counts
    np.testing.assert_allclose([row[1] for row in rows], [similarity[cell] for cell in ids], atol=1e-6)
    split = min(k, len(found))
    assert set(ids[:split]) <= set(found)
    weights = town.evidence.weights(town.questions[text], text) if found else {}
    for cell, _, percentile, relevant, lift, because in rows[:split]:
        reason = town.evidence.reason(found[cell], weights)
        assert relevant == reason.relevant and (because or "") in reason.because
        assert lift == (None if reason.lift is None else pytest.approx(reason.lift, rel=TIE))
        assert 0 <= percentile <= 100
    if found:
        check_turns(ids[:split], found, town.evidence.kept(town.questions[text]), town.evidence.spread())
    assert all(row[3:] == (None, None, None) for row in rows[split:])
    rest = sorted((similarity[cell] for cell in counts - set(ids[:split])), reverse=True)[: len(ids) - split]
    np.testing.assert_allclose([row[1] for row in rows[split:]], rest, atol=1e-6)


def check_turns(ids: list[int], found: dict[int, Candidate], kept: float, spread: float) -> None:
    """Each of the first fifty is the best of what was left, where readings and places that had a turn count less."""
    left, weight = dict(found), defaultdict[int, float](lambda: 1.0)
    taken: list[Array] = []
    for cell in ids[:TURNS]:
        value = {
            other: sum(part * weight[reading] for reading, part in candidate.parts.items())
            for other, candidate in left.items()
        }
        worth = {
            other: value[other] * spread ** sum(np.linalg.norm(candidate.middle - place) <= REACH_M for place in taken)
            for other, candidate in left.items()
        }
        assert worth[cell] >= max(worth.values()) * (1 - TIE)
        chosen = left.pop(cell)
        taken.append(chosen.middle)
        for reading, part in chosen.parts.items():
            weight[reading] *= kept ** (part * weight[reading] / value[cell])
    scores = [found[cell].score for cell in ids[TURNS:]]
    best = sorted((candidate.score for candidate in left.values()), reverse=True)[: len(scores)]
    np.testing.assert_allclose(scores, best, rtol=TIE)


def test_the_town_asks_what_the_rules_tell_apart(town: Town) -> None:
    """Questions for no kind, for one and for several; by names; and POIs of which only the name says something."""
    asked = {text: town.evidence.asked(town.questions[text], text) for text in QUESTIONS}
    assert {min(len(kinds), 2) for kinds in asked.values()} >= {1, 2}
    assert any(0.1 < weight < 0.9 for kinds in asked.values() for weight in kinds.values())
    assert len(town.evidence.named("the old mill")) > 20 and any(town.evidence.basis)
    for text in QUESTIONS:
        assert len(town.candidates(text, 10, everywhere=False)) > 10
    kept = {town.evidence.kept(town.questions[text]) for text in QUESTIONS}
    assert min(kept) == 0.5 and max(kept) == 1
    found = [town.candidates(text, 10, everywhere=False) for text in QUESTIONS]
    assert any(len(candidate.parts) > 2 for candidates in found for candidate in candidates.values())


@pytest.mark.parametrize("k", [1, 10, 100, 100_000])
@pytest.mark.parametrize("text", [*QUESTIONS, UNHEARD])
def test_cells_with_evidence_come_first(asking: db.Connection, town: Town, text: str, k: int) -> None:
    check(search(asking, text, k), town, text, k)


@IN_ONE_TRANSACTION
@given(corner=PLACE, size=st.floats(0, 3.5), text=st.sampled_from(QUESTIONS), k=st.sampled_from([1, 5, 50, 5000]))
def test_within_an_area(asking: db.Connection, town: Town, corner: Array, size: float, text: str, k: int) -> None:
    (east, north), side = corner.tolist(), 10**size
    area = asking.execute(
        "SELECT ST_AsEWKT(ST_Transform(ST_MakeEnvelope(%s, %s, %s, %s, %s), 4326), 15)",
        [east, north, east + side, north + side, SRID],
    ).fetchone()
    assert area is not None
    inside = asking.execute(
        "SELECT cell_id FROM callipper.cells WHERE ST_Intersects(geom, ST_GeomFromEWKT(%s))", area
    ).fetchall()
    check(search(asking, text, k, area[0]), town, text, k, {cell for (cell,) in inside})


@pytest.mark.parametrize(
    "area",
    [
        "SRID=4326;POLYGON((-180 -90, -180 90, 180 90, 180 -90, -180 -90))",
        "SRID=4326;POLYGON((-60 -60, -60 85, 120 85, 120 -60, -60 -60))",
        f"SRID={SRID};POLYGON((0 0, 0 9000000, 1000000 9000000, 1000000 0, 0 0))",
    ],
)
def test_an_area_may_be_larger_than_the_city(asking: db.Connection, town: Town, area: str) -> None:
    check(search(asking, "pub", 20, area), town, "pub", 20)
    everywhere = asking.execute("SELECT point_id FROM callipper.search_points('pub', 20)").fetchall()
    query = "SELECT point_id FROM callipper.search_points('pub', 20, ST_GeomFromEWKT(%s))"
    assert asking.execute(query, [area]).fetchall() == everywhere


@pytest.mark.parametrize("function", ["search", "search_points"])
def test_the_largest_number_of_rows(asking: db.Connection, town: Town, function: str) -> None:
    query = sql.SQL("SELECT count(*) FROM callipper.{}('pub', 2147483647)").format(sql.Identifier(function))
    rows = len(town.model.cells if function == "search" else town.model.points)
    assert asking.execute(query).fetchone() == (rows,)


@pytest.mark.parametrize("area", ["POINT EMPTY", "POLYGON EMPTY", "POINT(0 0)", "POINT(-177 -80)"])
@pytest.mark.parametrize("function", ["search", "search_points"])
def test_where_nothing_is_there_is_no_row(asking: db.Connection, function: str, area: str) -> None:
    query = sql.SQL("SELECT * FROM callipper.{}('pub', 10, ST_GeomFromText(%s, 4326))")
    assert asking.execute(query.format(sql.Identifier(function)), [area]).fetchall() == []


@pytest.mark.parametrize("spelling", ["PUB", "  pub ", "Fresh\tFISH"])
def test_a_question_is_known_however_it_is_spelt(asking: db.Connection, spelling: str) -> None:
    plain = " ".join(spelling.lower().split())
    assert search(asking, spelling, 5) == search(asking, plain, 5)
    assert search(asking, spelling, 5)[0][5]


@pytest.mark.parametrize(
    "text", ["?!", "' OR 1 = 1; --", "%s %I $1", "a & b | !c <-> d:*", "☕", "pub " * 5000, "\\", "x\ny"]
)
def test_hostile_texts(asking: db.Connection, town: Town, text: str) -> None:
    """They are text and nothing else, and give notice of nothing."""
    notices: list[str] = []
    asking.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
    version = town.model.version
    for alike in (text, "zzz"):
        asking.execute(
            "INSERT INTO callipper.text_embedding (version, text, emb)"
            " SELECT %s, callipper._text_key(left(%s, 10000)), emb FROM callipper.text_embedding WHERE text = 'pub'",
            [version, alike],
        )
        asking.execute(
            "INSERT INTO callipper.text_vector (text_encoder_id, text, vec)"
            " SELECT text_encoder_id, left(%s, 10000), vec FROM callipper.text_vector WHERE text = 'pub'",
            [alike],
        )
    rows, plain = search(asking, text, 5), search(asking, "pub" if "pub" in text else "zzz", 5)
    if not town.evidence.named("pub"):
        assert rows == plain
    assert len(asking.execute("SELECT * FROM callipper.search_points(%s, 5)", [text]).fetchall()) == 5
    assert notices == []


def test_null_asks_nothing(asking: db.Connection) -> None:
    for call in ("search(NULL)", "search_points(NULL)", "describe(NULL)"):
        assert asking.execute(f"SELECT * FROM callipper.{call}".encode()).fetchall() == []
    for call in ("search(NULL, 0)", "search('pub', NULL)", "search_points('pub', NULL)", "search_points('pub', -1)"):
        with pytest.raises(psycopg.errors.InvalidParameterValue), asking.transaction():
            asking.execute(f"SELECT * FROM callipper.{call}".encode())


# POIs


@pytest.mark.parametrize("k", [1, 30, 500, 10_000])
@pytest.mark.parametrize("text", [*QUESTIONS, UNHEARD])
def test_points_by_name_then_by_kind(asking: db.Connection, town: Town, text: str, k: int) -> None:
    everywhere = np.ones(len(town.evidence.point_id), bool)
    check_points(asking, town, text, k, None, everywhere)
    west, south, east, north = (*np.add(ORIGIN, [700, 500]).tolist(), *np.add(ORIGIN, [1900, 2100]).tolist())
    inside = ((town.evidence.metres > [west, south]) & (town.evidence.metres < [east, north])).all(axis=1)
    path = f"{west} {south}, {west} {north}, {east} {north}, {east} {south}, {west} {south}"
    check_points(asking, town, text, k, f"SRID={SRID};POLYGON(({path}))", inside)


def check_points(asking: db.Connection, town: Town, text: str, k: int, area: str | None, counts: Array) -> None:
    evidence = town.evidence
    similarity = town.model.points.astype(np.float64) @ town.model.texts[text].astype(np.float64)
    order = {point_id: number for number, point_id in enumerate(evidence.point_id.tolist())}
    weights = evidence.weights(town.questions[text], text) if text != UNHEARD else {}
    reasons = {number: evidence.because(number, town.questions[text], text) for number in weights}

    def key(number: int) -> tuple[Any, ...]:
        if reasons.get(number) == "name":
            return (0, -weights[number], len(evidence.labels[number][0]), -similarity[number])
        if number in weights:
            return (1, -weights[number], 0, -similarity[number])
        return (2, 0, 0, -similarity[number])

    wanted = sorted(np.flatnonzero(counts).tolist(), key=key)[:k]
    rows = asking.execute(
        "SELECT point_id, text, similarity, because FROM callipper.search_points(%s, %s, ST_GeomFromEWKT(%s))",
        [text, k, area],
    ).fetchall()
    chosen = [order[row[0]] for row in rows]
    assert len(rows) == len(wanted) == len(set(chosen)) > 0
    np.testing.assert_allclose([key(number) for number in chosen], [key(number) for number in wanted], atol=1e-6)
    assert all(counts[number] for number in chosen)
    assert [row[1] for row in rows] == [evidence.labels[number][1] for number in chosen]
    np.testing.assert_allclose([row[2] for row in rows], similarity[chosen], atol=1e-6)
    assert [row[3] for row in rows] == [reasons.get(number) for number in chosen]


def test_a_poi_keeps_its_name_wherever_it_is_found(asking: db.Connection, town: Town) -> None:
    """By its name, by its kind, by its surroundings and in the view; that of callipper.poi, else the model's."""
    asking.execute("UPDATE callipper.poi SET name = NULL WHERE poi_id % 2 = 0")
    expected = dict(asking.execute("SELECT point_id, name FROM callipper.points").fetchall())
    assert {None, "Mill", "place 1"} <= set(expected.values())
    found = asking.execute("SELECT point_id, name FROM callipper.search_points('the old mill', 10000)").fetchall()
    assert dict(found) == expected


@pytest.mark.parametrize(
    ("words", "changed", "others"),
    [
        ("quince pub", 3, 0.35),
        ("what about quinces", 3, 0.35),  # by its stem
        ("quince pub", 1, 1.0),  # one alone may be there by chance
        ("quince pub", 11, 1.0),  # not rare any more
        ("pub", 3, 1.0),
        ("hatter pub", 3, 1.0),  # many names have it
    ],
)
def test_a_rare_word_of_names_says_which_of_a_kind_are_meant(
    asking: db.Connection, town: Town, words: str, changed: int, others: float
) -> None:
    version, question = town.model.version, town.questions["pub"]
    query = "SELECT point_id, weight FROM callipper._relevant_points(%s, %s::real[]::vector, %s)"
    # Names that are like the question or have all of its words count by themselves, so there are none.
    asking.execute("DELETE FROM callipper.point_name")
    asking.execute("UPDATE callipper.point_embedding SET name = 'Old Hatter' WHERE name <> ''")
    before = dict(asking.execute(query, [version, question.tolist(), words]).fetchall())
    meant = sorted(before)[:changed]
    asking.execute(
        "UPDATE callipper.point_embedding SET name = 'Quinces of Old' WHERE version = %s AND point_id = ANY (%s)",
        [version, meant],
    )
    found = dict(asking.execute(query, [version, question.tolist(), words]).fetchall())
    assert len(before) > 20 and set(found) == set(before)
    expected = {number: weight * (1 if number in meant else others) for number, weight in before.items()}
    assert found == pytest.approx(expected, rel=1e-6)


# Places


def describe(connection: db.Connection, place: str, k: int = 1000) -> list[Any]:
    return connection.execute(
        "SELECT text, similarity, percentile, pois, lift, because FROM callipper.describe(ST_GeomFromEWKT(%s), %s)",
        [place, k],
    ).fetchall()


def check_described(rows: list[Any], town: Town, inside: list[int], k: int = 1000, *, is_area: bool = False) -> None:
    wanted = town.evidence.described(inside, is_area=is_area)[:k]
    assert [(row[0], row[3]) for row in rows] == [(name, pois) for name, pois, _, _ in wanted]
    for (_, similarity, percentile, pois, lift, because), (_, _, exact, labels) in zip(rows, wanted, strict=True):
        assert lift == pytest.approx(exact, rel=1e-9)
        assert because and labels_of(because, labels) <= min(3, pois)
        assert -1 <= similarity <= 1 and 0 <= percentile <= 100


def labels_of(because: str, labels: set[str]) -> int:
    """How many of the labels a reason names, and nothing else; a label may hold a semicolon."""
    rest, count = because, 0
    for label in sorted(labels, key=len, reverse=True):
        if label in rest.split("; ") or f"; {label}; " in f"; {rest}; ":
            rest = f"; {rest}; ".replace(f"; {label}; ", "; ", 1).removeprefix("; ").removesuffix("; ")
            count += 1
    assert rest in ("", ";"), f"{rest!r} is no label of {labels}"
    return count


def point(place: Array) -> str:
    return "SRID={};POINT({!r} {!r})".format(SRID, *place.tolist())


@IN_ONE_TRANSACTION
@given(place=PLACE, k=st.sampled_from([1, 2, 1000]))
def test_kinds_that_stand_out_near_a_place(asking: db.Connection, town: Town, place: Array, k: int) -> None:
    if not town.evidence.is_close_call(place):
        check_described(describe(asking, point(place), k), town, town.evidence.near(place), k)


def test_each_poi_is_described(asking: db.Connection, town: Town) -> None:
    """The middle of every tenth POI; all kinds that may be said are said somewhere, by categories and by names."""
    said: set[str] = set()
    for place in town.evidence.metres[::10]:
        rows = describe(asking, point(place))
        check_described(rows, town, town.evidence.near(place))
        said |= {row[0] for row in rows}
    assert said == set(KINDS) - {UNSAID}


@IN_ONE_TRANSACTION
@given(
    place=PLACE,
    turn=st.floats(0, 6.28),
    reach=st.floats(1, 3.3),
    corners=st.integers(3, 6),
)
def test_of_an_area_what_is_inside_counts(
    asking: db.Connection, town: Town, place: Array, turn: float, reach: float, corners: int
) -> None:
    angles = turn + np.arange(corners) * 2 * np.pi / corners
    ring = place + 10**reach * np.column_stack([np.cos(angles), np.sin(angles)])
    offset = [town.evidence.metres - start for start in ring]
    edges = np.roll(ring, -1, axis=0) - ring
    side = np.array([edge[0] * to[:, 1] - edge[1] * to[:, 0] for edge, to in zip(edges, offset, strict=True)])
    path = ",".join(f"{x!r} {y!r}" for x, y in [*ring.tolist(), ring[0].tolist()])
    inside = np.flatnonzero((side > 0).all(axis=0)).tolist()
    check_described(describe(asking, f"SRID={SRID};POLYGON(({path}))"), town, inside, is_area=True)


def test_an_area_larger_than_the_city(asking: db.Connection, town: Town) -> None:
    """Nothing stands out from the whole; half of the world is none of a projection's business."""
    for area in ("POLYGON((-60 20, -60 80, 66 80, 66 20, -60 20))", "POLYGON((2 49, 2 50.3, 4 50.3, 4 49, 2 49))"):
        everything = list(range(len(town.evidence.point_id)))
        check_described(describe(asking, f"SRID=4326;{area}"), town, everything, is_area=True)


def test_where_nothing_is_near_nothing_is_said(asking: db.Connection, town: Town) -> None:
    west, south = (ORIGIN - 5000).tolist()
    assert describe(asking, f"SRID={SRID};POINT({west} {south})") == []
    area = f"POLYGON(({west} {south}, {west} {south + 10}, {west + 10} {south + 10}, {west} {south}))"
    assert describe(asking, f"SRID={SRID};{area}") == []


def test_the_reason_names_the_nearest_that_count(asking: db.Connection, town: Town) -> None:
    """Three POIs of the category come before nearer ones that only their name makes of the kind."""
    evidence = town.evidence
    checked = 0
    for place in evidence.metres[::10]:
        away = np.linalg.norm(evidence.metres - place, axis=1)
        inside = town.evidence.near(place)
        for text, _, _, _, _, because in describe(asking, point(place)):
            kind = KINDS.index(text)
            own = sorted((n for n in inside if evidence.own[n] == kind), key=lambda n: (away[n], evidence.point_id[n]))
            if len(own) >= 3:
                checked += 1
                # As the database sorts them, whatever its collation.
                assert sorted(because.split("; ")) == sorted(
                    "; ".join({evidence.label(n) for n in own[:3]}).split("; ")
                )
    assert checked > 10


# Who asks, and how


def test_a_reader_asks_and_cannot_read_the_kinds(asking: db.Connection, town: Town) -> None:
    place = f"public.ST_SetSRID(public.ST_Point({ORIGIN[0] + 900}, {ORIGIN[1] + 900}), {SRID})"
    queries = [
        f"SELECT t::text FROM callipper.{call} t".encode()
        for call in (
            "search('pub')",
            "search('pub', 3, public.ST_MakeEnvelope(3, 49.65, 3.02, 49.66, 4326))",
            "search_points('the old mill')",
            f"describe({place})",
        )
    ]
    expected = [asking.execute(query).fetchall() for query in queries]
    assert all(expected)
    asking.execute("SET LOCAL ROLE callipper_reader; SET LOCAL search_path = ''; SET LOCAL transaction_read_only = on")
    assert [asking.execute(query).fetchall() for query in queries] == expected
    version = town.model.version
    forbidden = [
        *(
            f"SELECT FROM callipper.{table}"
            for table in (
                "kind",
                "kind_name",
                "kind_phrase",
                "kind_term",
                "kind_word",
                "point_kind",
                f"point_kind_v{version}",
                "point_name",
                "poi_density",
                "text_vector",
            )
        ),
        f"SELECT callipper._count_evidence({version})",
        f"SELECT callipper._kinds_asked({version}, '[1,0,0,0]', 'pub')",
        f"SELECT callipper._shared_words({version}, ARRAY['pub'], ARRAY[1])",
        f"SELECT callipper._alike_points({version}, '[1,0,0,0]')",
        f"SELECT callipper._relevant_points({version}, '[1,0,0,0]', 'pub')",
        f"SELECT callipper._cells_by_evidence({version}, '[1,0,0,0]', 'pub', 3, NULL)",
        f"SELECT callipper._kinds_here({version}, {place})",
        f"SELECT callipper._question('pub', {version})",
        f"SELECT callipper._find_vector('pub', {version})",
    ]
    for statement in forbidden:
        with pytest.raises(psycopg.errors.InsufficientPrivilege), asking.transaction():
            asking.execute(statement.replace("'[1,0,0,0]'", "'[1,0,0,0]'::public.vector").encode())


def work_in_parallel(connection: db.Connection) -> None:
    for setting in ("parallel_setup_cost", "parallel_tuple_cost", "min_parallel_table_scan_size"):
        connection.execute(f"SET LOCAL {setting} = 0".encode())
    connection.execute("SET LOCAL enable_nestloop = off")


def test_beside_parallel_workers(asking: db.Connection, town: Town) -> None:
    """The functions run in the leader while workers scan for the same statement; for a text without a vector, too."""
    place = f"ST_SetSRID(ST_Point({ORIGIN[0] + 900}, {ORIGIN[1] + 900}), {SRID})"
    queries = [
        f"SELECT t.* FROM callipper.search('{text}', 9) t JOIN callipper.cell c USING (cell_id) WHERE c.i + c.j > -1e9"
        for text in ("pub", UNHEARD)
    ]
    queries += [
        "SELECT t.* FROM callipper.search_points('pub', 9) t JOIN callipper.poi p ON p.poi_id = t.point_id"
        " WHERE p.poi_id + 1 > 0",
        f"SELECT t.* FROM callipper.describe({place}) t JOIN callipper.kind k ON k.name = t.text WHERE k.kind_id + 1 > 0",
    ]
    for query in queries:
        alone = sorted(asking.execute(query.encode()).fetchall(), key=str)
        with asking.transaction(force_rollback=True):
            work_in_parallel(asking)
            plan = "\n".join(row[0] for row in asking.execute(f"EXPLAIN {query}".encode()))
            assert "Gather" in plan and "Parallel Seq Scan" in plan, plan
            assert sorted(asking.execute(query.encode()).fetchall(), key=str) == alone != []
            asking.execute(f"CREATE TEMPORARY TABLE kept AS {query}".encode())
            assert sorted(asking.execute("SELECT * FROM kept").fetchall(), key=str) == alone


TRAPS = """
    CREATE SCHEMA trap;
    CREATE FUNCTION trap.fall() RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
    CREATE FUNCTION trap.exp(float8) RETURNS float8 LANGUAGE sql AS 'SELECT trap.fall(); SELECT 1.0::float8';
    CREATE FUNCTION trap.ln(float8) RETURNS float8 LANGUAGE sql AS 'SELECT trap.fall(); SELECT 1.0::float8';
    CREATE FUNCTION trap.left(text, integer) RETURNS text LANGUAGE sql AS 'SELECT trap.fall(); SELECT ''''';
    CREATE FUNCTION trap.concat(text, text, text, text) RETURNS text LANGUAGE sql AS 'SELECT trap.fall(); SELECT ''''';
    CREATE FUNCTION trap.plainto_tsquery(regconfig, text) RETURNS tsquery
        LANGUAGE sql AS 'SELECT trap.fall(); SELECT NULL::tsquery';
    CREATE FUNCTION trap.power(float8, numeric) RETURNS float8 LANGUAGE sql AS 'SELECT trap.fall(); SELECT 1.0::float8';
    CREATE OPERATOR trap.^ (FUNCTION = trap.power, LEFTARG = float8, RIGHTARG = numeric);
    CREATE FUNCTION trap.times(float8, numeric) RETURNS float8 LANGUAGE sql AS 'SELECT trap.fall(); SELECT 1.0::float8';
    CREATE OPERATOR trap.* (FUNCTION = trap.times, LEFTARG = float8, RIGHTARG = numeric);
    CREATE FUNCTION trap.same(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT trap.fall(); SELECT true';
    CREATE OPERATOR trap.= (FUNCTION = trap.same, LEFTARG = text, RIGHTARG = text);
"""
TEMPORARY = """
    CREATE TEMPORARY TABLE model (version integer);
    CREATE TEMPORARY TABLE kind (version integer);
    CREATE TEMPORARY TABLE point_kind (version integer);
    CREATE TEXT SEARCH CONFIGURATION pg_temp.simple (COPY = pg_catalog.english)
"""


def test_nothing_is_looked_up_where_others_may_create(asking: db.Connection) -> None:
    place = f"public.ST_SetSRID(public.ST_Point({ORIGIN[0] + 900}, {ORIGIN[1] + 900}), {SRID})"
    calls = ("search('the old mill')", "search_points('the old mill')", f"describe({place})")
    queries = [f"SELECT t::text FROM callipper.{call} t".encode() for call in calls]
    expected = [asking.execute(query).fetchall() for query in queries]
    asking.execute(TRAPS.encode())
    for statement in TEMPORARY.split(";"):
        asking.execute(statement.encode())
    asking.execute("SET LOCAL search_path = trap, pg_temp, pg_catalog")
    with pytest.raises(psycopg.errors.RaiseException, match="trapped"), asking.transaction():
        asking.execute("SELECT exp(1::float8)")
    assert [asking.execute(query).fetchall() for query in queries] == expected


def test_counting_again_changes_nothing(asking: db.Connection, town: Town) -> None:
    """What is counted: POIs of each kind, those whose category it is, and POIs around each square that has some."""
    query = "SELECT name, pois, own_pois, sure_pois FROM callipper.kind ORDER BY kind_id"
    density = "SELECT * FROM callipper.poi_density ORDER BY i, j"
    before = [asking.execute(q).fetchall() for q in (query, density)]
    evidence = town.evidence
    for kind, (name, pois, own, sure) in enumerate(before[0]):
        assert name == KINDS[kind]
        assert own == int((evidence.own == kind).sum())
        assert pois == sum(kind in evidence.of(number) for number in range(len(evidence.point_id)))
        assert sure == evidence.counted(kind, list(range(len(evidence.point_id))))[1]
    asking.execute("UPDATE callipper.kind SET pois = 0, own_pois = 7, sure_pois = 1")
    asking.execute("DELETE FROM callipper.poi_density WHERE i % 2 = 0")
    asking.execute("SELECT callipper._count_evidence(%s)", [town.model.version])
    assert [asking.execute(q).fetchall() for q in (query, density)] == before


def test_a_dropped_version_takes_its_evidence_along(asking: db.Connection, town: Town) -> None:
    tables = ("kind", "kind_phrase", "point_kind", "point_name", "poi_density")
    counts = [asking.execute(f"SELECT count(*) > 0 FROM callipper.{table}".encode()).fetchone() for table in tables]
    assert counts == [(True,)] * 5
    asking.execute("SELECT callipper.drop_model(%s, true)", [town.model.version])
    counts = [asking.execute(f"SELECT count(*) FROM callipper.{table}".encode()).fetchone() for table in tables]
    assert counts == [(0,)] * 5


def test_without_evidence_the_embedding_answers(asking: db.Connection, town: Town) -> None:
    """As a version of an earlier program: cells, POIs and words by similarity alone."""
    version = town.model.version
    asking.execute("UPDATE callipper.text_embedding SET vocabulary = true WHERE text = ANY(%s)", [list(KINDS)])
    place = f"SRID={SRID};POINT({ORIGIN[0] + 900} {ORIGIN[1] + 900})"
    asking.execute(f"DROP TABLE callipper.point_kind_v{version}".encode())
    asking.execute("DELETE FROM callipper.kind")
    similarity = sorted(town.similarity("pub").items(), key=lambda item: (-item[1], item[0]))
    rows = search(asking, "pub", 10)
    assert [row[0] for row in rows] == [cell for cell, _ in similarity[:10]]
    assert all(row[3:] == (None, None, None) for row in rows)
    points = asking.execute("SELECT similarity, because FROM callipper.search_points('pub', 10)").fetchall()
    exact = np.sort(town.model.points.astype(np.float64) @ town.model.texts["pub"].astype(np.float64))[::-1]
    np.testing.assert_allclose([row[0] for row in points], exact[:10], atol=1e-6)
    assert {row[1] for row in points} == {None}
    best = "SELECT b.* FROM callipper._best_texts(%s, callipper.loc_embed(ST_GeomFromEWKT(%s)), 5) b"
    texts = asking.execute(best, [version, place]).fetchall()
    assert describe(asking, place, 5) == [(*row, None, None, None) for row in texts] and len(texts) == 5
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="k is 0"), asking.transaction():
        describe(asking, place, 0)
