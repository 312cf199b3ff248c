"""search() and its siblings against rankings that numpy computes in float64, outside the database."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb

from callipper_db import db
from callipper_db.arrays import Array
from callipper_db.binary_copy import read_rows
from callipper_db.grid import BLOCK
from callipper_db.tables import HAS_OTHER_NAMES, OTHER_NAMES
from conftest import _database
from handmade import ORIGIN, SRID, Model, write_model, write_sample
from sessions import rolled_back, user_session
from town import GRID_M, MIDDLE
from town import SRID as TOWN_SRID

TEXTS = ("pub", "park", "fresh fish", "school", "quiet street", "station")
TIE = 1e-6  # cosines closer than this are the same: the server's are float32
FOUND = ("cell_id", "similarity", "percentile")


@dataclass(frozen=True)
class City:
    """A model as numpy knows it."""

    version: int
    cell_id: Array  # (C,)
    emb: Array  # (C, 256) float64
    corners: Array  # (C, 4, 2) degrees
    sample: Array  # (S, 256) float64, or (0, 256)
    texts: dict[str, Array]
    hnsw: bool

    def similarity(self, question: Array) -> Array:
        return self.emb @ question

    def percentiles(self, question: Array, similarity: float) -> tuple[float, float]:
        """The percentile, from and to, as far as float32 can tell."""
        others = self.sample @ question
        return (
            100 * float(np.mean(others < similarity - TIE)),
            100 * float(np.mean(others < similarity + TIE)),
        )


def check(
    rows: list[tuple[int, float, float | None]],
    city: City,
    question: Array,
    k: int,
    counts: Array | None = None,
) -> None:
    """The rows are the k best of the cells that count: none missing, none wrong, in order, up to ties."""
    similarity = city.similarity(question)
    counts = np.ones(len(similarity), bool) if counts is None else counts
    place = {cell_id: number for number, cell_id in enumerate(city.cell_id.tolist())}
    chosen = np.array([place[cell_id] for cell_id, *_ in rows], dtype=int)
    assert len(rows) == min(k, counts.sum()) == len(set(chosen.tolist()))
    if not rows:
        return
    assert counts[chosen].all()
    np.testing.assert_allclose([row[1] for row in rows], similarity[chosen], atol=TIE)
    assert (np.diff(similarity[chosen]) <= TIE).all()
    reported = [(-row[1], row[0]) for row in rows]
    assert reported == sorted(reported), "ties are in the order of cell_id"
    left = counts.copy()
    left[chosen] = False
    assert similarity[left].max(initial=-2) <= similarity[chosen].min() + TIE
    for (_, _, percentile), exact in zip(rows, similarity[chosen].tolist(), strict=True):
        if len(city.sample):
            low, high = city.percentiles(question, exact)
            assert percentile is not None and low - 1e-9 <= percentile <= high + 1e-9
        else:
            assert percentile is None


def intersects(area: Array, cells: Array) -> Array:
    """(C,) which of the convex (C, 4, 2) cells meet a convex (V, 2) area: no line between them (separating axes)."""
    apart = np.zeros(len(cells), bool)
    for start, end in zip(area, np.roll(area, -1, axis=0), strict=True):
        axis = np.array([end[1] - start[1], start[0] - end[0]])
        ours, theirs = area @ axis, cells @ axis
        apart |= (theirs.min(axis=1) > ours.max()) | (theirs.max(axis=1) < ours.min())
    for corner in range(4):
        edge = cells[:, (corner + 1) % 4] - cells[:, corner]
        axis = np.stack([edge[:, 1], -edge[:, 0]], axis=1)  # (C, 2)
        ours = axis @ area.T
        theirs = np.einsum("ci,cvi->cv", axis, cells)
        apart |= (theirs.min(axis=1) > ours.max(axis=1)) | (theirs.max(axis=1) < ours.min(axis=1))
    return ~apart


def wkt(area: Array) -> str:
    ring = ",".join(f"{x!r} {y!r}" for x, y in [*area.tolist(), area[0].tolist()])
    return f"SRID=4326;POLYGON(({ring}))"


def search(connection: db.Connection, text: str, k: int | None, area: str | None = None) -> list[Any]:
    return connection.execute(
        "SELECT cell_id, similarity, percentile FROM callipper.search(%s, %s, ST_GeomFromEWKT(%s))", [text, k, area]
    ).fetchall()


# Models by hand


def corners_of(connection: db.Connection, cell_id: Array) -> Array:
    """(C, 4, 2) degrees."""
    axes = ", ".join(
        f"ST_{axis}(ST_PointN(ST_ExteriorRing(geom), {number}))" for number in range(1, 5) for axis in "XY"
    )
    rows = connection.execute(
        f"SELECT {axes} FROM callipper.cell WHERE cell_id = ANY(%s) ORDER BY cell_id".encode(), [cell_id.tolist()]
    ).fetchall()
    return np.array(rows).reshape(-1, 4, 2)


def neighbours_alike(centres: Array) -> Array:
    """Vectors of a walk through the cells, in which every third cell is the very same as one before."""
    random = np.random.default_rng(7)
    walk = np.cumsum(random.standard_normal((len(centres), 256)), axis=0) + 4 * random.standard_normal(256)
    walk[::3] = walk[random.integers(0, len(walk), len(walk[::3]))]
    return (walk / np.linalg.norm(walk, axis=1, keepdims=True)).astype(np.float32)


def make_city(connection: db.Connection, side: int, size_m: float, seed: int, sample: int, **options: Any) -> City:
    """A square of side x side blocks."""
    blocks = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)
    metres = ORIGIN + (blocks + 0.5) * BLOCK * size_m
    model: Model = write_model(connection, metres, size_m=size_m, seed=seed, texts=TEXTS, activate=False, **options)
    drawn = write_sample(connection, model, sample) if sample else np.empty((0, 256))
    return City(
        model.version,
        model.grid.cell_id,
        model.cells.astype(np.float64),
        corners_of(connection, model.grid.cell_id),
        drawn.astype(np.float64),
        {text: vector.astype(np.float64) for text, vector in model.texts.items()},
        options.get("hnsw", False),
    )


@pytest.fixture(scope="module")
def cities(cluster_dsn: str, template_database: str) -> Iterator[tuple[str, dict[str, City]]]:
    """Grids of several sizes in one place, one table and one database."""
    with _database(cluster_dsn, template_database) as dsn:
        with user_session(dsn) as connection:
            made = {
                "plain": make_city(connection, 8, 100.0, 0, 700),
                "alike": make_city(connection, 12, 70.0, 1, 1000, hnsw=True, embed=neighbours_alike),
                "hnsw": make_city(connection, 10, 80.0, 2, 1000, hnsw=True),
                "small": make_city(connection, 1, 500.0, 3, 1000, hnsw=True),
                "no sample": make_city(connection, 3, 250.0, 4, 0, hnsw=True),
            }
        with user_session(dsn, autocommit=True) as connection:
            connection.execute("ANALYZE")
        yield dsn, made


@pytest.fixture
def asking(cities: tuple[str, dict[str, City]]) -> Iterator[db.Connection]:
    """A transaction in the cities' database that is rolled back."""
    with rolled_back(cities[0]) as connection:
        yield connection


@pytest.fixture
def plain(asking: db.Connection, cities: tuple[str, dict[str, City]]) -> City:
    return use(asking, cities[1]["plain"])


def use(connection: db.Connection, city: City) -> City:
    connection.execute("SELECT callipper.activate(%s)", [city.version])
    return city


IN_ONE_TRANSACTION = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# Degrees; the cities begin at 3 E 49.65 N and reach some 0.06 degrees to the east and north.
LON, LAT = st.floats(2.98, 3.08), st.floats(49.64, 49.7)
SIZE = st.floats(-5, -1).map(lambda power: 10**power)
K = st.one_of(st.integers(1, 12), st.sampled_from([40, 41, 99, 100, 101, 1000, 1001, 10**6]))


@st.composite
def boxes(draw: st.DrawFn) -> Array:
    west, south, width, height = draw(LON), draw(LAT), draw(SIZE), draw(SIZE)
    return np.array([[west, south], [west, south + height], [west + width, south + height], [west + width, south]])


@st.composite
def triangles(draw: st.DrawFn) -> Array:
    first, turn = np.array([draw(LON), draw(LAT)]), draw(st.floats(0, 6.28))
    angles = turn + np.array([0, draw(st.floats(0.3, 2)), draw(st.floats(2.3, 4))])
    return first + draw(SIZE) * np.column_stack([np.cos(angles), np.sin(angles)])


@IN_ONE_TRANSACTION
@given(data=st.data())
def test_inside_an_area_the_answer_is_exact(
    asking: db.Connection, cities: tuple[str, dict[str, City]], data: st.DataObject
) -> None:
    city = use(asking, cities[1][data.draw(st.sampled_from(sorted(cities[1])))])
    text, k = data.draw(st.sampled_from(TEXTS)), data.draw(K)
    area = data.draw(boxes() | triangles())
    if data.draw(st.booleans()):
        area = area[::-1]
    rows = search(asking, text, k, wkt(area))
    check(rows, city, city.texts[text], k, intersects(area, city.corners))


@IN_ONE_TRANSACTION
@given(data=st.data())
def test_in_the_whole_city_the_answer_is_exact_without_an_index(
    asking: db.Connection, cities: tuple[str, dict[str, City]], data: st.DataObject
) -> None:
    # Where there is no sample to check an index by, none is asked.
    city = use(asking, cities[1][data.draw(st.sampled_from(["plain", "no sample"]))])
    text, k = data.draw(st.sampled_from(TEXTS)), data.draw(K)
    check(search(asking, text, k), city, city.texts[text], k)


@pytest.mark.parametrize("iterative", [None, "off", "strict_order", "relaxed_order"])
@pytest.mark.parametrize("name", ["alike", "hnsw", "small"])
def test_an_index_answers_nearly_as_well(
    asking: db.Connection, cities: tuple[str, dict[str, City]], name: str, iterative: str | None
) -> None:
    city = use(asking, cities[1][name])
    if iterative is not None:
        asking.execute("SELECT '[1]'::vector")
        asking.execute("SELECT set_config('hnsw.iterative_scan', %s, true)", [iterative])
    for k in (1, 10, 100):
        shares = []
        for text in TEXTS:
            similarity = np.sort(city.similarity(city.texts[text]))[::-1][:k]
            rows = search(asking, text, k)
            assert len(rows) == min(k, len(city.cell_id)) == len({row[0] for row in rows})
            shares.append(np.mean([row[1] >= similarity[-1] - TIE for row in rows]))
        assert np.mean(shares) >= 0.98
    check(search(asking, "pub", 101), city, city.texts["pub"], 101)  # beyond what the index is asked for
    check(search(asking, "pub", 10**6), city, city.texts["pub"], 10**6)


def index_scans(connection: db.Connection, city: City) -> int:
    """How often this transaction has asked the city's HNSW index."""
    row = connection.execute(
        "SELECT sum(pg_stat_get_xact_numscans(i.indexrelid))::int FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
        " JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'hnsw' AND i.indrelid = %s::regclass",
        [f"callipper.cell_embedding_v{city.version}"],
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_the_index_is_asked_for_the_whole_city_only(asking: db.Connection, cities: tuple[str, dict[str, City]]) -> None:
    city = use(asking, cities[1]["hnsw"])
    search(asking, "pub", 10)
    assert index_scans(asking, city) == 1
    # Whatever would make an index welcome.
    asking.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off")
    asking.execute("SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off")
    area = np.array([[3.0, 49.65], [3.0, 49.66], [3.01, 49.66], [3.01, 49.65]])
    rows = search(asking, "pub", 5, wkt(area))
    check(rows, city, city.texts["pub"], 5, intersects(area, city.corners))
    search(asking, "pub", 101)
    assert index_scans(asking, city) == 1


def test_an_index_that_got_lost_is_not_believed(asking: db.Connection, cities: tuple[str, dict[str, City]]) -> None:
    """The sample holds a cell that is nearer than all that the index finds: here one that is not in the index at all."""
    city = use(asking, cities[1]["hnsw"])
    found = "SELECT cell_ids IS NOT NULL FROM callipper._cells_by_index(%s, callipper.text_embed('pub'), %s::real[])"
    assert asking.execute(found, [city.version, [0.4, 0.5]]).fetchone() == (True,)
    assert asking.execute(found, [city.version, [-1.0, 0.5]]).fetchone() == (False,)
    asking.execute("INSERT INTO callipper.cell_sample VALUES (%s, -1, callipper.text_embed('pub'))", [city.version])
    rows = search(asking, "pub", 10)
    assert index_scans(asking, city) == 3
    with_it = City(**{**vars(city), "sample": np.vstack([city.sample, city.texts["pub"]])})
    check(rows, with_it, city.texts["pub"], 10)


@pytest.mark.parametrize(
    "definition",
    ["(emb vector_ip_ops)", "(emb vector_l2_ops) WHERE cell_id % 2 = 0", "((emb::halfvec(256)) halfvec_l2_ops)"],
)
def test_an_index_of_the_users_own_does_no_harm(asking: db.Connection, plain: City, definition: str) -> None:
    asking.execute(f"CREATE INDEX ON callipper.cell_embedding_v{plain.version} USING hnsw {definition}".encode())
    asking.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")
    check(search(asking, "pub", 60), plain, plain.texts["pub"], 60)
    area = np.array([[3.0, 49.65], [3.0, 49.66], [3.02, 49.66], [3.02, 49.65]])
    check(search(asking, "pub", 60, wkt(area)), plain, plain.texts["pub"], 60, intersects(area, plain.corners))


# What `within` may be


@pytest.mark.parametrize(
    "area",
    [
        "POINT(3.01003 49.66003)",
        "MULTIPOINT(3.01003 49.66003, 3.02003 49.67003)",
        "LINESTRING(3.01 49.66, 3.02 49.66)",
        "MULTIPOLYGON(((3.01 49.66, 3.01 49.67, 3.02 49.66, 3.01 49.66)), ((3.0 49.65, 3.0 49.651, 3.001 49.65, 3.0 49.65)))",
        "GEOMETRYCOLLECTION(POINT(3.01003 49.66003), POLYGON((3.0 49.65, 3.0 49.651, 3.001 49.65, 3.0 49.65)))",
        "CURVEPOLYGON(CIRCULARSTRING(3.01 49.66, 3.02 49.67, 3.03 49.66, 3.02 49.655, 3.01 49.66))",
        "POLYGON Z((3.01 49.66 5, 3.01 49.67 5, 3.02 49.66 5, 3.01 49.66 5))",
    ],
)
def test_any_kind_of_geometry_is_an_area(asking: db.Connection, plain: City, area: str) -> None:
    """Against PostGIS over straight lines: which cells it meets is asked cell by cell."""
    meets = dict(
        asking.execute(
            "SELECT cell_id, ST_Intersects(geom, ST_CurveToLine(ST_GeomFromEWKT(%s))) FROM callipper.cells",
            [f"SRID=4326;{area}"],
        ).fetchall()
    )
    counts = np.array([meets[cell_id] for cell_id in plain.cell_id.tolist()])
    assert 0 < counts.sum() < len(counts)
    check(search(asking, "park", 500, f"SRID=4326;{area}"), plain, plain.texts["park"], 500, counts)


def test_an_area_in_metres(asking: db.Connection, plain: City) -> None:
    """A square of the grid's own coordinates, a metre within the outlines of 3 x 2 cells."""
    west, south = (ORIGIN + np.array([501, 701])).tolist()
    ring = f"{west} {south},{west + 298} {south},{west + 298} {south + 198},{west} {south + 198},{west} {south}"
    rows = search(asking, "park", 100, f"SRID={SRID};POLYGON(({ring}))")
    assert len(rows) == 6
    assert rows == search(asking, "park", 100, transformed(asking, f"SRID={SRID};POLYGON(({ring}))"))


def transformed(connection: db.Connection, area: str) -> str:
    row = connection.execute("SELECT ST_AsEWKT(ST_Transform(ST_GeomFromEWKT(%s), 4326), 15)", [area]).fetchone()
    assert row is not None
    return str(row[0])


@pytest.mark.parametrize("area", ["POLYGON EMPTY", "POINT EMPTY", "GEOMETRYCOLLECTION EMPTY", "POINT(0 0)"])
def test_where_no_cell_is_there_is_no_row(asking: db.Connection, plain: City, area: str) -> None:
    for function in ("search", "search_points"):
        query = sql.SQL("SELECT * FROM callipper.{}('pub', 10, ST_GeomFromText(%s, 4326))")
        assert asking.execute(query.format(sql.Identifier(function)), [area]).fetchall() == []


def test_null_asks_nothing(asking: db.Connection, plain: City) -> None:
    for call in ("search(NULL)", "search_points(NULL)", "similar_to(NULL)", "similar_points_to(NULL, 3, NULL, 5)"):
        assert asking.execute(f"SELECT * FROM callipper.{call}".encode()).fetchall() == []
    assert search(asking, "pub", 3, None) == search(asking, "pub", 3)


# Training POIs


def vectors(connection: db.Connection, query: str, *values: Any) -> tuple[Array, Array]:
    """(N,) integer and (N, 256) float64 of a query's two columns."""
    key, emb = read_rows(connection, sql.SQL(query).format(*map(sql.Literal, values)), ["int8", "vector"], 256)  # type: ignore[arg-type]
    return key, emb.astype(np.float64)


@pytest.fixture
def town(reading: db.Connection) -> City:
    """The cells of the trained town."""
    cell_id, emb = vectors(reading, "SELECT cell_id, emb FROM callipper.cells ORDER BY cell_id")
    _, sample = vectors(reading, "SELECT number::bigint, emb FROM callipper.cell_sample WHERE version = 1")
    return City(1, cell_id, emb, corners_of(reading, cell_id), sample, {}, False)


def embedding(connection: db.Connection, call: str) -> Array:
    return vectors(connection, f"SELECT 1::bigint, callipper.{call}")[1][0]


@pytest.mark.parametrize("k", [1, 10, 1000])
def test_points_for_a_text_without_evidence(reading: db.Connection, town: City, k: int) -> None:
    reading.execute("DROP TABLE callipper.point_kind_v1")  # as a version of an earlier program; see test_evidence.py
    point_id, emb = vectors(reading, "SELECT point_id, emb FROM callipper.points ORDER BY point_id")
    points = City(1, point_id, emb, np.empty(0), town.sample, {}, False)
    about = {
        row[0]: row[1:]
        for row in reading.execute(
            "SELECT p.point_id, o.name, o.category, p.text, p.geom::text FROM callipper.point_embedding_v1 p"
            " JOIN callipper.poi o ON o.poi_id = p.point_id"
        )
    }
    for text in ("cafe", "park"):
        rows = reading.execute("SELECT * FROM callipper.search_points(%s, %s)", [text, k]).fetchall()
        check([(row[0], row[5], row[6]) for row in rows], points, embedding(reading, f"text_embed('{text}')"), k)
        assert all(about[row[0]] == row[1:5] for row in rows)
    inside = "SELECT point_id FROM callipper.points WHERE geom && ST_MakeEnvelope(5.11, 52.08, 5.13, 52.1, 4326)"
    counts = np.isin(point_id, [row[0] for row in reading.execute(inside.encode())])
    rows = reading.execute(
        "SELECT point_id, similarity, percentile"
        " FROM callipper.search_points('park', %s, ST_MakeEnvelope(5.11, 52.08, 5.13, 52.1, 4326))",
        [k],
    ).fetchall()
    check(rows, points, embedding(reading, "text_embed('park')"), k, counts)
    assert 0 < counts.sum() < len(counts)


def test_points_of_another_source_have_no_name(asking: db.Connection) -> None:
    model = write_model(asking, ORIGIN[None] + 5, seed=11, source="public.mine", size_m=900.0)
    rows = asking.execute(
        "SELECT point_id, name, category, text, percentile FROM callipper.search_points('pub')"
    ).fetchall()
    assert rows == [(1, None, "a pub", "a pub", None)] and len(model.points) == 1


# Examples


@pytest.mark.parametrize(
    ("likes", "dislikes"),
    [
        (["pub"], []),
        (["pub"], None),
        (["pub", "park", "pub"], []),
        (["pub", "PARK "], ["school"]),
        (["pub", "station"], ["pub", "fresh fish", "school"]),
        (["pub"], ["pub"]),
    ],
)
def test_examples_rank_by_mean_similarities(
    asking: db.Connection, plain: City, likes: list[str], dislikes: list[str] | None
) -> None:
    def mean(texts: list[str]) -> Array:
        return np.mean([plain.texts[text.strip().lower()] for text in texts], axis=0)

    wanted = mean(likes) - (0.5 * mean(dislikes) if dislikes else 0)
    area = np.array([[3.0, 49.65], [3.0, 49.66], [3.02, 49.66], [3.02, 49.65]])
    for within, counts in ((None, None), (wkt(area), intersects(area, plain.corners))):
        rows = asking.execute(
            "SELECT cell_id, similarity, percentile FROM callipper.search_by_examples(%s, %s, 50, ST_GeomFromEWKT(%s))",
            [likes, dislikes, within],
        ).fetchall()
        check(rows, plain, wanted / np.linalg.norm(wanted), 50, counts)


def test_a_single_example_is_a_search(asking: db.Connection, plain: City) -> None:
    by_example = asking.execute("SELECT cell_id FROM callipper.search_by_examples(ARRAY['park'])").fetchall()
    assert by_example == [row[:1] for row in search(asking, "park", 10)]


def test_examples_that_cancel_each_other_out(asking: db.Connection, plain: City) -> None:
    asking.execute(
        sql.SQL("UPDATE callipper.text_embedding SET emb = array_fill(-1, ARRAY[256])::vector * (SELECT emb FROM"
                " callipper.text_embedding t WHERE t.version = {0} AND t.text = 'pub') WHERE version = {0} AND text = 'park'"
        ).format(sql.Literal(plain.version))
    )  # fmt: skip
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="cancel each other out"):
        asking.execute("SELECT * FROM callipper.search_by_examples(ARRAY['pub', 'park'])")


# Places


def distance_m(centres: Array, spot: Array) -> Array:
    """(C,) metres from a point to the outlines of squares of the town's grid."""
    return np.linalg.norm(np.maximum(np.abs(centres - spot) - GRID_M / 2, 0), axis=1)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lon=st.floats(MIDDLE[0] - 0.03, MIDDLE[0] + 0.03),
    lat=st.floats(MIDDLE[1] - 0.02, MIDDLE[1] + 0.02),
    min_distance_m=st.sampled_from([0.0, 1.0, 75.0, 400.0, 2000.0, 1e5]) | st.floats(0, 6000),
    k=st.sampled_from([1, 10, 1000]),
    area=st.none() | st.just((5.11, 52.08, 5.13, 52.1)),
)
@example(lon=5.149, lat=52.109, min_distance_m=5e-324, k=10, area=None)
def test_cells_and_points_like_a_place(
    reading: db.Connection, town: City, lon: float, lat: float, min_distance_m: float, k: int, area: Any
) -> None:
    metric = f"ST_Transform(ST_SetSRID(ST_Point({lon!r}, {lat!r}), 4326), {TOWN_SRID})"
    row = reading.execute(f"SELECT ST_X(p), ST_Y(p) FROM {metric} p".encode()).fetchone()
    assert row is not None
    spot = np.array(row)
    question = embedding(reading, f"loc_embed(ST_SetSRID(ST_Point({lon!r}, {lat!r}), 4326))")
    centres = reading.execute("SELECT i, j FROM callipper.cell JOIN callipper.cells USING (cell_id) ORDER BY cell_id")
    away = distance_m((np.array(centres.fetchall()) + 0.5) * GRID_M, spot)
    counts = away >= min_distance_m
    if np.abs(away - min_distance_m).min() < 1e-3 and min_distance_m > 0:
        return  # too close to call
    within = None
    if area is not None:
        west, south, east, north = area
        outline = np.array([[west, south], [west, north], [east, north], [east, south]])
        within = wkt(outline)
        counts &= intersects(outline, town.corners)
    values = [lon, lat, k, within, min_distance_m]
    call = "callipper.{}(ST_SetSRID(ST_Point(%s, %s), 4326), %s, ST_GeomFromEWKT(%s), %s)"
    rows = reading.execute(
        f"SELECT cell_id, similarity, percentile FROM {call.format('similar_to')}".encode(), values
    ).fetchall()
    check(rows, town, question, k, counts)

    point_id, emb = vectors(reading, "SELECT point_id, emb FROM callipper.points ORDER BY point_id")
    places = np.array(
        reading.execute(
            f"SELECT ST_X(g), ST_Y(g), ST_X(p.geom), ST_Y(p.geom) FROM callipper.points p,"
            f" ST_Transform(p.geom, {TOWN_SRID}) g ORDER BY point_id".encode()
        ).fetchall()
    )
    counts = np.linalg.norm(places[:, :2] - spot, axis=1) >= min_distance_m
    if area is not None:
        counts &= ((places[:, 2:] >= [west, south]) & (places[:, 2:] <= [east, north])).all(axis=1)
    rows = reading.execute(
        f"SELECT point_id, similarity, percentile FROM {call.format('similar_points_to')}".encode(), values
    ).fetchall()
    check(rows, City(1, point_id, emb, np.empty(0), town.sample, {}, False), question, k, counts)


def test_the_distance_is_from_the_edge_of_a_place(reading: db.Connection, town: City) -> None:
    """A place that is an area is asked at its middle, but what is near is near to its edge."""
    place = "ST_Transform(ST_Buffer(ST_Transform(ST_SetSRID(ST_Point(5.12, 52.09), 4326), 32631), 600), 4326)"
    near = {row[0] for row in reading.execute(
        f"SELECT cell_id FROM callipper.cells WHERE ST_Distance(ST_Transform(geom, 32631), ST_Transform({place}, 32631)) < 300"
        .encode()
    )}  # fmt: skip
    rows = reading.execute(
        f"SELECT cell_id, similarity, percentile FROM callipper.similar_to({place}, 50, NULL, 300)".encode()
    ).fetchall()
    counts = ~np.isin(town.cell_id, list(near))
    assert 0 < counts.sum() < len(counts)
    check(rows, town, embedding(reading, f"loc_embed({place})"), 50, counts)


def test_a_quarter_is_like_itself(reading: db.Connection) -> None:
    """The middle of the parks is more like other parks than like other POIs."""
    rows = reading.execute(
        "SELECT category FROM callipper.similar_points_to(ST_SetSRID(ST_Point(5.1, 52.09), 4326), 20, NULL, 100)"
    ).fetchall()
    assert [row[0] for row in rows].count("park") >= 18


# An index and a distance


def test_an_index_and_what_is_excluded(asking: db.Connection, cities: tuple[str, dict[str, City]]) -> None:
    """Few excluded cells leave the answer to the index; of many, none that counts is lost."""
    city = use(asking, cities[1]["hnsw"])
    best = np.argsort(-city.similarity(city.texts["pub"]))
    for excluded, by_index in ((0, True), (500, True), (995, False), (len(best) - 5, False)):
        before = index_scans(asking, city)
        rows = asking.execute(
            "SELECT cell_id, similarity, percentile"
            " FROM callipper._best_cells(%s, callipper.text_embed('pub'), 10, NULL, %s::bigint[])",
            [city.version, city.cell_id[best[:excluded]].tolist()],
        ).fetchall()
        counts = np.ones(len(best), bool)
        counts[best[:excluded]] = False
        assert index_scans(asking, city) == before + 1
        if not by_index:
            check(rows, city, city.texts["pub"], 10, counts)
        assert len(rows) == min(10, counts.sum())
        assert np.isin([row[0] for row in rows], city.cell_id[counts]).all()


# Errors


@pytest.mark.parametrize(
    ("call", "error", "message", "hint"),
    [
        ("search('pub', 0)", psycopg.errors.InvalidParameterValue, "k is 0", "from 1 on"),
        ("search('pub', NULL)", psycopg.errors.InvalidParameterValue, "k is NULL", "from 1 on"),
        ("search(NULL, -3)", psycopg.errors.InvalidParameterValue, "k is -3", "from 1 on"),
        ("search_points('pub', 0)", psycopg.errors.InvalidParameterValue, "k is 0", "from 1 on"),
        ("search_by_examples(ARRAY['pub'], '{}', 0)", psycopg.errors.InvalidParameterValue, "k is 0", "from 1 on"),
        ("search('zoo')", psycopg.errors.NoDataFound, 'has not met the text "zoo"', "callipper-db remember"),
        ("search(' ')", psycopg.errors.InvalidParameterValue, "the text is empty", "a word or a phrase"),
        ("search('pub', 3, ST_Point(3, 49))", psycopg.errors.InvalidParameterValue, "no SRID", "ST_SetSRID"),
        ("search_points('pub', 3, ST_Point(3, 49))", psycopg.errors.InvalidParameterValue, "no SRID", "ST_SetSRID"),
        ("search_by_examples('{}')", psycopg.errors.InvalidParameterValue, "no example to like", "ARRAY"),
        ("search_by_examples(NULL)", psycopg.errors.InvalidParameterValue, "no example to like", "ARRAY"),
        ("search_by_examples(ARRAY['pub', NULL])", psycopg.errors.NullValueNotAllowed, "is NULL", "array_remove"),
        ("search_by_examples(ARRAY['pub'], ARRAY[NULL])", psycopg.errors.NullValueNotAllowed, "NULL", "array_remove"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    asking: db.Connection, plain: City, call: str, error: type[psycopg.Error], message: str, hint: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        asking.execute(f"SELECT * FROM callipper.{call}".encode())
    assert hint in (caught.value.diag.message_hint or "")


@pytest.mark.parametrize("distance", ["NULL", "-1", "'NaN'", "'Infinity'", "'-Infinity'"])
def test_a_distance_that_is_none_is_refused(reading: db.Connection, distance: str) -> None:
    for function in ("similar_to", "similar_points_to"):
        with reading.transaction(force_rollback=True), pytest.raises(psycopg.errors.InvalidParameterValue) as caught:
            call = f"callipper.{function}(ST_SetSRID(ST_Point(5.12, 52.09), 4326), 3, NULL, {distance})"
            reading.execute(f"SELECT * FROM {call}".encode())
        assert "min_distance_m is" in str(caught.value) and caught.value.diag.message_hint


@pytest.mark.parametrize("place", ["ST_Point(5.12, 52.09)", "ST_GeomFromText('POINT EMPTY', 4326)"])
def test_a_place_that_is_none_is_refused(reading: db.Connection, place: str) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue) as caught:
        reading.execute(f"SELECT * FROM callipper.similar_to({place}, 3, NULL, 50)".encode())
    assert caught.value.diag.message_hint


CALLS = (
    "search('pub')",
    "search_points('pub')",
    "search_by_examples(ARRAY['pub'])",
    "similar_to(public.ST_SetSRID(public.ST_Point(3, 49), 4326))",
    "similar_points_to(public.ST_SetSRID(public.ST_Point(3, 49), 4326))",
)


@pytest.mark.parametrize("call", CALLS)
def test_without_an_active_model(connection: db.Connection, call: str) -> None:
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="no model is active") as caught:
        connection.execute(f"SELECT * FROM callipper.{call}".encode())
    assert caught.value.diag.message_hint == "Train one with: callipper-db train"


# Who asks, when, and how


def test_an_activation_reaches_other_sessions(cluster_dsn: str, template_database: str) -> None:
    with _database(cluster_dsn, template_database) as dsn, user_session(dsn, autocommit=True) as session:
        with user_session(dsn) as other:
            first = make_city(other, 2, 100.0, 0, 200)
            second = make_city(other, 2, 100.0, 1, 200, hnsw=True)
            other.execute("SELECT callipper.activate(%s)", [first.version])
        session.execute("PREPARE asked (text) AS SELECT cell_id, similarity, percentile FROM callipper.search($1, 7)")
        for city in (first, second, first, second):
            with user_session(dsn) as other:
                other.execute("SELECT callipper.activate(%s)", [city.version])
            for _ in range(7):  # the plan becomes a generic one
                check(session.execute("EXECUTE asked('pub')").fetchall(), city, city.texts["pub"], 7)
        # Within a transaction, too; what is asked later is asked of the model that is active by then.
        with session.transaction():
            check(search(session, "pub", 7), second, second.texts["pub"], 7)
            with user_session(dsn) as other:
                other.execute("SELECT callipper.activate(%s)", [first.version])
            check(search(session, "pub", 7), first, first.texts["pub"], 7)
            with user_session(dsn) as other:
                third = make_city(other, 1, 100.0, 2, 25)
                other.execute("SELECT callipper.activate(%s)", [third.version])
            check(search(session, "pub", 7), third, third.texts["pub"], 7)


def test_a_transaction_that_keeps_its_snapshot_keeps_its_model(cluster_dsn: str, template_database: str) -> None:
    with _database(cluster_dsn, template_database) as dsn, psycopg.connect(dsn) as session:
        with user_session(dsn) as other:
            first = use(other, make_city(other, 1, 100.0, 0, 25))
        session.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        check(search(session, "pub", 7), first, first.texts["pub"], 7)
        with user_session(dsn) as other:
            second = use(other, make_city(other, 1, 100.0, 1, 25))
        check(search(session, "pub", 7), first, first.texts["pub"], 7)
        session.rollback()
        check(search(session, "pub", 7), second, second.texts["pub"], 7)


def test_a_dropped_model_takes_its_sample_along(asking: db.Connection, plain: City) -> None:
    count = "SELECT count(*) FROM callipper.cell_sample WHERE version = %s"
    assert asking.execute(count, [plain.version]).fetchone() == (700,)
    asking.execute("SELECT callipper.drop_model(%s, true)", [plain.version])
    assert asking.execute(count, [plain.version]).fetchone() == (0,)


@pytest.mark.parametrize(
    "setting",
    ["search_path = ''", "search_path = pg_temp", "transaction_read_only = on", "role = callipper_reader", "jit = on"],
)
@pytest.mark.parametrize("name", ["plain", "hnsw"])
def test_anyone_may_ask_anyhow(
    asking: db.Connection, cities: tuple[str, dict[str, City]], name: str, setting: str
) -> None:
    use(asking, cities[1][name])
    calls = [call for call in CALLS if not call.startswith("similar")] + [
        "search('pub', 3, public.ST_MakeEnvelope(3, 49.65, 3.01, 49.66, 4326))"
    ]
    queries = [f"SELECT t::text FROM callipper.{call} t".encode() for call in calls]
    expected = [asking.execute(query).fetchall() for query in queries]
    asking.execute(f"SET LOCAL {setting}".encode())
    assert [asking.execute(query).fetchall() for query in queries] == expected
    assert all(expected)


def test_similar_places_for_a_reader(shared_town: str) -> None:
    with psycopg.connect(make_conninfo(shared_town)) as connection:
        queries = [f"SELECT t::text FROM callipper.{call} t".encode() for call in CALLS[3:]]
        expected = [connection.execute(query.replace(b"3, 49", b"5.12, 52.09")).fetchall() for query in queries]
        connection.execute(
            "SET LOCAL ROLE callipper_reader; SET LOCAL search_path = ''; SET transaction_read_only = on"
        )
        assert [connection.execute(query.replace(b"3, 49", b"5.12, 52.09")).fetchall() for query in queries] == expected
        assert all(expected)


def test_settings_stay_the_sessions_own(asking: db.Connection, cities: tuple[str, dict[str, City]]) -> None:
    use(asking, cities[1]["hnsw"])
    names = ("hnsw.ef_search", "enable_seqscan", "jit", "parallel_setup_cost", "search_path")
    asking.execute("SET LOCAL hnsw.ef_search = 77")

    def shown() -> list[Any]:
        return [asking.execute("SELECT current_setting(%s)", [name]).fetchone() for name in names]

    before = shown()
    search(asking, "pub", 10)
    search(asking, "pub", 10, "SRID=4326;POINT(3.01 49.66)")
    assert shown() == before
    with pytest.raises(psycopg.errors.NoDataFound), asking.transaction():
        search(asking, "zoo", 10)
    assert shown() == before


def test_beside_parallel_workers(asking: db.Connection, cities: tuple[str, dict[str, City]]) -> None:
    """Functions that carry settings may be called while workers are busy for the same query."""
    city = use(asking, cities[1]["hnsw"])
    for setting in ("parallel_setup_cost", "parallel_tuple_cost", "min_parallel_table_scan_size"):
        asking.execute(f"SET LOCAL {setting} = 0".encode())
    query = (
        "SELECT s.cell_id, s.similarity, s.percentile FROM callipper.cell c JOIN callipper.search('pub', 9) s USING (cell_id)"
        " WHERE c.i + c.j > -1e9 ORDER BY s.similarity DESC, s.cell_id"
    )
    asking.execute("SET LOCAL enable_nestloop = off")
    plan = "\n".join(row[0] for row in asking.execute(f"EXPLAIN {query}".encode()).fetchall())
    assert "Gather" in plan and "Parallel Seq Scan on cell" in plan
    before = index_scans(asking, city)
    rows = asking.execute(query.encode()).fetchall()
    assert len(rows) == 9 and index_scans(asking, city) == before + 1
    assert rows == search(asking, "pub", 9)


def test_texts_of_a_table(asking: db.Connection, plain: City) -> None:
    rows = asking.execute(
        "SELECT text, cell_id, similarity, percentile FROM unnest(%s::text[]) WITH ORDINALITY AS t(text, n),"
        " LATERAL callipper.search(text, 4) ORDER BY n, similarity DESC",
        [list(TEXTS)],
    ).fetchall()
    assert len(rows) == 4 * len(TEXTS)
    for number, text in enumerate(TEXTS):
        check([row[1:] for row in rows[4 * number : 4 * number + 4]], plain, plain.texts[text], 4)


@pytest.mark.parametrize(
    "call",
    [
        "search('park', k => {k})",
        "search_points('park', k => {k})",
        "search_by_examples(ARRAY['park'], k => {k})",
        "similar_to((SELECT geom FROM points LIMIT 1), k => {k})",
        "similar_points_to((SELECT geom FROM points LIMIT 1), k => {k})",
        "describe((SELECT ST_Centroid(ST_Collect(geom)) FROM points WHERE text = 'hospital'), k => {k})",
        "callipper_map.find_cells('park', k => {k})",
    ],
)
def test_k_may_be_any_integer(reading: db.Connection, call: str) -> None:
    """Drivers such as JDBC send a long; a number that no city has rows for gives all of them."""
    few = reading.execute(f"SELECT count(*) FROM {call.format(k='2::bigint')}".encode()).fetchone()
    same = reading.execute(f"SELECT count(*) FROM {call.format(k='2::smallint')}".encode()).fetchone()
    every = reading.execute(f"SELECT count(*) FROM {call.format(k='9223372036854775807')}".encode()).fetchone()
    assert few == same == (2,)
    assert every is not None and every[0] > 2


@pytest.mark.parametrize("name", ["search", "search_points", "search_by_examples", "similar_to", "similar_points_to"])
def test_the_manual_has_an_example_that_runs(reading: db.Connection, name: str) -> None:
    row = reading.execute(
        "SELECT obj_description(oid, 'pg_proc') FROM pg_proc WHERE proname = %s AND pronamespace = 'callipper'::regnamespace",
        [name],
    ).fetchone()
    assert row is not None
    start = row[0].index("SELECT * FROM " + name)
    example = row[0][start : end_of_call(row[0], start)]
    texts = {"quiet park": "park", "nightclub": "cafe"}
    for text, known in texts.items():
        example = example.replace(f"'{text}'", f"'{known}'")
    example = example.replace("7.4206, 43.7326", "5.12, 52.09").replace(
        "7.41, 43.72, 7.43, 43.74", "5.11, 52.08, 5.13, 52.1"
    )
    assert len(reading.execute(example.encode()).fetchall()) == 10


def end_of_call(text: str, start: int) -> int:
    """Where the first parenthesis after start is closed."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0 and text[place] == ")":
            return place + 1
    raise AssertionError("a parenthesis is not closed")


@pytest.mark.parametrize(
    "attributes",
    [
        {"name": "Hof", "name:fr": "Le Park"},  # OpenStreetMap's
        {"names": {"fr": "Le Park", "en": "The Yard"}},  # Overture's
    ],
)
def test_a_poi_is_found_by_its_name_in_another_language(reading: db.Connection, attributes: dict[str, Any]) -> None:
    chosen = (
        "SELECT point_id, name FROM callipper.points WHERE name <> '' AND name NOT ILIKE '%park%' ORDER BY 1 LIMIT 1"
    )
    row = reading.execute(chosen).fetchone()
    assert row is not None
    query = "SELECT point_id, name FROM callipper.search_points('park', 10000) WHERE because = 'name'"
    change = "UPDATE callipper.poi SET attributes = %s WHERE poi_id = %s"
    assert row not in reading.execute(query).fetchall()
    reading.execute(change, [Jsonb(attributes), row[0]])
    assert row in reading.execute(query).fetchall()
    reading.execute(change, [Jsonb({"note": "le park"}), row[0]])
    assert row not in reading.execute(query).fetchall()


def test_names_in_other_languages_are_found_by_an_index(reading: db.Connection) -> None:
    reading.execute("SET LOCAL enable_seqscan = off")
    names = f"jsonb_to_tsvector('simple', jsonb_path_query_array(attributes, '{OTHER_NAMES}'), '[\"string\"]')"
    query = f"SELECT FROM callipper.poi WHERE ({HAS_OTHER_NAMES}) AND {names} @@ 'tor'::tsquery"
    plan = reading.execute(f"EXPLAIN {query}".encode()).fetchall()
    assert any("poi_other_names_idx" in line for (line,) in plan)
    (source,) = reading.execute("SELECT prosrc FROM pg_proc WHERE proname = '_relevant_points'").fetchone() or ("",)
    assert OTHER_NAMES in source, "search_points asks by the path of the index"
