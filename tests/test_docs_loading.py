"""The commands of docs/loading.md, run one after the other on files like those that it names."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pyogrio  # type: ignore[import-untyped]
import pytest
from click.testing import Result

from sessions import user_session

ROOT = Path(__file__).parent.parent
POINT = struct.pack("<BIdd", 1, 1, 5, 52)


def commands() -> list[str]:
    """Every line of the page's blocks."""
    blocks = re.findall(r"```\n(.*?)```", (ROOT / "docs" / "loading.md").read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def make_files(folder: Path) -> None:
    shutil.copy(ROOT / "demo" / "monaco.osm.pbf", folder)
    cafe = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [5, 52]}, "properties": {"amenity": "cafe"}}
    (folder / "export.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [cafe]}))
    node = {"type": "node", "id": 1, "lon": 5, "lat": 52, "tags": {"shop": "bakery"}}
    (folder / "overpass.json").write_text(json.dumps({"elements": [node]}))
    (folder / "quickosm.csv").write_text("full_id,amenity,shop,lon,lat\nn1,bench,,5,52\n")
    places = {"id": ["a", "b"], "names": [{"primary": "A"}, {"primary": "B"}], "basic_category": ["pub", "bank"]}
    overture = pa.table(places | {"confidence": [0.9, 0.8], "geometry": [POINT] * 2})
    pq.write_table(overture, folder / "overture.parquet")
    pq.write_table(overture.slice(1), folder / "overture_new.parquet")
    labels = {
        "fsq_place_id": ["a", "b"],
        "name": ["A", "B"],
        "fsq_category_labels": [["Money > ATM"], ["Dining > Pub"]],
    }
    pq.write_table(pa.table(labels | {"latitude": [52.0] * 2, "longitude": [5.0] * 2}), folder / "places.parquet")
    (folder / "hygiene.csv").write_text("FHRSID,BusinessName,BusinessType,Longitude,Latitude\n1,A,Pub,5,52\n")
    line = ["1", "A", "A", "", "52", "5", "S", "RSTN", "NL", *[""] * 5, "0", "", "1", "Europe/Amsterdam", "2024-01-01"]
    (folder / "NL.txt").write_text("\t".join(line) + "\n")
    (folder / "shops.csv").write_text("id,name,category,lon,lat\n1,A,Pub,5,52\n")
    shops = pa.table({"category": ["Pub"], "geometry": [POINT]})
    for layer in ("shops", "roads"):
        pyogrio.raw.write_arrow(
            shops, folder / "city.gpkg", driver="GPKG", layer=layer, geometry_name="geometry", geometry_type="Point",
            crs="EPSG:4326",
        )  # fmt: skip
    nested = {"id": [1], "names": [{"fr": "A"}], "kinds": [["Pub"]], "address": [{"city": "Oslo"}]}
    pq.write_table(pa.table(nested | {"lon": [5.0], "lat": [52.0]}), folder / "nested.parquet")


def test_every_command_of_the_page_works(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Result]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_files(tmp_path)
    said = {}
    for command in commands():
        program, *arguments = shlex.split(command)
        assert program == "callipper-db"
        said[command] = run(*arguments, "--dsn", database).stdout
        if arguments[0] == "load":
            assert re.search(r"[1-9][\d,]* (inserted|unchanged)", said[command]), command
    assert len(said) > 12
    assert "1 rows that the source no longer holds are removed." in "".join(said.values())
    with user_session(database) as connection:
        found = connection.execute("SELECT source, name, category, category_group, source_id FROM poi").fetchall()
    for row in [
        ("overpass", None, "Bakery", "Food shops", "node/1"),
        ("quickosm", None, "Bench", "Street furniture", "node/1"),
        ("overture", "B", "bank", None, "b"),
        ("foursquare", "B", "Pub", "Dining", "b"),
        ("hygiene", "A", "Pub", None, "1"),
        ("NL", "A", "railway station", "Buildings and spots", "1"),
        ("shops", "A", "Pub", None, "1"),
        ("nested", "A", "Pub", None, "1"),
    ]:
        assert row in found, row
    assert ("export", "Cafe") in {(row[0], row[2]) for row in found}
    assert not [row for row in found if row[0] == "foursquare" and row[2] == "ATM"]


@pytest.mark.parametrize("option", ["--encoding", "--decimal", "--layer", "--min-confidence", "--replace-source"])
def test_the_page_has_the_options(option: str) -> None:
    assert option in (ROOT / "docs" / "loading.md").read_text()
