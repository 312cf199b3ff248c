"""The words that texts share with kinds of places, by counting; the reference of callipper._shared_words()."""

from __future__ import annotations

import math
from collections.abc import Collection

from callipper_db.db import Connection


def lexemes(connection: Connection, version: int, text: str) -> set[str]:
    """The words of a text in the languages of a version; the tests of callipper._lexemes() say what they are."""
    (found,) = connection.one("SELECT callipper._lexemes(%s, callipper._spoken(%s))", [text, version])
    return set(found)


def lexemes_of_kinds(connection: Connection, version: int) -> dict[int, list[set[str]]]:
    """kind -> the words of each of its phrases, and of its terms together."""
    rows = connection.execute(
        "SELECT kind_id, phrase FROM callipper.kind_phrase WHERE version = %(version)s UNION ALL"
        " SELECT kind_id, string_agg(term, ' ') FROM callipper.kind_term WHERE version = %(version)s GROUP BY kind_id",
        {"version": version},
    ).fetchall()
    result: dict[int, list[set[str]]] = {kind: [] for kind, _ in rows}
    for kind, phrase in rows:
        result[kind].append(lexemes(connection, version, phrase))
    return result


def shared_words(of_kinds: dict[int, list[set[str]]], kinds: Collection[int], asked: set[str]) -> dict[int, float]:
    """How much of a text with some words each of some kinds shares, by the rarity of the words among these kinds."""
    having = {word: {kind: sum(word in phrase for phrase in of_kinds[kind]) for kind in kinds} for word in asked}
    rarity = {
        word: max(0.0, math.log(1 + len(kinds) / (1 + sum(count > 0 for count in counts.values()))) - 1.5)
        for word, counts in having.items()
    }
    # One phrase of many says a little less than one of few.
    of_one = {kind: max(1, len(of_kinds[kind]) / 40) ** 0.25 for kind in kinds}
    total = sum(rarity.values())
    return {
        kind: sum(rarity[word] * having[word][kind] / (having[word][kind] + of_one[kind]) for word in asked) / total
        if total
        else 0
        for kind in kinds
    }
