"""Who may do what: the owner of the schema, a trainer whom the owner has made a member, a reader, and a stranger."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psycopg
import pytest
from click.testing import Result
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from test_schema import PASSWORD, execute, role

from callipper_db import models, schema
from callipper_db.doctor import NEW_OWNER
from callipper_db.errors import NoRightToCreate
from handmade import write_model
from sessions import user_session
from untrained import places, publish_untrained

OWNER, TRAINER, READER, STRANGER, SUPERUSER = "owner", "trainer", "reader", "stranger", "superuser"
EVERYONE = {OWNER, TRAINER, READER, STRANGER}
ASKS = {OWNER, TRAINER, READER}
CHANGES = {OWNER, TRAINER}
HERE = "ST_SetSRID(ST_Point(5.12, 52.09), 4326)"
READABLE = {"cells", "points", "poi", "cell", "grid", "model", "text_encoder", "text_embedding"}

# What is done -> by whom it may be done.
RIGHTS: dict[str, set[str]] = {
    # Questions
    "SELECT cell_id, geom, emb FROM callipper.cells": ASKS,
    "SELECT point_id, name, text, emb FROM callipper.points": ASKS,
    "SELECT callipper.text_embed('kind 1')": ASKS,
    "SELECT callipper.text_embed('kind 1', 1)": ASKS,
    f"SELECT callipper.loc_embed({HERE})": ASKS,
    f"SELECT callipper.loc_embed({HERE}, 1)": ASKS,
    f"SELECT callipper.loc_support({HERE})": ASKS,
    f"SELECT callipper.text_similarity('kind 1', {HERE})": ASKS,
    "SELECT callipper.search('kind 1', 3)": ASKS,
    "SELECT callipper.search_points('kind 1', 3)": ASKS,
    "SELECT callipper.search_by_examples(ARRAY['kind 1'], ARRAY['kind 2'])": ASKS,
    f"SELECT callipper.similar_to({HERE}, 3)": ASKS,
    f"SELECT callipper.similar_points_to({HERE}, 3)": ASKS,
    f"SELECT callipper.describe({HERE})": ASKS,
    "SELECT callipper.changed()": ASKS,
    "SELECT callipper.list_states()": ASKS,
    "SELECT callipper.point_id('7')": ASKS,
    "SELECT version, status FROM callipper.model": ASKS,
    "SELECT name FROM callipper.poi": ASKS,
    f"SELECT callipper.area_embed(ST_Buffer({HERE}, 0.01))": ASKS,
    "SELECT name FROM callipper.list_layers()": ASKS,
    "SELECT top_texts FROM callipper_map.cell": ASKS,
    "SELECT emb FROM callipper_map.cell_vector": ASKS,
    "SELECT similarity FROM callipper_map.cells_by_text('kind 1')": ASKS,
    "SELECT callipper_map.similarity_tile(0, 0, 0, 'kind 1')": ASKS,
    # What no answer shows
    "SELECT FROM callipper.location_weight": CHANGES,
    "SELECT FROM callipper.text_projection": CHANGES,
    "SELECT FROM callipper.text_weight": CHANGES,
    "SELECT FROM callipper.context_cell": CHANGES,
    "SELECT FROM callipper.cell_embedding": CHANGES,
    "SELECT FROM callipper.kind": CHANGES,
    "SELECT FROM callipper.kind_name": CHANGES,
    "SELECT FROM callipper.kind_phrase": CHANGES,
    "SELECT FROM callipper.point_kind": CHANGES,
    "SELECT FROM callipper.point_name": CHANGES,
    "SELECT key FROM callipper.signing_key": CHANGES,
    "SELECT FROM callipper.poi_change": CHANGES,
    "SELECT FROM callipper.kept_state": CHANGES,
    "SELECT FROM callipper.kept_point": CHANGES,
    "SELECT FROM callipper.kept_cell": CHANGES,
    "SELECT callipper._begin_state(1, 1)": CHANGES,
    "SELECT callipper._forget_states(1, 0)": CHANGES,
    "SELECT callipper._keep_points(1, '{1}')": CHANGES,
    "SELECT callipper._points_now(1, '{1}')": CHANGES,
    "SELECT callipper._count_evidence(1)": CHANGES,
    "SELECT callipper._kinds_here(1, " + HERE + ")": CHANGES,
    "SELECT callipper._encode_text('pub', 1)": set(),  # nobody in this database has installed the encoder
    "SELECT callipper._sign('pub', 1, '[1]')": CHANGES,
    # POIs
    "INSERT INTO callipper.poi (source, source_id, geom) VALUES ('mine', '1', " + HERE + ")": CHANGES,
    "UPDATE callipper.poi SET name = 'mine'": CHANGES,
    "DELETE FROM callipper.poi": CHANGES,
    "TRUNCATE callipper.poi": CHANGES,
    # What tools see
    "DELETE FROM callipper_map.cell": CHANGES,
    "CREATE VIEW callipper_map.mine AS SELECT 1 AS x": CHANGES,
    "SELECT callipper.save_layer('mine', 'kind 1')": CHANGES,
    # Models
    "SELECT callipper.activate(2)": CHANGES,
    "SELECT callipper.drop_model(2)": CHANGES,
    "SELECT callipper._announce_change()": CHANGES,
    "SELECT callipper._set_newest(2, 1)": CHANGES,
    "SELECT callipper._empty_partitions(2, '1 s')": CHANGES,
    "SELECT callipper._drop_leftovers()": CHANGES,
    "UPDATE callipper.model SET status = 'ready'": CHANGES,
    "UPDATE callipper.change SET transaction_id = 1": CHANGES,
    "UPDATE callipper.text_encoder SET max_tokens = 3": CHANGES,
    "DELETE FROM callipper.cell_embedding": CHANGES,
    "DELETE FROM callipper.text_token": CHANGES,
    "LOCK TABLE callipper.model IN ACCESS EXCLUSIVE MODE": CHANGES,
    "LOCK TABLE callipper.training_lock IN SHARE UPDATE EXCLUSIVE MODE": CHANGES,
    # The schema
    "CREATE TABLE callipper.mine (x int)": CHANGES,
    "CREATE FUNCTION callipper.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'": CHANGES,
    "CREATE OR REPLACE FUNCTION callipper._newest_version() RETURNS int LANGUAGE sql IMMUTABLE STRICT AS 'SELECT 2'": CHANGES,
    "ALTER TABLE callipper.cell_embedding_v2 RENAME TO mine": CHANGES,
    "CREATE OR REPLACE VIEW callipper.training_lock AS SELECT 'mine'::text AS purpose": CHANGES,
    "DROP SCHEMA callipper CASCADE": CHANGES,
    "GRANT callipper_reader TO PUBLIC": set(),  # the role belongs to the server
    # Elsewhere
    "CREATE FUNCTION public.text_embed(text) RETURNS int LANGUAGE sql AS 'SELECT 1'": {STRANGER, OWNER, TRAINER},
    "CREATE TEMPORARY TABLE cells (cell_id bigint)": EVERYONE,
}


@pytest.fixture(scope="module")
def people(cluster_dsn: str, template_database: str) -> Iterator[dict[str, str]]:
    """Who -> the DSN by which they come. The owner is no superuser; the stranger may create in public, where PostGIS lives."""
    from conftest import _database

    with ExitStack() as stack:
        names = {who: stack.enter_context(role(cluster_dsn, f"callipper_{who}")) for who in sorted(EVERYONE)}
        dsn = stack.enter_context(_database(cluster_dsn, "template0"))
        execute(dsn, "CREATE EXTENSION postgis", "CREATE EXTENSION vector")
        with user_session(dsn) as admin:
            database = sql.Identifier(admin.info.dbname)
            admin.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(database, sql.Identifier(names[OWNER])))
        execute(
            dsn,
            f'GRANT CREATE ON SCHEMA public TO "{names[STRANGER]}"',
            f'GRANT "{names[OWNER]}" TO "{names[TRAINER]}"',
        )
        found = {who: make_conninfo(dsn, user=name, password=PASSWORD) for who, name in names.items()}
        found[SUPERUSER] = dsn
        report = schema.init(found[OWNER])
        assert any(names[STRANGER] in note for note in report.notes)
        publish_untrained(found[OWNER], places(), "contextual", "small")
        with user_session(found[OWNER]) as connection:
            write_model(connection, seed=1, activate=False)
            connection.execute("SELECT callipper._begin_state(1, 1)")
        execute(dsn, f'GRANT callipper_reader TO "{names[READER]}"')
        yield found


@pytest.mark.parametrize("who", sorted(EVERYONE))
@pytest.mark.parametrize("action", RIGHTS)
def test_who_may_do_what(people: dict[str, str], action: str, who: str) -> None:
    """Each in a transaction that is rolled back."""
    with psycopg.connect(people[who]) as connection:
        refused = None
        try:
            connection.execute(action.encode())
        except psycopg.errors.InsufficientPrivilege as error:
            refused = error
        except psycopg.Error as error:
            assert not RIGHTS[action], error
            refused = error
        finally:
            connection.rollback()
    assert (refused is None) == (who in RIGHTS[action]), refused


def test_every_relation_and_function_is_for_its_readers(people: dict[str, str]) -> None:
    """Also those that no line of RIGHTS names; each function that anybody may call has one."""
    reader, stranger = (conninfo_to_dict(people[who])["user"] for who in (READER, STRANGER))
    with user_session(people[OWNER]) as connection:
        ours = "relnamespace = 'callipper'::regnamespace AND relkind IN ('r', 'p', 'v', 'S')"
        writing = "'INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER'"
        tables = connection.execute(
            f"SELECT relname, has_table_privilege(%s, c.oid, 'SELECT'), has_table_privilege(%s, c.oid, {writing})"
            f" OR has_table_privilege(%s, c.oid, 'SELECT') OR has_table_privilege(%s, c.oid, {writing})"
            f" FROM pg_class c WHERE {ours}".encode(),
            [reader, reader, stranger, stranger],
        ).fetchall()
        assert len(tables) > 20
        assert {name for name, readable, _ in tables if readable} == READABLE
        assert [name for name, _, more in tables if more] == []
        functions = connection.execute(
            "SELECT proname, has_function_privilege(%s, oid, 'EXECUTE'), has_function_privilege(%s, oid, 'EXECUTE')"
            " FROM pg_proc WHERE pronamespace = 'callipper'::regnamespace",
            [reader, stranger],
        ).fetchall()
        assert {name for name, _, callable_ in functions if callable_} == {"_sql_digest", "_sql_version"}
        asked = {name for name, callable_, _ in functions if callable_ and not name.startswith("_")}
        assert asked == {name for name, *_ in functions if not name.startswith("_")} - {
            "activate",
            "drop_model",
            "save_layer",
            "remove_layer",
        }
        untried = {name for name in asked if not any(f"callipper.{name}(" in action for action in RIGHTS)}
        assert untried == set()


@pytest.mark.parametrize("who", sorted(EVERYONE))
def test_who_may_run_the_commands(people: dict[str, str], who: str) -> None:
    if who in CHANGES:
        schema.init(people[who])
        models.activate_model(people[who], 2)
        models.activate_model(people[who], 1)
    else:
        with pytest.raises(NoRightToCreate, match="change the schema callipper"):
            schema.init(people[who])


@pytest.fixture
def new_owner(cluster_dsn: str) -> Iterator[str]:
    with role(cluster_dsn, "callipper_new_owner") as name:
        yield name


@pytest.fixture(scope="module")
def trained_by_a_member(people: dict[str, str]) -> Iterator[int]:
    """A version that is not of the owner's own making, and a layer."""
    version = publish_untrained(people[TRAINER], places(), "contextual", "small").version
    with user_session(people[TRAINER]) as connection:
        connection.execute("SELECT callipper.save_layer('of_the_trainer', 'kind 1')")
        connection.execute("SELECT callipper._begin_state(%s, 1)", [version])  # for changed()
    yield version
    models.activate_model(people[OWNER], 1)


@pytest.mark.parametrize("who", sorted(ASKS))
def test_what_a_member_of_the_owners_has_trained_answers_all(
    people: dict[str, str], trained_by_a_member: int, who: str
) -> None:
    questions = [action for action, roles in RIGHTS.items() if roles == ASKS]
    with psycopg.connect(people[who]) as connection:
        assert connection.execute("SELECT callipper._active_version()").fetchone() == (trained_by_a_member,)
        for question in [*questions, "SELECT * FROM callipper_map.layer_of_the_trainer"]:
            connection.execute(question.encode())


def test_all_belongs_to_the_owner_of_the_schema(people: dict[str, str], trained_by_a_member: int) -> None:
    """Whoever has run init or trained: a member, or a superuser."""
    publish_untrained(people[SUPERUSER], places(), "contextual", "small")
    schema.init(people[SUPERUSER])
    schema.init(people[OWNER])
    with user_session(people[OWNER]) as connection:
        others = connection.execute(
            "SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname LIKE 'callipper%'"
            " AND relowner <> nspowner UNION ALL SELECT proname FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace"
            " WHERE nspname LIKE 'callipper%' AND proowner <> nspowner"
        ).fetchall()
        assert others == []
        connection.execute("SELECT callipper.remove_layer('of_the_trainer')")


def test_a_superusers_schema_goes_to_an_ordinary_role(
    new_owner: str, database: str, run: Callable[..., Result]
) -> None:
    """By the statement that doctor names. Then everything works, for the superuser as for readers."""
    said = run("doctor", "--dsn", database).stdout
    assert "--  who owns the schema: it belongs to " in said and NEW_OWNER in said
    _, *statements = NEW_OWNER.replace("callipper_owner", f'"{new_owner}"').split("; ")  # the first creates the role
    execute(database, *statements)
    said = run("doctor", "--dsn", database).stdout
    assert "--  who owns the schema: some of its functions run with the rights of a superuser" in said
    run("init", "--dsn", database)
    assert "who owns the schema" not in run("doctor", "--dsn", database).stdout
    publish_untrained(database, places(), "contextual", "small")
    with user_session(database) as connection:
        connection.execute("SELECT callipper._begin_state(callipper._active_version(), 1)")  # for changed()
        connection.execute("SET ROLE callipper_reader")
        for question in [action for action, roles in RIGHTS.items() if roles == ASKS]:
            connection.execute(question.encode())
    run("init", "--dsn", database)


def test_a_function_runs_in_nobodys_name_but_its_owners(people: dict[str, str]) -> None:
    """The functions with the owner's rights are the owner's, who is no superuser, and are pinned to a safe search_path."""
    with user_session(people[OWNER]) as connection:
        rows = connection.execute(
            "SELECT p.proname, r.rolsuper, p.proconfig::text FROM pg_proc p JOIN pg_roles r ON r.oid = p.proowner"
            " WHERE p.pronamespace = 'callipper'::regnamespace AND p.prosecdef"
        ).fetchall()
    assert len(rows) > 5
    for name, is_superuser, settings in rows:
        assert not is_superuser, name
        assert '"search_path=pg_catalog, pg_temp"' in settings, name
