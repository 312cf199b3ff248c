"""From OpenStreetMap tags to a category and its group; the table is osm_categories.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

STREET_FURNITURE = "Street furniture"


class Category(NamedTuple):
    category: str
    group: str


class Table(NamedTuple):
    """osm_categories.toml, by the look-ups that `categorise` makes."""

    fallback_group: dict[str, str]  # key, by precedence -> group of its unlisted values; "": they are no places
    listed: dict[tuple[str, str], Category]  # (key, value)
    refined: dict[tuple[str, str], tuple[str, dict[str, str]]]  # (key, value) -> (second key, its value -> category)
    ignored: frozenset[str]


def categorise(tags: Mapping[str, str]) -> Category | None:
    """The category of an object with these tags; None if no table names a kind of place among them.

    The first key in the table's order decides; street furniture only if the object is nothing else.
    """
    furniture = None
    table = load_table()
    for key in table.fallback_group:
        if key in tags and (found := _by_key(table, key, tags)):
            if found.group != STREET_FURNITURE:
                return found
            furniture = furniture or found
    return furniture


def keys() -> list[str]:
    """The tag keys that the table looks at."""
    return list(load_table().fallback_group)


def readable(value: str) -> str:
    """A tag value as a category: 'tea_house' becomes 'Tea house'."""
    words = " ".join(value.replace("_", " ").split())
    return words[:1].upper() + words[1:]


def markdown() -> str:
    """docs/osm-categories.md."""
    return "\n".join(_markdown_lines()) + "\n"


@cache
def load_table() -> Table:
    data: dict[str, Any] = tomllib.loads(
        (files("callipper_db.read") / "osm_categories.toml").read_text(encoding="utf-8")
    )
    listed = {
        (key, value): Category(category, group)
        for key in data["keys"]
        for group, values in data.get(key, {}).items()
        for value, category in values.items()
    }
    refined = {
        (key, value): next(iter(second.items()))
        for key, values in data["refined"].items()
        for value, second in values.items()
    }
    return Table(data["keys"], listed, refined, frozenset(data["ignored"]["values"]))


def _by_key(table: Table, key: str, tags: Mapping[str, str]) -> Category | None:
    value = tags[key].split(";")[0].strip()
    if not value or value in table.ignored:
        return None
    found = table.listed.get((key, value))
    if found is None:
        group = table.fallback_group[key]
        return Category(readable(value), group) if group and value != "yes" else None
    second_key, categories = table.refined.get((key, value), ("", {}))
    refined = categories.get(tags.get(second_key, "").split(";")[0].strip())
    return _refine(table, key, found, refined) if refined else found


def _refine(table: Table, key: str, found: Category, category: str) -> Category:
    """A refined piece of street furniture is a place: it takes the group of its key."""
    group = table.fallback_group[key] if found.group == STREET_FURNITURE else found.group
    return Category(category, group)


def _markdown_lines() -> Iterator[str]:
    table = load_table()
    yield from (
        "# Categories of OpenStreetMap objects",
        "",
        "`callipper-db load FILE.osm.pbf` gives an object the category and the group of this table. It follows the",
        "tables of the OSM wiki's page *Map features* and the names of the iD editor's presets. Made from",
        "`callipper_db/read/osm_categories.toml`; after a change there, write it again with",
        "`python -c 'from callipper_db.read import osm; print(osm.markdown(), end=\"\")' > docs/osm-categories.md`.",
        "",
        "- An object with several of the keys takes the first in this order: "
        + ", ".join(f"`{key}`" for key in table.fallback_group)
        + "; street furniture only if it is nothing else.",
        f"- The group *{STREET_FURNITURE}* is left out unless `--street-furniture` is given.",
        "- Of a list of values (`cafe;bakery`) the first counts.",
        "- A value that is not listed becomes its own category, with spaces for underscores, for these keys: "
        + ", ".join(f"`{key}` (*{group}*)" for key, group in table.fallback_group.items() if group)
        + ". Of the other keys only the listed values are places.",
        "- These values never make a place: " + ", ".join(f"`{value}`" for value in sorted(table.ignored)) + ".",
        "- `name` is the name; every tag is kept in `attributes`.",
    )
    for group in sorted({category.group for category in table.listed.values()}):
        yield from ("", f"## {group}", "", "| tag | category |", "| --- | --- |")
        for (key, value), category in table.listed.items():
            if category.group == group:
                yield f"| `{key}={value}` | {category.category} |"
    yield from ("", "## Made plainer by a second tag", "", "| tags | category |", "| --- | --- |")
    for (key, value), (second_key, categories) in table.refined.items():
        for second, name in categories.items():
            yield f"| `{key}={value}` `{second_key}={second}` | {name} |"
