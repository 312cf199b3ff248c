"""The SQL that gives what is on the screen, for people to copy: functions that every reader may call."""

from __future__ import annotations

import re
from collections.abc import Sequence

from psycopg import sql

from callipper_db.languages import ENGLISH
from callipper_db.web.questions import AreaQuestion, CellQuestion, PlaceQuestion


def of_cells(question: CellQuestion) -> str:
    """The list of best cells."""
    area = _area(question)
    if question.is_plain:
        arguments = [_text(question.likes[0]), str(question.k)]
        columns = "cell_id, geom, percentile, relevant, lift, because"
        name = "search"
    else:
        arguments = [_texts(question.likes), _texts(question.unlike), f"k => {question.k}"]
        arguments += [f"like_places => {_places(question.like_at)}"] if question.like_at else []
        arguments += [f"dislike_places => {_places(question.unlike_at)}"] if question.unlike_at else []
        columns = "cell_id, geom, similarity, percentile"
        name = "search_by_examples"
    arguments += [f"within => {area}"] if area else []
    arguments += [f"model => {question.model}"] if question.model else []
    return f"SELECT {columns}\nFROM callipper.{name}({', '.join(arguments)});"


def of_heat(question: AreaQuestion) -> str | None:
    """Every cell; None where places are among the examples, or another version is asked."""
    if question.like_at or question.unlike_at or question.model:
        return None
    call = (
        f"cells_by_text({_text(question.likes[0])})"
        if question.is_plain
        else f"cells_by_examples({_texts(question.likes)}, {_texts(question.unlike)})"
    )
    return f"SELECT cell_id, geom, percentile\nFROM callipper_map.{call};"


def of_layer(question: AreaQuestion) -> str | None:
    """The heat map as a view that a GIS opens; None where of_heat() is."""
    if of_heat(question) is None:
        return None
    text, *likes = question.likes
    arguments = [_text(_layer_name(text)), _text(text)]
    arguments += [_texts(likes), _texts(question.unlike)] if likes or question.unlike else []
    return f"SELECT callipper.save_layer({', '.join(arguments)});"


def _layer_name(text: str) -> str:
    """A name that save_layer() takes: a letter, then letters, digits and _."""
    words = re.sub("[^a-z0-9]+", "_", text.lower()).strip("_")
    return (words if words[:1].isalpha() else f"layer_{words}")[:50].rstrip("_")


def of_place(question: PlaceQuestion) -> str:
    """What a place is like, and where it is like there."""
    point = _point(question.at)
    model = f", model => {question.model}" if question.model else ""
    language = f", language => {_text(question.language)}" if question.language != ENGLISH else ""
    return (
        f"SELECT text, pois, lift, because\nFROM callipper.describe({point}, {question.k}{model}{language});\n\n"
        f"SELECT cell_id, geom, similarity\nFROM callipper.similar_to({point}, {question.k},"
        f" min_distance_m => {question.min_distance:g}{model});"
    )


def _text(value: str) -> str:
    return sql.Literal(value).as_string()


def _texts(values: Sequence[str]) -> str:
    return f"ARRAY[{', '.join(map(_text, values))}]::text[]"


def _point(place: str) -> str:
    lon, lat = (float(part) for part in place.split(","))
    return f"ST_SetSRID(ST_Point({lon:.6f}, {lat:.6f}), 4326)"


def _places(values: Sequence[str]) -> str:
    return f"ARRAY[{', '.join(map(_point, values))}]"


def _area(question: AreaQuestion) -> str | None:
    if question.within is None:
        return None
    numbers = question.within.split(",")
    if len(numbers) == 4 and "(" not in question.within:
        return f"ST_MakeEnvelope({', '.join(number.strip() for number in numbers)}, 4326)"
    return f"ST_GeomFromText({_text(question.within)}, 4326)"
