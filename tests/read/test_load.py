"""POIs in: every format, every kind of bad input, and that loading twice changes nothing."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import struct
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from callipper_db.errors import (
    BadInput,
    CallipperError,
    ConnectionLost,
    MissingExtra,
    NothingLeft,
    NotInitialised,
    TooManyRejects,
)
from callipper_db.load import COUNTS, STAGING, FileSummary, LoadOptions, load, source_name
from callipper_db.progress import Silent
from callipper_db.read import Block, LeftOut, Reader, Record, Refused, open_reader
from callipper_db.read.bulk import DELIMITER, QUOTE, bulk_csv, csv_of
from callipper_db.read.columns import find_columns
from callipper_db.read.place import Place, Rules
from callipper_db.read.text import MAX_LINE
from callipper_db.upsert import DIFF, DROP_DUPLICATES, HASH_JOINS, REMOVE_UNSEEN, SEEN
from sessions import end_other_sessions, user_session


def zipped(text: bytes) -> bytes:
    """The same bytes at any time, since they are in the names of tests."""
    return gzip.compress(text, mtime=0)


HEADER = "id,name,category,lon,lat\n"
pytestmark = pytest.mark.usefixtures("folder")
CAFE = "1,Blue Door,Cafe,-0.1276,51.5072\n"
PUB = "2,The Crown,Pub,-0.1,51.5\n"
LONDON = (-0.1276, 51.5072)
# Caister water tower in the Ordnance Survey's "A guide to coordinate systems in Great Britain": OSGB36 and ETRS89.
CAISTER_GRID, CAISTER = (651409.903, 313177.270), (1.716038, 52.657977)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def load_one(dsn: str, path: Path, **options: Any) -> FileSummary:
    file = load(dsn, [path], LoadOptions(**options)).files[0]
    assert file.rows == sum(getattr(file, count) for count in COUNTS if count != "rows")
    assert file.rejected == sum(file.reasons.values())
    return file


def rows(dsn: str, columns: str = "source_id, name, category, ST_X(geom), ST_Y(geom)") -> list[tuple[Any, ...]]:
    with user_session(dsn) as connection:
        return connection.execute(f"SELECT {columns} FROM callipper.poi ORDER BY source, source_id").fetchall()


def rejected(path: Path) -> list[tuple[str, str, str]]:
    """(row, reason, content) of a rejects file."""
    with open(path, encoding="utf-8", newline="") as file:
        return [(row["row"], row["reason"], row["content"]) for row in csv.DictReader(file)]


def fails(dsn: str, path: Path, match: str, error: type[CallipperError] = BadInput, **options: Any) -> None:
    """Loading is refused; nothing is in the table, no rejects file is left."""
    with pytest.raises(error, match=match) as caught:
        load(dsn, [path], LoadOptions(**options))
    assert str(path) in str(caught.value)
    assert rows(dsn) == []
    assert not list(Path.cwd().glob("*.rejects.csv"))


# Formats


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", HEADER + CAFE + PUB),
        ("a.txt", (HEADER + CAFE + PUB).replace(",", ";")),
        ("a", (HEADER + CAFE + PUB).replace(",", "|")),
        ("a.tsv", (HEADER + CAFE + PUB).replace(",", "\t")),
        ("a.CSV", "\ufeff" + (HEADER + CAFE + PUB).replace("\n", "\r\n")),
        ("a.csv", (HEADER + "\n" + CAFE + "\n\n" + PUB).rstrip("\n")),
        ("a.csv", "ID, Title ,KIND,Longitude,LATITUDE\n" + CAFE + PUB),
        ("a.csv", HEADER.replace("lon,lat", "x,y") + CAFE + PUB),
        ("a.csv.gz", zipped((HEADER + CAFE + PUB).encode())),
        ("a.csv", zipped((HEADER + CAFE + PUB).encode())),
        ("a.tsv.gz", zipped((HEADER + CAFE + PUB).replace(",", "\t").encode())),
    ],
)
def test_delimited_text(database: str, folder: Path, name: str, content: str | bytes) -> None:
    file = load_one(database, write(folder / name, content))
    assert (file.rows, file.inserted, file.rejects) == (2, 2, None)
    assert rows(database) == [("1", "Blue Door", "Cafe", *LONDON), ("2", "The Crown", "Pub", -0.1, 51.5)]
    assert rows(database, "source") == [("a",)] * 2
    assert not list(folder.glob("*.rejects.csv"))


def test_quoted_newlines_quotes_and_delimiters(database: str, folder: Path) -> None:
    text = HEADER + '1,"Blue\nDoor, ""Inn""","Cafe\r\nBar",-0.1276,51.5072\n' + PUB
    load_one(database, write(folder / "a.csv", text))
    assert rows(database)[0] == ("1", 'Blue\nDoor, "Inn"', "Cafe\r\nBar", *LONDON)
    assert len(rows(database)) == 2


def test_columns_of_csv(database: str, folder: Path) -> None:
    """`category` goes before `label`; other columns that hold something become attributes."""
    text = "id,name,label,category,group,lon,lat,source,description,opened,note\n"
    text += "7,Bo's,Corner shop,convenience,Retail,-0.1,51.5,survey,Sells milk,1999,\n"
    load_one(database, write(folder / "a.csv", text))
    columns = "source, source_id, name, category, category_group, description, attributes"
    attributes = {"label": "Corner shop", "opened": "1999"}
    assert rows(database, columns) == [("survey", "7", "Bo's", "convenience", "Retail", "Sells milk", attributes)]


def test_columns_by_option(database: str, folder: Path) -> None:
    text = "id,ref,name,what,sort,about,east,north,origin\n7,R1,Bo's,Shop,Retail,Milk,-0.1,51.5,survey\n"
    named = {"id": "ref", "category": "what", "group": "SORT", "description": "about", "lon": "east", "lat": "north"}
    options = {f"{part}_column": column for part, column in named.items()} | {"source_column": "origin"}
    load_one(database, write(folder / "a.csv", text), **options)
    columns = "source, source_id, name, category, category_group, description, attributes"
    assert rows(database, columns) == [("survey", "R1", "Bo's", "Shop", "Retail", "Milk", {"id": "7"})]


def test_source_option_overrides_the_column(database: str, folder: Path) -> None:
    text = "id,category,lon,lat,source\n1,Cafe,0,0,x\n"
    load_one(database, write(folder / "a.csv", text), source="mine")
    assert rows(database, "source") == [("mine",)]


def test_empty_source_falls_back_to_the_file(database: str, folder: Path) -> None:
    load_one(database, write(folder / "pois.csv", "id,category,lon,lat,source\n1,Cafe,0,0,\n2,Cafe,0,0,x\n"))
    assert rows(database, "source") == [("pois",), ("x",)]


@pytest.mark.parametrize(
    ("name", "source"),
    [("london_pois.csv.gz", "london_pois"), ("a.osm.pbf", "a"), ("v1.2.geojson", "v1.2"), ("plain", "plain")],
)
def test_source_name(name: str, source: str) -> None:
    assert source_name(Path("somewhere") / name) == source


def test_made_ids_are_stable(database: str, folder: Path) -> None:
    text = "name,category,lon,lat\nBlue Door,Cafe,-0.12760000001,51.5072\n,Pub,-0.1,51.5\n"
    load_one(database, write(folder / "a.csv", text))
    first = rows(database)
    file = load_one(database, write(folder / "a.csv", text.replace("-0.12760000001", "-0.1276")))
    assert (file.updated, file.unchanged) == (1, 1)
    assert [row[0] for row in rows(database)] == [row[0] for row in first]
    assert len({row[0] for row in first}) == 2


@pytest.mark.parametrize("wkt", ["POINT(-0.1276 51.5072)", "SRID=27700;POINT(651409.903 313177.270)", "0101000000{}{}"])
def test_geometry_column(database: str, folder: Path, wkt: str) -> None:
    wkt = wkt.format(*(struct.pack("<d", value).hex() for value in LONDON))
    load_one(database, write(folder / "a.csv", f'id,category,geom\n1,Cafe,"{wkt}"\n'))
    ((x, y),) = rows(database, "ST_X(geom), ST_Y(geom)")
    assert (x, y) == pytest.approx(CAISTER if "27700" in wkt else LONDON, abs=1e-4)


def test_polygon_gets_a_point_inside(database: str, folder: Path) -> None:
    """A U-shape, whose centroid lies outside."""
    wkt = "POLYGON((0 0, 10 0, 10 10, 9 10, 9 1, 1 1, 1 10, 0 10, 0 0))"
    load_one(database, write(folder / "a.csv", f'id,category,wkt\n1,Park,"{wkt}"\n'))
    with user_session(database) as connection:
        inside = "SELECT ST_Contains(ST_GeomFromText(%s, 4326), geom) FROM poi"
        assert connection.execute(inside, [wkt]).fetchone() == (True,)


def test_projected_coordinates(database: str, folder: Path) -> None:
    load_one(
        database, write(folder / "a.csv", "id,category,easting,northing\n1,Cafe,651409.903,313177.270\n"), srid=27700
    )
    ((x, y),) = rows(database, "ST_X(geom), ST_Y(geom)")
    assert (x, y) == pytest.approx(CAISTER, abs=1e-4)


def feature(identity: int | None, geometry: Any, **properties: Any) -> dict[str, Any]:
    start = {"type": "Feature"} | ({} if identity is None else {"id": identity})
    return start | {"geometry": geometry, "properties": properties}


def point(x: float, y: float) -> dict[str, Any]:
    return {"type": "Point", "coordinates": [x, y]}


SQUARE = {"type": "Polygon", "coordinates": [[[0, 0], [2, 0], [2, 2], [0, 2], [0, 0]]]}
FEATURES = [
    feature(1, point(*LONDON), name="Blue Door", amenity="Cafe", tags={"wifi": True, "seats": [1, 2.5]}, empty=None),
    feature(2, SQUARE, name="Green", amenity="Park", extra="only here"),
]


def collection(*features: dict[str, Any], **members: Any) -> str:
    return json.dumps({"type": "FeatureCollection", "features": features} | members)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.geojson", collection(*FEATURES)),
        ("a.json", json.dumps(json.loads(collection(*FEATURES)), indent=2)),
        ("a.geojson.gz", zipped(collection(*FEATURES).encode())),
        ("a.geojsonl", "\n".join(map(json.dumps, FEATURES))),
        ("a.ndjson.gz", zipped("\n".join(map(json.dumps, FEATURES)).encode())),
        ("a.geojsons", "".join(f"\x1e{json.dumps(item)}\n" for item in FEATURES)),
        ("a.json", "\n".join(map(json.dumps, FEATURES)) + "\n\n"),
    ],
)
def test_geojson(database: str, folder: Path, name: str, content: str | bytes) -> None:
    load_one(database, write(folder / name, content))
    assert rows(database, "source_id, name, category, attributes") == [
        ("1", "Blue Door", "Cafe", {"amenity": "Cafe", "tags": {"wifi": True, "seats": [1, 2.5]}}),
        ("2", "Green", "Park", {"amenity": "Park", "extra": "only here"}),
    ]
    (first, second) = rows(database, "ST_X(geom), ST_Y(geom)")
    assert first == LONDON
    assert 0 < second[0] < 2 and 0 < second[1] < 2


@pytest.mark.parametrize("members_first", [True, False])
@pytest.mark.parametrize("name", ["urn:ogc:def:crs:EPSG::27700", "EPSG:27700"])
def test_geojson_with_an_old_style_crs(database: str, folder: Path, name: str, members_first: bool) -> None:
    whole = json.loads(collection(feature(1, point(*CAISTER_GRID), category="Cafe")))
    crs = {"crs": {"type": "name", "properties": {"name": name}}}
    load_one(database, write(folder / "a.geojson", json.dumps(crs | whole if members_first else whole | crs)))
    ((x, y),) = rows(database, "ST_X(geom), ST_Y(geom)")
    assert (x, y) == pytest.approx(CAISTER, abs=1e-4)


def test_plain_json_lines(database: str, folder: Path) -> None:
    load_one(database, write(folder / "a.jsonl", '{"id": 1, "category": "Cafe", "lon": -0.1276, "lat": "51.5072"}\n'))
    assert rows(database) == [("1", None, "Cafe", *LONDON)]


def write_parquet(path: Path, columns: dict[str, Any], geo: dict[str, Any] | None = None) -> Path:
    table = pa.table(columns)
    if geo:
        table = table.replace_schema_metadata({"geo": json.dumps(geo)})
    pq.write_table(table, path)
    return path


def wkb(x: float, y: float) -> bytes:
    return struct.pack("<BIdd", 1, 1, x, y)


def test_parquet_with_coordinates(database: str, folder: Path) -> None:
    opened = pa.array([1_600_000_000_000_000_001, None], pa.timestamp("ns"))
    columns = {
        "id": pa.array([1.0, 2.0]),
        "category": pa.array(["Cafe", "Pub"]).dictionary_encode(),
        "lon": [LONDON[0], -0.1],
        "lat": [LONDON[1], 51.5],
        "opened": opened,
        "tags": [{"a": 1}, None],
        "score": [float("nan"), 2.5],
    }
    load_one(database, write_parquet(folder / "a.parquet", columns))
    assert rows(database) == [("1", None, "Cafe", *LONDON), ("2", None, "Pub", -0.1, 51.5)]
    first, second = (row[0] for row in rows(database, "attributes"))
    assert first == {"opened": "2020-09-13 12:26:40.000000001", "tags": {"a": 1}, "score": None}
    assert second == {"score": 2.5}


@pytest.mark.parametrize(
    ("crs", "xy"),
    [
        ({}, LONDON),
        ({"crs": {"id": {"authority": "OGC", "code": "CRS84"}}}, LONDON),
        ({"crs": {"id": {"authority": "EPSG", "code": 27700}}}, CAISTER_GRID),
    ],
)
def test_geoparquet(database: str, folder: Path, crs: dict[str, Any], xy: tuple[float, float]) -> None:
    geo = {"version": "1.0.0", "primary_column": "geometry", "columns": {"geometry": {"encoding": "WKB"} | crs}}
    ring = [xy, (xy[0] + 1e-5, xy[1]), (xy[0], xy[1] + 1e-5), xy]
    area = struct.pack("<BIII8d", 1, 3, 1, 4, *(value for corner in ring for value in corner))
    columns = {"id": [1, 2, 3], "category": ["Cafe", "Park", "Lost"], "geometry": [wkb(*xy), area, None]}
    file = load_one(database, write_parquet(folder / "a.parquet", columns, geo))
    assert (file.inserted, file.reasons) == (2, {"no coordinates": 1})
    for x, y in rows(database, "ST_X(geom), ST_Y(geom)"):
        assert (x, y) == pytest.approx(CAISTER if xy == CAISTER_GRID else LONDON, abs=1e-4)


def test_parquet_with_wkb_but_no_metadata(database: str, folder: Path) -> None:
    path = write_parquet(folder / "a.parquet", {"id": [1], "category": ["Cafe"], "geometry": [wkb(*LONDON)]})
    load_one(database, path)
    assert rows(database) == [("1", None, "Cafe", *LONDON)]


# Loading again


def test_loading_twice_changes_nothing(database: str, folder: Path) -> None:
    path = write(folder / "a.csv", HEADER.strip() + ",note\n1,Blue Door,Cafe,-0.1276,51.5072,x\n2,,Pub,-0.1,51.5,\n")
    load_one(database, path)
    before = rows(database, "poi_id, xmin::text, xmax::text, ctid::text")
    file = load_one(database, path)
    assert (file.unchanged, file.inserted, file.updated) == (2, 0, 0)
    assert rows(database, "poi_id, xmin::text, xmax::text, ctid::text") == before


@pytest.mark.parametrize(
    "changed",
    [
        "1,Red Door,Cafe,-0.1276,51.5072,x",
        "1,,Cafe,-0.1276,51.5072,x",
        "1,Blue Door,Bar,-0.1276,51.5072,x",
        "1,Blue Door,Cafe,-0.1276,51.5073,x",
        "1,Blue Door,Cafe,-0.1276,51.5072,y",
    ],
)
def test_only_what_differs_is_updated(database: str, folder: Path, changed: str) -> None:
    text = HEADER.strip() + ",note\n1,Blue Door,Cafe,-0.1276,51.5072,x\n2,,Pub,-0.1,51.5,\n"
    load_one(database, write(folder / "a.csv", text))
    before = dict(rows(database, "source_id, poi_id::text || xmin::text"))
    file = load_one(database, write(folder / "a.csv", text.replace("1,Blue Door,Cafe,-0.1276,51.5072,x", changed)))
    assert (file.unchanged, file.updated, file.inserted) == (1, 1, 0)
    after = dict(rows(database, "source_id, poi_id::text || xmin::text"))
    assert before["2"] == after["2"] and before["1"] != after["1"]
    note = "source_id || ',' || coalesce(name, '') || ',' || category || ',' || ST_X(geom) || ',' || ST_Y(geom)"
    assert rows(database, f"{note} || ',' || (attributes ->> 'note')")[0] == (changed,)


def test_the_last_of_duplicate_ids_counts(database: str, folder: Path) -> None:
    text = HEADER + CAFE + PUB + "1,Green Door,Cafe,0,0\n" + "1,Red Door,Cafe,1,1\n"
    file = load_one(database, write(folder / "a.csv", text))
    assert (file.rows, file.inserted, file.duplicates) == (4, 2, 2)
    assert rows(database)[0] == ("1", "Red Door", "Cafe", 1, 1)


def test_sources_are_apart(database: str, folder: Path) -> None:
    load_one(database, write(folder / "a.csv", HEADER + CAFE))
    file = load_one(database, write(folder / "b.csv", HEADER + CAFE))
    assert file.inserted == 1
    assert rows(database, "source, source_id") == [("a", "1"), ("b", "1")]


def test_where(database: str, folder: Path) -> None:
    text = HEADER.strip() + ",dup,city\n"
    text += "1,A,Cafe,0,0,0,Rome\n2,B,Cafe,0,0,1,Rome\n3,C,Cafe,0,0,0,Oslo\n4,D,,nan,0,1,Rome\n"
    path = write(folder / "a.csv", text)
    file = load_one(database, path, where={"DUP": "0", "city": "Rome"})
    assert (file.inserted, file.filtered, file.rejected) == (1, 3, 0)
    assert rows(database, "name") == [("A",)]
    with pytest.raises(NothingLeft, match="none of its 4 rows is a POI to load: 4 not what --where asks for"):
        load(database, [path], LoadOptions(where={"dup": "5"}))
    assert rows(database, "name") == [("A",)]


class Seen(Silent):
    """Bytes of each file: how many there are, and how many are said to be done."""

    def __init__(self) -> None:
        self.total: dict[str, int | None] = {}
        self.done: dict[str, int] = {}

    def stage(self, name: str, total: int | None = None) -> None:
        self.name, self.total[name], self.done[name] = name, total, 0

    def advance(self, units: int, **figures: float) -> None:
        assert units >= 0
        self.done[self.name] += units


def test_several_files(database: str, folder: Path) -> None:
    seen = Seen()
    paths = [write(folder / "a.csv", HEADER + CAFE + "x\n"), write(folder / "b.csv", HEADER + PUB + "y\n")]
    summary = load(database, paths, LoadOptions(rejects=folder / "bad.csv"), seen)
    assert summary.total("inserted") == 2
    counts = summary.to_dict()
    assert (counts["rows"], counts["rejected"], [file["rows"] for file in counts["files"]]) == (4, 2, [2, 2])
    assert json.loads(json.dumps(counts)) == counts
    assert [row[2] for row in rejected(folder / "bad.csv")] == ["x", "y"]
    sizes = {f"reading {path.name}": path.stat().st_size for path in paths}
    assert seen.total == seen.done == sizes


def test_files_before_a_bad_one_stay(database: str, folder: Path) -> None:
    paths = [write(folder / "a.csv", HEADER + CAFE + "x\n"), write(folder / "b.csv", HEADER + "y\n")]
    with pytest.raises(TooManyRejects, match=r"b\.csv: all 1 rows were refused"):
        load(database, paths, LoadOptions(rejects=folder / "bad.csv"))
    assert rows(database, "source") == [("a",)]
    assert [row[2] for row in rejected(folder / "bad.csv")] == ["x", "y"]


# Rows that are refused


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"9,Bad,Cafe,nan,51.5", "coordinates that are NaN or infinite"),
        (b"9,Bad,Cafe,-0.1,-inf", "coordinates that are NaN or infinite"),
        (b"9,Bad,Cafe,180.1,51.5", "longitude or latitude out of range"),
        (b"9,Bad,Cafe,-0.1,-90.5", "latitude out of range; the longitude and the latitude may be swapped"),
        (b"9,Bad,Cafe,1e999,51.5", "coordinates that are NaN or infinite"),
        (b"9,Bad,Cafe,,51.5", "no coordinates"),
        (b"9,Bad,Cafe, , ", "no coordinates"),
        (b"9,Bad,Cafe,west,51.5", "coordinates that are not numbers"),
        (b"9,Bad,Cafe,1_0,51.5", "coordinates that are not numbers"),
        (b'9,Bad,Cafe,"-0,1",51.5', "coordinates that are not numbers"),
        (b"9,Bad,,-0.1,51.5", "neither category nor description"),
        (b"9,Bad,  ,-0.1,51.5", "neither category nor description"),
        (b"9," + b"x" * 501 + b",Cafe,-0.1,51.5", "name, category or group over 500 characters"),
        (b"9,Bad," + b"x" * 501 + b",-0.1,51.5", "name, category or group over 500 characters"),
        (b"x" * 301 + b",Bad,Cafe,-0.1,51.5", "id or source over 300 characters"),
        (b"9,B\0d,Cafe,-0.1,51.5", "a NUL character"),
        ("9,Bü".encode() + b"\xe9d,Cafe,-0.1,51.5", "not valid UTF-8"),
        (b"9,Bad,Cafe,-0.1", "wrong number of columns"),
        (b"9,Bad,Cafe,-0.1,51.5,extra", "wrong number of columns"),
        (b'9,"Bad""ly"x,Cafe,-0.1,51.5', "quotes that do not pair up"),
        (b'9,"Bad,Cafe,-0.1,51.5', "quotes that do not pair up"),
        (b"9," + b"x" * 200_000 + b",Cafe,-0.1,51.5", "a field over 131,072 characters, or quotes that do not pair up"),
        (b"9," + b"x" * MAX_LINE * 2 + b",Cafe,-0.1,51.5", "a line over 1,000,000 characters"),
    ],
)
def test_a_bad_row_is_set_aside(database: str, folder: Path, line: bytes, reason: str) -> None:
    """The rows around it are loaded; the rejects file says where it stands, why it is refused, and shows it."""
    path = write(folder / "a.csv", HEADER.encode() + CAFE.encode() + line + b"\n" + PUB.encode())
    file = load_one(database, path)
    assert (file.inserted, file.rejected, file.reasons) == (2, 1, {reason: 1})
    assert [row[0] for row in rows(database)] == ["1", "2"]
    assert file.rejects == Path("a.csv.rejects.csv")
    ((row, why, content),) = rejected(file.rejects)
    assert (row, why) == ("3", reason)
    assert content == line.decode(errors="replace").replace("\0", "\ufffd")[:1000]


def test_a_quote_that_never_ends_loses_one_line_only(database: str, folder: Path) -> None:
    lines = [f'{i},"Name, {i}",Cafe,0,{i / 1000}\n' for i in range(2000)]
    lines[700] = '700,"Name,Cafe,0,0.7\n'
    lines[1500] = '1500,"Name,Cafe,0,0.7\n'
    file = load_one(database, write(folder / "a.csv", HEADER + "".join(lines)))
    assert (file.inserted, file.rejected) == (1998, 2)
    assert [row[0] for row in rejected(Path("a.csv.rejects.csv"))] == ["702", "1502"]


def test_row_numbers_are_line_numbers(database: str, folder: Path) -> None:
    text = HEADER + '1,"Two\nlines",Cafe,0,0\n\n2,Bad,Cafe,x,0\n' + PUB
    load_one(database, write(folder / "a.csv", text))
    assert [row[0] for row in rejected(Path("a.csv.rejects.csv"))] == ["5"]


def test_long_description_and_long_attributes(database: str, folder: Path) -> None:
    text = "id,category,description,lon,lat,note\n"
    text += f"1,Cafe,{'x' * 10_000},0,0,{'y' * 90_000}\n2,Cafe,{'x' * 10_001},0,0,\n3,Cafe,,0,0,{'y' * 100_001}\n"
    file = load_one(database, write(folder / "a.csv", text))
    assert file.inserted == 1
    assert set(file.reasons) == {"description over 10,000 characters", "other columns over 100,000 characters"}


def test_without_category(database: str, folder: Path) -> None:
    """A description stands in for a category; a name does only where the file has no categories at all."""
    text = "id,name,category,description,lon,lat\n1,A,,Sells milk,0,0\n2,B,,,0,0\n3,,,Sells bread,0,0\n"
    file = load_one(database, write(folder / "a.csv", text))
    assert (file.inserted, file.reasons) == (2, {"neither category nor description": 1})
    file = load_one(database, write(folder / "b.csv", "id,name,lon,lat\n1,A,0,0\n2,,0,0\n"))
    assert (file.inserted, file.reasons) == (1, {"neither name, category nor description": 1})


BAD_GEOMETRY = "a geometry that cannot be read or placed on the globe"


def a_line(geometry: Any = SQUARE, **properties: Any) -> str:
    return json.dumps(feature(None, geometry, **properties))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"type": "Feature", "properties": {', "not valid JSON"),
        ("[1, 2]", "not valid JSON"),
        ("[" * 100_000, "nested deeper than 100 levels"),
        (a_line(amenity="Bad\0"), "a NUL character"),
        (a_line(amenity="Bad", x=["\0"]), "a NUL character"),
        (a_line(amenity="Bad\ud800"), "not valid UTF-8"),
        (a_line(None, amenity="Bad"), "no coordinates"),
        (a_line(point(1, 91), amenity="Bad"), "latitude out of range; the longitude and the latitude may be swapped"),
        (a_line({"type": "Point", "coordinates": [1, "x"]}, amenity="Bad"), "coordinates that are not numbers"),
        (a_line({"type": "Point", "coordinates": [True, 1]}, amenity="Bad"), "coordinates that are not numbers"),
        (a_line({"type": "Point", "coordinates": []}, amenity="Bad"), BAD_GEOMETRY),
        (a_line({"type": "Polygon", "coordinates": [[1]]}, amenity="Bad"), BAD_GEOMETRY),
        (a_line({"type": "Blob"}, amenity="Bad"), BAD_GEOMETRY),
    ],
)
def test_a_bad_json_line_is_set_aside(database: str, folder: Path, line: str, reason: str) -> None:
    path = write(folder / "a.geojsonl", f"{json.dumps(FEATURES[0])}\n{line}\n{json.dumps(FEATURES[1])}\n")
    file = load_one(database, path)
    assert (file.inserted, file.reasons) == (2, {reason: 1})
    ((row, why, _),) = rejected(Path("a.geojsonl.rejects.csv"))
    assert (row, why) == ("2", reason)


def test_bad_features_of_a_collection(database: str, folder: Path) -> None:
    bad = [feature(3, point(200, 0), amenity="Far"), feature(4, None, amenity="Nowhere"), feature(5, point(0, 0))]
    text = collection(*FEATURES, *bad, feature(6, point(1, 1), amenity="B\0d"), feature(7, point(1, 1), amenity="XX"))
    path = write(folder / "a.geojson", text.encode().replace(b"XX", b"\xff\xfe"))
    file = load_one(database, path)
    assert (file.inserted, file.left_out) == (2, {"no kind of place among its OpenStreetMap tags": 1})
    assert file.reasons == {
        "longitude or latitude out of range": 1,
        "no coordinates": 1,
        "a NUL character": 1,
        "not valid UTF-8": 1,
    }
    far = next(row for row in rejected(Path("a.geojson.rejects.csv")) if "range" in row[1])
    assert far[0] == "3" and '"amenity": "Far"' in far[2]


def test_coordinates_beyond_the_projection(database: str, folder: Path) -> None:
    text = "id,category,x,y\n1,Cafe,530034,180381\n2,Cafe,1e30,1e30\n3,Cafe,-1e12,7\n"
    file = load_one(database, write(folder / "a.csv", text), srid=27700)
    assert (file.inserted, file.rejected) == (1, 2)


def test_bad_rows_of_parquet(database: str, folder: Path) -> None:
    raw = pa.array([b"Cafe", b"B\xe9d", b"Pub", b"Bar"])
    category = pa.Array.from_buffers(pa.string(), 4, raw.buffers())
    columns = {"id": [1, 2, 3, 4], "category": category, "lon": [0.0, 0.0, float("inf"), 1.0], "lat": [0.0, 0, 0, None]}
    file = load_one(database, write_parquet(folder / "a.parquet", columns))
    assert file.inserted == 1
    assert file.reasons == {
        "not valid UTF-8": 1,
        "coordinates that are NaN or infinite": 1,
        "no coordinates": 1,
    }
    assert [row[0] for row in rejected(Path("a.parquet.rejects.csv"))] == ["2", "3", "4"]


def test_all_rows_rejected(database: str, folder: Path) -> None:
    path = write(folder / "a.csv", HEADER + "1,A,Cafe,x,0\n2,B,Cafe,0,99\n")
    with pytest.raises(
        TooManyRejects, match="all 2 rows were refused, the first because: coordinates that are not num"
    ):
        load(database, [path])
    assert rows(database) == []
    assert len(rejected(Path("a.csv.rejects.csv"))) == 2


def test_rejects_of_an_earlier_run_are_replaced(database: str, folder: Path) -> None:
    path = write(folder / "a.csv", HEADER + CAFE + "x\n")
    load_one(database, path)
    load_one(database, path)
    assert len(rejected(Path("a.csv.rejects.csv"))) == 1
    load_one(database, write(path, HEADER + CAFE))
    assert not Path("a.csv.rejects.csv").exists()


def test_rejects_never_replace_another_file(database: str, folder: Path) -> None:
    path = write(folder / "a.csv", HEADER + CAFE + "x\n")
    fails(database, path, "exists and holds no rejects", rejects=path)
    assert path.read_text() == HEADER + CAFE + "x\n"
    missing = folder / "no" / "such.csv"
    with pytest.raises(BadInput, match="rejected rows cannot be written there"):
        load(database, [path], LoadOptions(rejects=missing))
    assert rows(database) == []


# Files that are refused


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.csv", "", "the file is empty"),
        ("a.csv", "  \n\n", "the file is empty"),
        ("a.csv.gz", zipped(b""), "the file is empty"),
        ("a.csv", HEADER, "it holds no rows"),
        (
            "a.csv",
            "id,name,where\n1,A,B\n",
            "no columns of coordinates. The columns are: id, name, where. Name them with --lon",
        ),
        ("a.csv", "id,lon,lat,sort\n1,0,0,B\n", "The columns are: id, lon, lat, sort. Name one with --category-column"),
        ("a.csv", "id,name,name,lon,lat\n", "the header has name more than once"),
        ("a.csv", 'id,"name,lon,lat\n1,2,3,4\n', "the header line is not CSV"),
        ("a.csv", b"\x00\x01\x02\x03", "the first line is not text in a known encoding; name it with --encoding"),
        (
            "a.csv.gz",
            zipped(random.Random(0).randbytes(300_000).hex().encode())[:-100_000],
            "the gzip stream is broken",
        ),
        ("a.csv.gz", b"\x1f\x8b\x08\x00garbage garbage", "the gzip stream is broken"),
        ("a.parquet", b"PAR1 and no more", "not a sound Parquet file"),
        ("a.parquet", b"something else", "does not begin as a parquet file"),
        ("a.osm.pbf", b"something else", "does not begin as a pbf file"),
        ("a.gpkg", b"SQLite format 3\x00" + bytes(100), "GDAL cannot read it"),
        ("a.xyz", b"Xyz!\x1a\x07" + bytes(100), "the format is not known. Known are CSV"),
        ("a.geojson", "hello", "the format is not known"),
        ("a.geojson", '{"type": "FeatureCollection", "features": []}', "no GeoJSON FeatureCollection with features"),
        ("a.geojson", '{\n"type": "Topology"}', "no GeoJSON FeatureCollection with features"),
        ("a.geojson", collection(*FEATURES)[:-40], "not valid JSON"),
        ("a.geojson", collection(*FEATURES, crs={"type": "link"}), "is not an EPSG code; give it with --srid"),
        (
            "a.geojson",
            collection(feature(1, point(0, 0), landuse="x")),
            "The columns are: landuse, id. Name one with --cat",
        ),
    ],
)
def test_a_bad_file_is_refused(database: str, folder: Path, name: str, content: str | bytes, match: str) -> None:
    fails(database, write(folder / name, content), match)


def test_truncated_gzip_after_good_rows(database: str, folder: Path) -> None:
    """Good and bad rows were read before the end came: none is kept, no rejects file is left."""
    lines = "".join(f"{i},{os.urandom(8).hex()},Cafe,0,0\nbad\n" for i in range(30_000))
    path = write(folder / "a.csv.gz", gzip.compress((HEADER + lines).encode())[:-1000])
    fails(database, path, "the gzip stream is broken .*; fetch the file again")


def test_corrupt_parquet_after_good_rows(database: str, folder: Path) -> None:
    n = 50_000
    columns = {
        "id": list(range(n)),
        "category": [os.urandom(8).hex() for _ in range(n)],
        "lon": [0.0] * n,
        "lat": [0.0] * n,
    }
    path = folder / "a.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=10_000, compression="gzip")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    fails(database, write(path, bytes(data)), "not a sound Parquet file")


def test_truncated_collection_after_good_features(database: str, folder: Path) -> None:
    text = collection(*(feature(i, point(0, 0), category="Cafe") for i in range(20_000)))
    fails(database, write(folder / "a.geojson", text[:-1000]), "not valid JSON")


def test_not_a_file(database: str, folder: Path) -> None:
    fails(database, folder / "nothing.csv", "there is no such file")
    fails(database, folder, "it is not a file")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"id_column": "ref"},
            r"there is no column 'ref' \(--id-column\). The columns are: id, name, category, lon, lat",
        ),
        ({"lat_column": "north"}, r"there is no column 'north' \(--lat-column\)"),
        ({"where": {"dup": "0"}}, r"there is no column 'dup' \(--where\)"),
        ({"srid": 123456}, "PostGIS knows no SRID 123456; give another with --srid"),
    ],
)
def test_options_that_do_not_fit(database: str, folder: Path, options: dict[str, Any], match: str) -> None:
    fails(database, write(folder / "a.csv", HEADER + CAFE), match, **options)


def test_geoparquet_without_an_epsg_code(database: str, folder: Path) -> None:
    geo = {"primary_column": "geometry", "columns": {"geometry": {"crs": {"name": "home-made"}}}}
    path = write_parquet(folder / "a.parquet", {"id": [1], "category": ["Cafe"], "geometry": [wkb(*LONDON)]}, geo)
    fails(database, path, "the CRS in its metadata has no EPSG code; give it with --srid")
    load_one(database, path, srid=4326)


def test_no_schema(empty_database: str, folder: Path) -> None:
    with pytest.raises(NotInitialised, match="callipper-db init"):
        load(empty_database, [write(folder / "a.csv", HEADER + CAFE)])


@pytest.mark.parametrize(("module", "name"), [("pyarrow", "a.parquet"), ("osmium", "a.osm.pbf")])
def test_without_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    head = b"PAR1" if module == "pyarrow" else b"\0\0\0\x0d\x0a\x09OSMHeader"
    with pytest.raises(MissingExtra, match=rf"{module}.*pip install 'callipper-db\[geo\]'"):
        load("", [write(folder / name, head)])


def test_reading_brings_neither_pyarrow_nor_osmium() -> None:
    code = "import sys, callipper_db.load; sys.exit(any(m in sys.modules for m in ('pyarrow', 'osmium', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Interruptions


def many_rows(n: int) -> str:
    return HEADER + "".join(f"{i},Name {i},Cafe,{i % 360 - 180},{i % 180 - 90}\n" for i in range(n)) + "bad\n"


def test_an_interruption_leaves_nothing(database: str, folder: Path) -> None:
    class Interrupting(Seen):
        def advance(self, units: int, **figures: float) -> None:
            super().advance(units)
            if self.done[self.name] > 0.4 * (self.total[self.name] or 0):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(
            database,
            [write(folder / "a.csv", HEADER + "bad\n" + many_rows(50_000)[len(HEADER) :])],
            None,
            Interrupting(),
        )
    assert rows(database) == []
    assert not list(folder.glob("*.rejects.csv"))


def test_a_lost_connection_leaves_nothing(database: str, folder: Path) -> None:
    class Cutting(Silent):
        def advance(self, units: int, **figures: float) -> None:
            end_other_sessions(database)

    with pytest.raises(ConnectionLost):
        load(database, [write(folder / "a.csv", many_rows(50_000))], None, Cutting())
    assert rows(database) == []
    assert not list(folder.glob("*.rejects.csv"))
    assert load_one(database, folder / "a.csv").inserted == 50_000


def test_two_at_once_load_each_row_once(database: str, folder: Path) -> None:
    path = write(folder / "a.csv", many_rows(20_000)[:-4])
    with ThreadPoolExecutor(2) as pool:
        files = list(pool.map(lambda _: load_one(database, path), range(2)))
    assert sorted((file.inserted, file.unchanged) for file in files) == [(0, 20_000), (20_000, 0)]


def test_many_rows_into_the_empty_table_leave_it_as_it_was(database: str, folder: Path) -> None:
    """Its indexes are made anew, its trigger works again, and the new POIs are noted for `refresh`."""

    def definition(connection: Any) -> Any:
        return connection.execute(
            "SELECT pg_get_indexdef(indexrelid), indisunique FROM pg_index WHERE indrelid = 'callipper.poi'::regclass UNION ALL"
            " SELECT tgname, tgenabled = 'O' FROM pg_trigger WHERE tgrelid = 'callipper.poi'::regclass ORDER BY 1"
        ).fetchall()

    path = write(folder / "a.csv", many_rows(20_000)[:-4])
    with user_session(database) as connection:
        before = definition(connection)
    load_one(database, path)
    with user_session(database) as connection:
        assert definition(connection) == before
        noted = "SELECT count(DISTINCT poi_id) FROM callipper.poi JOIN callipper.poi_change ON poi_id <@ poi_ids"
        assert connection.execute(noted).fetchone() == (20_000,)
        connection.execute("DELETE FROM callipper.poi_change")
        connection.execute(
            "INSERT INTO callipper.poi (source, source_id, geom) SELECT 'later', '1', geom FROM callipper.poi LIMIT 1"
        )
        assert connection.execute(noted).fetchone() == (1,)


def test_many_rows_into_an_empty_table_that_others_refer_to(database: str, folder: Path) -> None:
    with user_session(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE public.visit (poi_id bigint REFERENCES callipper.poi)")
    assert load_one(database, write(folder / "a.csv", many_rows(20_000)[:-4])).inserted == 20_000


def test_rows_are_not_compared_one_by_one_with_an_empty_table(database: str) -> None:
    """An empty table that was analysed tempts the planner to read it once for each row, while it fills."""
    with user_session(database, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE callipper.poi")
        with connection.transaction():
            connection.execute(STAGING)
            connection.execute(SEEN)
            connection.execute(HASH_JOINS)
            diff = connection.named(DIFF).format(replace=True).as_string(connection)
            for statement in (DROP_DUPLICATES, diff, REMOVE_UNSEEN):
                plan = "\n".join(line for (line,) in connection.execute(f"EXPLAIN {statement}".encode()))
                assert "Hash" in plan or "Merge" in plan
                assert "Nested Loop" not in plan


# Any input

# The last code point, which is no character, marks bytes that are not UTF-8: rows with it are refused.
NOTHING = ["NaN", "nan", "NA", "N/A", "NULL", "null", "None", "<NA>", "<Null>"]  # words for no name or category
text_values = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\U0010ffff"), max_size=30), st.sampled_from(NOTHING)
)
one_category = text_values.map(lambda text: text.translate({ord(character): None for character in ";[{"}))


def said(text: str) -> str | None:
    return None if text.strip() in ("", *NOTHING) else text.strip()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    st.lists(
        st.tuples(text_values, one_category, text_values, st.floats(-180, 180), st.floats(-90, 90)),
        min_size=1,
        max_size=20,
    )
)
def test_any_text_and_coordinates_come_back(
    database: str, folder: Path, places: list[tuple[str, str, str, float, float]]
) -> None:
    """What is loaded is what was written; what is not loaded is in the rejects file."""
    with user_session(database) as connection:
        connection.execute("TRUNCATE callipper.poi")
    out = io.StringIO(newline="")
    numbered = [(str(number), *place) for number, place in enumerate(places)]
    csv.writer(out, lineterminator="\r\n").writerows([("id", "name", "category", "note", "lon", "lat"), *numbered])
    path = write(folder / "any.csv", out.getvalue())
    good = [place for place in numbered if said(place[2]) and not any("\0" in str(value) for value in place)]
    bad = len(numbered) - len(good)
    if not good:
        with pytest.raises(TooManyRejects):
            load_one(database, path)
        return
    file = load_one(database, path)
    assert (file.inserted, file.rejected) == (len(good), bad)
    found = rows(database, "source_id, name, category, attributes, ST_X(geom), ST_Y(geom)")
    assert sorted(found, key=lambda row: int(row[0])) == [
        (identity, said(name), said(category), {"note": note} if note else {}, x, y)
        for identity, name, category, note, x, y in good
    ]


cells = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=8),
    st.sampled_from(
        ["", " ", "0", "nan", "1e5", "-0.5", "1_0", "٣", "91", "181", "+5.", "x" * 501, "\0", "\U0010ffff"]
    ),
)


@given(st.lists(st.tuples(*[cells] * 8), min_size=1, max_size=6), st.booleans(), st.sampled_from([{}, {"note": "0"}]))
def test_bulk_equals_row_by_row(table: list[tuple[str, ...]], degrees: bool, where: dict[str, str]) -> None:
    """The fast way either leaves a block to the slow one or sends what the slow one would."""
    names = ["id", "name", "category", "description", "lon", "lat", "source", "note"]
    block = Block(5, dict(zip(names, zip(*table, strict=True), strict=True)))
    rules = make_rules(names, where, degrees)
    prepared, left_out = rules.prepare(block)
    in_bulk = bulk_csv(prepared, rules)
    places = [rules.place_of(record) for record in block.records()]
    assert sum(isinstance(place, LeftOut) for place in places) == left_out.total() == len(block) - len(prepared)
    if in_bulk is not None:
        assert not any(isinstance(place, Refused) for place in places)
        expected = [place for place in places if isinstance(place, Place)]
        fast, slow = (read_copied(text) for text in (in_bulk, csv_of(expected)))
        for quick, careful in zip(fast, slow, strict=True):
            assert list(map(float, quick[7:9])) == list(map(float, careful[7:9]))
            assert quick[:7] + quick[9:10] == careful[:7] + careful[9:10]
            assert json.loads(quick[10]) == json.loads(careful[10])


def read_copied(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline=""), delimiter=DELIMITER, quotechar=QUOTE))


def make_rules(names: list[str], where: dict[str, str], degrees: bool) -> Rules:
    columns = find_columns(Path("a.csv"), Reader(iter(()), names), LoadOptions())
    return Rules(columns, where, "a", True, degrees)


def test_most_rows_go_in_bulk(folder: Path) -> None:
    with open_reader(write(folder / "a.csv", many_rows(20_000)[:-4])) as reader:
        rules = make_rules(reader.names, {}, True)
        sent = [bulk_csv(rules.prepare(block)[0], rules) for block in reader.blocks if isinstance(block, Block)]
    assert sum(part.count("\n") for part in sent if part) == 20_000


@pytest.mark.parametrize("suffix", ["csv.gz", "geojson", "geojsonl", "parquet"])
def test_memory_does_not_grow_with_the_file(folder: Path, suffix: str) -> None:
    """The rows of these files, all held as Python objects, would take 40 MB and more."""
    assert _peak(_big_file(folder / f"big.{suffix}", 40_000)) < 16_000_000


def _big_file(path: Path, n: int) -> Path:
    if path.suffix == ".parquet":
        columns = {"id": range(n), "category": ["Cafe"] * n, "lon": [0.5] * n, "lat": [0.5] * n}
        return write_parquet(path, {name: list(values) for name, values in columns.items()})
    one = json.dumps(feature(1, point(0, 0), category="Cafe"))
    if path.suffix == ".geojsonl":
        return write(path, f"{one}\n" * n)
    if path.suffix == ".geojson":
        return write(path, '{"type": "FeatureCollection", "features": [' + ",".join([one] * n) + "]}")
    return write(path, gzip.compress(many_rows(n)[:-4].encode(), 1))


def _peak(path: Path) -> int:
    tracemalloc.start()
    try:
        with open_reader(path) as reader:
            reader.look()
            rules = Rules.of(path, reader, LoadOptions(), "a", 4326)
            for block in reader.blocks:
                assert (
                    bulk_csv(rules.prepare(block)[0], rules) if isinstance(block, Block) else _csv_by_row(block, rules)
                )
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _csv_by_row(records: list[Record | Refused | LeftOut], rules: Rules) -> str:
    places = (rules.place_of(record) for record in records if isinstance(record, Record))
    return csv_of([place for place in places if isinstance(place, Place)])
