"""Which column of a file plays which part: by the user's options, by the provider's scheme, or by its name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from callipper_db.errors import BadInput
from callipper_db.read import foursquare, geofabrik, geonames, osm_tags, overture, vector
from callipper_db.read.layout import Layout, find_field
from callipper_db.read.record import Columns, Reader, ReadOptions

# The usual names, in order of precedence; compared without case.
USUAL = {
    "id": ("id", "source_id", "osm_id", "@id", "fid", "ogc_fid", "gid", "objectid", "poi_id", "fsq_place_id", "uuid"),
    "name": ("name", "title", "poi_name", "place_name", "names"),
    "category": (
        "category",
        "type",
        "amenity",
        "kind",
        "class",
        "fclass",
        "label",
        "category_name",
        "poi_type",
        "categories",
    ),
    "group": ("category_group", "group", "group_name", "categorygroup", "supercategory", "theme"),
    "description": ("description", "text", "desc"),
    "lon": ("lon", "lng", "long", "longitude", "x", "easting", "lon_x", "@lon"),
    "lat": ("lat", "latitude", "y", "northing", "lat_y", "@lat"),
    "geometry": ("geom", "geometry", "wkt", "the_geom", "wkb_geometry", "wkb"),
    "source": ("source",),
}
# The part of a nested column that is its text.
INSIDE = ("primary", "name", "label", "title", "value", "text", "main", "en")

# Further names, from well-known providers and in other languages. They count only if no usual name is there. Only letters are
# compared.
ALSO = {
    "id": "placekey placeid fsqid businessid locationid facilityid venueid shopid storeid featureid recordid"
    " atcocode fhrsid siret item",
    "name": "locationname commonname businessname tradingname facilityname facname sitename featurename venuename shopname"
    " storename displayname itemlabel placelabel nom nombre naam nome nimi navn namn bezeichnung denomination denominazione",
    "category": "subcategory primarytype placetype businesstype facilitytype facilitydesc factype stoptype featureclass"
    " featuretype typelabel instancelabel instanceoflabel categorie categoria kategorie types typ tipo art folder",
    "group": "topcategory maincategory parentcategory",
    "geometry": "coordinates coordinate coords coord coordinatelocation geopoint geopoint2d geoshape geolocation latlon latlng"
    " wktgeom geomwkt wktgeometry polygonwkt georeference location point position",
}
LETTERS = re.compile(r"[^a-z0-9]+")
# A word in a column's name: "Latitude (deg)" has the word latitude, "prim_lat_dec" the word lat.
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
E7 = re.compile(r"_?e7$", re.IGNORECASE)  # at the end of latitudeE7 and lat_e7
AXES = {"lon": {"lon", "lng", "long", "longitude"}, "lat": {"lat", "latitude"}}
# The same in other languages and as axes, looked for where there is no such pair.
OTHER_AXES = {
    "lon": {
        "longitud",
        "longitudine",
        "langengrad",
        "laengengrad",
        "lange",
        "laenge",
        "lengtegraad",
        "x",
        "xcoord",
        "coordx",
    },
    "lat": {"latitud", "latitudine", "breitengrad", "breite", "breedtegraad", "y", "ycoord", "coordy"},
}
SEXAGESIMAL = "dms"
# Rather than the corners of a box.
MIDDLE = ("location", "position", "coordinates", "coordinate", "geo", "point", "center")


@dataclass(frozen=True)
class LoadOptions(ReadOptions):
    """What the user says about the files. Columns are found by their usual names unless named here."""

    id_column: str | None = None
    name_column: str | None = None
    category_column: str | None = None
    group_column: str | None = None
    description_column: str | None = None
    lon_column: str | None = None
    lat_column: str | None = None
    geometry_column: str | None = None  # WKT, EWKT, hex WKB or GeoJSON
    source_column: str | None = None
    source: str | None = None  # for every row; None: the source column, else the file's name without its endings
    srid: int | None = None  # of the coordinates; None: what the file says, else 4326
    where: Mapping[str, str] = field(default_factory=dict)  # column -> the value that a row must have
    replace_source: bool = False  # remove rows of the same sources that the files no longer hold
    min_confidence: float | None = None  # least confidence of Overture places, 0 to 1
    rejects: Path | None = None  # None: <file name>.rejects.csv in the working directory


def find_layout(path: Path, reader: Reader, options: LoadOptions) -> Layout | None:
    """The provider's scheme that the file follows; None: its columns are found by their names."""
    overturned = overture.recognise(reader)
    if options.min_confidence is not None and not overturned:
        raise BadInput(path=path, reason="--min-confidence is for Overture places, which this file does not hold")
    if reader.provider == "geonames":
        return geonames.layout()
    if reader.provider == "gpx" or (reader.provider == "kml" and not osm_tags.has_marks(reader)):
        return vector.layout(reader)
    if overturned:
        return overture.layout(reader, options.min_confidence)
    if foursquare.recognise(reader):
        return foursquare.layout(reader)
    if geofabrik.recognise(reader) and options.category_column is None:
        return geofabrik.layout(reader, options.street_furniture)
    if reader.columns:
        return None
    return osm_tags.find(reader, options.street_furniture, options.category_column is None)


def find_columns(path: Path, reader: Reader, options: LoadOptions, layout: Layout | None = None) -> Columns:
    """The part that each column plays: by the options, by the layout, or by its usual name.

    Raises BadInput, which lists the columns, if none holds coordinates, or none says what a place is.
    """
    named = {part: getattr(options, f"{part}_column") for part in USUAL}
    fixed = reader.columns or (layout.columns if layout else Columns())
    found: dict[str, str | None] = {}
    for part, column in named.items():
        if column is not None:
            found[part] = named_column(path, reader, column, f"--{part}-column")
        elif getattr(fixed, part) is not None:
            found[part] = getattr(fixed, part)
        elif reader.columns or (part == "group" and fixed.category):
            found[part] = None
        else:
            found[part] = find_usual(reader, part) or (None if part == "geometry" else find_also(reader, part))
    if not (reader.has_shape or reader.columns or found["geometry"] or (found["lon"] and found["lat"])):
        found |= find_axes(reader) or {"geometry": find_also(reader, "geometry")}
    explicit_point = (options.lon_column and options.lat_column) or (fixed.lon and fixed.lat)
    if options.geometry_column or (reader.has_shape and not explicit_point):
        found["lon"] = found["lat"] = None
    elif found["lon"] and found["lat"]:
        found["geometry"] = None
    if reader.has_shape and not options.geometry_column:
        found["geometry"] = None
    columns = Columns(**found)
    _check_columns(path, reader, columns)
    return columns


def find_usual(reader: Reader, part: str) -> str | None:
    """The column with a usual name for this part; for a nested column, its part with the text."""
    by_lower = {name.lower().removeprefix("properties."): name for name in reversed(reader.names)}
    for usual in USUAL[part]:
        column = by_lower.get(usual)
        inside = [f"{usual}.{key}" for key in INSIDE]
        if column is None:
            flat = next((by_lower[path] for path in inside if path in by_lower), None)
            if flat is not None and part in {"name", "category", "group"}:
                return flat
        elif column not in reader.parts or (part == "geometry" and f"{column}.coordinates" in reader.parts[column]):
            return column
        elif found := _inside(reader, column):
            return found
    return None


def find_also(reader: Reader, part: str) -> str | None:
    """A column with one of the further names for this part; for a nested column, its part with the text."""
    by_letters = {LETTERS.sub("", without_accents(name).lower()): name for name in reversed(reader.names)}
    for name in ALSO.get(part, "").split():
        column = by_letters.get(name)
        if column is not None and column not in reader.parts:
            return column
        if column and part == "geometry" and f"{column}.coordinates" in reader.parts[column]:
            return column
        if column and part != "geometry" and (found := _inside(reader, column)):
            return found
    return None


def _inside(reader: Reader, column: str) -> str | None:
    """The part of a nested column with its text; for a list of nested values, that of the first."""
    parts = reader.parts[column]
    return next((path for key in INSIDE for path in (f"{column}.{key}", f"{column}[0].{key}") if path in parts), None)


def find_axes(reader: Reader) -> dict[str, str | None] | None:
    """The only columns with the words longitude and latitude in their names, or such a pair inside a nested column."""
    for axes in (AXES, OTHER_AXES):
        flat = {axis: [name for name in reader.names if _is_axis(name, axis, axes)] for axis in axes}
        if all(len(names) == 1 for names in flat.values()):
            return {axis: names[0] for axis, names in flat.items()}
    pairs: dict[str, dict[str, str]] = {}
    for path in (path for paths in reader.parts.values() for path in paths):
        parent, _, leaf = path.rpartition(".")
        word = E7.sub("", leaf).lower()
        pairs.setdefault(parent, {}).update({axis: path for axis, words in AXES.items() if word in words})
    whole = [parent for parent, pair in pairs.items() if len(pair) == len(AXES) and "[" not in parent]
    chosen = [parent for parent in whole if parent.rpartition(".")[2].lower() in MIDDLE] or whole
    return {**pairs[chosen[0]]} if len(chosen) == 1 else None


def _is_axis(name: str, axis: str, axes: Mapping[str, set[str]]) -> bool:
    words = {word.lower() for word in WORD.findall(without_accents(name))}
    other = axes["lat" if axis == "lon" else "lon"]
    return not words.isdisjoint(axes[axis]) and words.isdisjoint(other) and SEXAGESIMAL not in words


def says_e7(columns: Columns) -> bool:
    """Do the names of the coordinates say whole numbers of 1e-7 degrees, as latitudeE7 does?"""
    return all(name is not None and E7.search(name) for name in (columns.lon, columns.lat))


def without_accents(name: str) -> str:
    """'Catégorie' as 'Categorie'."""
    return "".join(letter for letter in unicodedata.normalize("NFD", name) if not unicodedata.combining(letter))


def named_column(path: Path, reader: Reader, column: str, option: str) -> str:
    """The user's name of a column or a path into one, in the file's spelling. Raises BadInput if there is no such thing."""
    if reader.columns and not reader.names:
        return column  # a PBF file may have any tag
    found = find_field(reader.names, column)
    if found is None:
        raise BadInput(path=path, reason=f"there is no column {column!r} ({option}). {_columns_are(reader)}")
    whole = found.column + "".join(f".{step}" if isinstance(step, str) else f"[{step}]" for step in found.steps)
    parts = reader.parts.get(found.column, [])
    if parts and not found.steps and option != "--geometry-column":
        reason = f"{found.column} ({option}) holds structures. Name a part of it: {', '.join(parts[:10])}"
        raise BadInput(path=path, reason=reason)
    if parts and not reader.may_hold(whole):
        reason = f"there is no {whole} ({option}). In {found.column} there are: {', '.join(parts[:20])}"
        raise BadInput(path=path, reason=reason)
    return whole


def _check_columns(path: Path, reader: Reader, columns: Columns) -> None:
    if reader.unreadable:
        raise BadInput(path=path, reason=f"none of its rows can be read, the first because: {reader.unreadable}")
    if not (reader.has_shape or columns.geometry or (columns.lon and columns.lat)):
        raise BadInput(
            path=path,
            reason=f"no columns of coordinates. {_columns_are(reader)}. Name them with --lon-column and"
            " --lat-column, or with --geometry-column if one holds WKT",
        )
    if not (columns.name or columns.category or columns.description):
        raise BadInput(
            path=path,
            reason=f"no column says what the places are. {_columns_are(reader)}. Name one with --category-column,"
            " --name-column or --description-column",
        )


def _columns_are(reader: Reader) -> str:
    listed = [name for column in reader.names for name in reader.parts.get(column) or [column]]
    more = f" and {len(listed) - 40} more" if len(listed) > 40 else ""
    return f"The columns are: {', '.join(listed[:40])}{more}" if listed else "There are no columns"
