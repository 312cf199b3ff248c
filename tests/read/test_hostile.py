"""Files that would take all memory or hours; each generated here."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import geopandas
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from callipper_db.errors import BadInput
from callipper_db.load import LoadOptions
from callipper_db.read import json_stream, open_reader
from callipper_db.read.columns import find_columns


def write(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def survey(path: Path) -> None:
    """Learn the columns of a file, as loading it begins."""
    with open_reader(path) as reader:
        reader.look()
        find_columns(path, reader, LoadOptions())


@pytest.mark.parametrize("indexed", ["YES", "NO"])
@pytest.mark.parametrize("rows", [1, 2, 17, 300])
def test_a_feature_that_would_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indexed: str, rows: int
) -> None:
    path = tmp_path / "a.fgb"
    names = ["x" * 5000, *("a" for _ in range(rows - 1))]
    points = [shapely.Point(1, number / 10) for number in range(rows)]
    geopandas.GeoDataFrame({"category": names}, geometry=points, crs=4326).to_file(path, SPATIAL_INDEX=indexed)
    with open_reader(path) as reader:
        assert sum(map(len, reader.blocks)) == rows
    monkeypatch.setattr("callipper_db.read.vector.BATCH_BYTES", 1000)
    monkeypatch.setattr("callipper_db.read.vector.LONG_VALUE", 4000)
    with pytest.raises(BadInput, match=r"feature [\d,]+ has 5,\d\d\d bytes, and 4,000 can be read"), open_reader(path):
        pass
    monkeypatch.setattr("callipper_db.read.vector.LONG_VALUE", 6000)
    with open_reader(path) as reader:
        assert sum(map(len, reader.blocks)) == rows


@pytest.mark.parametrize("text", ["[", '{"a":', "[[],", '["\\"",', "[{}"])
def test_json_of_brackets_without_end(tmp_path: Path, text: str) -> None:
    """Its brackets are counted at once: one by one, a file of 100 MB would take minutes."""
    with pytest.raises(BadInput, match="it is not valid JSON: the file ends"):
        survey(write(tmp_path / "a.json", "[" + text * 1_000_000))


@pytest.mark.parametrize("text", ["[],", "1,"])
def test_json_without_hope_is_not_surveyed_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr("callipper_db.read.geojson.HOPELESS", 10_000)
    with pytest.raises(BadInput, match=r"not valid JSON\. The rest of the file was not read"):
        survey(write(tmp_path / "a.json", "[" + text * 100_000 + "no JSON"))


@given(st.text('[]{}",:\\aé😀'), st.integers(1, 9))
@settings(max_examples=300)
def test_the_end_of_a_broken_value(text: str, size: int) -> None:
    """In pieces of any size, the end is where a count of the brackets one by one has it."""
    value = '{"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' + text.replace("\\", "").replace('"', "")
    with mock.patch.object(json_stream, "FIRST_PIECE", size):
        assert json_stream._end_of_value(value, 0, 0, False) == end_of_value(value)


def end_of_value(text: str) -> tuple[int, int, bool]:
    depth, in_string, escaped = 0, False, False
    for at, character in enumerate(text):
        if escaped or (in_string and character == "\\"):
            escaped = not escaped
            continue
        in_string ^= character == '"'
        depth += 0 if in_string else (character in "[{") - (character in "]}")
        if depth <= 0 and not in_string and character in '"]}':
            return at + 1, 0, False
    return len(text), depth, in_string
