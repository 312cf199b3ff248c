"""What people bring: tags in columns, nested columns, GIS formats, European tables; each generated here."""

from __future__ import annotations

import csv
import gzip
import io
import json
import struct
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pyogrio  # type: ignore[import-untyped]
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from callipper_db.errors import BadInput, NothingLeft, TooManyRejects
from callipper_db.load import FileSummary, LoadOptions, load
from callipper_db.read import Block, Record, delimited, open_reader, vector
from callipper_db.read.geofabrik import category_of
from callipper_db.read.layout import find_field, value_at
from callipper_db.read.osm_tags import element_id
from callipper_db.read.place import Place, Rules, words_of
from callipper_db.read.record import LeftOut, Refused
from callipper_db.read.text import CHUNK, MAX_LINE, Lines, open_text
from sessions import user_session

pytestmark = pytest.mark.usefixtures("folder")


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def load_one(dsn: str, path: Path, **options: Any) -> FileSummary:
    return load(dsn, [path], LoadOptions(**options)).files[0]


def rows(dsn: str, columns: str = "source_id, name, category, ST_X(geom), ST_Y(geom)") -> list[tuple[Any, ...]]:
    with user_session(dsn) as connection:
        return connection.execute(f"SELECT {columns} FROM callipper.poi ORDER BY source_id, name").fetchall()


def feature(x: float, y: float, **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": {"type": "Point", "coordinates": [x, y]}, "properties": properties}


def collection(*features: dict[str, Any]) -> str:
    return json.dumps({"type": "FeatureCollection", "features": features})


# Tags of OpenStreetMap in columns

HEADER_AND_ROWS = [
    # QuickOSM
    "full_id,osm_id,osm_type,amenity,shop,name,lon,lat\nn7,7,node,cafe,,A,2,48\nw7,7,way,,bakery,B,2,49\n",
    # Overpass CSV
    "@type\t@id\t@lon\t@lat\tname\tamenity\tshop\nnode\t7\t2\t48\tA\tcafe\t\nway\t7\t2\t49\tB\t\tbakery\n",
    # pandas.json_normalize of an Overpass answer
    "type,id,lon,lat,center.lon,center.lat,tags.name,tags.amenity,tags.shop\n"
    "node,7,2,48,,,A,cafe,\nway,7,,,2,49,B,,bakery\n",
    # osmnx, index reset
    "element_type,osmid,amenity,shop,name,geometry\nnode,7,cafe,,A,POINT (2 48)\nway,7,,bakery,B,POINT (2 49)\n",
    # GDAL's other_tags, in hstore's form
    'osm_id,osm_type,name,other_tags,lon,lat\n7,node,A,"""amenity""=>""cafe""",2,48\n7,way,B,"""shop""=>""bakery""",2,49\n',
    # a column of JSON
    'osm_id,osm_type,tags,lon,lat\n7,node,"{""amenity"": ""cafe"", ""name"": ""A""}",2,48\n'
    '7,way,"{""shop"": ""bakery"", ""name"": ""B""}",2,49\n',
    # a column of dictionaries as Python shows them
    "osm_id,osm_type,tags,lon,lat\n7,node,\"{'amenity': 'cafe', 'name': 'A'}\",2,48\n"
    "7,way,\"{'shop': 'bakery', 'name': 'B'}\",2,49\n",
]


@pytest.mark.parametrize("text", HEADER_AND_ROWS)
def test_tag_columns(poi: str, folder: Path, text: str) -> None:
    file = load_one(poi, write(folder / "a.csv", text))
    assert (file.inserted, file.without_category) == (2, 0)
    assert rows(poi) == [("node/7", "A", "Cafe", 2, 48), ("way/7", "B", "Bakery", 2, 49)]
    assert rows(poi, "category_group, source_id, name")[1][0] == "Food shops"


def test_tag_columns_know_what_is_no_place(poi: str, folder: Path) -> None:
    text = "osm_id,amenity,shop,highway,lon,lat\n1,bench,,,2,48\n2,,,residential,2,48\n3,cafe,,,2,48\n4,,no,,2,48\n"
    path = write(folder / "a.csv", text)
    file = load_one(poi, path)
    assert file.left_out == {
        "no kind of place among its OpenStreetMap tags": 2,
        "street furniture (--street-furniture keeps it)": 1,
    }
    assert load_one(poi, path, street_furniture=True).inserted == 1


def test_a_category_column_goes_before_tags(poi: str, folder: Path) -> None:
    load_one(poi, write(folder / "a.csv", "id,category,amenity,shop,lon,lat\n1,Tea house,cafe,tea,2,48\n"))
    assert rows(poi) == [("1", None, "Tea house", 2, 48)]


def test_a_named_category_goes_before_tags(poi: str, folder: Path) -> None:
    text = "@id,amenity,shop,cuisine,lon,lat\nnode/1,cafe,,cake,2,48\n"
    load_one(poi, write(folder / "a.csv", text), category_column="cuisine")
    assert rows(poi) == [("node/1", None, "cake", 2, 48)]


def test_tags_in_groups(poi: str, folder: Path) -> None:
    """As srai makes them: a column a group, with the tag in it."""
    table = pa.table(
        {
            "feature_id": ["node/1", "way/2", "node/3", "node/4"],
            "food": ["amenity=cafe", None, None, None],
            "buying": [None, "shop=bakery", "highway=crossing", None],
            "geometry": [struct.pack("<BIdd", 1, 1, 2, 48)] * 4,
        }
    )
    file = load_one(poi, write_geoparquet(folder / "a.parquet", table))
    assert [row[:3] for row in rows(poi)] == [("node/1", None, "Cafe"), ("way/2", None, "Bakery")]
    assert file.left_out == {"no kind of place among its OpenStreetMap tags": 2}


def test_keys_that_come_late(poi: str, folder: Path) -> None:
    """The last feature of thousands brings a key that the others lack."""
    features = [feature(2, 48, name=str(number), shop="bakery") for number in range(3000)]
    text = collection(*features, feature(2, 48, name="last", amenity="cafe"))
    file = load_one(poi, write(folder / "a.geojson", text))
    assert file.inserted == 3001
    assert [row[0] for row in rows(poi, "category, source_id, name") if row[2] == "last"] == ["Cafe"]


def test_a_named_column_may_come_late(poi: str, folder: Path) -> None:
    features = [feature(2, 48, name=str(number), sort="x") for number in range(1500)]
    text = "\n".join(json.dumps(item) for item in [*features, feature(2, 48, name="last", kind_of_place="Cafe")])
    file = load_one(poi, write(folder / "a.geojsonl", text), category_column="kind_of_place")
    assert (file.inserted, file.rejected) == (1, 1500)


@pytest.mark.parametrize(
    ("identity", "element", "expected"),
    [
        ("node/17", None, "node/17"),
        ("w17", None, "way/17"),
        ("R17", "way", "relation/17"),
        (17, "node", "node/17"),
        (17.0, "W", "way/17"),
        ("https://www.openstreetmap.org/way/17", None, "way/17"),
        (17, None, "17"),
        (-17, None, "-17"),
        (None, "node", None),
        (float("nan"), "node", None),
        ("n/a", None, "n/a"),
    ],
)
def test_element_id(identity: Any, element: str | None, expected: str | None) -> None:
    assert element_id(identity, element) == expected


def overpass(*elements: dict[str, Any]) -> str:
    return json.dumps({"version": 0.6, "elements": elements})


def test_overpass_json(poi: str, folder: Path) -> None:
    line = [{"lon": x, "lat": y} for x, y in [(2, 48), (3, 48), (3, 49), (2, 48)]]
    box = {"minlon": 2, "maxlon": 4, "minlat": 48, "maxlat": 50}
    text = overpass(
        {"type": "node", "id": 1, "lon": 2, "lat": 48, "tags": {"amenity": "cafe"}},
        {"type": "way", "id": 1, "center": {"lon": 3, "lat": 49}, "tags": {"shop": "bakery"}},
        {"type": "way", "id": 2, "geometry": line, "tags": {"leisure": "park"}},
        {
            "type": "relation",
            "id": 3,
            "bounds": box,
            "tags": {"shop": "mall"},
        },
        {"type": "way", "id": 4, "nodes": [5], "tags": {"amenity": "school"}},
        {"type": "node", "id": 5, "lon": 2, "lat": 48},
    )
    file = load_one(poi, write(folder / "a.json", text))
    assert file.reasons == {"a way or relation without a place; ask Overpass for it with: out center": 1}
    assert file.left_out == {"no kind of place among its OpenStreetMap tags": 1}
    assert [row[:3] for row in rows(poi)] == [
        ("node/1", None, "Cafe"),
        ("relation/3", None, "Shopping centre"),
        ("way/1", None, "Bakery"),
        ("way/2", None, "Park"),
    ]
    assert rows(poi)[1][3:] == (3, 49)


def test_osm_xml(poi: str, folder: Path) -> None:
    text = """<?xml version="1.0"?>
<osm version="0.6"><node id="7" lat="48" lon="2" version="1"><tag k="amenity" v="cafe"/></node></osm>"""
    load_one(poi, write(folder / "a.osm", text))
    assert rows(poi) == [("node/7", None, "Cafe", 2, 48)]


# Overture and Foursquare

NAMES = pa.struct([("primary", pa.string()), ("common", pa.map_(pa.string(), pa.string()))])


def overture_table(**columns: Any) -> pa.Table:
    names = pa.array([{"primary": f"Place {i}", "common": [("fr", f"Lieu {i}")]} for i in range(3)], NAMES)
    fixed = {"id": ["a", "b", "c"], "theme": ["places"] * 3, "type": ["place"] * 3, "names": names}
    points = [struct.pack("<BIdd", 1, 1, 2 + i, 48) for i in range(3)]
    return pa.table(fixed | {"confidence": [0.9, 0.5, 0.1], "geometry": points} | columns)


def write_geoparquet(path: Path, table: pa.Table, **column: Any) -> Path:
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": {"encoding": "WKB", **column}}}
    pq.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), path)
    return path


@pytest.mark.parametrize(
    "columns",
    [
        {"basic_category": ["fast_food_restaurant", "pub", "bank"]},
        {"categories": [{"primary": kind, "alternate": ["x"]} for kind in ("fast_food_restaurant", "pub", "bank")]},
        {
            "categories": [
                {"primary": "fast_food_restaurant", "alternate": None},
                {"primary": None, "alternate": ["pub"]},
                {"primary": "bank", "alternate": []},
            ]
        },
        {
            "taxonomy": [
                {"primary": "fast_food_restaurant", "hierarchy": ["food_and_drink", "fast_food_restaurant"]},
                {"primary": "pub", "hierarchy": ["food_and_drink", "pub"]},
                {"primary": "bank", "hierarchy": ["services", "bank"]},
            ],
            "basic_category": ["restaurant", "bar", "finance"],
        },
    ],
)
def test_overture(poi: str, folder: Path, columns: dict[str, Any]) -> None:
    path = write_geoparquet(folder / "a.parquet", overture_table(**columns))
    load_one(poi, path)
    assert rows(poi) == [
        ("a", "Place 0", "fast food restaurant", 2, 48),
        ("b", "Place 1", "pub", 3, 48),
        ("c", "Place 2", "bank", 4, 48),
    ]
    (group, attributes), *_ = rows(poi, "category_group, attributes")
    assert group == ("food and drink" if "taxonomy" in columns else None)
    assert attributes["names"] == {"fr": "Lieu 0"}
    assert not {"theme", "type", "geometry", "bbox"} & set(attributes)


@pytest.mark.parametrize("lines", [False, True])
def test_overture_as_geojson(poi: str, folder: Path, lines: bool) -> None:
    """As its own download program writes it; keys may be missing, or be of another kind."""
    features = [
        feature(2, 48, id="a", names={"primary": "A", "common": {"fr": "Le A"}}, categories={"primary": "fast_food"}),
        feature(2, 48, id="b", names={"primary": "B", "common": None}, categories=None, taxonomy={"hierarchy": ["x"]}),
        feature(2, 48, id="c", names=None, categories={"primary": None, "alternate": ["pub"]}, confidence="0.9"),
        feature(2, 48, id="d", categories={"primary": ["pub"]}, confidence={}),
        feature(2, 48, id="e", names="E", categories={"primary": "bank"}, operating_status="permanently_closed"),
        feature(2, 48, id="f", names={"primary": "F"}, categories={"primary": "pub"}, confidence=0.1),
    ]
    text = "".join(f"\x1e{json.dumps(one)}\n" for one in features) if lines else collection(*features)
    file = load_one(poi, write(folder / ("a.geojsonseq" if lines else "a.geojson"), text), min_confidence=0)
    assert rows(poi) == [("f", "F", "pub", 2, 48), ("c", None, "pub", 2, 48)][::-1]
    assert file.left_out == {"no category": 2, "confidence below --min-confidence": 1, "permanently closed": 1}


def test_parquet_with_views_of_texts(poi: str, folder: Path) -> None:
    """Some programs note in a file that its texts are to be read as views, of which Arrow cannot choose rows."""
    view = pa.string_view()
    columns = {
        "id": pa.array(["a", "b"], view),
        "kind": pa.array(["Pub", "Bank"], view),
        "address": pa.StructArray.from_arrays([pa.array(["Oslo", "Bergen"], view)], ["city"]),
        "lon": pa.array([2.0, 2.0]),
        "lat": pa.array([48.0, 48.0]),
    }
    pq.write_table(pa.table(columns), folder / "a.parquet")
    assert pq.read_schema(folder / "a.parquet").field("kind").type == view
    load_one(poi, folder / "a.parquet", where={"address.city": "Oslo"})
    assert rows(poi, "source_id, category, attributes") == [("a", "Pub", {"address": {"city": "Oslo"}})]


def test_overture_leaves_out_the_closed_and_the_unsure(poi: str, folder: Path) -> None:
    status = ["open", "permanently_closed", None]
    table = overture_table(basic_category=["pub", "pub", "pub"], operating_status=status)
    path = write_geoparquet(folder / "a.parquet", table)
    file = load_one(poi, path, min_confidence=0.4)
    assert file.left_out == {"permanently closed": 1, "confidence below --min-confidence": 1}
    assert [row[0] for row in rows(poi)] == ["a"]
    with pytest.raises(BadInput, match="--min-confidence is for Overture places"):
        load_one(poi, write(folder / "b.csv", "id,category,lon,lat\n1,x,2,48\n"), min_confidence=0.4)


def test_a_new_release_replaces_the_old(poi: str, folder: Path) -> None:
    """Opened, closed, changed, gone; rows of another source stay, and so do those of files of the same run."""
    load_one(poi, write(folder / "b.csv", "id,category,lon,lat\n1,Pub,2,48\n"))
    old = overture_table(basic_category=["pub", "bank", "park"], operating_status=["open"] * 3)
    load_one(poi, write_geoparquet(folder / "old.parquet", old), source="overture")
    new = overture_table(
        basic_category=["pub", "school", "park"], operating_status=["open", "open", "permanently_closed"]
    )
    first = write_geoparquet(folder / "1.parquet", new.slice(1))
    second = write_geoparquet(folder / "2.parquet", new.slice(0, 1).set_column(0, "id", pa.array(["d"])))
    summary = load(poi, [first, second], LoadOptions(source="overture", replace_source=True))
    assert (summary.total("updated"), summary.total("inserted"), summary.removed) == (1, 1, 2)
    found = rows(poi, "source_id, source, name, category")
    assert [(row[0], row[3]) for row in found] == [("1", "Pub"), ("b", "school"), ("d", "pub")]


def test_foursquare(poi: str, folder: Path) -> None:
    columns = {
        "fsq_place_id": list("abcdef"),
        "name": list("ABCDEF"),
        "latitude": [48.0, 48, 48, 48, None, 48],
        "longitude": [2.0, 2, 2, 2, 2, 2],
        "date_closed": [None, "2020-01-01", None, None, None, None],
        "unresolved_flags": [None, None, ["doesnt_exist"], ["geoaccuracy"], None, None],
        "fsq_category_labels": [["Dining and Drinking > Bar > Pub", "Arts"]] * 5 + [None],
    }
    pq.write_table(pa.table(columns), folder / "a.parquet")
    file = load_one(poi, folder / "a.parquet")
    assert file.left_out == {
        "closed (date_closed)": 1,
        "closed, gone or no place (unresolved_flags)": 1,
        "no coordinates": 1,
        "no category": 1,
    }
    assert rows(poi, "source_id, name, category, category_group") == [
        ("a", "A", "Pub", "Dining and Drinking"),
        ("d", "D", "Pub", "Dining and Drinking"),
    ]


# Nested columns

NESTED = {
    "id": [1, 2],
    "names": [{"primary": "A", "more": {"fr": "a"}}, {"primary": "B", "more": {"fr": "b"}}],
    "kinds": [["pub", "bar"], ["bank"]],
    "address": [[{"city": "Rome"}], [{"city": "Oslo"}]],
    "lon": [2.0, 3.0],
    "lat": [48.0, 49.0],
}


def test_lists_of_labels_in_csv(poi: str, folder: Path) -> None:
    """As DuckDB writes them."""
    text = (
        "fsq_place_id,name,latitude,longitude,fsq_category_labels\n"
        '1,A,48,2,"[Dining and Drinking > Bar > Pub, Retail > Shop]"\n'
        "2,B,48,2,\"['Retail > Books, Maps', 'Event']\"\n"
        "3,C,48,2,[Retail > Shop]\n"
    )
    load_one(poi, write(folder / "a.csv", text))
    found = rows(poi, "category, category_group, attributes ->> 'other_labels', source_id, name")
    assert [row[:3] for row in found] == [
        ("Pub", "Dining and Drinking", '["Retail > Shop"]'),
        ("Books, Maps", "Retail", '["Event"]'),
        ("Shop", "Retail", None),
    ]


@pytest.mark.parametrize("suffix", ["parquet", "geojsonl"])
def test_paths_into_nested_columns(poi: str, folder: Path, suffix: str) -> None:
    path = folder / f"a.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table(NESTED), path)
    else:
        values = [dict(zip(NESTED, row, strict=True)) for row in zip(*NESTED.values(), strict=True)]
        write(path, "\n".join(map(json.dumps, values)))
    options = {"name_column": "names.more.fr", "category_column": "kinds[0]", "where": {"address[0].city": "Rome"}}
    file = load_one(poi, path, **options)
    assert file.left_out == {"not what --where asks for": 1}
    assert rows(poi) == [("1", "a", "pub", 2, 48)]
    load_one(poi, path, category_column="kinds")
    assert rows(poi, "name, category, source_id") == [("A", "bar and pub", "1"), ("B", "bank", "2")]
    with pytest.raises(
        BadInput, match=r"names \(--name-column\) holds structures. Name a part of it: names.primary, names.m"
    ):
        load_one(poi, path, name_column="names", category_column="kinds")
    with pytest.raises(
        BadInput, match=r"there is no names.primry \(--name-column\). In names there are: names.primary"
    ):
        load_one(poi, path, name_column="names.primry", category_column="kinds")


def test_where_on_lists_finds_what_is_in_them(poi: str, folder: Path) -> None:
    pq.write_table(pa.table(NESTED), folder / "a.parquet")
    assert load_one(poi, folder / "a.parquet", category_column="kinds", where={"kinds": "bar"}).inserted == 1


@pytest.mark.parametrize(
    ("value", "path", "expected"),
    [
        ({"a": {"b": 1}}, "x.a.b", 1),
        ({"a": [1, 2]}, "x.a[1]", 2),
        ([("k", "v")], "x.k", "v"),
        ([{"b": None}, {"b": 2}], "x.b", 2),
        ('{"a": {"b": [7]}}', "x.a.b[0]", 7),
        ('"a"=>"1", "b"=>NULL', "x.a", "1"),
        ("plain", "x.a", None),
        ({"a": 1}, "x.a.b.c", None),
        ({"a": 1}, "x[0]", None),
        (None, "x.a", None),
    ],
)
def test_value_at(value: Any, path: str, expected: Any) -> None:
    field = find_field(["x"], path)
    assert field is not None
    assert value_at(value, field.steps) == expected


def test_a_column_named_like_a_path_is_itself() -> None:
    assert find_field(["names", "names.primary"], "Names.Primary") == ("names.primary", ())
    assert find_field(["names"], "names..primary") is None
    assert find_field(["names"], "other.primary") is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("restaurant;bar", "bar and restaurant"),
        ("bar; restaurant ;bar", "bar and restaurant"),
        (["c", "a", "b"], "a, b and c"),
        ('["b", "a"]', "a and b"),
        ("{b,a}", "a and b"),
        ("Fish &amp; chips", "Fish &amp; chips"),
        (";", None),
        ([], None),
        (["restaurant", "point_of_interest", "establishment"], "restaurant"),
        (["point_of_interest"], "point_of_interest"),
        ("NaN", None),
        ("null;bar", "bar"),
        ("cafe", "cafe"),
    ],
)
def test_words_of(value: Any, words: str | None) -> None:
    assert words_of(value) == words


# Formats that GDAL reads

POINTS = [("A", "Café", 2.5, 48.25), ("B", "Pub", 2.75, 48.5)]


def vector_file(path: Path, driver: str, layer: str = "pois", crs: str = "EPSG:4326", **options: Any) -> Path:
    points = [struct.pack("<BIdd", 1, 1, x, y) for _, _, x, y in POINTS]
    table = pa.table({"name": [p[0] for p in POINTS], "category": [p[1] for p in POINTS], "geometry": points})
    pyogrio.raw.write_arrow(
        table, path, driver=driver, layer=layer, geometry_name="geometry", geometry_type="Point", crs=crs, **options
    )
    return path


@pytest.mark.parametrize(
    ("name", "driver"),
    [
        ("a.gpkg", "GPKG"),
        ("a.shp", "ESRI Shapefile"),
        ("a.zip", "ESRI Shapefile"),
        ("a.fgb", "FlatGeobuf"),
        ("a.kml", "KML"),
        ("a.kmz", "LIBKML"),
    ],
)
def test_gis_formats(poi: str, folder: Path, name: str, driver: str) -> None:
    path = vector_file(folder / name.replace("zip", "shp"), driver)
    if name == "a.zip":
        with zipfile.ZipFile(folder / name, "w") as archive:
            for part in folder.glob("a.*"):
                archive.write(part, f"inside/{part.name}") if part.suffix != ".zip" else None
        path = folder / name
    file = load_one(poi, path)
    assert file.inserted == 2
    assert rows(poi, "name, category, ST_X(geom), ST_Y(geom), source") == [(*point, "a") for point in POINTS]


def test_gis_formats_in_another_crs(poi: str, folder: Path) -> None:
    points = [struct.pack("<BIdd", 1, 1, 651409.903, 313177.270)]
    table = pa.table({"category": ["Tower"], "geometry": points})
    path = folder / "a.gpkg"
    pyogrio.raw.write_arrow(
        table, path, driver="GPKG", layer="a", geometry_name="geometry", geometry_type="Point", crs="EPSG:27700"
    )
    load_one(poi, path)
    assert rows(poi)[0][3:] == pytest.approx((1.716038, 52.657977), abs=1e-4)


def test_layers(poi: str, folder: Path) -> None:
    path = vector_file(folder / "a.gpkg", "GPKG", "first")
    vector_file(path, "GPKG", "second")
    with pytest.raises(BadInput, match=r"it has the layers first, second\. Name one with --layer"):
        load_one(poi, path)
    with pytest.raises(BadInput, match=r"there is no layer 'third'\. There are: first, second"):
        load_one(poi, path, layer="third")
    assert load_one(poi, path, layer="second").inserted == 2
    assert load_one(poi, path, layer="first").inserted == 2, "its rows have the same numbers"
    assert {source for source, _, _ in rows(poi, "source, source_id, name")} == {"a/first", "a/second"}


def test_folders_of_kml_are_categories(poi: str, folder: Path) -> None:
    def placemark(name: str, x: float) -> str:
        return f"<Placemark><name>{name}</name><Point><coordinates>{x},48</coordinates></Point></Placemark>"

    text = f"""<?xml version="1.0" encoding="UTF-8"?><kml xmlns="http://www.opengis.net/kml/2.2"><Document>
<Folder><name>Cafes</name>{placemark("A", 2)}</Folder><Folder><name>Pubs</name>{placemark("B", 3)}</Folder></Document></kml>"""
    load_one(poi, write(folder / "a.kml", text))
    assert rows(poi, "name, category, source_id")[0][:2] in {("A", "Cafes"), ("B", "Pubs")}
    assert sorted(row[:2] for row in rows(poi, "name, category, source_id")) == [("A", "Cafes"), ("B", "Pubs")]


def test_gpx(poi: str, folder: Path) -> None:
    text = """<?xml version="1.0"?><gpx version="1.1" creator="x" xmlns="http://www.topografix.com/GPX/1/1">
<wpt lat="48" lon="2"><name>A</name><sym>Flag</sym><type>Pub</type></wpt>
<wpt lat="49" lon="3"><name>B</name><sym>Restaurant</sym></wpt></gpx>"""
    load_one(poi, write(folder / "a.gpx", text))
    assert sorted(row[1:] for row in rows(poi)) == [("A", "Pub", 2, 48), ("B", "Restaurant", 3, 49)]


@pytest.mark.parametrize(("name", "driver"), [("a.xlsx", "XLSX"), ("a.ods", "ODS")])
def test_spreadsheets(poi: str, folder: Path, name: str, driver: str) -> None:
    columns = {
        "id": ["x", "y"],
        "name": ["A", "B"],
        "category": ["Café", "Pub"],
        "lon": [2.5, 2.75],
        "lat": [48.25, 48.5],
    }
    pyogrio.raw.write_arrow(pa.table(columns), folder / name, driver=driver, layer="Sheet1")
    load_one(poi, folder / name)
    assert rows(poi) == [("x", "A", "Café", 2.5, 48.25), ("y", "B", "Pub", 2.75, 48.5)]


@pytest.mark.parametrize("name", ["a.gpkg", "a.shp", "a.fgb", "a.xlsx", "a.kmz", "a.zip"])
def test_files_that_are_not_what_they_are_called(poi: str, folder: Path, name: str) -> None:
    with pytest.raises(BadInput, match=f"it does not begin as a {name[2:]} file does; fetch the file again"):
        load_one(poi, write(folder / name, "something else"))


@pytest.mark.parametrize("name", ["a.gpkg", "a.fgb", "a.shp"])
def test_cut_off_gis_files(poi: str, folder: Path, name: str) -> None:
    driver = {"a.gpkg": "GPKG", "a.fgb": "FlatGeobuf", "a.shp": "ESRI Shapefile"}[name]
    path = vector_file(folder / name, driver)
    whole = path.read_bytes()
    with pytest.raises((BadInput, NothingLeft)):
        load_one(poi, write(path, whole[: len(whole) // 3]))
    assert rows(poi) == []


def test_a_virtual_file_is_not_opened(poi: str, folder: Path) -> None:
    """GDAL's VRT names other files and databases: nobody's KML may be one."""
    other = write(folder / "secret.csv", "id,category,lon,lat\n1,secret,2,48\n")
    layer = f"<OGRVRTLayer name='secret'><SrcDataSource>{other}</SrcDataSource></OGRVRTLayer>"
    text = f"<OGRVRTDataSource>{layer}</OGRVRTDataSource>"
    with pytest.raises(BadInput, match="XML of an unknown kind"):
        load_one(poi, write(folder / "a.kml", text))


# GeoArrow, and Parquet's own geometries


@pytest.mark.parametrize("encoding", ["point", "multipoint", "linestring", "polygon", "multipolygon"])
def test_geoarrow_encodings(poi: str, folder: Path, encoding: str) -> None:
    at = {"x": 2.0, "y": 48.0}
    ring = [at, {"x": 2.1, "y": 48.0}, {"x": 2.1, "y": 48.1}, at]
    value: Any = {"point": at, "multipoint": [at], "linestring": ring, "polygon": [ring], "multipolygon": [[ring]]}[
        encoding
    ]
    table = pa.table({"id": [1, 2], "category": ["Pub", "None"], "geometry": [value, None]})
    file = load_one(poi, write_geoparquet(folder / "a.parquet", table, encoding=encoding))
    assert (file.inserted, file.reasons) == (1, {"no coordinates": 1})
    assert rows(poi)[0][3:] == pytest.approx((2, 48), abs=0.11)


class GeoArrowWkb(pa.ExtensionType):  # type: ignore[misc]
    """The type that pyarrow writes as Parquet's GEOMETRY."""

    def __init__(self) -> None:
        super().__init__(pa.binary(), "geoarrow.wkb")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"{}"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: Any, serialized: Any) -> GeoArrowWkb:
        return cls()


@pytest.mark.parametrize("store_schema", [True, False])
def test_native_parquet_geometry(poi: str, folder: Path, store_schema: bool) -> None:
    points = pa.array([struct.pack("<BIdd", 1, 1, 2, 48)])
    pa.register_extension_type(GeoArrowWkb())
    try:
        place = pa.ExtensionArray.from_storage(GeoArrowWkb(), points)
        table = pa.table({"id": [1], "category": ["Pub"], "place": place})
        pq.write_table(table, folder / "a.parquet", store_schema=store_schema)
    finally:
        pa.unregister_extension_type("geoarrow.wkb")
    assert "Geometry" in str(pq.ParquetFile(folder / "a.parquet").schema)
    load_one(poi, folder / "a.parquet")
    assert rows(poi) == [("1", None, "Pub", 2, 48)]


# European tables

TABLE = "id;name;category;lon;lat\n1;Café Müller;Gaststätte;4,873375;52,384874\n2;Œuf;Épicerie;5,125;52,5\n"
PLACES = [("1", "Café Müller", "Gaststätte", 4.873375, 52.384874), ("2", "Œuf", "Épicerie", 5.125, 52.5)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_encodings_and_separators(poi: str, folder: Path, encoding: str, delimiter: str) -> None:
    load_one(poi, write(folder / "a.csv", TABLE.replace(";", delimiter).encode(encoding)))
    assert rows(poi) == PLACES


def test_the_encoding_may_be_named(poi: str, folder: Path) -> None:
    text = "id,name,category,lon,lat\n1,Кафе,Бар,37.6,55.7\n"
    file = load_one(poi, write(folder / "a.csv.gz", gzip.compress(text.encode("cp1251"))), encoding="cp1251")
    assert file.notes == []
    assert rows(poi) == [("1", "Кафе", "Бар", 37.6, 55.7)]


def test_quoted_decimal_commas(poi: str, folder: Path) -> None:
    load_one(poi, write(folder / "a.csv", 'id,category,lon,lat\n1,Pub,"4,5","52,25"\n2,Pub,"4,75","52,5"\n'))
    assert rows(poi) == [("1", None, "Pub", 4.5, 52.25), ("2", None, "Pub", 4.75, 52.5)]


def test_projected_decimal_commas_with_thousands(poi: str, folder: Path) -> None:
    text = "id;category;easting;northing\n1;Tower;651.409,903;313.177,270\n"
    load_one(poi, write(folder / "a.csv", text), srid=27700)
    assert rows(poi)[0][3:] == pytest.approx((1.716038, 52.657977), abs=1e-4)


def test_without_a_header(poi: str, folder: Path) -> None:
    path = write(folder / "a.csv", "1,A,Pub,2.5,48.25\n2,B,Bank,2.75,48.5\n")
    with pytest.raises(BadInput, match="The columns are: column_1, column_2, column_3, column_4, column_5"):
        load_one(poi, path)
    named = {"id": 1, "name": 2, "category": 3, "lon": 4, "lat": 5}
    load_one(poi, path, **{f"{part}_column": f"column_{number}" for part, number in named.items()})
    assert rows(poi) == [("1", "A", "Pub", 2.5, 48.25), ("2", "B", "Bank", 2.75, 48.5)]


def test_geonames(poi: str, folder: Path) -> None:
    line = '{}\t"The" Inn\t\t\t48.25\t2.5\tS\t{}\tFR\t\t\t\t\t\t0\t\t10\tEurope/Paris\t2024-01-01\n'
    load_one(poi, write(folder / "FR.txt", line.format(1, "HTL") + line.format(2, "XYZ")))
    assert rows(poi) == [("1", '"The" Inn', "hotel", 2.5, 48.25), ("2", '"The" Inn', "XYZ", 2.5, 48.25)]
    assert rows(poi, "attributes ->> 'feature code', source_id, name")[0][0] == "HTL"


def test_names_that_begin_with_a_quote(poi: str, folder: Path) -> None:
    text = 'id,name,category,lon,lat\n1,"Le Coq" Bistro,Pub,2,48\n2,"Plain, quoted",Pub,2,48\n'
    file = load_one(poi, write(folder / "a.csv", text))
    assert file.rejected == 0
    assert [row[1] for row in rows(poi)] == ['"Le Coq" Bistro', "Plain, quoted"]


# No category, wrong places


def test_no_category_at_all_is_said(poi: str, folder: Path) -> None:
    lines = "".join(f"{i},Place {i},{'Pub' if i % 2 else 'Bank'},Street {i},2,48\n" for i in range(20))
    file = load_one(poi, write(folder / "a.csv", "id,name,sort_of_place,street,lon,lat\n" + lines))
    assert file.without_category == 20
    assert file.notes == [
        "no row got a category. These columns might hold it: sort_of_place. Name its column with --category-column"
    ]


def test_a_type_that_all_rows_have_is_said(poi: str, folder: Path) -> None:
    path = write(folder / "a.csv", "id,type,name,lon,lat\n1,place,A,2,48\n2,place,B,2.1,48\n")
    (note,) = load_one(poi, path).notes
    assert note.startswith("all rows have the category 'place', of the column type. If another column")
    assert load_one(poi, path, category_column="type").notes == []
    assert load_one(poi, write(folder / "b.csv", "type,lon,lat\nbar,2,48\npub,2.1,48\n")).notes == []


@pytest.mark.parametrize("encoding", ["klingon", "hex", "rot13", ""])
def test_an_encoding_that_is_none_is_refused(poi: str, folder: Path, encoding: str) -> None:
    with pytest.raises(BadInput, match="is no known encoding; well-known are utf-8, cp1252"):
        load_one(poi, write(folder / "a.csv", "category,lon,lat\nbar,2,48\n"), encoding=encoding)


@pytest.mark.parametrize("name", ["a.csv", "a.geojson", "a.parquet"])
def test_a_layer_of_what_has_none_is_refused(poi: str, folder: Path, name: str) -> None:
    if name == "a.parquet":
        pq.write_table(pa.table({"category": ["bar"], "lon": [2.0], "lat": [48.0]}), folder / name)
    else:
        write(
            folder / name,
            "category,lon,lat\nbar,2,48\n" if name == "a.csv" else collection(feature(2, 48, category="x")),
        )
    with pytest.raises(BadInput, match="it has no layers; leave --layer away"):
        load_one(poi, folder / name, layer="shops")


@pytest.mark.parametrize(
    "page", ["<!DOCTYPE html><html><body>Sign in</body></html>", "<html>\n<head>", "<!-- x --> <HTML>"]
)
@pytest.mark.parametrize("name", ["a.csv", "a.geojson", "a.kml"])
def test_a_web_page_is_no_data(poi: str, folder: Path, name: str, page: str) -> None:
    with pytest.raises(
        BadInput, match="it is a web page and no data" if name != "a.kml" else "web page|does not begin"
    ):
        load_one(poi, write(folder / name, page))


def test_degrees_that_are_said_to_be_metres(poi: str, folder: Path) -> None:
    path = write(folder / "a.csv", "id,category,lon,lat\n1,Pub,2,48\n2,Pub,2.1,48.1\n")
    with pytest.raises(BadInput, match="its coordinates look like degrees, and EPSG:3857 is in metres"):
        load_one(poi, path, srid=3857)
    assert rows(poi) == []


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("99,Pub,-74,40.7", "1 row is far from all others: a 99 (-74, 40.7)"),
        ("99,Pub,0,0", "1 row is at 0, 0: a 99 (0, 0)"),
        ("99,Pub,48.85,2.35", "1 row is with longitude and latitude swapped: a 99 (48.85, 2.35)"),
    ],
)
def test_outliers_are_named(poi: str, folder: Path, row: str, why: str) -> None:
    lines = "".join(f"{i},Pub,{2.3 + i / 200},{48.8 + i / 200}\n" for i in range(30))
    file = load_one(poi, write(folder / "a.csv", f"id,category,lon,lat\n{lines}{row}\n"))
    assert file.inserted == 31
    assert [note.split(".  ")[0].startswith(why) for note in file.notes] == [True]


@pytest.mark.parametrize(
    "places",
    [
        [(2.3 + i / 200, 48.8) for i in range(30)],  # a city
        [(-180 + i * 3.6, -60 + i) for i in range(100)],  # the world
        [(179.9 if i % 2 else -179.9, -17 + i / 100) for i in range(50)],  # on both sides of the 180th meridian
        [(i % 30 / 10, i % 30 / 10) for i in range(60)],  # around 0, 0
        [(2.3 + i / 100, 48.8) for i in range(95)] + [(55.4, -21.1)] * 5,  # a country with an island far away
    ],
)
def test_no_outliers(poi: str, folder: Path, places: list[tuple[float, float]]) -> None:
    lines = "".join(f"{i},Pub,{x},{y}\n" for i, (x, y) in enumerate(places))
    assert load_one(poi, write(folder / "a.csv", f"id,category,lon,lat\n{lines}")).notes == []


# Hostile files


def deep(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("[" * 200_000, "JSON"),
        ('{"type": "Feature", "geometry": null, "properties": ' + deep(3000) + "}", "nested deeper"),
        ('{"type": "Feature", "geometry": {"type": "Point", "coordinates": [2, 48]}, "properties": {"shop": "x", "y": '
         + deep(300) + "}}", "nested deeper"),
        ('{"type": "Feature", "properties": {"shop": "x"}, "geometry": '
         + '{"type": "GeometryCollection", "geometries": [' * 2000 + "]}" * 2000 + "}", "nested deeper"),
        ('{"type": "Feature", "properties": {"name": "' + "x" * 1_100_000 + '"}}', "over 1,000,000 characters"),
        ('{"type": "Feature", "properties": {"name": nothing}}', "not valid JSON"),
        ('{"type": "Feature", "properties": {"name": "\\ud800"}}', "not valid UTF-8"),
    ],
)  # fmt: skip
def test_one_hostile_feature_is_one_refused_row(poi: str, folder: Path, bad: str, reason: str) -> None:
    good = json.dumps(feature(2, 48, shop="bakery"))
    text = '{"type": "FeatureCollection", "features": [' + f"{good},{bad},{good}" + "]}"
    path = write(folder / "a.geojson", text)
    if bad.startswith("["):  # its brackets never close
        with pytest.raises(BadInput, match="not valid JSON: the file ends inside a feature"):
            load_one(poi, path)
        return
    file = load_one(poi, path)
    assert (file.rows, file.rejected, file.inserted + file.duplicates) == (3, 1, 2)
    assert reason in next(iter(file.reasons))


def test_features_of_any_depth(poi: str, folder: Path) -> None:
    """Somewhere between, a feature can be read and not written again."""
    levels = range(40, 1100, 4)
    collections = ['{"type": "GeometryCollection", "geometries": [' * (n // 2) + "]}" * (n // 2) for n in levels]
    shapes = [f'{{"type": "Feature", "properties": {{"shop": "x"}}, "geometry": {shape}}}' for shape in collections]
    values = [f'{{"type": "Feature", "geometry": null, "properties": {{"shop": "x", "y": {deep(n)}}}}}' for n in levels]
    good = json.dumps(feature(2, 48, shop="bakery"))
    path = write(
        folder / "a.geojson", '{"type": "FeatureCollection", "features": [' + ",".join([good, *shapes, *values]) + "]}"
    )
    file = load_one(poi, path)
    assert (file.inserted, file.rejected) == (1, 2 * len(levels))


def test_a_file_of_nothing_but_hostile_features_says_why(poi: str, folder: Path) -> None:
    digits = '{"type": "Feature", "properties": {"shop": ' + "9" * 10_000 + "}}"
    path = write(folder / "a.geojson", '{"type": "FeatureCollection", "features": [' + digits + "]}")
    with pytest.raises(BadInput, match="none of its rows can be read, the first because: not valid JSON"):
        load_one(poi, path)


def test_a_parquet_column_that_would_fill_the_memory_is_not_read(poi: str, folder: Path) -> None:
    columns = {"id": [1, 2], "category": ["Pub", "Bank"], "lon": [2.0, 2.0], "lat": [48.0, 48.0]}
    pq.write_table(pa.table(columns | {"note": ["x" * 70_000_000, "y"]}), folder / "a.parquet", compression="zstd")
    file = load_one(poi, folder / "a.parquet")
    assert (file.inserted, file.notes) == (2, ["column note was not read: its values are too long"])


def test_quotes_that_never_pair_take_linear_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line ends one quoted field and begins the next, so that a row that begins there goes on to the end of the file."""
    monkeypatch.setattr(delimited, "SWALLOWED", 3_000_000)
    parsed = 0
    rows = delimited.Dialect.rows

    class Counted:
        def __init__(self, lines: Iterable[str]) -> None:
            self.lines = iter(lines)

        def __iter__(self) -> Iterator[str]:
            return self

        def __next__(self) -> str:
            nonlocal parsed
            line = next(self.lines)
            parsed += len(line)
            assert parsed < 8_000_000, "the same lines are read again and again"
            return line

    monkeypatch.setattr(delimited.Dialect, "rows", lambda self, lines: rows(self, Counted(lines)))
    lines = "".join(f'{i}x","\n' for i in range(50_000))
    with open_reader(write(folder / "a.csv", "id,name,category,lon,lat\n" + lines)) as reader:
        read = sum(len(block) for block in reader.blocks)
    assert read == 50_000
    assert parsed > len(lines) > 400_000


def test_of_a_long_line_only_the_beginning_is_held(folder: Path) -> None:
    with open_text(write(folder / "a.csv", "x" * 5_000_000 + "\nshort\n")) as text:
        lines = Lines(text)
        assert MAX_LINE < len(next(lines)) <= MAX_LINE + CHUNK
        lines.begin()
        assert next(lines) == "short\n"


def test_a_record_that_never_ends_is_not_held_in_memory(folder: Path) -> None:
    with open_text(write(folder / "a.csv", 'x","\n' * 500_000)) as text:
        lines = Lines(text)
        with pytest.raises(csv.Error, match="too long"):
            for _ in lines:
                pass
        assert sum(map(len, lines.taken)) <= MAX_LINE + 5
        lines.begin()
        assert next(lines) == 'x","\n'


@pytest.mark.parametrize("field", ["x" * 200_000, '"' + "x" * 200_000, "\0" * 200_000, "x" * 1_100_000])
def test_one_field_that_is_too_long_is_one_refused_row(poi: str, folder: Path, field: str) -> None:
    text = f"id,name,category,lon,lat\n1,{field},Pub,2,48\n2,A,Pub,2,48\n"
    file = load_one(poi, write(folder / "a.csv", text))
    assert (file.rejected, file.inserted) == (1, 1)


def test_a_header_of_too_many_columns(poi: str, folder: Path) -> None:
    names = ",".join(f"c{number}" for number in range(20_000))
    with pytest.raises(BadInput, match="the header has 20,000 columns, and 10,000 can be read"):
        load_one(poi, write(folder / "a.csv", f"{names}\n{names}\n"))


def test_a_file_without_hope_is_not_read_to_its_end(poi: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callipper_db.load.HOPELESS", 10_000)
    path = write(folder / "a.csv", "id,category,lon,lat\n" + "a,b\n" * 200_000)
    with pytest.raises(TooManyRejects, match=r"wrong number of columns\. The rest of the file was not read"):
        load_one(poi, path)
    assert (folder / "a.csv.rejects.csv").read_text().count("\n") < 100_000


def longest_block(path: Path) -> int:
    with open_reader(path) as reader:
        return max(len(block) for block in reader.blocks)


def test_values_that_a_dictionary_repeats_are_read_few_at_a_time(folder: Path) -> None:
    """On the disk they are next to nothing, and their length is not in the metadata."""
    columns = {"id": [*map(str, range(6000))], "lon": [2.0] * 6000, "lat": [48.0] * 6000}
    pq.write_table(
        pa.table(columns | {"category": ["Pub"] * 6000, "none": pa.nulls(6000, pa.string())}), folder / "a.parquet"
    )
    assert longest_block(folder / "a.parquet") == 5000
    pq.write_table(pa.table(columns | {"category": ["x" * 100_000] * 6000}), folder / "b.parquet")
    assert (folder / "b.parquet").stat().st_size < 200_000
    assert longest_block(folder / "b.parquet") == 64


def test_lists_of_many_values(poi: str, folder: Path) -> None:
    columns = {"id": [1, 2], "category": ["Pub", "Bank"], "lon": [2.0, 2.0], "lat": [48.0, 48.0]}
    zeros = pa.array([[0] * 3_000_000, []], pa.list_(pa.int8()))
    pq.write_table(pa.table(columns | {"zeros": zeros}), folder / "a.parquet")
    assert load_one(poi, folder / "a.parquet").notes == ["column zeros was not read: its values are too long"]


def test_a_column_of_a_geopackage_that_would_fill_the_memory_is_not_read(
    poi: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector, "BATCH_BYTES", 200_000)
    monkeypatch.setattr(vector, "LONG_VALUE", 1_000_000)
    points = [struct.pack("<BIdd", 1, 1, x, 48) for x in (2, 3)]
    table = pa.table(
        {"name": ["A", "B"], "category": ["Pub", "Pub"], 'a "note"': ["x" * 2_000_000, "y"], "geometry": points}
    )
    pyogrio.raw.write_arrow(
        table,
        folder / "a.gpkg",
        driver="GPKG",
        layer="a",
        geometry_name="geometry",
        geometry_type="Point",
        crs="EPSG:4326",
    )
    assert longest_block(folder / "a.gpkg") == 1
    assert load_one(poi, folder / "a.gpkg").notes == ['column a "note" was not read: its values are too long']
    assert [row[1:] for row in rows(poi)] == [("A", "Pub", 2, 48), ("B", "Pub", 3, 48)]


# Any input, against an independent reader

cell = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(cell, cell), min_size=1, max_size=8),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_delimited_text_as_the_csv_module_has_it(
    folder: Path, table: list[tuple[str, str]], delimiter: str, encoding: str
) -> None:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter, lineterminator="\n").writerows(
        [("number", "first", "second", "x"), *((i, *row, "end") for i, row in enumerate(table))]
    )
    path = write(folder / "any.csv", out.getvalue().encode(encoding))
    with open_reader(path) as reader:
        found = [
            record.values
            for block in reader.blocks
            for record in (block.records() if isinstance(block, Block) else block)
            if isinstance(record, Record)
        ]
    with open(path, encoding="utf-16" if encoding == "utf-16" else "utf-8-sig", newline="") as file:
        assert found == list(csv.DictReader(file, delimiter=delimiter))


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | cell,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(cell, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(cell, values, max_size=4), min_size=1, max_size=5), st.booleans(), st.integers(0, 4))
def test_json_as_the_json_module_has_it(folder: Path, items: list[dict[str, Any]], lines: bool, indent: int) -> None:
    items = [{key: value for key, value in item.items() if key not in {"type", "features"}} for item in items]
    features = [feature(2, 48) | {"properties": item} for item in items]
    if lines:
        path = write(folder / "any.geojsonl", "\n".join(map(json.dumps, features)))
    else:
        text = json.dumps({"type": "FeatureCollection", "x": [1], "features": features}, indent=indent or None)
        path = write(folder / "any.geojson", text)
    with open_reader(path) as reader:
        reader.look()
        found = [record.values for block in reader.blocks for record in block]  # type: ignore[union-attr]
        assert set(reader.names) == {key for item in items for key in item}
    assert found == items


SCHEMES = {
    "Overture": (
        "id names.primary names.common categories.primary categories.alternate basic_category taxonomy.primary"
        " taxonomy.hierarchy confidence operating_status brand.names.primary brand.wikidata"
    ),
    "Foursquare": "fsq_place_id fsq_category_labels date_closed unresolved_flags latitude longitude name",
    "Geofabrik": "osm_id fclass code name",
    "OpenStreetMap": "@id @type amenity shop tags name osm_id",
}


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_schemes_take_any_value(folder: Path, scheme: str, data: st.DataObject) -> None:
    """Whatever stands under the names that a provider's scheme has, each row is a place, refused or left out."""
    paths = SCHEMES[scheme].split()
    items = data.draw(st.lists(st.dictionaries(st.sampled_from(paths), values, max_size=9), min_size=1, max_size=4))
    sound = dict.fromkeys(paths, "x") | {"longitude": 2, "latitude": 48}
    features = []
    for item in [sound, *items]:
        properties: dict[str, Any] = {}
        for path, value in item.items():
            outer, _, inner = path.partition(".")
            if inner and isinstance(properties.setdefault(outer, {}), dict):
                properties[outer][inner] = value
            elif not inner:
                properties[outer] = value
        features.append(feature(2, 48, **properties))
    path = write(folder / "any.geojson", collection(*features))
    options = LoadOptions(min_confidence=0.5 if scheme == "Overture" else None)
    with open_reader(path) as reader:
        reader.look()
        rules = Rules.of(path, reader, options, "any", 4326)
        assert rules.layout is not None
        assert scheme in rules.layout.provider
        found = [rules.place_of(record) for block in reader.blocks for record in block if isinstance(record, Record)]
    assert all(isinstance(one, (Place, Refused, LeftOut)) for one in found)
    assert len(found) == len(features)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.fixed_dictionaries({"a": st.none() | cell, "b": st.lists(cell, max_size=3)}), min_size=1, max_size=5)
)
def test_parquet_as_pyarrow_has_it(folder: Path, items: list[dict[str, Any]]) -> None:
    kind = pa.struct([("a", pa.string()), ("b", pa.list_(pa.string()))])
    table = pa.table({"nested": pa.array(items, kind), "n": list(range(len(items)))})
    pq.write_table(table, folder / "any.parquet")
    with open_reader(folder / "any.parquet") as reader:
        (block,) = reader.blocks
        assert isinstance(block, Block)
        assert list(block.columns["nested"]) == table["nested"].to_pylist()
        assert list(block.columns["nested.a"]) == [item["a"] for item in items]
        assert reader.parts == {"nested": ["nested.a", "nested.b"]}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(cell, st.floats(-180, 180), st.floats(-90, 90)), min_size=1, max_size=6),
    st.sampled_from(["GPKG", "FlatGeobuf"]),
)
def test_vector_formats_as_pyogrio_has_them(folder: Path, places: list[tuple[str, float, float]], driver: str) -> None:
    table = pa.table(
        {"name": [place[0] for place in places], "geometry": [struct.pack("<BIdd", 1, 1, x, y) for _, x, y in places]}
    )
    path = folder / ("any.gpkg" if driver == "GPKG" else "any.fgb")
    path.unlink(missing_ok=True)
    pyogrio.raw.write_arrow(
        table, path, driver=driver, layer="a", geometry_name="geometry", geometry_type="Point", crs="EPSG:4326"
    )
    _, expected = pyogrio.raw.read_arrow(path)
    with open_reader(path) as reader:
        blocks = [block for block in reader.blocks if isinstance(block, Block)]
        assert [name for block in blocks for name in block.columns["name"]] == expected["name"].to_pylist()
        shapes = [shape for block in blocks for shape in block.shapes or ()]
    assert sorted(shapes) == sorted((x, y) for _, x, y in places)


# What further providers call their columns

PROVIDERS = {
    "safegraph.csv": (
        "placekey,location_name,top_category,sub_category,latitude,longitude,polygon_wkt\n"
        "zzw@5vg,A,Eating Places,Full-Service Restaurants,48,2,\n",
        ("zzw@5vg", "A", "Full-Service Restaurants", "Eating Places"),
    ),
    "google_answer.json": (
        '{"html_attributions": [], "results": [{"place_id": "C1", "name": "A", "types": ["restaurant", "food"],'
        ' "geometry": {"location": {"lat": 48, "lng": 2}, "viewport": {"northeast": {"lat": 49, "lng": 3}}}}], "status": "OK"}',
        ("C1", "A", "food and restaurant", None),
    ),
    "google_places.json": (
        '{"places": [{"id": "C1", "displayName": {"text": "A", "languageCode": "en"}, "primaryType": "cafe",'
        ' "types": ["cafe", "food"], "location": {"latitude": 48, "longitude": 2}}]}',
        ("C1", "A", "cafe", None),
    ),
    "google_array.json": (
        '[{"place_id": "C1", "name": "A", "types": ["cafe"], "geometry": {"location": {"lat": 48, "lng": 2}}}]',
        ("C1", "A", "cafe", None),
    ),
    "foursquare_answer.json": (
        '{"results": [{"fsq_id": "f1", "name": "A", "categories": [{"id": 1, "name": "Pub"}, {"id": 2, "name": "Bar"}],'
        ' "geocodes": {"main": {"latitude": 48, "longitude": 2}}}, {"fsq_id": "f2", "name": "B", "categories": [{"name": "Z"}],'
        ' "geocodes": {"main": {"latitude": 48, "longitude": 2}}}]}',
        ("f1", "A", "Pub", None),
    ),
    "yelp_answer.json": (
        '{"businesses": [{"id": "y1", "name": "A", "categories": [{"alias": "pubs", "title": "Pubs"}],'
        ' "coordinates": {"latitude": 48, "longitude": 2}}], "total": 1}',
        ("y1", "A", "Pubs", None),
    ),
    "german.csv": ("ID;Name;Kategorie;Breite;Länge\n7;A;Bäckerei;48,0;2,0\n", ("7", "A", "Bäckerei", None)),
    "german_degrees.csv": ("Nr;Bezeichnung;Art;Längengrad;Breitengrad\n7;A;Bar;2;48\n", (None, "A", "Bar", None)),
    "spanish.csv": ("id,nombre,categoría,latitud,longitud\n7,A,bar,48,2\n", ("7", "A", "bar", None)),
    "french.csv": ("id;nom;catégorie;coord_x;coord_y\n7;A;bar;2;48\n", ("7", "A", "bar", None)),
    "dutch.csv": ("id,naam,type,breedtegraad,lengtegraad\n7,A,bar,48,2\n", ("7", "A", "bar", None)),
    "excel.csv": ("sep=;\nid;name;category;lon;lat\n7;A;bar;2;48\n", ("7", "A", "bar", None)),
    "arcgis.json": (
        '{"spatialReference": {"wkid": 102100, "latestWkid": 3857}, "features": [{"attributes": {"OBJECTID": 7, "NAME": "A",'
        ' "TYPE": "bar"}, "geometry": {"x": 222638.98158654713, "y": 6106854.834885074}}]}',
        ("7", "A", "bar", None),
    ),
    "spaced.csv": ('id, name, category, lon, lat\n7, "A", bar, 2, 48\n', ("7", "A", "bar", None)),
    "of_r.csv": ("id,name,category,lon,lat\n7,NA,bar,2,48\n", ("7", None, "bar", None)),
    "yelp.json": (
        '{"business_id": "y1", "name": "A", "latitude": 48, "longitude": 2, "categories": "Bars", "hours": null}\n'
        '{"business_id": "y2", "name": "B", "latitude": 49, "longitude": 2, "categories": "Bars", "hours": {"Monday": "8"}}\n',
        ("y1", "A", "Bars", None),
    ),
    "wikidata.csv": (
        "item,itemLabel,coord,typeLabel\nhttp://www.wikidata.org/entity/Q1,A,Point(2 48),museum\n",
        ("http://www.wikidata.org/entity/Q1", "A", "museum", None),
    ),
    "naptan.csv": (
        "ATCOCode,CommonName,LocalityName,Easting,Northing,Longitude,Latitude,StopType\n0100,A,Town,358000,171000,2,48,BCT\n",
        ("0100", "A", "BCT", None),
    ),
    "gnis.txt": (
        "feature_id|feature_name|feature_class|prim_lat_dms|prim_long_dms|prim_lat_dec|prim_long_dec\n"
        "7|A|School|480000N|0020000E|48|2\n",
        ("7", "A", "School", None),
    ),
    "opendatasoft.csv": (
        'geo_point_2d;geo_shape;id;nom;type\n"48, 2";"{""type"": ""Point"", ""coordinates"": [2, 48]}";7;A;bar\n',
        ("7", "A", "bar", None),
    ),
    "hygiene.csv": ("FHRSID,BusinessName,BusinessType,Longitude,Latitude\n7,A,Pub,2,48\n", ("7", "A", "Pub", None)),
    "with_units.csv": (
        " ID , Name , Category , Latitude (deg) , Longitude (deg) \n7,A,bar,48,2\n",
        ("7", "A", "bar", None),
    ),
}


@pytest.mark.parametrize("name", PROVIDERS)
def test_columns_of_providers(poi: str, folder: Path, name: str) -> None:
    text, expected = PROVIDERS[name]
    file = load_one(poi, write(folder / name, text))
    assert file.rejected == 0
    identity = "CASE WHEN length(source_id) < 24 THEN source_id END" if expected[0] is None else "source_id"
    found = rows(poi, f"{identity}, name, category, category_group, ST_X(geom), ST_Y(geom)")
    assert found[0] == (*expected, pytest.approx(2), pytest.approx(48))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("48.5, 2.25", (2.25, 48.5)),
        ("48.5,2.25", (2.25, 48.5)),
        ("(48.5, 2.25)", (2.25, 48.5)),
        ("-48.5; -2.25", (-2.25, -48.5)),
        ("151.2, -33.9", (151.2, -33.9)),  # no latitude is 151
    ],
)
def test_two_numbers_are_latitude_and_longitude(poi: str, folder: Path, text: str, place: tuple[float, float]) -> None:
    load_one(poi, write(folder / "a.csv", f'category,coordinates\nbar,"{text}"\n'))
    assert rows(poi, "ST_X(geom), ST_Y(geom), source_id, name")[0][:2] == place


def test_usual_names_go_first(poi: str, folder: Path) -> None:
    """A column that is only like a usual one changes nothing where the usual one is there."""
    text = "id,placekey,name,locationname,category,types,geometry,center_lat,center_lon\n1,p,A,B,bar,pub,POINT (2 48),9,9\n"
    load_one(poi, write(folder / "a.csv", text))
    assert rows(poi) == [("1", "A", "bar", 2, 48)]


def test_several_columns_of_longitude_are_none(poi: str, folder: Path) -> None:
    text = "name,start_lat,start_lon,end_lat,end_lon\nA,48,2,49,3\n"
    with pytest.raises(BadInput, match="no columns of coordinates"):
        load_one(poi, write(folder / "a.csv", text))


# Geofabrik

FREE = [
    ("21", "restaurant", "A"),
    ("22", "bench", None),
    ("23", "christian_catholic", "C"),
    ("24", "recycling_glass", None),
]


@pytest.mark.parametrize(("name", "driver"), [("gis_osm_pois_free_1.shp", "ESRI Shapefile"), ("free.gpkg", "GPKG")])
def test_geofabrik(poi: str, folder: Path, name: str, driver: str) -> None:
    columns: dict[str, list[Any]] = {
        "osm_id": [identity for identity, _, _ in FREE],
        "code": [2301] * len(FREE),
        "fclass": [kind for _, kind, _ in FREE],
        "name": [title for _, _, title in FREE],
        "geometry": [struct.pack("<BIdd", 1, 1, 2.5, 48 + number) for number in range(len(FREE))],
    }
    pyogrio.raw.write_arrow(
        pa.table(columns),
        folder / name,
        driver=driver,
        geometry_name="geometry",
        geometry_type="Point",
        crs="EPSG:4326",
    )
    file = load_one(poi, folder / name)
    assert (file.inserted, file.left_out) == (2, {"street furniture (--street-furniture keeps it)": 2})
    assert rows(poi, "source_id, name, category, category_group, attributes ->> 'fclass'") == [
        ("21", "A", "Restaurant", "Food and drink", "restaurant"),
        ("23", "C", "Church", "Public services", "christian_catholic"),
    ]
    assert load_one(poi, folder / name, street_furniture=True).inserted == 2


@pytest.mark.parametrize(
    ("kind", "category"),
    [
        ("supermarket", "Supermarket"),
        ("railway_station", "Railway station"),
        ("muslim_sunni", "Mosque"),
        ("vending_parking", "Vending machine"),
        ("", None),
        (None, None),
    ],
)
def test_classes_of_geofabrik(kind: str | None, category: str | None) -> None:
    found = category_of(kind)
    assert (found and found[0]) == category


# Geometries of every kind, through every form that holds them; GDAL says what they are


def flat(geometry: dict[str, Any]) -> list[list[float]]:
    """All positions of a GeoJSON geometry."""
    if geometry["type"] == "GeometryCollection":
        return [position for member in geometry["geometries"] for position in flat(member)]
    found = geometry["coordinates"]
    while found and isinstance(found[0], list) and isinstance(found[0][0], list):
        found = [item for items in found for item in items]
    return found if found and isinstance(found[0], list) else [found]


positions = st.tuples(st.integers(-170, 170), st.integers(-80, 80), st.integers(0, 9)).map(list)


@st.composite
def geometries(draw: st.DrawFn) -> dict[str, Any]:
    """A valid GeoJSON geometry, perhaps with heights or in several parts."""
    deep = draw(st.booleans())

    def position() -> list[float]:
        return draw(positions)[: 3 if deep else 2]

    def line() -> list[list[float]]:
        x, y, *z = position()
        return [[x, y, *z], [x + 2, y + draw(st.integers(1, 3)), *z]]

    def ring() -> list[list[list[float]]]:
        x, y, *z = position()
        return [[[x, y, *z], [x + 3, y, *z], [x + 3, y + 3, *z], [x, y + 3, *z], [x, y, *z]]]

    kind = draw(st.sampled_from(["Point", "LineString", "Polygon"]))
    make = {"Point": position, "LineString": line, "Polygon": ring}[kind]
    form = draw(st.sampled_from(["single", "multi", "collection"]))
    if form == "single":
        return {"type": kind, "coordinates": make()}
    if form == "multi":
        return {"type": f"Multi{kind}", "coordinates": [make()]}
    return {"type": "GeometryCollection", "geometries": [{"type": kind, "coordinates": make()}]}


def in_every_form(folder: Path, shapes: list[dict[str, Any]]) -> Iterator[Path]:
    """The geometries as GeoJSON, and what GDAL makes of it: WKT in a CSV, WKB in GeoPackage and in Parquet."""
    source = write(folder / "a.geojson", collection(*[feature(0, 0, category="x") | {"geometry": s} for s in shapes]))
    yield source
    meta, table = pyogrio.raw.read_arrow(source)
    name = meta["geometry_name"] or "wkb_geometry"
    table = table.select(["category", name]).rename_columns(["category", "geometry"])
    for path, driver in (("a.gpkg", "GPKG"), ("b.csv", "CSV")):
        (folder / path).unlink(missing_ok=True)
        options = {"GEOMETRY": "AS_WKT"} if driver == "CSV" else {}
        pyogrio.raw.write_arrow(
            table,
            folder / path,
            driver=driver,
            geometry_name="geometry",
            geometry_type="Unknown",
            crs="EPSG:4326",
            **options,
        )
        yield folder / path
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": {"encoding": "WKB"}}}
    pq.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), folder / "a.parquet")
    yield folder / "a.parquet"


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(geometries(), min_size=1, max_size=4))
def test_geometries_of_every_kind(poi: str, folder: Path, shapes: list[dict[str, Any]]) -> None:
    """A point is where it is; of a line or an area, the point is on it."""
    for path in in_every_form(folder, shapes):
        with user_session(poi) as connection:
            connection.execute("TRUNCATE callipper.poi")
        file = load_one(poi, path)
        assert (file.rows, file.rejected) == (len(shapes), 0), path.name
        found = [(x, y) for _, _, _, x, y in rows(poi)]
        boxes = [(min(xs), max(xs), min(ys), max(ys)) for s in shapes for xs, ys, *_ in [zip(*flat(s), strict=True)]]
        for x, y in found:
            assert any(w - 1e-9 <= x <= e + 1e-9 and s - 1e-9 <= y <= n + 1e-9 for w, e, s, n in boxes), path.name
        for west, east, south, north in boxes:
            assert any(west - 1e-9 <= x <= east + 1e-9 and south - 1e-9 <= y <= north + 1e-9 for x, y in found), (
                path.name
            )


@pytest.mark.parametrize("empty", ["POINT EMPTY", "POLYGON EMPTY", "GEOMETRYCOLLECTION EMPTY", "MULTIPOINT EMPTY"])
def test_empty_geometries_are_refused_alone(poi: str, folder: Path, empty: str) -> None:
    path = write(folder / "a.csv", f"id,category,wkt\n1,bar,POINT (1 2)\n2,bar,{empty}\n")
    file = load_one(poi, path)
    assert (file.inserted, file.reasons) == (1, {"a geometry that cannot be read or placed on the globe": 1})


# Angles as people write them, and files that are not read


@pytest.mark.parametrize(
    ("lat", "lon", "place"),
    [
        ("48.85N", "2.35W", (-2.35, 48.85)),
        ("48°51'36\"N", "2° 21\u2032 36\u2033 E", (2.36, 48.86)),
        ("S 33.5", "151°30'", (151.5, -33.5)),
        ("-33.5°", "151.5°", (151.5, -33.5)),
        ("48,5° N", "2,5° E", (2.5, 48.5)),
    ],
)
def test_angles_as_people_write_them(poi: str, folder: Path, lat: str, lon: str, place: tuple[float, float]) -> None:
    lines = f'id;category;lat;lon\n1;Pub;"{lat.replace(chr(34), chr(34) * 2)}";"{lon}"\n'
    load_one(poi, write(folder / "a.csv", lines), decimal="," if "," in lat else None)
    ((x, y),) = rows(poi, "ST_X(geom), ST_Y(geom)")
    assert (x, y) == pytest.approx(place)


@pytest.mark.parametrize("lat", ["48.85E", "48°60'N", "N48.85N", "48°51'61\"N", "48 51"])
def test_what_is_no_latitude_is_refused(poi: str, folder: Path, lat: str) -> None:
    text = f"id;category;lat;lon\n1;Pub;48;2\n2;Pub;{lat};2\n"
    assert load_one(poi, write(folder / "a.csv", text)).reasons == {"coordinates that are not numbers": 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv.bz2", b"BZh91AY&SY", "packed with bzip2; unpack it"),
        ("a.csv.xz", b"\xfd7zXZ\0\0\4", "packed with xz; unpack it"),
        ("a.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "save it as XLSX or CSV"),
        ("a.feather", b"ARROW1\0\0", "save it as Parquet"),
    ],
)
def test_files_that_are_not_read_say_what_to_do(folder: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        open_reader(write(folder / name, content))


def test_a_zip_archive_of_something_else(folder: Path) -> None:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("pois/shops.csv", "id,lat\n")
    with pytest.raises(BadInput, match=r"no Shapefile, KML or sheet, but pois/shops\.csv; unpack it first"):
        open_reader(folder / "a.zip")
