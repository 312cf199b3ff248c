"""GeoPackage, Shapefile, FlatGeobuf, KML, GPX and spreadsheets, through GDAL (the library of QGIS and ogr2ogr)."""

from __future__ import annotations

import mmap
import re
import sqlite3
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from callipper_db.errors import BadInput
from callipper_db.read.geojson import EPSG
from callipper_db.read.layout import Derived, Layout
from callipper_db.read.record import BLOCK, Block, Columns, Reader, require

FEATURE = "Reading this format"
SUFFIXES = {".gpkg", ".shp", ".fgb", ".kml", ".kmz", ".gpx", ".xlsx", ".ods", ".zip"}
IN_MEMORY = {"kml", "gpx", "spreadsheet"}  # GDAL keeps the whole file in memory
MEMORY_LIMIT = 64_000_000  # bytes of such a file, unpacked
ZIPPED = "zipped shapefile"
KML_STYLE = frozenset(
    {
        "description",
        "timestamp",
        "begin",
        "end",
        "altitudeMode",
        "tessellate",
        "extrude",
        "visibility",
        "drawOrder",
        "icon",
    }
)
TABLE_BATCH = 1000  # rows, because a row of a database may be long
BATCH_BYTES = 32_000_000  # of a batch, on average
# Bytes of a value of a GeoPackage, in which a column with a longer one is not read, and of a feature of FlatGeobuf.
LONG_VALUE = 10_000_000
GEOMETRIES = re.compile("(multi)?(point|linestring|polygon)|geometry(collection)?", re.IGNORECASE)

UINT32 = struct.Struct("<I")
INDEX_NODE = 40  # bytes of a node of FlatGeobuf's index

SHAPEFILE = b"\x00\x00\x27\x0a"
FLATGEOBUF = b"fgb\x03"
SQLITE = b"SQLite format 3\x00"


def kind_of(path: Path, head: bytes) -> str | None:
    """The format of a file by its first bytes: gpkg, shapefile, flatgeobuf, kml, gpx or spreadsheet."""
    if head.startswith(SQLITE):
        return "gpkg"
    if head.startswith(SHAPEFILE):
        return "shapefile"
    if head.startswith(FLATGEOBUF):
        return "flatgeobuf"
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    start = head[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"<"):
        return "kml" if b"<kml" in start else "gpx" if b"<gpx" in start else None
    return None


@contextmanager
def open_vector(path: Path, kind: str, layer: str | None, encoding: str | None) -> Iterator[Reader]:
    """A layer of the file; for KML all layers, which are its folders. Raises BadInput if the choice is not clear."""
    pyogrio, arrow = require("pyogrio", FEATURE), require("pyarrow", FEATURE)
    if kind in IN_MEMORY and (size := _unpacked(path)) > MEMORY_LIMIT:
        reason = (
            f"it holds {size:,} bytes, and {kind} is read as a whole; save it as CSV, or: ogr2ogr pois.gpkg {path.name}"
        )
        raise BadInput(path=path, reason=reason)
    # The first row of a sheet is its header; the cache of a GeoPackage stays small.
    pyogrio.set_gdal_config_options(
        {"OGR_XLSX_HEADERS": "FORCE", "OGR_ODS_HEADERS": "FORCE", "OGR_SQLITE_CACHE": "16", "GPX_USE_EXTENSIONS": "YES"}
    )
    source = str(path)
    if kind == ZIPPED:
        source, layer = f"/vsizip/{path.absolute()}/{_choose_shapefile(path, layer)}", None
    arguments: dict[str, Any] = {"encoding": encoding} if kind in {"shapefile", ZIPPED} and encoding else {}
    try:
        with ExitStack() as stack, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # GDAL's remarks about details of the format
            names = _choose_layers(path, kind, pyogrio.list_layers(source), layer)
            about = {name: pyogrio.read_info(source, layer=name) for name in names}
            oversize = _oversize(path, names[0]) if kind == "gpkg" else []
            if kind == "flatgeobuf":
                _check_features(path)
            if oversize:
                arguments["columns"] = [name for name in about[names[0]]["fields"] if name not in oversize]
            opened = [
                Layer(
                    str(name),
                    *stack.enter_context(
                        pyogrio.raw.open_arrow(
                            source,
                            layer=name,
                            batch_size=_rows_at_once(path, kind, about[name]["features"]),
                            use_pyarrow=True,
                            return_fids=kind == "gpkg",
                            **arguments,
                        )
                    ),
                )
                for name in names
            ]
            reader = _reader(path, arrow, kind, opened, layer)
            reader.notes += [f"column {name} was not read: its values are too long" for name in oversize]
            yield reader
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, arrow.ArrowException, OSError) as error:
        raise BadInput(path=path, reason=f"GDAL cannot read it: {' '.join(str(error).split())[:200]}") from error


class Layer(NamedTuple):
    """An open layer."""

    name: str
    about: dict[str, Any]
    stream: Any

    @property
    def shape(self) -> str | None:
        """The column of geometries."""
        name = self.about.get("geometry_name") or "wkb_geometry"
        return name if name in self.stream.schema.names else None


def _reader(path: Path, arrow: Any, kind: str, layers: list[Layer], chosen: str | None) -> Reader:
    shapes = {layer.shape for layer in layers}
    names = [name for layer in layers for name in layer.stream.schema.names if name not in shapes]
    reader = Reader(
        _blocks(arrow, layers, kind),
        list(dict.fromkeys(names)),
        has_shape=shapes != {None},
        srid=lambda: _srid(path, {layer.about.get("crs") for layer in layers if layer.shape}),
    )
    reader.in_arrow = True
    if kind == "kml":
        reader.names.append("folder")
    reader.provider = kind if kind in {"kml", "gpx"} else None
    return reader


def _blocks(arrow: Any, layers: list[Layer], kind: str) -> Iterator[Block]:
    from callipper_db.read.arrow import ArrowColumns, shapes_of

    done = 0
    for layer in layers:
        for batch in layer.stream:
            if not batch.num_rows:
                continue
            shapes = shapes_of(batch.column(layer.shape), "WKB") if layer.shape else None
            if kind == "kml":
                batch = batch.append_column("folder", arrow.repeat(layer.name, batch.num_rows))
            yield Block(done + 1, ArrowColumns(batch, layer.shape), shapes)
            done += batch.num_rows


def layout(reader: Reader) -> Layout:
    """The category of a waypoint (its type or symbol) or a placemark (a column, or else its folder)."""
    if reader.provider == "gpx":
        columns = Columns(name="name", category="@category", description=None)

        def derive(columns: Mapping[str, Sequence[Any]], rows: int) -> Derived:
            pairs = zip(columns.get("type") or [None] * rows, columns.get("sym") or [None] * rows, strict=True)
            return Derived({"@category": [kind or symbol for kind, symbol in pairs]})

        return Layout("GPX", columns, derive, frozenset({"type", "sym"}))
    own = {name.lower(): name for name in reader.names}
    category = next((own[name] for name in ("category", "type", "kind", "class") if name in own), None)
    # A placemark's description is HTML for a pop-up. The model should not learn from it.
    columns = Columns(id="id", name=own.get("name"), category=category, description="")
    return Layout("KML", columns, lambda columns, rows: Derived({}), KML_STYLE)


def _kind_of_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.lower() for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise BadInput(path=path, reason=f"the zip archive is broken ({error}); fetch the file again") from error
    if "xl/workbook.xml" in names or ("mimetype" in names and "content.xml" in names):
        return "spreadsheet"
    if any(name.endswith(".shp") for name in names):
        return ZIPPED
    if any(name.endswith(".kml") for name in names):
        return "kml"
    inside = ", ".join(name for name in names[:5] if not name.endswith("/")) or "nothing"
    raise BadInput(path=path, reason=f"the zip archive holds no Shapefile, KML or sheet, but {inside}; unpack it first")


def _choose_shapefile(path: Path, chosen: str | None) -> str:
    """The member of a zip archive to read."""
    with zipfile.ZipFile(path) as archive:
        members = {Path(name).stem: name for name in archive.namelist() if name.lower().endswith(".shp")}
    if chosen is None and len(members) > 1:
        raise BadInput(path=path, reason=f"it has the layers {', '.join(members)}. Name one with --layer")
    if chosen is not None and chosen not in members:
        raise BadInput(path=path, reason=f"there is no layer {chosen!r}. There are: {', '.join(members)}")
    return members[chosen] if chosen is not None else next(iter(members.values()))


def _unpacked(path: Path) -> int:
    """Bytes of the content; for a zip archive, the sizes that its members state."""
    if not zipfile.is_zipfile(path):
        return path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        return sum(member.file_size for member in archive.infolist())


def _choose_layers(path: Path, kind: str, layers: Any, chosen: str | None) -> list[str]:
    """The layers to read, of (name, geometry type) pairs."""
    names = [str(name) for name, _ in layers]
    if chosen is not None:
        if chosen not in names:
            raise BadInput(path=path, reason=f"there is no layer {chosen!r}. There are: {', '.join(names)}")
        return [chosen]
    if kind == "kml":
        return names
    if kind == "gpx":
        return ["waypoints"]
    placed = [str(name) for name, geometry in layers if geometry is not None]
    found = placed or names
    if len(found) != 1:
        are = f"it has the layers {', '.join(found)}. Name one with --layer" if found else "it has no layers"
        raise BadInput(path=path, reason=are)
    return found


def _rows_at_once(path: Path, kind: str, rows: int) -> int:
    """How many rows fit a batch, by their size on average; rows: how many there are, below 1 if nobody knows."""
    most = TABLE_BATCH if kind == "gpkg" else BLOCK
    return max(1, min(most, BATCH_BYTES * rows // path.stat().st_size)) if rows > 0 else most


def _oversize(path: Path, layer: str) -> list[str]:
    """Columns of a GeoPackage's table with values that would fill the memory. Raises BadInput if geometries are among them."""
    if path.stat().st_size < BATCH_BYTES:
        return []
    found = []
    # SQLite is asked before GDAL is, since it can be told to stop at a length.
    with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)) as connection:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONG_VALUE)
        table = '"' + layer.replace('"', '""') + '"'
        for _, name, kind, *_ in connection.execute(f"PRAGMA table_info({table})").fetchall():
            quoted = '"' + name.replace('"', '""') + '"'
            try:
                connection.execute(f"SELECT count(length({quoted})) FROM {table}").fetchone()
            except sqlite3.DatabaseError:
                if GEOMETRIES.fullmatch(kind):
                    raise BadInput(
                        path=path, reason=f"the values of its column {name} are too long to be read"
                    ) from None
                found.append(name)
    return found


def _check_features(path: Path) -> None:
    """Raises BadInput for a feature of a FlatGeobuf file that would fill the memory. Each feature begins with its size."""
    if path.stat().st_size < BATCH_BYTES:
        return
    with open(path, "rb") as file, closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as data:
        number, at, end = 1, _first_feature(data), len(data) - UINT32.size
        while 0 <= at <= end:
            (size,) = UINT32.unpack_from(data, at)
            if size > LONG_VALUE:
                reason = (
                    f"feature {number:,} has {size:,} bytes, and {LONG_VALUE:,} can be read. Leave it out, or simplify"
                )
                raise BadInput(path=path, reason=f"{reason} it: ogr2ogr -simplify 0.0001 pois.fgb {path.name}")
            if size < UINT32.size:
                return  # no feature is that short; GDAL will say what is wrong
            number, at = number + 1, at + UINT32.size + size


def _first_feature(data: mmap.mmap) -> int:
    """Where the first feature begins: behind the header and the index, https://github.com/flatgeobuf/flatgeobuf"""
    try:
        header: int = 12 + UINT32.unpack_from(data, 8)[0]
        root = 12 + UINT32.unpack_from(data, 12)[0]
        fields = root - struct.unpack_from("<i", data, root)[0]
        known = (struct.unpack_from("<H", data, fields)[0] - 4) // 2
        offsets = struct.unpack_from(f"<{known}H", data, fields + 4)
        items = struct.unpack_from("<Q", data, root + offsets[8])[0] if known > 8 and offsets[8] else 0
        width = struct.unpack_from("<H", data, root + offsets[9])[0] if known > 9 and offsets[9] else 16
    except struct.error:
        return -1  # GDAL will say what is wrong
    nodes = level = items if width > 1 else 0
    while level > 1:
        level = -(-level // width)
        nodes += level
    return header + (max(nodes, 2) if nodes else 0) * INDEX_NODE


def _srid(path: Path, systems: set[str | None]) -> int | None:
    known = {system for system in systems if system}
    if not known:
        return None
    found = EPSG.search(next(iter(known)))
    if len(known) > 1 or not found:
        raise BadInput(path=path, reason="its coordinate reference system has no EPSG code; give it with --srid")
    return int(found[1])
