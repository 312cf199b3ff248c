"""The words that phrases and questions share: _lexemes, _count_words and _shared_words."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from callipper_db import db
from sessions import rolled_back

PHRASES = {
    "bakery": ["bakery", "a fresh loaf", "loaves of rye", "pastries and coffee"],
    "cafe": ["cafe", "coffee and cake", "a coffee to go"],
    "garage": ["garage", "mend a tyre", "a flat tyre"],
    "pond": ["pond"],
}


@pytest.fixture
def asking(database: str) -> Iterator[db.Connection]:
    """A transaction with a version that has kinds and phrases; POIs are of all kinds but ponds."""
    with rolled_back(database) as connection:
        connection.execute(
            "INSERT INTO callipper.text_encoder (name, revision, dim, arch) VALUES ('some', '1', 2, '{}') RETURNING 1"
        )
        connection.execute("INSERT INTO callipper.grid (kind, size_m, srid) VALUES ('square', 100, 32631)")
        connection.execute(
            "INSERT INTO callipper.model (version, status, srid, origin_easting, origin_northing, extent, grid_id,"
            " text_encoder_id, arch, standardisation, metrics, provenance) OVERRIDING SYSTEM VALUE"
            " SELECT 9, 'ready', 32631, 0, 0, ST_MakeEnvelope(0, 0, 1, 1, 4326), grid_id, text_encoder_id, '{}', '{}',"
            ' \'{}\', \'{"languages": ["en", "ja"]}\' FROM callipper.grid, callipper.text_encoder'
        )
        for number, (name, phrases) in enumerate(PHRASES.items()):
            connection.execute(
                "INSERT INTO callipper.kind (version, kind_id, name, said, landmark, prominent, pois)"
                " VALUES (9, %s, %s, true, false, false, %s)",
                [number, name, 0 if name == "pond" else 5],
            )
            for phrase in phrases:
                connection.execute(
                    "INSERT INTO callipper.kind_phrase (version, kind_id, phrase, vec) VALUES (9, %s, %s, '[1,0]')",
                    [number, phrase],
                )
        connection.execute("SELECT callipper._count_words(9)")
        yield connection


@pytest.mark.parametrize(
    ("content", "languages", "expected"),
    [
        ("Mending the flat TYRES", ["en"], {"mend", "flat", "tyre"}),
        ("die Bäckereien der Stadt", ["de"], {"backerei", "stadt"}),
        ("reparar las ruedas", ["es"], {"repar", "rued"}),
        ("chleb razowy", ["pl"], {"chleb", "razowy"}),
        ("歯が痛い", ["ja"], {"歯", "痛"}),
        ("虫歯のチェックとすし", ["ja", "en"], {"虫", "歯", "虫歯", "チェ", "ェッ", "ック", "とす", "すし"}),
        (
            "らーめん、ららぽーと、佐々木",
            ["ja"],
            {"らー", "ーめ", "めん", "らら", "らぽ", "ぽー", "ーと", "佐", "木", "佐々", "々木"},
        ),
        ("DVDを借りる", ["ja", "en"], {"dvd", "借", "りる"}),
        ("a tyre 타이어", ["en", "ko"], {"tyre", "타이어", "타이", "이어"}),
        ("빵 사기", ["ko"], {"빵", "사기"}),
        ("do dentysty", ["en", "pl"], {"do", "dentysty", "dentysti"}),
        ("ремонт WiFi", ["ru"], {"ремонт", "wifi"}),
        ("mit dem Hund an der Leine", ["de", "en"], {"hund", "lein"}),
        ("walking a dog on the lead", ["de", "en"], {"walk", "dog", "lead"}),
        ("Hunde", ["de", "en"], {"hund"}),
        ("Leinen", ["de", "en"], {"lein", "leinen"}),
        ("غسل السيارة by car", ["ar", "en"], {"غسل", "سيار", "car"}),
        ("ремонт машин mit Garantie", ["de", "ru"], {"ремонт", "машин", "garanti"}),
        ("ремонт", ["en"], {"ремонт"}),
        ("?! -- $1", ["en", "zh"], {"1"}),
        ("", ["en"], set()),
        ("anything", [], set()),
    ],
)
def test_lexemes(connection: db.Connection, content: str, languages: list[str], expected: set[str]) -> None:
    (found,) = connection.one("SELECT callipper._lexemes(%s, %s)", [content, languages])
    assert set(found) == expected and len(found) == len(expected)


def shared(connection: db.Connection, words: str) -> dict[str, float]:
    return dict(
        connection.execute(
            "SELECT name, share FROM callipper._shared_words(9, ARRAY[%s], ARRAY("
            " SELECT kind_id FROM callipper.kind WHERE version = 9 AND pois > 0)) JOIN callipper.kind USING (kind_id)"
            " WHERE version = 9",
            [words],
        ).fetchall()
    )


def test_a_rare_word_counts_by_its_phrases(asking: db.Connection) -> None:
    """Among three kinds no word is rare, since ln(1 + 3 / 2) < 1.5. Of 30, one that a kind or two have is."""
    assert shared(asking, "a loaf of bread") == {}
    asking.execute(
        "INSERT INTO callipper.kind (version, kind_id, name, said, landmark, prominent, pois)"
        " SELECT 9, n, 'kind ' || n, true, false, false, 1 FROM generate_series(10, 36) n"
    )
    rare, unknown = (math.log(1 + 30 / (1 + kinds)) - 1.5 for kinds in (1, 0))
    assert shared(asking, "loaf") == {"bakery": pytest.approx(1 / 2)}  # "loaves" is no "loaf" to the stemmer
    assert shared(asking, "a loaf of sourdough") == {"bakery": pytest.approx(rare / 2 / (rare + unknown))}
    both = math.log(1 + 30 / 3) - 1.5
    total = both + rare
    assert shared(asking, "coffee beside my tyre") == {
        "bakery": pytest.approx(both / 2 / (total + unknown)),
        "cafe": pytest.approx(both * 2 / 3 / (total + unknown)),
        "garage": pytest.approx(rare * 2 / 3 / (total + unknown)),
    }


def test_nothing_is_shared_with_nothing(asking: db.Connection) -> None:
    for words in ("", "?!", "the of and"):
        assert shared(asking, words) == {}


def test_only_the_kinds_asked_for_share_words_and_make_one_common(asking: db.Connection) -> None:
    asking.execute(
        "INSERT INTO callipper.kind (version, kind_id, name, said, landmark, prominent, pois)"
        " SELECT 9, n, 'kind ' || n, true, false, false, 1 FROM generate_series(10, 36) n"
    )
    assert shared(asking, "pond") == {}, "it has no POIs"
    query = "SELECT * FROM callipper._shared_words(9, %s, %s::int4[]) ORDER BY number, kind_id"
    thirty = list(range(3, 36))
    rows = asking.execute(query, [["a pond", "tyres", "", "the pond and ponds"], thirty]).fetchall()
    assert rows == [(1, 3, pytest.approx(1 / 2)), (4, 3, pytest.approx(1 / 2))]


def test_one_phrase_of_many_says_less(asking: db.Connection) -> None:
    share = "SELECT share FROM callipper._shared_words(9, ARRAY['tyre'], %s::int4[]) WHERE kind_id = 9"
    kinds = [1, 2, 3, *range(9, 40)]
    asking.execute(
        "INSERT INTO callipper.kind (version, kind_id, name, said, landmark, prominent, pois)"
        " VALUES (9, 9, 'kind 9', true, false, false, 1)"
    )
    asking.execute(
        "INSERT INTO callipper.kind_phrase (version, kind_id, phrase, vec)"
        " SELECT 9, 9, CASE n WHEN 1 THEN 'a tyre' ELSE 'frog ' || n END, p.vec"
        " FROM generate_series(1, 640) n, (SELECT vec FROM callipper.kind_phrase LIMIT 1) p"
    )
    asking.execute("SELECT callipper._count_words(9)")
    assert asking.one(share, [kinds]) == (pytest.approx(1 / (1 + (640 / 40) ** 0.25)),)
    # The texts of an earlier program's version mean what they did, also when a refresh counts words again.
    asking.execute('UPDATE callipper.model SET arch = \'{"peaks": {"by_words": 0.5}}\' WHERE version = 9')
    asking.execute("SELECT callipper._count_words(9)")
    assert asking.one(share, [kinds]) == (pytest.approx(1 / 2),)


def test_the_terms_of_a_kind_are_one_phrase_more(asking: db.Connection) -> None:
    asking.execute(
        "INSERT INTO callipper.kind_term VALUES (9, 2, 'spare tyre'), (9, 2, 'tyres'), (9, 3, 'newts'), (9, 3, 'frog')"
    )
    asking.execute("SELECT callipper._count_words(9)")
    found = asking.execute("SELECT kind_id, word, phrases FROM callipper.kind_word ORDER BY 1, 2").fetchall()
    assert {(2, "tyre", 3), (2, "spare", 1), (3, "newt", 1), (3, "frog", 1), (3, "pond", 1)} <= set(found)


def test_counting_again_changes_nothing(asking: db.Connection) -> None:
    query = "SELECT * FROM callipper.kind_word ORDER BY word, kind_id"
    before = asking.execute(query).fetchall()
    assert (9, 2, "tyre", 2) in before
    asking.execute("SELECT callipper._count_words(9)")
    assert asking.execute(query).fetchall() == before


def test_a_version_of_an_earlier_program_speaks_english(asking: db.Connection) -> None:
    assert asking.one("SELECT callipper._spoken(9)") == (["en", "ja"],)
    asking.execute("UPDATE callipper.model SET provenance = '{}' WHERE version = 9")
    assert asking.one("SELECT callipper._spoken(9)") == (["en"],)
