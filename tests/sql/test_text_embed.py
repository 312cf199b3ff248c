"""text_embed as a function of SQL: how often the transformer runs, whom it answers, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from callipper_db import db
from callipper_db.arrays import Array
from callipper_trainer.text_encoder import TextEncoder
from handmade import ORIGIN, Model, write_model
from sessions import rolled_back, user_session
from tiny_encoder import expected_embeddings, give_text_tower, install_encoder, read_vectors, write_encoder

AGREES = 2e-6
MOST_CURSORS = 256
OURS = "SELECT count(*) FROM pg_cursors WHERE name LIKE 'callipper text v%'"


@dataclass
class Tower:
    """Two versions that read texts with one tiny encoder, each through a projection of its own; the first is active."""

    dsn: str
    encoder: TextEncoder
    models: list[Model]

    def expected(self, texts: list[str], version: int | None = None) -> Array:
        """(N, 256) by sentence-transformers and numpy."""
        vectors = self.encoder.transformer.encode(texts)
        with user_session(self.dsn) as connection:
            return expected_embeddings(connection, version or self.models[0].version, texts, vectors)


def write_tower(dsn: str, folder: Path) -> Tower:
    encoder = write_encoder(folder / "tiny", num_hidden_layers=1)
    number = install_encoder(dsn, encoder)
    with user_session(dsn) as connection:
        places = ORIGIN[None] + [[50, 50], [450, 350]]
        models = [write_model(connection, places, seed=seed, activate=seed == 0) for seed in (0, 1)]
        for seed, model in enumerate(models):
            give_text_tower(connection, model.version, number, encoder.dim, seed)
    return Tower(dsn, encoder, models)


@pytest.fixture(scope="module")
def tower(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Tower:
    """For tests that change nothing."""
    return write_tower(module_database, tmp_path_factory.mktemp("tower"))


@pytest.fixture
def own_tower(database: str, tmp_path: Path) -> Tower:
    """For tests that change models."""
    return write_tower(database, tmp_path)


@pytest.fixture
def asking(tower: Tower) -> Iterator[db.Connection]:
    """A session of the test's own, with nothing remembered from another test: what it does is rolled back."""
    with rolled_back(tower.dsn) as connection:
        yield connection


@dataclass
class Counter:
    """Counts how often the transformer has run in the whole database, parallel workers included."""

    monitor: db.Connection

    def total(self) -> int:
        """So far, of sessions that have ended a transaction since."""
        row = self.monitor.execute(
            "SELECT coalesce(sum(calls), 0)::int FROM pg_stat_user_functions"
            " WHERE schemaname = 'callipper' AND funcname = '_encode_tokens'"
        ).fetchone()
        assert row is not None
        return int(row[0])

    def runs(self, connection: db.Connection, *statements: str | sql.Composed) -> int:
        """How often it runs for some statements in one transaction; in the end no cursor is left."""
        connection.commit()
        connection.execute("SET track_functions = 'pl'")
        before = self.total()
        for statement in statements:
            connection.execute(statement if isinstance(statement, sql.Composed) else sql.SQL(statement))
        connection.execute("SELECT pg_stat_force_next_flush()")
        connection.commit()
        assert connection.execute(OURS).fetchone() == (0,)
        connection.commit()
        return self.total() - before


@pytest.fixture
def counter(tower: Tower) -> Iterator[Counter]:
    with user_session(tower.dsn, autocommit=True) as monitor:
        yield Counter(monitor)


def one(connection: db.Connection, query: str, *values: object) -> Any:
    """The only value of the only row."""
    ((value,),) = connection.execute(sql.SQL(query), values or None).fetchall()
    return value


def vector(connection: db.Connection, text: str) -> Array:
    (found,) = read_vectors(connection, "text_embed(text)", [text])
    return np.asarray(found)


def refusal(connection: db.Connection, query: str, *values: object) -> psycopg.errors.Diagnostic:
    """What the server says to a query that it refuses; the session lives on."""
    with pytest.raises(psycopg.Error) as caught:
        connection.execute(sql.SQL(query), values or None)
    connection.rollback()
    assert one(connection, "SELECT 1") == 1
    return caught.value.diag


# How often the transformer runs. The texts are none that a model has met.

RANKED = "SELECT cell_id FROM callipper.cells ORDER BY emb <-> text_embed({}) LIMIT 5"


def test_a_constant(asking: db.Connection, counter: Counter) -> None:
    assert counter.runs(asking, RANKED.format("'old river'")) == 1


def test_one_constant_three_times(asking: db.Connection, counter: Counter) -> None:
    query = (
        "SELECT text_embed('old river'), text_embed('old river') <=> text_embed('old river') FROM callipper.cells"
        " WHERE (emb <#> text_embed('old river')) < 1"
    )
    assert counter.runs(asking, query) == 1


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan", "auto"])
def test_a_parameter(asking: db.Connection, counter: Counter, mode: str) -> None:
    asking.execute(sql.SQL("SET plan_cache_mode = {}").format(sql.Identifier(mode)))
    asking.execute("SET enable_indexscan = off; SET max_parallel_workers_per_gather = 0")  # a worker would run it too
    asking.execute(sql.SQL("PREPARE ranked(text) AS " + RANKED.format("$1")))
    assert counter.runs(asking, *["EXECUTE ranked('old river')"] * 8) == 1
    assert counter.runs(asking, "EXECUTE ranked('old river')", "EXECUTE ranked('zoo')") == 2


def test_a_parameter_of_the_driver(asking: db.Connection, counter: Counter) -> None:
    asking.commit()
    before = counter.total()
    asking.execute("SET track_functions = 'pl'")
    for _ in range(8):
        asking.execute(sql.SQL(RANKED.format("%s")), ["old river"], prepare=True)
    asking.execute("SELECT pg_stat_force_next_flush()")
    asking.commit()
    assert counter.total() - before == 1


WITH_TEXTS = (
    "CREATE TEMPORARY TABLE asked ON COMMIT DROP AS"
    " SELECT n, (ARRAY['old river', 'zoo', 'fishing'])[1 + n % 3] AS text FROM generate_series(1, 300) n"
)


@pytest.mark.parametrize(
    ("query", "texts"),
    {
        "scan": ("SELECT text_embed(text) FROM pg_temp.asked", 3),
        "filter and target": (
            "SELECT text_embed(text) FROM pg_temp.asked WHERE text_embed(text) <-> text_embed('zoo') > 0.1", 3),
        "sort": ("SELECT n FROM pg_temp.asked ORDER BY text_embed(text) <-> text_embed('zoo'), n LIMIT 3", 3),
        "aggregate": ("SELECT text, avg(text_embed(text)) FROM pg_temp.asked GROUP BY text", 3),
        "lateral": (
            "SELECT a.n, c.cell_id FROM (SELECT * FROM pg_temp.asked LIMIT 9) a, LATERAL ("
            " SELECT cell_id FROM callipper.cells ORDER BY emb <-> text_embed(a.text) LIMIT 1) c", 3),
        "cross join": (
            "SELECT a.n, c.cell_id, c.emb <-> text_embed(a.text)"
            " FROM callipper.cells c CROSS JOIN (SELECT * FROM pg_temp.asked ORDER BY n LIMIT 4) a", 3),
        "inlined CTE": ("WITH q AS NOT MATERIALIZED (SELECT text_embed('zoo') AS v)"
                        " SELECT cell_id FROM callipper.cells, q ORDER BY emb <-> q.v LIMIT 5", 1),
        "materialised CTE": ("WITH q AS MATERIALIZED (SELECT text_embed('zoo') AS v)"
                             " SELECT cell_id FROM callipper.cells, q ORDER BY emb <-> q.v LIMIT 5", 1),
        "CTE over rows": ("WITH q AS NOT MATERIALIZED (SELECT text_embed(text) AS v FROM pg_temp.asked)"
                          " SELECT cell_id, emb <-> q.v FROM callipper.cells, q", 3),
        "subquery": ("SELECT cell_id FROM cells ORDER BY emb <-> (SELECT text_embed(max(text)) FROM pg_temp.asked)", 1),
        "CASE": ("SELECT CASE WHEN n < 0 THEN text_embed(text) END FROM pg_temp.asked", 0),
        "loop": ("DO $$ DECLARE word text; BEGIN FOR i IN 1..30 LOOP"
                 " word := (ARRAY['old river', 'zoo'])[1 + i % 2];"
                 " PERFORM cell_id FROM callipper.cells ORDER BY emb <-> text_embed(word) LIMIT 1;"
                 " END LOOP; END $$", 2),
        "materialised view": ("CREATE MATERIALIZED VIEW public.made AS SELECT n % 3 AS n, text_embed((ARRAY['old river',"
                              " 'zoo', 'fishing'])[1 + n % 3]) FROM generate_series(1, 30) n", 3),
    }.values(),
)  # fmt: skip
def test_once_per_distinct_text(asking: db.Connection, counter: Counter, query: str, texts: int) -> None:
    assert counter.runs(asking, WITH_TEXTS, query) == texts
    asking.execute("DROP MATERIALIZED VIEW IF EXISTS public.made")
    asking.commit()


def test_a_view_of_the_users(asking: db.Connection, counter: Counter) -> None:
    asking.execute(
        "CREATE VIEW public.like_rivers AS SELECT cell_id, emb <-> text_embed('old river') AS far FROM cells"
    )
    try:
        assert (
            counter.runs(
                asking, "SELECT * FROM public.like_rivers ORDER BY far", "SELECT max(far) FROM public.like_rivers"
            )
            == 1
        )
    finally:
        asking.execute("DROP VIEW public.like_rivers")
        asking.commit()


def test_parallel_workers_run_it_once_each(asking: db.Connection, counter: Counter) -> None:
    asking.execute(
        "CREATE TABLE public.many AS SELECT 'old river' AS text, repeat('x', 500) AS wide FROM generate_series(1, 600)"
    )
    asking.execute("ANALYZE public.many")
    asking.commit()
    try:
        for setting in ("min_parallel_table_scan_size", "parallel_setup_cost", "parallel_tuple_cost"):
            asking.execute(sql.SQL("SET {} = 0").format(sql.Identifier(setting)))
        asking.execute("SET max_parallel_workers_per_gather = 2; SET parallel_leader_participation = off")
        query = "SELECT sum(text_embed(text) <-> text_embed('zoo')) FROM public.many"
        plan = one(asking, f"EXPLAIN (ANALYZE, FORMAT JSON) {query}")
        launched = [int(number) for number in re.findall(r"'Workers Launched': (\d+)", str(plan))]
        assert launched and max(launched) >= 1
        assert 2 <= counter.runs(asking, query) <= 3, "'zoo' when it is planned, and the other once in each worker"
        distance = np.linalg.norm(np.subtract(vector(asking, "old river"), vector(asking, "zoo")))
        assert one(asking, query) == pytest.approx(600 * distance, rel=1e-5)
    finally:
        asking.rollback()
        asking.execute("DROP TABLE public.many")
        asking.commit()


def test_the_next_transaction_begins_anew(asking: db.Connection, counter: Counter) -> None:
    query = "SELECT text_embed(text) FROM pg_temp.asked"
    assert [counter.runs(asking, WITH_TEXTS, query) for _ in range(2)] == [3, 3]


def test_procedures_that_commit(asking: db.Connection, counter: Counter) -> None:
    asking.commit()
    asking.autocommit = True
    try:
        asking.execute("SET track_functions = 'pl'")
        before = counter.total()
        asking.execute(
            "DO $$ DECLARE word text := 'old river'; found vector; BEGIN"
            " FOR i IN 1..6 LOOP found := text_embed(word); IF i % 2 = 0 THEN COMMIT; END IF; END LOOP;"
            " PERFORM pg_stat_force_next_flush(); END $$"
        )
        assert counter.total() - before == 3
    finally:
        asking.autocommit = False


def test_more_texts_than_are_kept(tower: Tower, asking: db.Connection, counter: Counter) -> None:
    texts = [f"park {number}" for number in range(MOST_CURSORS + 40)]
    found = read_vectors(asking, "text_embed(text)", texts)
    np.testing.assert_allclose(found, tower.expected(texts), atol=AGREES, rtol=0)
    assert one(asking, OURS) == MOST_CURSORS
    again = read_vectors(asking, "text_embed(text)", [*texts[::-1], texts[0]])
    np.testing.assert_array_equal(again, [*found[::-1], found[0]])
    assert one(asking, OURS) == MOST_CURSORS
    asking.commit()
    assert one(asking, OURS) == 0


def test_a_savepoint_that_is_rolled_back(asking: db.Connection, counter: Counter) -> None:
    runs = counter.runs(
        asking,
        "SELECT text_embed('old river')",
        "SAVEPOINT before",
        "SELECT text_embed('old river'), text_embed('zoo')",
        "ROLLBACK TO SAVEPOINT before",
        "SELECT text_embed('old river'), text_embed('zoo')",
        "RELEASE SAVEPOINT before",
        "SELECT text_embed('old river'), text_embed('zoo')",
    )
    assert runs == 3, "what was met within the savepoint is forgotten with it, and nothing else"


def test_an_error_within_a_savepoint(tower: Tower, asking: db.Connection) -> None:
    expected = tower.expected(["old river", "zoo"])
    np.testing.assert_allclose(vector(asking, "old river"), expected[0], atol=AGREES)
    with pytest.raises(psycopg.errors.DivisionByZero), asking.transaction():
        asking.execute("SELECT text_embed('zoo'), text_embed('old river'), 1 / (SELECT 0)")
    found = read_vectors(asking, "text_embed(text)", ["old river", "zoo"])
    np.testing.assert_allclose(found, expected, atol=AGREES)


def test_cursors_of_the_users_stay(asking: db.Connection) -> None:
    asking.execute("DECLARE mine CURSOR FOR SELECT generate_series(1, 5)")
    assert one(asking, "FETCH mine") == 1
    read_vectors(asking, "text_embed(text)", [f"pub {number}" for number in range(MOST_CURSORS + 4)])
    assert one(asking, "FETCH mine") == 2
    asking.execute("CLOSE ALL")
    assert np.isfinite(vector(asking, "pub 1")).all()


def name_of_cursor(connection: db.Connection, version: int, text: str) -> sql.Identifier:
    """The name under which a transaction keeps what it has met."""
    query = "SELECT format('callipper text v%%s %%s %%s', %s::int, hashtextextended(%s, 1), hashtextextended(%s, 2))"
    return sql.Identifier(one(connection, query, version, text, text))


def test_a_cursor_of_that_name_is_not_run(tower: Tower, asking: db.Connection) -> None:
    """text_embed runs with its owner's rights, and must not lend them to a role that guesses the cursor's name."""
    asking.execute("CREATE TEMPORARY TABLE ran (as_whom text)")
    asking.execute(
        "CREATE FUNCTION pg_temp.run() RETURNS vector LANGUAGE plpgsql AS $$"
        " BEGIN INSERT INTO ran VALUES (current_user); RETURN array_fill(1, ARRAY[256])::vector; END $$"
    )
    name = name_of_cursor(asking, tower.models[0].version, "zoo")
    asking.execute("SELECT text_embed('zoo')")
    (found,) = asking.execute("SELECT count(*) FROM pg_cursors WHERE name = %s", [name._obj[0]]).fetchone() or (0,)
    assert found == 1, "the name is the one in use"
    asking.execute(sql.SQL("CLOSE {}").format(name))
    asking.execute(sql.SQL("DECLARE {} SCROLL CURSOR FOR SELECT pg_temp.run()").format(name))
    np.testing.assert_allclose(vector(asking, "zoo"), tower.expected(["zoo"])[0], atol=AGREES)
    assert one(asking, "SELECT count(*) FROM ran") == 0


FORGERIES = {
    "a vector alone": "SELECT '{vector}'",
    "somebody's signature": "SELECT '{vector}', 'cafe'",
    "the signature of another text": "SELECT '{vector}', '{signature}'",
    "no signature": "SELECT '{vector}', NULL",
}


@pytest.mark.parametrize("kept", ["", "WITH HOLD"])
@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES)
def test_a_forged_cursor_is_not_believed(tower: Tower, asking: db.Connection, forgery: str, kept: str) -> None:
    """Whoever had the pooler's connection before may have left one, and so may a function in the same transaction."""
    (expected,) = tower.expected(["zoo"])
    forged = str([1.0] + [0.0] * 127)
    asking.execute("SELECT text_embed('old river')")
    signed = one(asking, "SELECT statement FROM pg_cursors WHERE name LIKE 'callipper text v%'")
    statement = forgery.format(vector=forged, signature=signed.split("'")[3])
    name = name_of_cursor(asking, tower.models[0].version, "zoo")
    asking.execute(sql.SQL("DECLARE {} CURSOR {} FOR {}").format(name, sql.SQL(kept), sql.SQL(statement)))
    if kept:
        asking.commit()
    try:
        for _ in range(2):
            np.testing.assert_allclose(vector(asking, "zoo"), expected, atol=AGREES)
    finally:
        asking.rollback()
        asking.execute("CLOSE ALL")
        asking.commit()


def test_kept_cursors_of_others_leave_room(tower: Tower, asking: db.Connection, counter: Counter) -> None:
    """They count neither among ours nor are they closed."""
    for number in range(MOST_CURSORS):
        name = sql.Identifier(f"callipper text v1 {number} 0")
        asking.execute(sql.SQL("DECLARE {} CURSOR WITH HOLD FOR SELECT 1").format(name))
    asking.commit()
    try:
        asking.execute("SELECT text_embed('zoo'), text_embed('old river')")
        assert one(asking, OURS) == MOST_CURSORS + 2
    finally:
        asking.rollback()
        asking.execute("CLOSE ALL")
        asking.commit()


def test_a_prepared_statement_across_an_activation(own_tower: Tower) -> None:
    first, second = (model.version for model in own_tower.models)
    expected = {version: own_tower.expected(["old river"], version)[0] for version in (first, second)}
    assert np.abs(expected[first] - expected[second]).max() > 0.05
    with (
        user_session(own_tower.dsn, autocommit=True) as asking,
        user_session(own_tower.dsn, autocommit=True) as monitor,
        user_session(own_tower.dsn, autocommit=True) as other,
    ):
        counter = Counter(monitor)
        asking.execute("SET track_functions = 'pl'")
        asking.execute("PREPARE folded AS SELECT text_embed('old river')::real[]")

        def execute() -> tuple[Array, int]:
            before = counter.total()
            (row,) = asking.execute("EXECUTE folded").fetchall()
            asking.execute("SELECT pg_stat_force_next_flush()")
            return np.array(row[0]), counter.total() - before

        for version in (first, second, second, first):
            other.execute("SELECT callipper.activate(%s)", [version])
            found, runs = execute()
            np.testing.assert_allclose(found, expected[version], atol=AGREES)
            assert runs == 1
            assert execute()[1] == 0, "the plan keeps the vector"


# Whom it answers


@pytest.mark.parametrize("mode", ["READ ONLY", "ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE", "READ WRITE"])
def test_in_any_transaction(tower: Tower, asking: db.Connection, mode: str) -> None:
    asking.rollback()
    asking.execute(sql.SQL("SET TRANSACTION " + mode))
    texts = ["old river", "zoo", "old river"]
    np.testing.assert_allclose(read_vectors(asking, "text_embed(text)", texts), tower.expected(texts), atol=AGREES)


def test_readers_need_no_right_on_weights(tower: Tower, asking: db.Connection) -> None:
    asking.execute("SET ROLE callipper_reader")
    np.testing.assert_allclose(vector(asking, "old river"), tower.expected(["old river"])[0], atol=AGREES)
    for table in ("text_token", "text_weight", "text_projection"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege), asking.transaction():
            asking.execute(sql.SQL("SELECT FROM {}").format(sql.Identifier("callipper", table)))


@pytest.mark.parametrize(
    ("question", "plain"),
    [
        ("Where can I buy fresh bread near me?", "buy fresh bread"),
        ("somewhere to pray", "pray"),
        ("I'd really like to  see a film", "see a film"),
        ("where is the nearest pharmacy ?", "pharmacy"),
        ("hi, where can we find a good place to eat around here", "eat"),
        ("is there a park nearby?", "park"),
        ("PLACES WITH LIVE MUSIC", "LIVE MUSIC"),
        ("best pizza in town!", "pizza"),
        ("Somewhere to park?", "park the car"),
        ("where can I fish near here", "go fishing"),
        ("where is the nearest park", "park"),
        ("a cafe near me, please", "a cafe"),
        ("somewhere quiet to read", "somewhere quiet to read"),
        ("place of worship", "place of worship"),
        ("I broke my arm", "I broke my arm"),
        ("nearest", "nearest"),
        ("where to", "where to"),
        ("Is it a park?  ", "Is it a park?  "),
        ("???", "???"),
    ],
)
def test_words_of_any_question_are_left_out(asking: db.Connection, question: str, plain: str) -> None:
    assert asking.execute("SELECT callipper._plain_question(%s)", [question]).fetchone() == (plain,)
    same = "SELECT callipper.text_embed(%s) = callipper.text_embed(%s)"
    if plain != "???":  # nothing that can be read
        assert asking.execute(same, [question, plain]).fetchone() == (True,)


@pytest.mark.parametrize("text", ["\u2615", "a" * 300, "\u2615 \u2603"])
def test_a_text_of_unknown_words_is_warned_of(asking: db.Connection, text: str) -> None:
    warnings: list[str | None] = []
    asking.add_notice_handler(lambda notice: warnings.append(notice.message_primary))
    assert one(asking, "SELECT callipper.text_embed(%s)", "a coffee") and warnings == []
    assert one(asking, "SELECT callipper.text_embed(%s)", text)
    assert len(warnings) == 1 and "knows no word of the text" in str(warnings[0])


def test_the_command_line_warns_of_unknown_words_and_gives_no_reasons(run: Any, tower: Tower) -> None:
    for command in ("query", "points"):
        result = run(command, "\u2615", "--dsn", tower.dsn, "-k", "3", "--json")
        assert "knows no word of the text" in result.stderr and "Ask in English words." in result.stderr
        found = json.loads(result.stdout)
        assert found and all(row["because"] is None for row in found)


def test_null(asking: db.Connection) -> None:
    assert one(asking, "SELECT text_embed(NULL)") is None
    assert one(asking, "SELECT text_embed(NULL, 1)") is None
    assert one(asking, "SELECT text_embed('park', NULL)") is None


@pytest.mark.parametrize(
    "text", ["pub", "PUB", "  Pub ", "\tpub\n", "fresh fish", "Fresh\n\n  FISH", "\u2003pub\u2003"]
)
def test_what_is_remembered_is_found_in_any_spelling(tower: Tower, asking: db.Connection, text: str) -> None:
    model = tower.models[0]
    expected = model.texts["pub" if "pub" in text.lower() else "fresh fish"]
    np.testing.assert_array_equal(vector(asking, text), expected.astype(np.float64))


def test_a_version_by_number(tower: Tower, asking: db.Connection) -> None:
    for model in tower.models:
        found = read_vectors(asking, f"text_embed(text, {model.version})", ["old river", "pub"])
        expected = tower.expected(["old river"], model.version)
        np.testing.assert_allclose(found, [expected[0], model.texts["pub"]], atol=AGREES)
    said = refusal(asking, "SELECT text_embed('old river', 99)")
    assert (said.sqlstate, said.message_primary) == ("42704", "there is no model version 99")


def test_without_a_model(database: str) -> None:
    with user_session(database) as connection:
        for text in ("pub", "old river"):
            said = refusal(connection, "SELECT text_embed(%s::text)", text)
            assert (said.sqlstate, said.message_primary) == ("55000", "no model is active")
            assert "callipper-db train" in (said.message_hint or "")


def test_after_the_model_is_dropped(own_tower: Tower) -> None:
    first, second = (model.version for model in own_tower.models)
    with user_session(own_tower.dsn) as connection:
        connection.execute("PREPARE asked AS SELECT text_embed('old river')")
        connection.execute("EXECUTE asked")
        connection.execute("SELECT callipper.drop_model(%s, true)", [first])
        connection.commit()
        assert refusal(connection, "EXECUTE asked").message_primary == "no model is active"
        assert (
            refusal(connection, f"SELECT text_embed('pub', {first})").message_primary
            == f"there is no model version {first}"
        )
        found = read_vectors(connection, f"text_embed(text, {second})", ["old river"])
    np.testing.assert_allclose(found, own_tower.expected(["old river"], second), atol=AGREES)


# What it refuses, and what it does not


@pytest.mark.parametrize("text", ["", " ", "   ", "\t\n\r", "\u2003"])
def test_nothing_but_spaces(asking: db.Connection, text: str) -> None:
    said = refusal(asking, "SELECT text_embed(%s::text)", text)
    assert (said.sqlstate, said.message_primary) == ("22023", "the text is empty")
    assert "such as 'park'" in (said.message_hint or "")


@pytest.mark.parametrize("text", [" " * 100_000, " " * 1_000_000 + "park"], ids=["spaces", "spaces and a word"])
def test_only_the_beginning_is_read(asking: db.Connection, text: str) -> None:
    said = refusal(asking, "SELECT text_embed(%s::text)", text)
    assert (said.sqlstate, said.message_primary) == ("22023", "the text is empty")
    assert "Only the first 10000 characters are read" in (said.message_hint or "")


def test_a_long_text_is_cut_before_any_work(asking: db.Connection) -> None:
    """What lies beyond the first 10,000 characters is not even looked at."""
    beginning = "old river park " * 666 + "old river"
    assert len(beginning) <= 10_000
    whole = beginning.ljust(10_000) + "zoo " * 1_000_000
    (first, again) = read_vectors(asking, "text_embed(text)", [beginning.ljust(10_000), whole])
    np.testing.assert_array_equal(first, again)
    assert one(asking, OURS) == 1, "it is the same text"


def test_words_are_made_of_the_beginning_alone(own_tower: Tower) -> None:
    """An encoder reads a few hundred words, and the others are not looked at: a trap in what makes words says so."""
    signature = "content text, lower_case boolean, strip_accents boolean, split_cjk boolean"
    with user_session(own_tower.dsn) as session:
        encoder = one(session, "SELECT max(text_encoder_id) FROM callipper.text_norm")
        most = one(
            session,
            "SELECT (arch -> 'tokenizer' ->> 'max_tokens')::int FROM text_encoder WHERE text_encoder_id = %s",
            encoder,
        )
        session.execute("ALTER FUNCTION callipper._bert_words(text, boolean, boolean, boolean) RENAME TO _all_words")
        session.execute(
            f"CREATE FUNCTION callipper._bert_words({signature}) RETURNS text[] LANGUAGE plpgsql AS $$ BEGIN"
            f" ASSERT length(content) <= {8 * most}, 'all of the text is looked at';"
            " RETURN callipper._all_words(content, lower_case, strip_accents, split_cjk); END $$".encode()
        )
        assert len(one(session, "SELECT callipper._wordpiece(%s, %s)", "old river park " * 1000, encoder)) == most
        session.rollback()


def test_an_owner_sets_how_many_tokens_are_read(own_tower: Tower) -> None:
    text = "old river park zoo fishing " * 20
    with user_session(own_tower.dsn) as session:
        whole = vector(session, text)
        np.testing.assert_allclose(whole, own_tower.expected([text])[0], atol=AGREES)
        for most in (3, 7):
            session.execute("UPDATE callipper.text_encoder SET max_tokens = %s", [most])
            session.execute("SELECT callipper.activate(%s)", [own_tower.models[0].version])
            session.commit()
            encoder = one(session, "SELECT max(text_encoder_id) FROM callipper.text_norm")
            ids = one(session, "SELECT callipper._wordpiece(%s, %s)", text, encoder)
            assert len(ids) == most
            beginning = own_tower.encoder.transformer.tokenizer.decode(ids[1:-1])
            np.testing.assert_allclose(vector(session, text), own_tower.expected([beginning])[0], atol=AGREES)
        session.execute("UPDATE callipper.text_encoder SET max_tokens = 1000000")
        session.commit()
        np.testing.assert_array_equal(vector(session, text), whole), "never more than the encoder can"
        with pytest.raises(psycopg.errors.CheckViolation):
            session.execute("UPDATE callipper.text_encoder SET max_tokens = 2")
        session.rollback()


@pytest.mark.parametrize("text", ["\x01\x02", "\u200b", "\ufeff\u200d", "\u0301", "\u200b" * 20_000])
def test_nothing_that_can_be_read(asking: db.Connection, text: str) -> None:
    said = refusal(asking, "SELECT text_embed(%s::text)", text)
    assert (said.sqlstate, said.message_primary) == ("22023", "the text holds nothing that can be read")
    assert "such as 'park'" in (said.message_hint or "")


HOSTILE = {
    "a megabyte of words": "old river park " * 70_000,
    "a megabyte without a space": "x" * 1_000_000,
    "emoji": "🏳️‍🌈👩🏽‍🚀" * 50,
    "a quarter million emoji": "🌳" * 250_000,
    "statement": "'; DROP SCHEMA callipper CASCADE; --",
    "comment": "/* park */ park -- park",
    "quotes": """it's "so" ''called'' """,
    "backslashes": "\\' \\\\ \\x00 \\u0000 E'\\n'",
    "dollars": "$$ park $body$ $1 $2",
    "format": "%s %L %I %% {0} {}",
    "patterns": ".*+?^$()[]{}|\\",
    "special tokens": "[SEP] [CLS] [PAD] [MASK] [UNK]",
    "right to left": "\u202emirror\u202c",
    "marks": "e" + "\u0301" * 5000,
    "noncharacters": "\ufffe\uffff park \U0010ffff",
    "controls": "pa\x07rk\x1b[31m",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_texts_are_texts(tower: Tower, asking: db.Connection, text: str) -> None:
    np.testing.assert_allclose(vector(asking, text), tower.expected([text])[0], atol=AGREES, rtol=0)
    asking.execute("SET standard_conforming_strings = off")
    literal = "E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
    found = one(asking, f"SELECT text_embed({literal})::real[]")
    np.testing.assert_allclose(found, tower.expected([text])[0], atol=AGREES, rtol=0)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30))
def test_any_text_has_an_answer_or_a_reason(tower: Tower, asking: db.Connection, text: str) -> None:
    try:
        found = vector(asking, text)
    except psycopg.errors.InvalidParameterValue as error:
        assert error.diag.message_primary in ("the text is empty", "the text holds nothing that can be read")
        assert len(tower.encoder.transformer.tokenizer(text)["input_ids"]) == 2
        asking.rollback()
    else:
        np.testing.assert_allclose(found, tower.expected([text])[0], atol=AGREES, rtol=0)


@pytest.mark.parametrize(
    ("expression", "sqlstate"),
    [
        ("convert_from('\\xff', 'UTF8')", "22021"),
        ("convert_from('\\xeda080', 'UTF8')", "22021"),  # half of a surrogate pair
        ("E'\\uD800'", "42601"),
        ("chr(0)", "54000"),
        ("E'park\\000'", "22021"),
        ("repeat('x', 2000000000)", "54000"),
    ],
)
def test_what_is_no_text_does_not_arrive(asking: db.Connection, expression: str, sqlstate: str) -> None:
    assert refusal(asking, f"SELECT text_embed({expression})").sqlstate == sqlstate


@pytest.mark.parametrize(("text", "error"), [("a\0b", psycopg.DataError), ("\ud800", UnicodeEncodeError)])
def test_what_the_driver_refuses(asking: db.Connection, text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        asking.execute("SELECT text_embed(%s)", [text])
    asking.rollback()
    assert np.isfinite(vector(asking, "park")).all()


# Memory


def private_memory(connection: db.Connection) -> int:
    """Bytes that belong to the backend alone."""
    status = Path(f"/proc/{connection.info.backend_pid}/status").read_text(encoding="utf-8")
    return int(re.findall(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)[0]) * 1024


def test_a_session_stays_small(module_town: str, encoder: TextEncoder) -> None:
    assert install_encoder(module_town, encoder)
    with user_session(module_town) as connection:
        assert one(connection, "SELECT text_embed('park') IS NOT NULL") is True
        before = private_memory(connection)
        for number in range(100):
            connection.execute("SELECT text_embed(%s)", [f"unmet {number}"])
        assert one(connection, OURS) == 100
        assert private_memory(connection) - before < 40_000_000


def test_long_texts_do_not_add_up(asking: db.Connection) -> None:
    texts = [f"{number} " * 60 for number in range(20)]
    read_vectors(asking, "text_embed(text)", texts[:2])
    before = private_memory(asking)
    read_vectors(asking, "text_embed(text)", texts)
    assert private_memory(asking) - before < 10_000_000
