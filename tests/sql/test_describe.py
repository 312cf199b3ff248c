"""describe() of a trained town, text_similarity(), and what publishing leaves for them.

The rule by which kinds are said is tested in test_evidence.py too, on a town that has more of everything.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from callipper_db import db, place_words
from callipper_db.arrays import Array
from callipper_db.binary_copy import read_rows
from callipper_db.cli.main import main
from callipper_db.errors import BadPlace, LanguageUnknown, NoActiveModel
from callipper_db.languages import LANGUAGES, name_of
from callipper_db.search import describe_place, similar_cells
from evidence import Evidence
from handmade import write_model, write_sample
from sessions import user_session
from town import CONFIG, MIDDLE, QUARTERS, SRID

TIE = 1e-6  # cosines closer than this are the same: the server's are float32
ALL = 10_000
WITHOUT_EVIDENCE = "DROP TABLE callipper.point_kind_v1"  # as a version of an earlier program
IN_ONE_TRANSACTION = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
HERE = f"ST_SetSRID(ST_Point({MIDDLE[0]}, {MIDDLE[1]}), 4326)"


def vectors(connection: db.Connection, query: str) -> Array:
    """(N, 256) float64 of a query's one column."""
    (found,) = read_rows(connection, sql.SQL(query), ["vector"], 256)  # type: ignore[arg-type]
    return found.astype(np.float64)


def words_of(connection: db.Connection) -> list[str]:
    rows = connection.execute(
        "SELECT text FROM callipper.text_embedding WHERE version = 1 AND vocabulary ORDER BY text"
    )
    return [text for (text,) in rows.fetchall()]


@dataclass(frozen=True)
class Town:
    """What describe() has to rate a place by."""

    words: list[str]
    emb: Array  # (W, 256)
    sample: Array  # (S, 256)


@pytest.fixture
def town(reading: db.Connection) -> Town:
    vocabulary = "SELECT emb FROM callipper.text_embedding WHERE version = 1 AND vocabulary ORDER BY text"
    sample = "SELECT emb FROM callipper.cell_sample WHERE version = 1 ORDER BY number"
    return Town(words_of(reading), vectors(reading, vocabulary), vectors(reading, sample))


def check(rows: list[Any], town: Town, place: Array, k: int) -> None:
    """The rows are the k texts by which the place stands out most, none missing and in order, up to ties."""
    similarity, usual = town.emb @ place, town.emb @ town.sample.T
    low = 100 * np.mean(usual < similarity[:, None] - TIE, axis=1)
    high = 100 * np.mean(usual < similarity[:, None] + TIE, axis=1)
    score = (similarity - usual.mean(axis=1)) / usual.std(axis=1)
    chosen = [town.words.index(text) for text, *_ in rows]
    assert len(rows) == min(k, len(town.words)) == len(set(chosen))
    np.testing.assert_allclose([row[1] for row in rows], similarity[chosen], atol=TIE)
    percentile = np.array([row[2] for row in rows])
    assert (low[chosen] - 1e-9 <= percentile).all() and (percentile <= high[chosen] + 1e-9).all()
    assert (np.diff(percentile) <= 0).all()
    assert (np.diff(score[chosen])[np.diff(percentile) == 0] <= 1e-3).all()
    left = np.setdiff1d(np.arange(len(town.words)), chosen)
    assert low[left].max(initial=-1) <= percentile[-1] + 1e-9
    level = left[np.abs(low[left] - percentile[-1]) < 1e-9]
    assert score[level].max(initial=-9) <= score[chosen[-1]] + 1e-3


@pytest.fixture
def evidence(reading: db.Connection) -> Evidence:
    return Evidence.read(reading, 1, 384)


def metres(connection: db.Connection, place: str) -> Array:
    """(2,) of a point in SQL."""
    row = connection.execute(f"SELECT ST_X(p), ST_Y(p) FROM ST_Transform({place}, {SRID}) AS p".encode()).fetchone()
    return np.array(row)


@IN_ONE_TRANSACTION
@given(
    lon=st.floats(MIDDLE[0] - 0.05, MIDDLE[0] + 0.05),
    lat=st.floats(MIDDLE[1] - 0.03, MIDDLE[1] + 0.03),
    k=st.sampled_from([1, 2, 10, ALL]),
)
def test_the_kinds_that_stand_out(reading: db.Connection, evidence: Evidence, lon: float, lat: float, k: int) -> None:
    place = f"ST_SetSRID(ST_Point({lon!r}, {lat!r}), 4326)"
    here = metres(reading, place)
    if evidence.is_close_call(here):
        return
    rows = reading.execute(f"SELECT * FROM callipper.describe({place}, %s)".encode(), [k]).fetchall()
    wanted = evidence.described(evidence.near(here))[:k]
    assert [(text, pois) for text, _, _, pois, _, _ in rows] == [(name, pois) for name, pois, _, _ in wanted]
    np.testing.assert_allclose([row[4] for row in rows], [lift for _, _, lift, _ in wanted], rtol=1e-9)
    for (*_, because), (_, pois, _, labels) in zip(rows, wanted, strict=True):
        assert set(because.split("; ")) <= labels and len(because.split("; ")) <= min(3, pois)


def test_the_language_changes_the_names_alone(reading: db.Connection) -> None:
    query = f"SELECT * FROM callipper.describe({HERE}, {ALL}, language => %s)".encode()
    english = reading.execute(query, ["en"]).fetchall()
    assert english == reading.execute(f"SELECT * FROM callipper.describe({HERE}, {ALL})".encode()).fetchall()
    for language in LANGUAGES:
        rows = reading.execute(query, [language]).fetchall()
        assert [row[0] for row in rows] == [name_of(row[0], language) or row[0] for row in english]
        assert [row[1:] for row in rows] == [row[1:] for row in english]
        assert [row[0] for row in rows] != [row[0] for row in english]
    for spelt in ("PT-br", "pt_BR"):
        assert reading.execute(query, [spelt]).fetchall() == reading.execute(query, ["pt"]).fetchall()
    assert reading.execute(query, [None]).fetchall() == []


def test_an_unknown_language_is_an_error_that_lists_those_known(reading: db.Connection) -> None:
    for language in ("xx", "", "'"):
        with pytest.raises(psycopg.errors.UndefinedObject) as caught, reading.transaction():
            reading.execute(f"SELECT callipper.describe({HERE}, language => %s)".encode(), [language])
        assert caught.value.diag.message_hint == f"It has words in: en, {', '.join(LANGUAGES)}."


def test_the_library_and_the_command_take_a_language(shared_town: str) -> None:
    lon, lat = MIDDLE
    place = f"{lon},{lat}"
    german = [kind["text"] for kind in describe_place(shared_town, place, language="de")]
    assert german == [name_of(kind["text"], "de") or kind["text"] for kind in describe_place(shared_town, place)]
    with pytest.raises(LanguageUnknown, match=r"'xx'.*It has words in: en, ar"):
        describe_place(shared_town, place, language="xx")
    result = CliRunner().invoke(main, ["describe", place, "--language", "de", "--json", "--dsn", shared_town])
    assert [kind["text"] for kind in json.loads(result.stdout)] == german


def test_a_kind_is_as_similar_as_its_name(reading: db.Connection, town: Town) -> None:
    """similarity and percentile are those of search() for the name of the kind; each kind's name is remembered."""
    rows = reading.execute(
        f"SELECT text, similarity, percentile FROM callipper.describe({HERE}, {ALL})".encode()
    ).fetchall()
    assert rows
    here = vectors(reading, f"SELECT callipper.loc_embed({HERE})")[0]
    for text, similarity, percentile in rows:
        emb = town.emb[town.words.index(text)]
        assert similarity == pytest.approx(float(emb @ here), abs=TIE)
        usual = town.sample @ emb
        assert (
            100 * np.mean(usual < similarity - TIE) - 1e-9
            <= percentile
            <= 100 * np.mean(usual < similarity + TIE) + 1e-9
        )
    unknown = (
        "SELECT name FROM callipper.kind k WHERE version = 1 AND NOT EXISTS (SELECT FROM callipper.text_embedding t"
    )
    assert reading.execute(f"{unknown} WHERE t.version = 1 AND t.text = k.name)".encode()).fetchall() == []


@IN_ONE_TRANSACTION
@given(
    lon=st.floats(MIDDLE[0] - 0.05, MIDDLE[0] + 0.05),
    lat=st.floats(MIDDLE[1] - 0.03, MIDDLE[1] + 0.03),
    k=st.sampled_from([1, 2, 10, 100, ALL]),
)
def test_without_evidence_the_texts_by_which_a_place_stands_out(
    reading: db.Connection, town: Town, lon: float, lat: float, k: int
) -> None:
    place = f"ST_SetSRID(ST_Point({lon!r}, {lat!r}), 4326)"
    with reading.transaction(force_rollback=True):
        reading.execute(WITHOUT_EVIDENCE)
        embedding = vectors(reading, f"SELECT callipper.loc_embed({place})")[0]
        rows = reading.execute(f"SELECT * FROM callipper.describe({place}, %s)".encode(), [k]).fetchall()
    assert all(row[3:] == (None, None, None) for row in rows)
    check(rows, town, embedding, k)


@pytest.mark.parametrize("kind", QUARTERS)
def test_a_quarter_is_described_by_what_is_there(reading: db.Connection, kind: str) -> None:
    _, east, north = QUARTERS[kind]
    ask = "SELECT text, percentile FROM callipper.describe(ST_SetSRID(ST_Point(%s, %s), 4326), %s)"
    values = [MIDDLE[0] + east, MIDDLE[1] + north, ALL]
    text, percentile = reading.execute(ask, values).fetchall()[0]
    assert text == place_words.reading(kind) and percentile > 85
    reading.execute(WITHOUT_EVIDENCE)
    rows = reading.execute(ask, values).fetchall()
    place = {text: number for number, (text, _) in enumerate(rows)}
    assert min(QUARTERS, key=place.__getitem__) == kind
    assert dict(rows)[kind] > 85


def test_what_is_not_kept_is_computed(reading: db.Connection, town: Town) -> None:
    reading.execute(WITHOUT_EVIDENCE)
    query = f"SELECT * FROM callipper.describe({HERE}, 50)".encode()
    kept = reading.execute(query).fetchall()
    reading.execute("UPDATE callipper.text_embedding SET city_distances = NULL WHERE version = 1")
    assert reading.execute(query).fetchall() == kept
    reading.execute(
        "UPDATE callipper.text_embedding SET vocabulary = true WHERE version = 1 AND text LIKE 'the old cafe%'"
    )
    texts = [row[0] for row in reading.execute(f"SELECT * FROM callipper.describe({HERE}, {ALL})".encode())]
    assert len(texts) > len(town.words) and any(text.startswith("the old cafe") for text in texts)


def test_a_text_like_any_other_comes_last_among_equals(connection: db.Connection) -> None:
    """Where all cells are the same, a deviation is no number to divide by."""
    write_model(connection, embed=lambda centres: np.tile(np.eye(256, dtype=np.float32)[0], (len(centres), 1)))
    connection.execute("UPDATE callipper.text_embedding SET vocabulary = true")
    connection.execute("INSERT INTO callipper.cell_sample SELECT version, cell_id, emb FROM callipper.cell_embedding")
    rows = connection.execute(
        "SELECT text, percentile FROM callipper._best_texts("
        "(SELECT version FROM callipper.model), (SELECT emb FROM callipper.cells LIMIT 1), 10)"
    ).fetchall()
    assert rows == [("fresh fish", 0.0), ("park", 0.0), ("pub", 0.0)]


# What publishing leaves


def test_the_vocabulary_is_words_and_categories(reading: db.Connection, town: Town) -> None:
    categories = [*QUARTERS, *(group for group, _, _ in QUARTERS.values())]
    kinds = [name for (name,) in reading.execute("SELECT name FROM callipper.kind WHERE version = 1")]
    assert {*QUARTERS} <= set(kinds)
    texts = [*place_words.vocabulary(), *kinds, *categories]
    assert set(town.words) == {" ".join(text.lower().split()) for text in texts}
    others = reading.execute(
        "SELECT count(*), count(city_distances) FROM callipper.text_embedding WHERE version = 1 AND NOT vocabulary"
    ).fetchone()
    assert others is not None and others[0] > 0 and others[1] == 0


def test_the_sample_is_of_the_cells(reading: db.Connection, town: Town) -> None:
    cells = vectors(reading, "SELECT emb FROM callipper.cells ORDER BY cell_id")
    count = min(1000, len(cells))
    drawn = np.random.default_rng(CONFIG.seed).choice(len(cells), count, replace=False)
    assert len(np.unique(drawn)) == count > 300
    np.testing.assert_array_equal(town.sample, cells[drawn])


def test_the_distances_are_of_the_sample(reading: db.Connection, town: Town) -> None:
    rows = reading.execute(
        "SELECT city_distances FROM callipper.text_embedding WHERE version = 1 AND vocabulary ORDER BY text"
    ).fetchall()
    expected = np.sort(-(town.emb @ town.sample.T), axis=1)
    np.testing.assert_allclose(np.array([row[0] for row in rows]), expected, atol=TIE)


# A text and a place


@pytest.mark.parametrize("text", ["park", " Fish  and\tCHIP shop ", "school"])
def test_the_similarity_of_a_text_and_a_place(reading: db.Connection, text: str) -> None:
    reading.execute("SELECT set_config('test.text', %s, true)", [text])
    ours = vectors(reading, f"SELECT callipper.loc_embed({HERE})")[0]
    theirs = vectors(reading, "SELECT callipper.text_embed(current_setting('test.text'))")[0]
    row = reading.execute(f"SELECT callipper.text_similarity(%s, {HERE})".encode(), [text]).fetchone()
    assert row is not None
    assert row[0] == pytest.approx(float(ours @ theirs), abs=TIE)


def test_a_constant_similarity_is_a_number_in_the_plan(reading: db.Connection) -> None:
    query = f"EXPLAIN (VERBOSE, COSTS off) SELECT callipper.text_similarity('park', {HERE}) FROM callipper.cells"
    plan = "\n".join(row[0] for row in reading.execute(query.encode()))
    assert "Output: '" in plan.replace("Output: 0", "Output: '0").replace("Output: -", "Output: '-")
    assert "text_embed" not in plan and "loc_embed" not in plan
    assert reading.execute(f"SELECT callipper.text_similarity(NULL, {HERE})".encode()).fetchone() == (None,)
    assert reading.execute("SELECT callipper.text_similarity('park', NULL)").fetchone() == (None,)


# Errors


@pytest.mark.parametrize(
    ("call", "message", "hint"),
    [
        (f"describe({HERE}, 0)", "k is 0", "from 1 on"),
        (f"describe({HERE}, NULL)", "k is NULL", "from 1 on"),
        ("describe(ST_Point(5, 52))", "no SRID", "ST_SetSRID"),
        ("describe(ST_GeomFromText('POINT EMPTY', 4326))", "is empty", "ST_IsEmpty"),
        (f"text_similarity(' ', {HERE})", "the text is empty", "a word or a phrase"),
    ],
)
def test_what_cannot_be_asked_is_refused(reading: db.Connection, call: str, message: str, hint: str) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=message) as caught:
        reading.execute(f"SELECT * FROM callipper.{call}".encode())
    assert hint in (caught.value.diag.message_hint or "")


def test_no_place_has_no_description(reading: db.Connection) -> None:
    assert reading.execute("SELECT * FROM callipper.describe(NULL)").fetchall() == []


@pytest.mark.parametrize(
    "lost", ["DELETE FROM callipper.cell_sample", "UPDATE callipper.text_embedding SET vocabulary = false"]
)
def test_a_model_without_evidence_words_or_sample_says_so(reading: db.Connection, lost: str) -> None:
    reading.execute(lost.encode())
    assert reading.execute(f"SELECT * FROM callipper.describe({HERE})".encode()).fetchall(), "evidence suffices"
    reading.execute(WITHOUT_EVIDENCE)
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="version 1 was published without") as caught:
        reading.execute(f"SELECT * FROM callipper.describe({HERE})".encode())
    assert caught.value.diag.message_hint == "Train a new version with: callipper-db train"


def test_without_an_active_model(database: str) -> None:
    with user_session(database) as connection, pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        connection.execute(f"SELECT * FROM callipper.describe({HERE})".encode())
    with pytest.raises(NoActiveModel):
        describe_place(database, "3,49")
    with pytest.raises(NoActiveModel):
        similar_cells(database, "3,49")


# Who asks, and how


@pytest.mark.parametrize(
    "setting",
    [
        "search_path = ''",
        "transaction_read_only = on",
        "role = callipper_reader",
        "plan_cache_mode = force_generic_plan",
    ],
)
def test_anyone_may_ask_anyhow(reading: db.Connection, setting: str) -> None:
    place = HERE.replace("ST_", "public.ST_")
    queries = [
        f"SELECT * FROM callipper.describe({place}, 20)".encode(),
        f"SELECT callipper.text_similarity('park', {place})".encode(),
    ]
    expected = [reading.execute(query).fetchall() for query in queries]
    reading.execute(f"SET LOCAL {setting}".encode())
    assert [reading.execute(query).fetchall() for query in queries] == expected
    assert all(expected)


def test_an_older_version_gets_a_sample_from_its_migration(cluster_dsn: str, empty_database: str) -> None:
    """Of the version's cells, up to 1,000, each once."""
    from alembic import command

    from callipper_db import schema

    schema.init(empty_database)
    with user_session(empty_database) as connection:
        alchemy = schema.alchemy_connection(connection)
        model = write_model(connection, size_m=300.0)
        command.downgrade(schema.alembic_config(alchemy), "0001")
        command.upgrade(schema.alembic_config(alchemy), "0007")
        found = vectors(connection, f"SELECT emb FROM callipper.cell_sample WHERE version = {model.version}")
        second = model.cells[:, 128:] / np.linalg.norm(model.cells[:, 128:], axis=1, keepdims=True)  # all that 0001 has
        expected = np.hstack([np.zeros((len(second), 128)), second])
        assert sorted(found.round(4).tolist()) == sorted(expected.astype(np.float64).round(4).tolist())
    with user_session(empty_database) as connection:
        sampled = write_sample(connection, write_model(connection, seed=1, size_m=300.0, activate=False), 10)
        assert len(sampled) == 10


# The command line


def run(dsn: str, *arguments: str) -> str:
    result = CliRunner().invoke(main, [*arguments, "--dsn", dsn])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_describe(shared_town: str) -> None:
    place = f"{MIDDLE[0]},{MIDDLE[1]}"
    lines = run(shared_town, "describe", place, "-k", "3").splitlines()
    assert lines[0].split() == ["text", "POIs", "lift", "because"]
    found = json.loads(run(shared_town, "describe", place, "-k", "3", "--json"))
    assert found == describe_place(shared_town, place, 3) and len(lines) == 1 + len(found) > 1
    assert set(found[0]) == {"text", "similarity", "percentile", "pois", "lift", "because"}
    for rank, (line, row) in enumerate(zip(lines[1:], found, strict=True), start=1):
        assert " ".join(line.split()).startswith(f"{rank} {row['text']} {row['pois']} ")
        assert f"{row['lift']:.1f}" in line and row["because"] in line
    with user_session(shared_town) as connection:
        rows = connection.execute(f"SELECT * FROM callipper.describe({HERE}, 3)".encode()).fetchall()
    assert [tuple(row.values()) for row in found] == [
        (text, round(similarity, 4), round(percentile, 1), pois, round(lift, 2), because)
        for text, similarity, percentile, pois, lift, because in rows
    ]


def test_the_command_similar(shared_town: str) -> None:
    place = f"SRID=4326;POINT({MIDDLE[0]} {MIDDLE[1]})"
    area = (MIDDLE[0] - 0.01, MIDDLE[1] - 0.01, MIDDLE[0] + 0.01, MIDDLE[1] + 0.01)
    options = ["-k", "4", "--within", ",".join(map(str, area)), "--min-distance", "300"]
    found = json.loads(run(shared_town, "similar", place, *options, "--json"))
    assert found == similar_cells(shared_town, place, 4, ",".join(map(str, area)), 300)
    lines = run(shared_town, "similar", place, *options).splitlines()
    assert [int(line.split()[1]) for line in lines[1:]] == [cell["cell_id"] for cell in found]
    with user_session(shared_town) as connection:
        rows = connection.execute(
            f"SELECT cell_id FROM callipper.similar_to({HERE}, 4, ST_MakeEnvelope(%s, %s, %s, %s, 4326), 300)".encode(),
            area,
        ).fetchall()
    assert [(cell["cell_id"],) for cell in found] == rows and len(rows) == 4


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("181,52", "longitude comes first"),
        ("5,91", "longitude comes first"),
        ("nan,52", "longitude comes first"),
        ("5", "parse error"),
        ("1,2,3", "parse error"),
        ("", "parse error"),
        ("POINT EMPTY", "the geometry is empty"),
        ("-120,-40", "too far for its coordinate system"),
        ("\udcff", "surrogates"),
        ("a\0b", "NUL"),
    ],
)
def test_what_is_no_place_is_refused(shared_town: str, place: str, reason: str) -> None:
    for ask in (describe_place, similar_cells):
        with pytest.raises(BadPlace, match=reason) as caught:
            ask(shared_town, place)
        assert str(caught.value).startswith(f"{place!r} cannot be asked about as a place")


def test_the_manual_has_an_example_that_runs(reading: db.Connection) -> None:
    for name in ("describe", "text_similarity"):
        row = reading.execute("SELECT obj_description(%s::regproc, 'pg_proc')", [f"callipper.{name}"]).fetchone()
        assert row is not None
        start = row[0].index("SELECT ")
        example = row[0][start : row[0].index("4326))", start) + len("4326))")]
        example = example.replace("quiet park", "park").replace("7.4206, 43.7326", "5.12, 52.09")
        assert reading.execute(example.encode()).fetchall()
