"""Databases that earlier programs have made: init brings them up to date, and their models go on working.

Each folder of tests/fixtures is the state of one such program, frozen by tests/freeze.py. What is new must not make one of
them unreadable: a change of what a feature or a layer means gets a name of its own in model.arch.
"""

from __future__ import annotations

import json
import lzma
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import torch
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.json import Jsonb

from callipper_db import db, models, schema
from callipper_db.arrays import Array
from callipper_db.errors import DatabaseFailed, SchemaNewer
from callipper_db.progress import Silent
from callipper_trainer.embed import embed_places, embed_texts
from callipper_trainer.evaluation.evaluate import assess
from callipper_trainer.evaluation.labels import LabelSource
from callipper_trainer.model_rows import load_model
from callipper_trainer.onnx_towers import PlaceTower
from callipper_trainer.peaks import shared_words
from callipper_trainer.refresh.refresh import RefreshSummary, refresh
from callipper_trainer.weight_rows import WeightRows
from catalogue import GOLDEN, catalogue
from conftest import _database
from deployments import binaries, succeed
from freeze import FIXTURES, answers
from processes import wait_for
from published import embed_by_rows, expected_texts
from sessions import user_session
from untrained import MIDDLE, TEXT_DIM, embed, places, publish_untrained

VERSIONS = {1: "coordinate", 2: "contextual"}  # the second is active
TOLERANCE = 1e-5  # as between torch and SQL
DROPPED = {"by_name"}  # columns that a migration has replaced by others


@pytest.fixture(scope="module")
def old_template(cluster_dsn: str, bare_template: str, module_folder: Path) -> Iterator[str]:
    """The name of a database as the program of revision 0003 left it."""
    with _database(cluster_dsn, bare_template) as dsn:
        restore(FIXTURES / "0003", dsn, module_folder)
        yield conninfo_to_dict(dsn)["dbname"]


@pytest.fixture(scope="module")
def upgraded_template(cluster_dsn: str, old_template: str) -> Iterator[str]:
    with _database(cluster_dsn, old_template) as dsn:
        schema.init(dsn)
        yield conninfo_to_dict(dsn)["dbname"]


@pytest.fixture
def old(cluster_dsn: str, old_template: str) -> Iterator[str]:
    """The DSN of a database as it was."""
    with _database(cluster_dsn, old_template) as dsn:
        yield dsn


@pytest.fixture
def upgraded(cluster_dsn: str, upgraded_template: str) -> Iterator[str]:
    with _database(cluster_dsn, upgraded_template) as dsn:
        yield dsn


def restore(frozen: Path, dsn: str, folder: Path) -> None:
    """Restore a fixture by way of a folder that the server's user can read."""
    dump = folder / "database.sql"
    dump.write_bytes(lzma.decompress((frozen / "database.sql.xz").read_bytes()))
    succeed(binaries(dsn) / "psql", *("-Xq", "-v", "ON_ERROR_STOP=1", "-d", dsn, "-f", dump))


def renew(dsn: str) -> RefreshSummary:
    return refresh(dsn, Silent(), text_encoder=str(FIXTURES / "0003" / "encoder"), compare=True)


def vectors_of(connection: db.Connection, version: int) -> tuple[Array, Array]:
    """(N, 2) centres of the cells in the model's CRS and (N, 256) what is stored for them."""
    rows = connection.execute(
        "SELECT ST_X(p), ST_Y(p), e.emb::real[] FROM callipper.cell_embedding e JOIN callipper.cell c USING (cell_id),"
        " callipper.model m, ST_Transform(ST_Centroid(c.geom), m.srid) AS p"
        " WHERE e.version = %(version)s AND m.version = %(version)s ORDER BY cell_id",
        {"version": version},
    ).fetchall()
    return np.array([row[:2] for row in rows]), np.array([row[2] for row in rows], np.float32)


def rows_of(connection: db.Connection) -> dict[str, list[dict[str, Any]]]:
    """The rows of every table and partition."""
    tables = connection.execute(
        "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relname <> ALL ('{alembic_version, change}')"
        " AND relnamespace::regnamespace::text IN ('callipper', 'callipper_map')"
    ).fetchall()
    return {
        table: [row for (row,) in connection.execute(f"SELECT to_jsonb(t) FROM {table} t".encode())]
        for (table,) in tables
    }


def counted(rows: list[dict[str, Any]], columns: set[str]) -> Counter[tuple[str, ...]]:
    """How often each row is there. An embedding had one half, which is the second now: zeros before it do not count."""
    return Counter(
        tuple(re.sub(r"^\[(0,)+", "[", str(value)) for name, value in sorted(row.items()) if name in columns)
        for row in rows
    )


@pytest.mark.parametrize("state", sorted(path.name for path in FIXTURES.iterdir()))
def test_every_earlier_state_is_upgraded_with_its_data(state: str, bare_database: str, open_folder: Path) -> None:
    """No row is lost, the models answer as before, and without them the catalogue is that of a new database."""
    restore(FIXTURES / state, bare_database, open_folder)
    with user_session(bare_database) as connection:
        before = rows_of(connection)
    report = schema.init(bare_database)
    assert report.before == state
    with user_session(bare_database) as connection:
        assert schema.is_current(connection)
        after = rows_of(connection)
        for table, rows in before.items():
            columns = set(rows[0]) - DROPPED if rows else set()
            lost = counted(rows, columns) - counted(after[table], columns)
            assert not lost, f"{table}: {list(lost)[:3]}"
        expected = json.loads((FIXTURES / state / "answers.json").read_text())
        found = answers(connection, expected)
        for name, values in expected.items():
            added = np.shape(found[name])[-1] - np.shape(values)[-1]
            assert not np.any(np.array(found[name])[..., :added])
            np.testing.assert_allclose(np.array(found[name])[..., added:], values, atol=TOLERANCE, err_msg=name)
        connection.execute("SELECT callipper.drop_model(version, true) FROM callipper.model")
        connection.execute("SET search_path = public, callipper")
        assert catalogue(connection) == GOLDEN.read_text(encoding="utf-8")


def test_a_migration_keeps_no_reader_waiting(old: str) -> None:
    """While a reader idles in a transaction it is tried again and again, and others read in between."""
    query = "SELECT count(*) FROM callipper.point_embedding"
    tried = "SELECT FROM pg_locks WHERE NOT granted AND relation = 'callipper.point_embedding'::regclass"
    with (
        psycopg.connect(old) as idle,
        psycopg.connect(old, autocommit=True) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        other.execute("SET lock_timeout = '1s'")
        idle.execute(query)
        init = pool.submit(schema.init, old)
        try:
            wait_for(lambda: init.done() or other.execute(tried).fetchone() is not None)
            for _ in range(3):
                other.execute(query)
            assert not init.done()
        finally:
            idle.rollback()
        init.result()
    schema.ensure_current(old)


def test_without_evidence_the_embedding_answers(upgraded: str) -> None:
    with user_session(upgraded) as connection:
        rows = connection.execute("SELECT cell_id, relevant, lift, because FROM search('park', 5)").fetchall()
        nearest = connection.execute(
            "SELECT cell_id, NULL, NULL, NULL FROM cells ORDER BY emb <#> text_embed('park') LIMIT 5"
        )
        assert rows == nearest.fetchall() and len(rows) == 5
        rows = connection.execute("SELECT similarity, because FROM search_points('park', 5)").fetchall()
        assert len(rows) == 5 and {because for _, because in rows} == {None}
        place = "ST_SetSRID(ST_Point(5.12, 52.09), 4326)"
        rows = connection.execute(
            f"SELECT text, similarity, percentile, pois, lift, because FROM describe({place}, 5)".encode()
        ).fetchall()
        best = "SELECT b.*, NULL, NULL, NULL FROM callipper._best_texts(2, loc_embed({}), 5) b"
        assert rows == connection.execute(best.format(place).encode()).fetchall() and len(rows) == 5


def test_views_on_the_narrower_column_are_named(old: str) -> None:
    with user_session(old) as connection:
        connection.execute("CREATE SCHEMA ours; CREATE VIEW ours.best AS SELECT cell_id, emb FROM callipper.cells")
    with pytest.raises(DatabaseFailed, match=r"whose emb becomes vector\(256\): ours\.best.*Drop them, run"):
        schema.init(old)
    with user_session(old) as connection:
        connection.execute("DROP VIEW ours.best")
    schema.init(old)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_old_model_is_embedded_in_torch_as_it_was(upgraded: str, version: int) -> None:
    with user_session(upgraded, autocommit=True) as connection:
        model = load_model(connection, version)
        centres, stored = vectors_of(connection, version)
    assert (model.trained.pyramid is not None) == (VERSIONS[version] == "contextual")
    np.testing.assert_allclose(embed_places(model.trained, centres), stored, atol=TOLERANCE)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_old_model_is_refreshed(upgraded: str, version: int) -> None:
    models.activate_model(upgraded, version)
    assert not renew(upgraded).anything  # the lattices are counted as they were
    with user_session(upgraded) as connection:
        connection.execute(
            "INSERT INTO callipper.poi (source, source_id, name, category, category_group, geom)"
            " VALUES ('new', '1', 'The Fresh River', 'pub', 'food', ST_SetSRID(ST_Point(5.121, 52.091), 4326))"
        )
    summary = renew(upgraded)
    assert summary.added == 1 and (summary.lattice_cells > 0) == (VERSIONS[version] == "contextual")
    with user_session(upgraded) as connection:
        centres, stored = vectors_of(connection, version)
        rows = connection.execute(
            "SELECT loc_embed(ST_SetSRID(ST_Point(x, y), srid))::real[] FROM callipper.model,"
            " unnest(%s::float8[], %s::float8[]) WITH ORDINALITY AS p(x, y, n) WHERE version = %s ORDER BY n",
            [*centres.T.tolist(), version],
        ).fetchall()
    np.testing.assert_allclose(np.array([row[0] for row in rows]), stored, atol=TOLERANCE)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_old_model_is_evaluated_and_dropped(upgraded: str, version: int) -> None:
    labels = "SELECT ST_SetSRID(ST_Point(5.1 + n * 4e-4, 52.09 + sin(n) / 200), 4326) AS geom, n / 3.0 AS east"
    labels += " FROM generate_series(1, 100) AS n"
    result = assess(upgraded, LabelSource(labels, ["east"]), version, Silent(), split="random", seeds=1)
    assert result.version == version
    assert "evaluation" in models.show_model(upgraded, version)["metrics"]
    models.drop_model(upgraded, version, force=True)
    assert [model["version"] for model in models.list_models(upgraded)] == [*(set(VERSIONS) - {version})]


def test_sizes_of_the_lattices_are_read_from_the_model(database: str) -> None:
    """Those of a program that chose all of them otherwise: fewer levels, a shorter code, another prior."""
    published = publish_untrained(database, places(), "contextual", "small")
    whole = published.trained.pyramid
    assert whole is not None
    code = replace(whole.text_code, weight=whole.text_code.weight[:8], bias=whole.text_code.bias[:8])
    codes_only = replace(whole, text_code=code, prior=2.0, kinds_from_m=400.0)
    sizes_m = [50.0, 200.0, 400.0, 1600.0]
    width = sum(codes_only.sum_width(size_m) + 1 for size_m in sizes_m)
    with user_session(database) as connection:
        # What is stored of the lattices, cut down by SQL alone.
        connection.execute(
            "DELETE FROM callipper.context_cell WHERE version = %s AND 12.5 * 2 ^ level <> ALL (%s)",
            [published.version, sizes_m],
        )
        connection.execute("DELETE FROM callipper.location_weight WHERE layer = 'text_code' AND neuron >= 8")
        connection.execute(
            "UPDATE callipper.context_cell SET level = array_position(%(sizes)s, 12.5 * 2 ^ level) - 1, code_sum ="
            " CASE WHEN 12.5 * 2 ^ level >= 400 THEN subvector(code_sum, 1, 8) || subvector(code_sum, 33, %(kinds)s)"
            " ELSE subvector(code_sum, 1, 8) END",
            {"sizes": sizes_m, "kinds": len(whole.kind_code.weight)},
        )
        arch = {"kind": "context", "sizes_m": sizes_m, "code": 8, "prior": 2.0, "kinds_from_m": 400.0}
        arch |= {"kinds": len(whole.kind_code.weight)}
        grid = 4 * published.trained.model.location.encoding.divisors.numel()
        hidden = published.trained.model.location.input.out_features
        connection.execute(
            "UPDATE callipper.model SET arch = jsonb_set(arch, '{features,1}', %s), standardisation = %s",
            [Jsonb(arch), Jsonb({"mean": [0.0] * width, "scale": [1.0] * width})],
        )
        for layer, kept in (("input", grid + width), ("output", hidden + grid + width)):
            connection.execute(
                "UPDATE callipper.location_weight SET weight = subvector(weight, 1, %s) WHERE layer = %s", [kept, layer]
            )
    with user_session(database, autocommit=True) as connection:
        model = load_model(connection)
        asked = np.vstack([places(7, 20), [MIDDLE + 1e5]])
        assert model.trained.pyramid is not None
        assert [level.size_m for level in model.trained.pyramid.levels] == sizes_m
        with torch.inference_mode():
            expected = embed_places(model.trained, asked)
        np.testing.assert_allclose(embed(connection, asked), expected, atol=TOLERANCE)


@torch.inference_mode()
def test_a_summary_of_the_context_in_place_of_the_echo(database: str) -> None:
    """A version of an earlier program has it in the first half of a place."""
    published, random = publish_untrained(database, places(), "contextual", "small"), np.random.default_rng(7)
    location = published.trained.model.location
    assert location.context is not None
    width = location.output.in_features
    summary = np.zeros((128, width), np.float32)
    summary[:, -location.context.width :] = random.normal(size=(128, location.context.width))
    with user_session(database) as connection:
        connection.execute(
            "UPDATE callipper.model SET arch = jsonb_set(jsonb_set(arch #- '{peaks,echo}', '{peaks,summary}', '0.15'),"
            " '{dimensions}', '256')"
        )
        connection.execute("UPDATE callipper.location_weight SET neuron = neuron + 128 WHERE layer = 'output'")
        rows = WeightRows(connection, published.version)
        rows.write_layer("output", summary, random.normal(size=128))
        rows.write_layer("foretold", random.normal(size=(128, 128)) / 128, np.zeros(128))
    asked, words = np.vstack([places(7, 20), [MIDDLE + 1e5]]), [f"kind {number}" for number in range(4)]
    with user_session(database, autocommit=True) as connection:
        model = load_model(connection)
        found = embed(connection, asked)
        np.testing.assert_allclose(found, embed_by_rows(connection, model.version, asked), atol=TOLERANCE)
        assert np.abs(found - embed_places(published.trained, asked)).max() > 0.05, "with the echo it was another"
        assert model.trained.peaks is not None
        vectors = model.trained.peaks.phrases[: len(words)] + random.normal(0, 0.01, (len(words), TEXT_DIM))
        expected = expected_texts(connection, model.version, words, vectors)
        shared = shared_words(connection, model.version, model.trained.peaks, words)
        by_sql = connection.execute(
            "SELECT callipper._join_text(callipper._text_peaks(v::real[]::vector, %(version)s, t), l2_normalize(ARRAY("
            " SELECT inner_product(p.weight, v::real[]::vector) + p.bias FROM callipper.text_projection p"
            " WHERE p.version = %(version)s ORDER BY p.neuron)::vector), %(version)s)::real[]"
            " FROM unnest(%(texts)s::text[], %(vectors)s::text[]) WITH ORDINALITY AS q(t, v, n) ORDER BY n",
            {"version": model.version, "texts": words, "vectors": ["{" + ",".join(map(str, v)) + "}" for v in vectors]},
        ).fetchall()
    np.testing.assert_allclose(embed_places(model.trained, asked), found, atol=TOLERANCE)
    np.testing.assert_allclose(PlaceTower(model.trained)(torch.from_numpy(asked)).numpy(), found, atol=TOLERANCE)
    assert expected[:, :128].any(axis=1).all(), "each asks for kinds"
    np.testing.assert_allclose(embed_texts(model.trained, vectors.astype(np.float32), shared), expected, atol=TOLERANCE)
    np.testing.assert_allclose(np.array([row[0] for row in by_sql]), expected, atol=TOLERANCE)


# A program older than the database


@pytest.fixture
def newer(database: str) -> str:
    """The DSN of a database of the same revision whose functions a later program has made."""
    with user_session(database) as connection:
        for name, value in (("_sql_version", "99.1.0"), ("_sql_digest", "another")):
            connection.execute(
                f"CREATE OR REPLACE FUNCTION callipper.{name}() RETURNS text LANGUAGE sql AS $$ SELECT '{value}' $$".encode()
            )
    return database


@pytest.mark.parametrize("command", [["init"], ["init", "--sql"], ["models", "list"], ["query", "park"]], ids=" ".join)
def test_an_older_program_is_told_so(run: Any, newer: str, command: list[str]) -> None:
    result = run(*command, "--dsn", newer, exit_code=1)
    (line,) = result.stderr.splitlines()
    assert line.startswith(
        "Error: The schema in this database is newer than this program knows: it is of callipper-db 99.1.0."
    )
    assert "pip install --upgrade callipper-db" in line
    with user_session(newer) as connection:
        assert connection.execute("SELECT callipper._sql_version()").fetchone() == ("99.1.0",)


def test_doctor_tells_an_older_program(run: Any, newer: str) -> None:
    result = run("doctor", "--dsn", newer, exit_code=1)
    assert "NO  schema callipper: newer than this program: it is of callipper-db 99.1.0" in result.stdout


def test_functions_of_another_state_of_the_same_version(database: str) -> None:
    """Between releases the version does not say which of two is newer; then what cannot be replaced says it."""
    with user_session(database) as connection:
        (query,) = connection.execute("SELECT rtrim(pg_get_viewdef('callipper.points'), ';')").fetchone() or ("",)
        connection.execute(
            f"CREATE OR REPLACE VIEW callipper.points AS SELECT q.*, 1 AS later FROM ({query}) q".encode()
        )
    with pytest.raises(SchemaNewer, match="which this program cannot replace: cannot drop columns from view"):
        schema.init(database)


def test_a_database_from_before_versions_were_written_down(run: Any, database: str) -> None:
    with user_session(database) as connection:
        connection.execute("DROP FUNCTION callipper._sql_version()")
        connection.execute(
            "CREATE OR REPLACE FUNCTION callipper._sql_digest() RETURNS text LANGUAGE sql AS $$ SELECT 'old' $$"
        )
    result = run("models", "list", "--dsn", database, exit_code=1)
    assert result.stderr.endswith("or an older one. Run: callipper-db init\n")
    run("init", "--dsn", database)
    run("models", "list", "--dsn", database)
