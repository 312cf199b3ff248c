"""The same questions, the same answers to the last bit: on a standby, behind a pooler, as a reader, after a restore,
under any search_path and settings.

A question is one SQL statement in which every name is qualified, operators too, so that it means the same everywhere.
A new public function needs a question here; a test sees to it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from callipper_db import db, schema
from callipper_db.progress import Silent
from callipper_db.server import EmbeddedServer
from callipper_trainer.install_text_encoder import install
from callipper_trainer.text_encoder import TextEncoder
from deployments import (
    binaries,
    call,
    knows_named_statements,
    pooled,
    start_primary,
    start_standby,
    succeed,
    wait_for_replay,
)
from sessions import user_session
from town import CONFIG, train_town

UNKNOWN = "a windmill beside the frozen canal"
PLACE = "public.ST_SetSRID(public.ST_Point(5.121, 52.093), 4326)"
TILE = "12, 2106, 1351"  # z, x and y of the middle of the town
AREA = "public.ST_MakeEnvelope(5.11, 52.08, 5.13, 52.1, 4326)"

QUESTIONS = {
    "a remembered text": "SELECT callipper.text_embed('park')",
    "an unknown text": f"SELECT callipper.text_embed('{UNKNOWN}')",
    "a text by a version": f"SELECT callipper.text_embed('park', 1), callipper.text_embed('{UNKNOWN}', 1)",
    "texts of a column": "SELECT callipper.text_embed(w) FROM pg_catalog.unnest('{park, a lamp, cafe, a lamp}'::text[]) w",
    "all cells": "SELECT cell_id, geom, emb FROM callipper.cells ORDER BY cell_id",
    "cells like a remembered text": "SELECT cell_id, emb OPERATOR(public.<->) callipper.text_embed('cafe')"
    " FROM callipper.cells ORDER BY emb OPERATOR(public.<->) callipper.text_embed('cafe'), cell_id LIMIT 10",
    "cells like an unknown text": f"SELECT cell_id, emb OPERATOR(public.<=>) callipper.text_embed('{UNKNOWN}')"
    f" FROM callipper.cells ORDER BY emb OPERATOR(public.<#>) callipper.text_embed('{UNKNOWN}'), cell_id LIMIT 10",
    "cells of an area": "WITH inside AS MATERIALIZED (SELECT cell_id, emb FROM callipper.cells"
    f" WHERE geom OPERATOR(public.&&) {AREA})"
    " SELECT cell_id FROM inside ORDER BY emb OPERATOR(public.<->) callipper.text_embed('school'), cell_id LIMIT 10",
    "all points": "SELECT point_id, name, category, text, geom, emb FROM callipper.points ORDER BY point_id",
    "a place": f"SELECT callipper.loc_embed({PLACE})",
    "a place by a version": f"SELECT callipper.loc_embed({PLACE}, 1)",
    "a place in metres": "SELECT callipper.loc_embed(public.ST_SetSRID(public.ST_Point(136757, 456116), 28992))",
    "places of a table": "SELECT point_id, callipper.loc_embed(geom) FROM callipper.points ORDER BY point_id LIMIT 20",
    "the support of a place": f"SELECT callipper.loc_support({PLACE})",
    "a search": f"SELECT cell_id, geom, similarity, percentile FROM callipper.search('{UNKNOWN}')",
    "a search in an area": f"SELECT cell_id, geom, similarity, percentile FROM callipper.search('park', 20, {AREA})",
    "a search of points": "SELECT point_id, text, geom, similarity, percentile FROM callipper.search_points('school', 20)",
    "a search by examples": f"SELECT * FROM callipper.search_by_examples('{{park, cafe}}', '{{factory, {UNKNOWN}}}', 20)",
    "cells similar to a place": f"SELECT * FROM callipper.similar_to({PLACE}, 20, {AREA}, 300)",
    "points similar to a place": f"SELECT point_id, similarity FROM callipper.similar_points_to({PLACE}, 20, NULL, 300)",
    "what a place is like": f"SELECT text, pois, lift, because FROM callipper.describe({PLACE}, 400)",
    "an area": f"SELECT callipper.area_embed({AREA})",
    "the saved layers": "SELECT pg_catalog.count(*) FROM callipper.list_layers()",
    "the states that were kept": "SELECT pg_catalog.count(*) FROM callipper.list_states()",
    "the point of a key": "SELECT callipper.point_id('a key')",
    "a text and a place": f"SELECT callipper.text_similarity('{UNKNOWN}', {PLACE})",
    "a map of cells by a text": f"SELECT * FROM callipper_map.cells_by_text('{UNKNOWN}') ORDER BY cell_id",
    "a map of cells by examples": "SELECT * FROM callipper_map.cells_by_examples('{park, cafe}', '{factory}') ORDER BY cell_id",
    "a map of places": "SELECT * FROM callipper_map.places_by_text('school') ORDER BY place_id",
    "a search for tools": "SELECT * FROM callipper_map.find_cells('park', 20)",
    "a place for tools": "SELECT * FROM callipper_map.describe_place(5.121, 52.093)",
    "tiles": f"SELECT callipper_map.similarity_tile({TILE}, 'park'), callipper_map.cell_tile({TILE}),"
    f' callipper_map.place_tile({TILE}), callipper_map.similarity_tile_json({TILE}, \'{{"query": "cafe"}}\')',
}
ACTIONS = {"activate", "drop_model", "save_layer", "remove_layer"}  # what changes something is no question
ACTIONS |= {"changed"}  # a question that needs a kept state; tests/refresh/test_changed.py asks it

# What the role callipper_reader may do; nothing else that is in the schema.
READABLE = {"cells", "points", "poi", "cell", "grid", "model", "text_encoder", "text_embedding"}
CALLED_BY_QUESTIONS = {"_active_version", "_points_are_pois", "_find_text", "_locate", "_rate_support"}
CALLED_BY_QUESTIONS |= {"_sql_digest", "_sql_version"}
CALLED_BY_QUESTIONS |= {
    "_city_of",
    "_examples",
    "_percentile",
    "_cells_by",
    "_block_side",
    "_tile_cells",
    "_block_margin",
    "_block_of",
    "_h3_index",
    "_h3_parent",
    "_stamp",
    "_question_vector",
    "_match_tile",
    "_match_cells",
    "_labelled_points",
    "_changed_cells",
    "_layer_tile",
}  # of callipper_map
WEIGHTS = {
    *("text_weight", "text_token", "text_norm", "text_position", "text_vector"),
    *("location_weight", "text_projection", "context_cell"),
}

Answers = dict[str, list[tuple[Any, ...]]]


def ask(connection: db.Connection) -> Answers:
    """Every question's answer, with numbers, vectors and geometries as the server's own bytes."""
    with connection.cursor(binary=True) as cursor:
        return {name: cursor.execute(question.encode()).fetchall() for name, question in QUESTIONS.items()}


def answers_of(dsn: str) -> Answers:
    """From a session with nothing but its defaults."""
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as connection:
        return ask(connection)


def assert_same(found: Answers, expected: Answers) -> None:
    for name, answer in expected.items():
        assert answer and None not in answer[0], name
        assert found[name] == answer, name


def column(dsn: str, query: str, *values: Any) -> list[Any]:
    with user_session(dsn) as connection:
        return [row[0] for row in connection.execute(query.encode(), values)]


def cut_encoder(encoder: TextEncoder, folder: Path) -> TextEncoder:
    """The encoder with its first layer and its most common words alone: each copy of the whole takes 95 MB."""
    for path in encoder.folder.iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 1}
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {piece: number for piece, number in vocabulary.items() if number < 4000}
    for name, content in {"config.json": config, "tokenizer.json": tokenizer}.items():
        (folder / name).unlink()
        (folder / name).write_text(json.dumps(content))
    return TextEncoder(encoder.name, folder)


@pytest.fixture(scope="module")
def city(module_town: str, encoder: TextEncoder, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The DSN of a town with a text encoder and two model versions, the first of them active."""
    train_town(module_town, tmp_path_factory.mktemp("second"), replace(CONFIG, epochs=1))
    install(module_town, cut_encoder(encoder, tmp_path_factory.mktemp("encoder")), Silent())
    activate(module_town, 1)
    return module_town


@pytest.fixture(scope="module")
def answers(city: str) -> Answers:
    return answers_of(city)


@pytest.fixture(scope="module")
def other_answers(city: str, answers: Answers) -> Answers:
    """Those of the second version."""
    activate(city, 2)
    found = answers_of(city)
    activate(city, 1)
    assert found["all cells"] != answers["all cells"] and found["an unknown text"] != answers["an unknown text"]
    return found


def activate(dsn: str, version: int) -> None:
    with user_session(dsn) as connection:
        connection.execute("SELECT callipper.activate(%s)", [version])


def test_there_is_a_question_for_every_function(city: str) -> None:
    query = "SELECT DISTINCT proname::text FROM pg_proc WHERE pronamespace = ANY ('{callipper, callipper_map}'::regnamespace[])"
    public = {name for name in column(city, query) if not name.startswith("_")}
    asked = set(re.findall(r"callipper(?:_map)?\.(\w+)\(", " ".join(QUESTIONS.values())))
    assert asked == public - ACTIONS
    assert column(city, "SELECT count(*) FROM callipper.text_embedding WHERE text IN (%s, 'a lamp')", UNKNOWN) == [0]


def test_the_same_question_has_the_same_answer(city: str, answers: Answers) -> None:
    assert_same(answers_of(city), answers)


# A hot standby


@dataclass(frozen=True)
class Pair:
    """A server with the city in its database `callipper`, and a hot standby of it."""

    primary: EmbeddedServer
    standby: EmbeddedServer


@pytest.fixture(scope="module")
def pair(city: str, module_folder: Path) -> Iterator[Pair]:
    folder = binaries(city)
    primary = start_primary(module_folder, folder)
    try:
        dump = module_folder / "city.dump"
        succeed(folder / "pg_dump", "-Fc", "-Z0", "--schema=callipper*", "-f", dump, city)
        # The role callipper_reader is not on this server.
        succeed(folder / "pg_restore", "--no-owner", "--no-privileges", "--exit-on-error", "-d", primary.dsn(), dump)
        standby = start_standby(primary, module_folder)
        try:
            yield Pair(primary, standby)
        finally:
            standby.stop()
    finally:
        primary.stop()


def create_extensions(dsn: str) -> None:
    with user_session(dsn) as connection:
        connection.execute("CREATE EXTENSION postgis")
        connection.execute("CREATE EXTENSION vector")


def test_a_hot_standby_answers(pair: Pair, answers: Answers) -> None:
    assert column(pair.standby.dsn(), "SELECT pg_is_in_recovery()") == [True]
    assert_same(answers_of(pair.standby.dsn()), answers)


def test_a_hot_standby_changes_nothing(pair: Pair) -> None:
    with psycopg.connect(pair.standby.dsn(), autocommit=True) as connection:
        for statement in ("SELECT callipper.activate(2)", "DELETE FROM callipper.poi"):
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                connection.execute(statement)


def test_an_activation_reaches_the_sessions_of_a_standby(pair: Pair, answers: Answers, other_answers: Answers) -> None:
    with psycopg.connect(pair.standby.dsn(), autocommit=True, prepare_threshold=0) as connection:
        for version, expected in ((1, answers), (2, other_answers), (1, answers)):
            activate(pair.primary.dsn(), version)
            wait_for_replay(pair.primary, pair.standby)
            assert_same(ask(connection), expected)


# Behind PgBouncer, in transaction mode


@pytest.fixture(scope="module")
def pooled_city(city: str, module_folder: Path) -> Iterator[str]:
    folder = module_folder / "pgbouncer"
    folder.mkdir()
    with pooled(city, folder, server_connections=2) as dsn:
        yield dsn


@dataclass
class Client:
    """A session behind a pooler, which asks each question in one of the ways that clients have."""

    connection: db.Connection
    way: str
    number: int

    def ask(self, name: str) -> list[tuple[Any, ...]]:
        question = QUESTIONS[name]
        with self.connection.cursor(binary=True) as cursor:
            if self.way == "in a transaction":
                with self.connection.transaction():
                    statement = f"client_{self.number}"
                    cursor.execute(f"PREPARE {statement} AS {question}".encode())
                    found = cursor.execute(f"EXECUTE {statement}".encode()).fetchall()
                    cursor.execute(f"DEALLOCATE {statement}".encode())
                    return found
            if self.way == "with a parameter":
                return cursor.execute(f"{question} OFFSET %s".encode(), [0]).fetchall()
            return cursor.execute(question.encode()).fetchall()

    def ask_all(self) -> Answers:
        """In an order of its own."""
        names = [*QUESTIONS]
        return {name: self.ask(name) for name in names[self.number :] + names[: self.number]}

    def server(self) -> int:
        (pid,) = self.connection.execute("SELECT pg_backend_pid()").fetchone() or (0,)
        return int(pid)


# A statement that the driver prepares outlives its transaction, so it takes a pooler that carries it over.
WAYS = ["plain", "with a parameter", "in a transaction"]
PREPARED = "prepared by the driver"


@pytest.fixture
def clients(pooled_city: str) -> Iterator[list[Client]]:
    """Eight clients, all connected at once, on two server connections."""
    ways = (WAYS + [PREPARED] * knows_named_statements()) * 3
    made = []
    try:
        for number, way in enumerate(ways[:8]):
            threshold = 0 if way == PREPARED else None
            connection = psycopg.connect(pooled_city, autocommit=True, prepare_threshold=threshold)
            made.append(Client(connection, way, number))
        yield made
    finally:
        for client in made:
            client.connection.close()


def test_a_pooler_hands_few_connections_to_many_clients(clients: list[Client], answers: Answers) -> None:
    for name, expected in answers.items():
        for client in clients:
            assert client.ask(name) == expected, (name, client.way)
    assert len({client.server() for client in clients}) <= 2


def test_an_activation_reaches_the_clients_of_a_pooler(
    city: str, clients: list[Client], answers: Answers, other_answers: Answers
) -> None:
    """They ask all at once, so that both server connections are in use."""
    with ThreadPoolExecutor(len(clients)) as pool:
        for version, expected in ((1, answers), (2, other_answers), (1, answers)):
            activate(city, version)
            for found in pool.map(Client.ask_all, clients):
                assert_same(found, expected)


def test_a_command_that_needs_a_connection_of_its_own_says_so(pooled_city: str, run: Any) -> None:
    for command in (["train"], ["refresh"], ["refresh", "--watch"], ["load", __file__], ["remember", "a lamp"]):
        result = run(*command, "--dsn", pooled_city, exit_code=1)
        assert result.stderr.splitlines()[-1].startswith("Error: The DSN leads to a connection pooler that gives each")


def test_a_command_leaves_nothing_in_the_pool(city: str, pooled_city: str, run: Any) -> None:
    settings = (
        "SELECT name, setting FROM pg_settings WHERE source = 'session' AND name <> 'application_name' ORDER BY 1"
    )
    locks = (
        "SELECT locktype FROM pg_locks WHERE locktype = 'advisory' OR relation = 'callipper.training_lock'::regclass"
    )
    with psycopg.connect(pooled_city, autocommit=True, prepare_threshold=None) as client:
        before = client.execute(settings).fetchall()
        run("query", "park", "--dsn", pooled_city)
        run("models", "activate", "1", "--dsn", pooled_city)
        run("init", "--dsn", pooled_city)
        run("train", "--dsn", pooled_city, exit_code=1)
        for _ in range(4):  # the pool's two connections
            assert client.execute(settings).fetchall() == before
        assert client.execute(locks).fetchall() == []


def test_a_pool_in_session_mode_is_as_good_as_the_server(city: str, module_folder: Path) -> None:
    folder = module_folder / "session"
    folder.mkdir()
    with (
        pooled(city, folder, server_connections=4, mode="session") as dsn,
        user_session(dsn, autocommit=True) as connection,
    ):
        assert connection.info.backend_pid != column(city, "SELECT pg_backend_pid()")[0]
        assert connection.execute("SELECT count(*) FROM cells").fetchone()


# A reader


@pytest.fixture(scope="module")
def reader(city: str) -> Iterator[str]:
    """The DSN of a role that has callipper_reader and nothing else."""
    name = f"callipper_test_reader_{os.getpid()}"
    with user_session(city) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN IN ROLE callipper_reader").format(sql.Identifier(name)))
    try:
        yield make_conninfo(city, user=name)
    finally:
        with user_session(city) as connection:
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def relations(dsn: str) -> list[str]:
    query = "SELECT relname::text FROM pg_class WHERE relnamespace = 'callipper'::regnamespace AND relkind IN ('r', 'p', 'v')"
    return column(dsn, query)


def test_a_reader_asks_everything(reader: str, answers: Answers) -> None:
    assert_same(answers_of(reader), answers)
    schema.ensure_current(reader)


def test_a_reader_writes_nothing(city: str, reader: str) -> None:
    refusals = (
        psycopg.errors.InsufficientPrivilege,
        psycopg.errors.ObjectNotInPrerequisiteState,  # a view that takes no rows
        psycopg.errors.WrongObjectType,  # TRUNCATE of a view
        psycopg.errors.GeneratedAlways,  # a view of a table that numbers its rows itself
    )
    query = "SELECT attname::text FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND attgenerated = '' LIMIT 1"
    with psycopg.connect(reader, autocommit=True) as connection:
        for name in relations(city):
            table = sql.Identifier("callipper", name)
            (first,) = column(city, query, f"callipper.{name}")
            for statement in (
                sql.SQL("INSERT INTO {} DEFAULT VALUES").format(table),
                sql.SQL("UPDATE {} SET {} = DEFAULT").format(table, sql.Identifier(first)),
                sql.SQL("DELETE FROM {}").format(table),
                sql.SQL("TRUNCATE {} CASCADE").format(table),
                sql.SQL("SELECT FROM {} FOR UPDATE").format(table),
            ):
                with pytest.raises(refusals):
                    connection.execute(statement)
            rights = "SELECT has_table_privilege(%s, 'INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')"
            assert connection.execute(rights, [f"callipper.{name}"]).fetchone() == (False,), name
        for create in ("CREATE TABLE callipper.mine (x int)", "CREATE FUNCTION callipper.mine() RETURNS int RETURN 1"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(create)


def test_a_reader_reads_no_weights(city: str, reader: str) -> None:
    names = set(relations(city))
    assert names >= READABLE | WEIGHTS
    with psycopg.connect(reader, autocommit=True) as connection:
        for name in names:
            query = sql.SQL("SELECT FROM {} LIMIT 1").format(sql.Identifier("callipper", name))
            if name in READABLE:
                connection.execute(query)
            else:
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(query)


def test_a_reader_calls_what_questions_need_and_nothing_else(city: str, reader: str) -> None:
    """Rather than by a call of each, which for some takes arguments that nobody can make up."""
    query = (
        "SELECT proname::text, has_function_privilege(%s, oid, 'EXECUTE') FROM pg_proc"
        " WHERE pronamespace = 'callipper'::regnamespace"
    )
    with user_session(city) as connection:
        rights = connection.execute(query, [psycopg.conninfo.conninfo_to_dict(reader)["user"]]).fetchall()
    asked = set(re.findall(r"callipper\.(\w+)\(", " ".join(QUESTIONS.values())))
    assert {name for name, may in rights if may} == asked | CALLED_BY_QUESTIONS | {"changed"}
    with psycopg.connect(reader, autocommit=True) as connection:
        for call_of in ("activate(2)", "drop_model(2, true)", "_announce_change()", "_encode_text('park', 1)"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"SELECT callipper.{call_of}".encode())


# After a dump and a restore, by an owner who is no superuser


@pytest.fixture(scope="module")
def owner(cluster_dsn: str) -> Iterator[str]:
    """A role that may log in, and nothing else."""
    name = f"callipper_test_owner_{os.getpid()}"
    with user_session(cluster_dsn) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
    yield name
    with user_session(cluster_dsn) as connection:
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


@pytest.fixture
def target(owner: str, empty_database: str) -> str:
    """The DSN of the owner's own database, in which a superuser has made the extensions, as managed services do."""
    create_extensions(empty_database)
    with user_session(empty_database) as connection:
        names = sql.Identifier(connection.info.dbname), sql.Identifier(owner)
        connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(*names))
    return make_conninfo(empty_database, user=owner)


def restore(city: str, target: str, dump_options: list[str], restore_options: list[str], folder: Path) -> list[str]:
    """Dump and restore in plain SQL, or in the custom format where the options say so; returns the errors."""
    programs, dump = binaries(city), folder / "dump"
    assert succeed(programs / "pg_dump", *dump_options, "-f", dump, city) == ""
    if "-Fc" in dump_options:
        said = call(programs / "pg_restore", *restore_options, "-d", target, dump).stderr
    else:
        said = call(programs / "psql", "-Xq", "-d", target, "-f", dump).stderr
    return re.findall(r"ERROR: +(.*)", said)


WHOLE = ["--no-comments", "--exclude-table-data=*.spatial_ref_sys"]


@pytest.mark.parametrize(
    ("dump_options", "restore_options", "errors"),
    [
        (["--no-owner", "--schema=callipper*"], [], []),
        (["-Fc", "-Z0", "--schema=callipper*"], ["--no-owner"], []),
        (["-Fc", "-Z0", *WHOLE], ["--no-owner"], []),
        # Harmless: what they are about is there already.
        (
            ["-Fc", "-Z0"],
            ["--no-owner"],
            [
                "must be owner of extension postgis",
                "must be owner of extension vector",
                "permission denied for table spatial_ref_sys",
            ],
        ),
    ],
)
def test_a_restored_database_answers(
    city: str,
    target: str,
    tmp_path: Path,
    answers: Answers,
    dump_options: list[str],
    restore_options: list[str],
    errors: list[str],
) -> None:
    assert restore(city, target, dump_options, restore_options, tmp_path) == errors
    assert_same(answers_of(target), answers)


def test_init_completes_a_restored_database(
    city: str, target: str, tmp_path: Path, answers: Answers, other_answers: Answers
) -> None:
    """A dump of a database lacks its search_path, and a dump without privileges what readers may do."""
    options = ["--no-owner", "--no-privileges", "--schema=callipper*"]
    assert restore(city, target, options, [], tmp_path) == []
    with psycopg.connect(target) as connection, pytest.raises(psycopg.errors.UndefinedFunction):
        connection.execute("SELECT text_embed('park')")
    reads = "SELECT has_table_privilege('callipper_reader', 'callipper.cells', 'SELECT')"
    assert column(target, reads) == [False]
    schema.init(target)
    with psycopg.connect(target) as connection:
        connection.execute("SELECT text_embed('park')")
    assert column(target, reads) == [True]
    assert_same(answers_of(target), answers)
    activate(target, 2)
    assert_same(answers_of(target), other_answers)


# Any search_path, any settings

SOURCES = """
    SELECT proname || ' ' || prosrc FROM pg_proc WHERE pronamespace = 'callipper'::regnamespace
    UNION ALL SELECT pg_get_viewdef(oid) FROM pg_class WHERE relnamespace = 'callipper'::regnamespace AND relkind = 'v'
"""
SHADOWED_RELATIONS = """
    SELECT DISTINCT relname::text FROM pg_catalog.pg_class WHERE relkind IN ('r', 'p', 'v') AND relname = ANY(%s)
"""
SHADOWED_FUNCTIONS = """
    SELECT DISTINCT format('CREATE FUNCTION hostile.%%I(%%s) RETURNS %%s LANGUAGE plpgsql', proname,
                           pg_get_function_identity_arguments(oid), coalesce(pg_get_function_result(oid), 'void'))
    FROM pg_catalog.pg_proc LEFT JOIN pg_catalog.pg_aggregate ON aggfnoid = oid
    WHERE prokind IN ('f', 'a') AND coalesce(aggkind, 'n') = 'n' AND NOT proretset AND proname = ANY(%s)
      AND pronamespace IN ('pg_catalog'::regnamespace, 'public'::regnamespace, 'callipper'::regnamespace)
      AND 0 = ALL (SELECT count(*) FROM unnest(proargtypes::oid[] || prorettype) t
                   WHERE t IN ('internal'::regtype, 'cstring'::regtype, '"any"'::regtype))
"""
SHADOWED_OPERATORS = """
    SELECT oprname, concat_ws(', ', nullif(oprleft, 0)::regtype, oprright::regtype),
        concat_ws(', ', 'LEFTARG = ' || nullif(oprleft, 0)::regtype, 'RIGHTARG = ' || oprright::regtype)
    FROM pg_catalog.pg_operator
    WHERE oprnamespace IN ('pg_catalog'::regnamespace, 'public'::regnamespace) AND oprname = ANY(%s)
"""
HIJACKED = " AS $$ BEGIN RAISE EXCEPTION 'hijacked'; END $$"


def plant(connection: db.Connection) -> None:
    """A schema `hostile` with a namesake of each function and of all that functions and views name; to use one is an error."""
    source = " ".join(line for (line,) in connection.execute(SOURCES.encode()))
    words, symbols = (list(set(re.findall(pattern, source))) for pattern in (r"\w+", r"[-+*/<>=~!@#%^&|]+"))
    connection.execute("CREATE SCHEMA hostile")
    for (name,) in connection.execute(SHADOWED_RELATIONS.encode(), [words]).fetchall():
        connection.execute(sql.SQL("CREATE TABLE hostile.{} (hijacked int)").format(sql.Identifier(name)))
        connection.execute(sql.SQL("CREATE TEMPORARY TABLE {} (hijacked int)").format(sql.Identifier(name)))
    for (statement,) in connection.execute(SHADOWED_FUNCTIONS.encode(), [words]).fetchall():
        connection.execute((statement + HIJACKED).encode())
    operators = connection.execute(SHADOWED_OPERATORS.encode(), [symbols]).fetchall()
    for number, (symbol, operands, sides) in enumerate(operators):
        function = f"hostile.o{number}"
        connection.execute(f"CREATE FUNCTION {function}({operands}) RETURNS bool LANGUAGE plpgsql{HIJACKED}".encode())
        connection.execute(f"CREATE OPERATOR hostile.{symbol} (FUNCTION = {function}, {sides})".encode())
    for name in ("vector", "geometry", "point", "refcursor"):
        connection.execute(f"CREATE DOMAIN hostile.{name} AS text CHECK (false)".encode())


@pytest.mark.parametrize("path", ["''", "public", "pg_temp", '"$user", public, callipper', "callipper, public"])
def test_any_search_path_answers(city: str, answers: Answers, path: str) -> None:
    with psycopg.connect(city, autocommit=True) as connection:
        connection.execute(f"SET search_path = {path}".encode())
        assert_same(ask(connection), answers)


@pytest.mark.parametrize("path", ["hostile, public, callipper", "pg_temp, hostile, pg_catalog, public, callipper"])
def test_a_hostile_search_path_answers(city: str, answers: Answers, path: str) -> None:
    with psycopg.connect(city) as connection, connection.transaction(force_rollback=True):
        plant(connection)
        connection.execute(f"SET search_path = {path}".encode())
        for hijacked in ("text_embed('park')", "l2_normalize('[1]'::public.vector)", "'[1]'::public.vector <-> '[1]'"):
            with (
                connection.transaction(force_rollback=True),
                pytest.raises(psycopg.errors.RaiseException, match="hijacked"),
            ):
                connection.execute(f"SELECT {hijacked}".encode())
        assert_same(ask(connection), answers)


@pytest.mark.parametrize(
    "settings",
    [
        "default_transaction_read_only=on default_transaction_isolation=serializable",
        "extra_float_digits=-15 IntervalStyle=sql_standard DateStyle=German,DMY TimeZone=Asia/Kathmandu bytea_output=escape",
        "standard_conforming_strings=off escape_string_warning=off backslash_quote=off array_nulls=off",
        "transform_null_equals=on quote_all_identifiers=on check_function_bodies=off plan_cache_mode=force_generic_plan",
        "enable_seqscan=off enable_bitmapscan=off enable_sort=off enable_partition_pruning=off",
        "enable_indexscan=off enable_indexonlyscan=off enable_hashjoin=off enable_nestloop=off",
        "parallel_setup_cost=0 parallel_tuple_cost=0 min_parallel_table_scan_size=0 min_parallel_index_scan_size=0",
        "jit=on jit_above_cost=0 jit_inline_above_cost=-1 jit_optimize_above_cost=-1",
    ],
)
def test_any_settings_answer(city: str, answers: Answers, settings: str) -> None:
    with psycopg.connect(city, autocommit=True) as connection:
        for setting in settings.split():
            name, _, value = setting.partition("=")
            connection.execute("SELECT set_config(%s, %s, false)", [name, value])
        assert_same(ask(connection), answers)
