"""The fast way of Arrow's columns into the database, against Python's json module and the row-by-row way."""

from __future__ import annotations

import json
import struct
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from callipper_db.load import load
from callipper_db.read.arrow import ArrowColumn, ArrowColumns, WkbColumn, plain
from callipper_db.read.arrow_copy import binary_of, bulk_binary
from callipper_db.read.arrow_json import json_objects, json_texts
from callipper_db.read.bulk import json_of
from callipper_db.read.columns import LoadOptions, find_columns
from callipper_db.read.place import NOTHING, Place, Rules, name_of, to_json, words_of
from callipper_db.read.record import Block, LeftOut, Reader, Refused, mapped
from callipper_db.upsert import MANY
from sessions import user_session

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
PLAIN: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (pa.string(), texts),
    (pa.large_string(), texts),
    (pa.dictionary(pa.int32(), pa.string()), texts),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.uint8(), st.integers(0, 255)),
    (pa.float64(), st.floats()),
    (pa.float32(), st.floats(width=32)),
    (pa.bool_(), st.booleans()),
    (pa.timestamp("ms"), st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1))),
    (pa.null(), st.none()),
    (pa.map_(pa.string(), pa.string()), st.lists(st.tuples(texts, texts), max_size=2)),
]
Typed = tuple[Any, st.SearchStrategy[Any]]


def nested(inner: st.SearchStrategy[Typed]) -> st.SearchStrategy[Typed]:
    def as_list(typed: Typed) -> Typed:
        return pa.list_(typed[0]), st.lists(st.none() | typed[1], max_size=3)

    def as_struct(fields: dict[str, Typed]) -> Typed:
        kind = pa.struct([(name, typed[0]) for name, typed in fields.items()])
        return kind, st.fixed_dictionaries({name: st.none() | typed[1] for name, typed in fields.items()})

    return inner.map(as_list) | st.dictionaries(texts, inner, min_size=1, max_size=3).map(as_struct)


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    """An array of any type, nested or not, perhaps a slice of a longer one."""
    kind, values = draw(st.recursive(st.sampled_from(PLAIN), nested, max_leaves=5))
    array = pa.array(draw(st.lists(st.none() | values, max_size=6)), kind)
    return array.slice(draw(st.integers(0, len(array))))


UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@UNTIMED
@given(arrays())
def test_json_as_the_json_module_has_it(array: Any) -> None:
    written = json_texts(array, json_of).to_pylist()
    expected = [None if value is None else json.loads(to_json(value)) for value in plain(array)]
    assert [None if text is None else json.loads(text) for text in written] == [
        None if text is None else value for text, value in zip(written, expected, strict=True)
    ]
    assert [text in (None, "null") for text in written] == [value is None for value in expected]


def test_objects_have_no_empty_members() -> None:
    columns = {'a"b': pa.array(['"x"', '""', None]), "c": pa.array(["[1]", None, None])}
    assert json_objects(columns, 3).to_pylist() == ['{"a\\"b":"x","c":[1]}', "{}", "{}"]
    assert json_objects({}, 2).to_pylist() == ["{}", "{}"]


cells = st.one_of(
    st.none(),
    texts,
    st.sampled_from(["", " ", "0", "x" * 501, "\0", "\U0010ffff", "[[[[", "a;b", "\x1f", "\x01", '"', "\\u0000"]),
)
numbers = st.one_of(st.none(), st.floats(), st.floats(-90, 90), st.sampled_from([0.0, -0.0, 90.0, 180.0, 181.0]))


@UNTIMED
@given(
    st.lists(st.tuples(*[cells] * 5, numbers, numbers, cells), min_size=1, max_size=5),
    st.booleans(),
    st.sampled_from([{}, {"note": "0"}]),
)
def test_binary_rows_equal_row_by_row(table: list[tuple[Any, ...]], degrees: bool, where: dict[str, str]) -> None:
    """The fast way either leaves a block to the slow one or sends what the slow one would."""
    names = ["id", "name", "category", "description", "source", "lon", "lat", "note"]
    kinds = [pa.string()] * 5 + [pa.float64()] * 2 + [pa.string()]
    made = [pa.array(column, kind) for column, kind in zip(zip(*table, strict=True), kinds, strict=True)]
    block = Block(5, ArrowColumns(pa.record_batch(made, names)))
    columns = find_columns(Path("a.parquet"), Reader(iter(()), names), LoadOptions())
    rules = Rules(columns, where, "a", True, degrees)
    prepared, left_out = rules.prepare(block)
    fast = bulk_binary(prepared, rules)
    places = [rules.place_of(record) for record in block.records()]
    assert sum(isinstance(place, LeftOut) for place in places) == left_out.total()
    if fast is not None:
        assert not any(isinstance(place, Refused) for place in places)
        sound = [place for place in places if isinstance(place, Place)]
        assert copied(fast) == copied(binary_of(sound)) == [as_copied(place) for place in sound]


def copied(data: bytes) -> list[tuple[Any, ...]]:
    """The rows of a binary COPY into poi_load."""
    found, at = [], 0
    while at < len(data):
        (fields,) = struct.unpack_from(">h", data, at)
        at, row = at + 2, []
        for _ in range(fields):
            (length,) = struct.unpack_from(">i", data, at)
            row.append(data[at + 4 : at + 4 + length] if length >= 0 else None)
            at += 4 + max(length, 0)
        number, *words, x, y, shape, attributes = row
        assert number and attributes and attributes[:1] == b"\1"
        floats = [None if value is None else struct.unpack(">d", value)[0] for value in (x, y)]
        decoded = [None if word is None else word.decode() for word in [*words, shape]]
        found.append((struct.unpack(">q", number)[0], *decoded[:-1], *floats, decoded[-1], json.loads(attributes[1:])))
    return found


def as_copied(place: Place) -> tuple[Any, ...]:
    return (*place[:-1], json.loads(place.attributes))


def wkb(*numbers: float, order: str = "<", kind: int = 1) -> bytes:
    return struct.pack(f"{order}BI{len(numbers)}d", order == "<", kind, *numbers)


@pytest.mark.parametrize(
    ("values", "fast"),
    [
        ([wkb(1, 2), wkb(3, 4)], True),
        ([wkb(1, 2, 9, kind=1001), wkb(3, 4, 9, kind=1001)], True),
        ([wkb(1, 2, 9, kind=0x80000001), wkb(3, 4, 9, kind=0x80000001)], True),
        ([wkb(1, 2), wkb(3, 4, 9, kind=1001)], False),
        ([wkb(1, 2), wkb(3, 4, kind=2)], False),
        ([wkb(1, 2, order=">"), wkb(3, 4, order=">")], False),
        ([wkb(1, 2), None], False),
        ([wkb(1, 2, 9, kind=2001), wkb(1, 2, 9, kind=2001)], False),  # with a measure
    ],
)
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_points_of_wkb(values: list[bytes | None], fast: bool, kind: Any) -> None:
    array = pa.array([wkb(9, 9), *values], kind).slice(1)
    column = WkbColumn(array)
    expected = [
        None if value is None else struct.unpack_from("<dd", value, 5) if value[:1] == b"\1" else value.hex()
        for value in values
    ]
    if fast:
        assert column.points is not None
        assert list(zip(*map(np.ndarray.tolist, column.points), strict=True)) == expected
        assert list(column) == expected
    else:
        assert column.points is None
    assert list(column.keep([False, True])) == list(column)[1:]


# Many rows into an empty table


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of so many rows that the spatial index is made after them."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(1)
    columns = {
        "id": [str(number) for number in range(MANY)],
        "category": ["cafe"] * MANY,
        "lon": random.normal(4.9, 0.1, MANY),
        "lat": random.normal(52.3, 0.1, MANY),
    }
    pq.write_table(pa.table(columns), tmp_path / "many.parquet")
    return tmp_path / "many.parquet"


INDEXES = (
    "SELECT indexrelid, pg_get_indexdef(indexrelid), conname, pg_get_constraintdef(k.oid) FROM pg_index"
    " LEFT JOIN pg_constraint k ON conindid = indexrelid WHERE indrelid = 'callipper.poi'::regclass ORDER BY 2"
)
NEAR = "SELECT count(*) FROM callipper.poi WHERE geom && ST_MakeEnvelope(4.9, 52.3, 5, 52.4, 4326)"


def test_indexes_are_made_after_many_rows(database: str, many: Path) -> None:
    with user_session(database, autocommit=True) as connection:
        before = connection.execute(INDEXES).fetchall()
        load(database, [many])
        after = connection.execute(INDEXES).fetchall()
        assert [row[1:] for row in before] == [row[1:] for row in after]
        assert [one[0] == other[0] for one, other in zip(before, after, strict=True)].count(True) == 1, (
            "the primary key"
        )
        connection.execute("SET enable_bitmapscan = off; SET enable_indexscan = off; SET enable_indexonlyscan = off")
        by_scan = connection.execute(NEAR).fetchone()
        connection.execute("RESET ALL")
        connection.execute("SET enable_seqscan = off")
        plan = "\n".join(str(row[0]) for row in connection.execute(f"EXPLAIN {NEAR}"))
        assert "poi_geom_idx" in plan
        assert connection.execute(NEAR).fetchone() == by_scan
    assert load(database, [many]).total("unchanged") == MANY


def test_a_reader_is_not_waited_for(database: str, many: Path) -> None:
    """A transaction that has read the empty table keeps its lock on it; the load goes on with the index in place."""
    with user_session(database) as reader:
        before = reader.execute(INDEXES).fetchall()
        assert reader.execute("SELECT count(*) FROM callipper.poi").fetchone() == (0,)
        assert load(database, [many]).total("inserted") == MANY
        reader.rollback()
        assert reader.execute(INDEXES).fetchall() == before


def test_an_index_that_a_foreign_key_needs_stays(database: str, many: Path) -> None:
    with user_session(database, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE public.visit (source text, source_id text, FOREIGN KEY (source, source_id) REFERENCES"
            " callipper.poi (source, source_id))"
        )
        before = connection.execute(INDEXES).fetchall()
        assert load(database, [many]).total("inserted") == MANY
        after = connection.execute(INDEXES).fetchall()
        assert [row[0] for row in before if "poi_source" in row[1]] == [
            row[0] for row in after if "poi_source" in row[1]
        ]


def test_a_load_that_fails_leaves_the_index(database: str, many: Path) -> None:
    with user_session(database, autocommit=True) as connection:
        before = connection.execute(INDEXES).fetchall()
        connection.execute("ALTER TABLE callipper.poi ADD CONSTRAINT no_cafe CHECK (category <> 'cafe')")
        with pytest.raises(Exception, match="no_cafe"):
            load(database, [many])
        assert connection.execute(INDEXES).fetchall() == before
        assert connection.execute("SELECT count(*) FROM callipper.poi").fetchone() == (0,)


@given(
    st.lists(st.none() | st.text(st.sampled_from("a\x1c\x85\xa0 \t\u2003\u200bé")) | st.sampled_from(["NA", " null "]))
)
def test_texts_are_stripped_as_python_does(texts: list[str | None]) -> None:
    column = ArrowColumn(pa.array(texts, pa.string())).stripped(NOTHING)
    assert column is not None
    assert column.values == [name_of(text) for text in texts]


@given(st.lists(st.none() | st.lists(st.none() | st.sampled_from(["", "a", "b"]), max_size=3)), st.integers(0, 3))
def test_the_first_text_of_each_list(lists: list[list[str | None] | None], start: int) -> None:
    array = pa.array(lists, pa.list_(pa.string()))[start:]
    first = ArrowColumn(array).first_texts()
    if all(not listed or listed[0] for listed in lists[start:]):
        assert first is not None
        assert first.values == [listed[0] if listed else None for listed in lists[start:]]
    else:
        assert first is None


@given(st.lists(st.none() | st.sampled_from(["a;b", "Pub", "[1", "é"])))
def test_each_distinct_text_is_mapped_once(texts: list[str | None]) -> None:
    seen: list[str] = []

    def words(text: str) -> str | None:
        seen.append(text)
        return words_of(text)

    column = mapped(ArrowColumn(pa.array(texts, pa.string())), words)
    assert list(column) == [words_of(text) for text in texts]
    assert len(seen) == len(set(texts) - {None})
