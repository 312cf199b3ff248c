"""refresh: what it leaves equals what a model published today with the same weights would hold, and nothing else is touched.

The reference counts the POIs' codes into lattices by itself, in float64 and one by one, from nothing but the tables of POIs,
sentence vectors and weights; the network over it is test_publish's.
"""

from __future__ import annotations

import csv
import json
import math
import os
import random
import re
import signal
import subprocess
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from click.testing import Result
from psycopg import sql
from psycopg.conninfo import make_conninfo

from callipper_db import db, models
from callipper_db.arrays import Array
from callipper_db.errors import BadSource, NoActiveModel, SourceEmpty, TextEncoderMissing, TrainerBusy
from callipper_db.load import LoadOptions, load
from callipper_db.progress import Silent
from callipper_trainer.data.source import Source
from callipper_trainer.refresh.refresh import RefreshCache, RefreshSummary, refresh
from callipper_trainer.refresh.watch import Watch
from callipper_trainer.text_encoder import TextEncoder
from locks import locked, wait_until_alone
from processes import Command, running, wait_for
from published import check_texts, embed_by_rows, layer, read_vectors
from sessions import user_session
from town import CONFIG, MIDDLE, SRID, train_town

TEXT = "coalesce(description, category)"
POIS = f"(SELECT poi_id, geom, {TEXT} AS text FROM poi WHERE {TEXT} IS NOT NULL) AS q"
FAR = 0.6  # degrees; 41 km to the east, further than any lattice looks, and not so far that a POI there is taken for a mistake
COORDINATE = replace(CONFIG, encoder="coordinate", epochs=1)


@pytest.fixture
def renew(encoder: TextEncoder) -> Callable[..., RefreshSummary]:
    """refresh with the encoder that the tests have loaded."""

    def renew(dsn: str, **options: Any) -> RefreshSummary:
        return refresh(dsn, Silent(), cache=RefreshCache(encoder=encoder), **options)

    return renew


def execute(dsn: str, statement: str, *values: object) -> int:
    with user_session(dsn) as connection:
        return connection.execute(statement.encode(), values).rowcount


def fetch(dsn: str, query: str, *values: object) -> list[tuple[Any, ...]]:
    with user_session(dsn) as connection:
        return connection.execute(query.encode(), values).fetchall()


def insert(
    dsn: str, name: str | None, category: str, east: float = 0.0, north: float = 0.0, group: str | None = None
) -> int:
    """Insert a POI this many degrees from the middle; returns its id."""
    with user_session(dsn) as connection:
        row = connection.execute(
            "INSERT INTO callipper.poi (source, source_id, name, category, category_group, geom)"
            " VALUES ('test', gen_random_uuid(), %s, %s, %s, ST_SetSRID(ST_Point(%s, %s), 4326)) RETURNING poi_id",
            [name, category, group, MIDDLE[0] + east, MIDDLE[1] + north],
        ).fetchone()
    assert row is not None
    return int(row[0])


def insert_known(dsn: str, east: float = 0.0) -> int:
    """A POI whose text is encoded already, for runs in processes that would have to load the encoder first."""
    return insert(dsn, None, "cafe", east, group="food")


# The reference


def expected_lattices(connection: db.Connection, version: int) -> dict[tuple[int, int, int], Array]:
    """(level, i, j) -> number of POIs and sum of their codes."""
    row = connection.execute(
        "SELECT origin_easting, origin_northing, arch FROM callipper.model WHERE version = %s", [version]
    ).fetchone()
    assert row is not None
    sizes = next(feature["sizes_m"] for feature in row[2]["features"] if feature["kind"] == "context")
    weight, bias = layer(connection, version, "text_code")
    centres, lengths = layer(connection, version, "kind_code")
    codes: dict[str, Array] = {}
    result: dict[tuple[int, int, int], Array] = defaultdict(lambda: np.zeros(1 + len(bias) + len(lengths)))
    pois = connection.execute(
        f"SELECT ST_X(p), ST_Y(p), text FROM (SELECT ST_Transform(geom, {SRID}) AS p, text FROM {POIS}) AS r"
    )
    for easting, northing, text in pois.fetchall():
        if text not in codes:
            [vector] = read_vectors(
                connection, sql.SQL("SELECT vec::text FROM text_vector WHERE text = {}").format(text).as_string()
            )
            kind = np.arange(len(lengths)) == (centres @ vector + lengths).argmax()
            codes[text] = np.concatenate([weight @ vector + bias, kind])
        for number, size_m in enumerate(sizes):
            i, j = (
                math.floor((metres - origin) / size_m)
                for metres, origin in zip((easting, northing), row[:2], strict=True)
            )
            result[number, i, j] += [1, *codes[text]]
    # Lattices of small cells count no kinds.
    return {key: sums[: None if sizes[key[0]] >= 100 else 1 + len(bias)] for key, sums in result.items()}


def check_fresh(dsn: str, encoder: TextEncoder, version: int = 1, *, contextual: bool = True) -> None:
    """Lattices, points, cells, sample, texts and loc_embed are those of the POIs that are there now."""
    with user_session(dsn) as connection:
        if contextual:
            check_lattices(connection, version)
        points = connection.execute("SELECT point_id, text, geom::text FROM points ORDER BY 1").fetchall()
        pois = connection.execute(f"SELECT poi_id, text, geom::text FROM {POIS} ORDER BY 1").fetchall()
        assert points == pois
        check_vectors(connection, version)
        check_sample(connection, version)
        texts = random.Random(0).sample([text for _, text, _ in points], 5)
        check_texts(connection, version, encoder, texts)
        unanswered = connection.execute(
            "SELECT text FROM points WHERE NOT EXISTS (SELECT FROM text_embedding t WHERE t.version = %s"
            " AND t.text = callipper._text_key(points.text))",
            [version],
        ).fetchall()
        assert unanswered == []


def check_lattices(connection: db.Connection, version: int) -> None:
    expected = expected_lattices(connection, version)
    rows = connection.execute(
        "SELECT level, i, j, n, code_sum::text FROM context_cell WHERE version = %s", [version]
    ).fetchall()
    found = {(level, i, j): np.array([n, *json.loads(code)]) for level, i, j, n, code in rows}
    assert found.keys() == expected.keys()
    for key, numbers in expected.items():
        np.testing.assert_allclose(found[key], numbers, rtol=1e-6, atol=1e-6 * numbers[0], err_msg=str(key))


def check_vectors(connection: db.Connection, version: int) -> None:
    """Every cell's and point's embedding, and loc_embed at places in between, against the network over the lattices."""
    size = connection.execute(
        "SELECT size_m FROM callipper.grid JOIN model USING (grid_id) WHERE version = %s", [version]
    )
    [(size_m,)] = size.fetchall()
    cells = connection.execute(
        "SELECT (c.i + 0.5) * %s, (c.j + 0.5) * %s, e.emb::text FROM callipper.cell c JOIN cell_embedding e USING (cell_id)"
        " WHERE e.version = %s",
        [size_m, size_m, version],
    ).fetchall()
    points = connection.execute(
        f"SELECT ST_X(p), ST_Y(p), emb::text FROM (SELECT ST_Transform(geom, {SRID}) p, emb FROM point_embedding"
        " WHERE version = %s) q",
        [version],
    ).fetchall()
    between = connection.execute(
        f"SELECT ST_X(p), ST_Y(p), loc_embed(p, %s)::text FROM (SELECT ST_SetSRID(ST_Point(ST_X(q) + 40 * sin(n), ST_Y(q)"
        f" + 40 * cos(n)), {SRID}) AS p FROM (SELECT ST_Transform(geom, {SRID}) AS q, row_number() OVER (ORDER BY poi_id) AS n"
        " FROM poi) AS s WHERE n % 20 = 0) AS t".replace("n % 20", "n %% 20"),
        [version],
    ).fetchall()
    rows = [*cells, *points, *between]
    expected = embed_by_rows(connection, version, np.array([row[:2] for row in rows]))
    found = np.array([json.loads(row[2]) for row in rows])
    assert len(cells) > 100
    np.testing.assert_allclose(found, expected, atol=2e-6)


def check_sample(connection: db.Connection, version: int) -> None:
    """The sample is of cells as they are now, and describe's words know their distances to it."""
    sample = read_vectors(connection, f"SELECT emb::text FROM cell_sample WHERE version = {version} ORDER BY number")
    cells = read_vectors(connection, f"SELECT emb::text FROM cell_embedding WHERE version = {version}")
    assert len(sample) == min(1000, len(cells))
    assert {row.tobytes() for row in sample} <= {row.tobytes() for row in cells}
    words = connection.execute(
        "SELECT emb::text, city_distances FROM text_embedding WHERE vocabulary AND version = %s", [version]
    ).fetchall()
    assert len(words) > 100
    for vector, distances in words:
        np.testing.assert_allclose(distances, np.sort(-sample @ json.loads(vector)), atol=1e-5)


EVIDENCE = {
    "kinds": "SELECT name, said, landmark, prominent, area_share, pois, own_pois, sure_pois FROM kind"
    " WHERE version = %s AND pois > 0 ORDER BY 1",
    "foreign names": "SELECT k.name, n.language, n.name FROM kind k JOIN kind_name n USING (version, kind_id)"
    " WHERE version = %s AND k.pois > 0 ORDER BY 1, 2",
    "phrases": "SELECT k.name, p.phrase, p.vec::text FROM kind k JOIN kind_phrase p USING (version, kind_id)"
    " WHERE version = %s AND k.pois > 0 ORDER BY 1, 2",
    "points": "SELECT p.point_id, k.name, p.basis, p.easting, p.northing FROM point_kind p"
    " JOIN kind k USING (version, kind_id) WHERE version = %s ORDER BY 1, 2",
    "names": "SELECT point_id, name FROM point_embedding WHERE version = %s ORDER BY 1",
    "name vectors": "SELECT point_id, vec::text FROM point_name WHERE version = %s ORDER BY 1",
}


def check_evidence(dsn: str, version: int, anew: int) -> None:
    """The kinds of a version, its POIs of each and their names are those of a version that was published just now.

    Kinds may have other numbers, and a version keeps those that no POI is of any longer.
    """
    for name, query in EVIDENCE.items():
        found, expected = fetch(dsn, query, version), fetch(dsn, query, anew)
        assert len(expected) > 5, name
        assert found == expected, name
    density = "SELECT i, j, pois FROM poi_density WHERE version = %s ORDER BY 1, 2"
    found, expected = fetch(dsn, density, version), fetch(dsn, density, anew)
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    np.testing.assert_allclose([row[2] for row in found], [row[2] for row in expected], rtol=1e-6)


# What changes, and what does not


def change_at_random(dsn: str, seed: int) -> None:
    """A dozen changes: POIs that come, go, move (some far away), become another kind, are described, or lose their text."""
    chance = random.Random(seed)
    ids = [poi_id for (poi_id,) in fetch(dsn, "SELECT poi_id FROM poi ORDER BY 1")]
    for _ in range(12):
        poi_id = chance.choice(ids)
        east, north = chance.gauss(0, 0.01), chance.gauss(0, 0.01)
        match chance.choice(["come", "come far", "go", "move", "move far", "turn", "describe", "lose", "nothing"]):
            case "come":
                insert(dsn, chance.choice(["The Old Mill", "Red Door"]), chance.choice(["mill", "cafe"]), east, north)
            case "come far":
                insert(dsn, "Far Out", "observatory", FAR + east, FAR + north, group="science")
            case "go":
                execute(dsn, "DELETE FROM poi WHERE poi_id = %s", poi_id)
            case "move":
                execute(dsn, "UPDATE poi SET geom = ST_Translate(geom, %s, %s) WHERE poi_id = %s", east, north, poi_id)
            case "move far":
                execute(dsn, "UPDATE poi SET geom = ST_Translate(geom, %s, 0) WHERE poi_id = %s", FAR, poi_id)
            case "turn":
                execute(dsn, "UPDATE poi SET category = 'number ' || (poi_id %% 7) WHERE poi_id = %s", poi_id)
            case "describe":
                execute(dsn, "UPDATE poi SET description = 'A quiet corner' WHERE poi_id = %s", poi_id)
            case "lose":
                execute(dsn, "UPDATE poi SET category = NULL, description = NULL WHERE poi_id = %s", poi_id)
            case "nothing":
                execute(dsn, "UPDATE poi SET attributes = '{\"open\": true}' WHERE poi_id = %s", poi_id)


def counts(dsn: str) -> tuple[int, int, int]:
    """POIs that the points lack, hold otherwise, and hold although they are gone."""
    [(added, changed, removed)] = fetch(
        dsn,
        f"SELECT count(*) FILTER (WHERE p.point_id IS NULL), count(*) FILTER (WHERE p.point_id = q.poi_id"
        f" AND (p.text, p.geom::text) <> (q.text, q.geom::text)), count(*) FILTER (WHERE q.poi_id IS NULL)"
        f" FROM {POIS} FULL JOIN points p ON p.point_id = q.poi_id",
    )
    return added, changed, removed


@pytest.mark.parametrize("seed", [1, 2])
def test_refresh_equals_a_rebuild(
    town: str, encoder: TextEncoder, renew: Callable[..., RefreshSummary], seed: int, tmp_path: Path
) -> None:
    for number in range(3):
        change_at_random(town, 10 * seed + number)
        expected = counts(town)
        summary = renew(town)
        assert (summary.added, summary.changed, summary.removed) == expected
        assert summary.pois == fetch(town, f"SELECT count(*) FROM {POIS}")[0][0]
        assert counts(town) == (0, 0, 0)
    check_fresh(town, encoder)
    check_evidence(town, 1, publish_anew(town, tmp_path))


def publish_anew(dsn: str, folder: Path) -> int:
    """A new version of all POIs that are there, with other weights, on which the evidence does not depend."""
    return train_town(dsn, folder, COORDINATE, source=Source(srid=SRID, keep_outliers=True)).version


EVIDENCE_CHANGES = {
    "added": "INSERT INTO poi (source, source_id, name, category, geom) SELECT 'test', gen_random_uuid(), 'The Reading Room',"
    " 'school', geom FROM poi ORDER BY poi_id LIMIT 3",
    "added of a kind that is new": "INSERT INTO poi (source, source_id, name, category, geom) SELECT 'test', gen_random_uuid(),"
    " 'Smith', (ARRAY['Bakery/florist', 'dragon lair', 'bus_stop'])[poi_id], geom FROM poi WHERE poi_id <= 3",
    "renamed": "UPDATE poi SET name = 'The Village Bakery' WHERE poi_id % 5 = 0",
    "nameless": "UPDATE poi SET name = NULL WHERE poi_id % 3 = 0",
    "of another category": "UPDATE poi SET category = 'cafe' WHERE category = 'school' AND poi_id % 2 = 0",
    "of a category that is new": "UPDATE poi SET category = 'observatory' WHERE category = 'park' AND poi_id % 2 = 0",
    "moved": "UPDATE poi SET geom = ST_Translate(geom, 0.004, 0.002) WHERE poi_id % 7 = 0",
    "removed": "DELETE FROM poi WHERE poi_id % 4 = 0",
    "a kind that is gone": "DELETE FROM poi WHERE category = 'park'",
}


def test_the_evidence_equals_a_rebuild(town: str, renew: Callable[..., RefreshSummary], tmp_path: Path) -> None:
    """POIs that are added, renamed, of another category, moved, removed: after each alone it is renewed."""
    for change, statement in EVIDENCE_CHANGES.items():
        before = [fetch(town, query, 1) for query in EVIDENCE.values()]
        assert execute(town, statement.replace("%", "%%")) > 0
        assert renew(town).anything, change
        assert [fetch(town, query, 1) for query in EVIDENCE.values()] != before, change
    bakeries = (
        "SELECT count(*) > 5 FROM point_kind JOIN kind USING (version, kind_id) WHERE basis > 0 AND name = 'bakery'"
    )
    assert fetch(town, bakeries) == [(True,)], "The Village Bakery"
    check_evidence(town, 1, publish_anew(town, tmp_path))


def test_a_new_release_brings_openings_closures_and_changes(
    town: str, encoder: TextEncoder, renew: Callable[..., RefreshSummary], tmp_path: Path
) -> None:
    """`load --replace-source` and then refresh: the model has what the new file has."""
    columns = "source_id, name, category, category_group, ST_X(geom), ST_Y(geom)"
    before = [list(row) for row in fetch(town, f"SELECT {columns} FROM poi ORDER BY poi_id")]
    release = before[7:]  # seven have closed
    for row in release[:3]:
        row[2], row[3] = "bakery", "shops"
    release[3][1] = "Renamed"
    release[4][4] += 0.002
    opened = [[f"new/{number}", "Dawn", "bakery", "shops", MIDDLE[0], MIDDLE[1]] for number in range(4)]
    path = tmp_path / "release.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("id", "name", "category", "group", "lon", "lat"), *release, *opened])
    summary = load(town, [path], LoadOptions(source="town", replace_source=True))
    assert (summary.total("inserted"), summary.total("updated"), summary.removed) == (4, 5, 7)
    assert summary.total("unchanged") == len(before) - 7 - 5
    renewed = renew(town)
    assert (renewed.added, renewed.changed, renewed.removed) == (4, 5, 7)
    check_fresh(town, encoder)
    assert fetch(town, "SELECT count(*) FROM points WHERE category = 'bakery' AND name = 'Dawn'") == [(4,)]
    gone = "SELECT count(*) FROM points p LEFT JOIN poi q ON q.poi_id = p.point_id WHERE q.poi_id IS NULL"
    assert fetch(town, gone) == [(0,)]
    again = load(town, [path], LoadOptions(source="town", replace_source=True))
    assert (again.total("unchanged"), again.removed) == (len(before) - 3, 0)
    assert not renew(town).anything


NAMED = "SELECT point_id FROM point_embedding_v1 WHERE to_tsvector('simple', name) @@ plainto_tsquery('simple', %s)"


def test_a_renamed_poi_is_found_by_its_new_name(town: str, renew: Callable[..., RefreshSummary]) -> None:
    [(poi_id,)] = fetch(town, "UPDATE poi SET name = 'Zanzibar Quiet Corner' WHERE poi_id = 5 RETURNING poi_id")
    summary = renew(town)
    assert (summary.added, summary.changed, summary.removed) == (0, 1, 0)
    assert fetch(town, NAMED, "zanzibar corner") == [(poi_id,)]
    assert not renew(town, compare=True).anything


@pytest.mark.parametrize(
    ("countries", "kinds"), [(["gb"], set()), (["nz"], {"mobile phone shop"}), (None, {"mobile phone shop"})]
)
def test_brands_of_the_countries_of_the_version_count(
    town: str, renew: Callable[..., RefreshSummary], countries: list[str] | None, kinds: set[str]
) -> None:
    """None: a version of an earlier program, which does not know its countries."""
    ((stored,),) = fetch(town, "SELECT provenance -> 'brands_of' FROM callipper.model")
    assert stored == []  # the town has no brands
    change = (
        "provenance - 'brands_of'"
        if countries is None
        else "jsonb_set(provenance, '{brands_of}', to_jsonb(%s::text[]))"
    )
    execute(town, f"UPDATE callipper.model SET provenance = {change}", *([] if countries is None else [countries]))
    spark = insert(town, "Spark", "shop")
    renew(town)
    found = fetch(
        town,
        "SELECT k.name FROM callipper.point_kind p JOIN callipper.kind k USING (version, kind_id)"
        " WHERE p.point_id = %s AND p.basis > 0",
        spark,
    )
    assert {name for (name,) in found} & {"mobile phone shop"} == kinds


def test_names_and_descriptions_may_be_long(town: str, renew: Callable[..., RefreshSummary], tmp_path: Path) -> None:
    """As in a table of the user's own. An index holds no long text, and compression does not help with random words."""
    words = "(SELECT string_agg(md5(n::text), ' ') FROM generate_series(1, %s) n)"
    execute(town, f"UPDATE poi SET name = 'Zanzibar ' || {words} WHERE poi_id = 5", 40_000)
    execute(town, f"UPDATE poi SET category = {words} WHERE poi_id = 6", 300)
    execute(town, f"UPDATE poi SET description = {words} WHERE poi_id = 7", 3_000)
    renew(town)
    assert fetch(town, NAMED, "zanzibar") == [(5,)]
    assert not renew(town, compare=True).anything
    check_evidence(town, 1, publish_anew(town, tmp_path))


def test_a_model_without_evidence_is_refreshed(
    town: str, encoder: TextEncoder, renew: Callable[..., RefreshSummary]
) -> None:
    """One of an earlier program: its names are not known, and it stays without."""
    execute(town, "ALTER TABLE callipper.point_kind DETACH PARTITION callipper.point_kind_v1")
    execute(town, "DROP TABLE callipper.point_kind_v1")
    execute(town, "DELETE FROM callipper.kind")
    execute(town, "DELETE FROM callipper.poi_density")
    execute(town, "UPDATE callipper.point_embedding SET name = ''")
    # Its embeddings have one half.
    execute(town, "UPDATE callipper.model SET arch = arch - 'peaks'")
    zeros = "array_fill(0::real, ARRAY[128])::vector"
    for table in ("cell_embedding", "point_embedding", "cell_sample"):
        second = "l2_normalize(subvector(emb, 129, 128))"
        execute(town, f"UPDATE callipper.{table} SET emb = {zeros} || {second}")
    projected = "ARRAY(SELECT inner_product(p.weight, v.vec) + p.bias FROM callipper.text_projection p ORDER BY neuron)"
    execute(
        town,
        f"UPDATE callipper.text_embedding t SET emb = {zeros} || l2_normalize({projected}::vector)"
        " FROM callipper.text_vector v WHERE callipper._text_key(v.text) = t.text",
    )
    assert not renew(town, compare=True).anything, "a name that is not known is no change"
    insert(town, "Far Out", "observatory", 0.001)
    execute(town, "UPDATE poi SET name = 'Another', category = 'mill' WHERE poi_id = 5")
    execute(town, "DELETE FROM poi WHERE poi_id = 6")
    summary = renew(town)
    assert (summary.added, summary.changed, summary.removed) == (1, 1, 1)
    check_fresh(town, encoder)
    assert fetch(town, "SELECT (SELECT count(*) FROM kind), (SELECT count(*) FROM poi_density)") == [(0, 0)]
    assert len(fetch(town, "SELECT * FROM search('park', 5)")) == 5
    assert len(fetch(town, "SELECT * FROM describe((SELECT geom FROM poi WHERE category = 'mill'), 3)")) == 3


def test_all_pois_replaced(town: str, encoder: TextEncoder, renew: Callable[..., RefreshSummary]) -> None:
    before = stand(town, *RENEWED)
    execute(town, "TRUNCATE callipper.poi")
    with pytest.raises(SourceEmpty, match=r"callipper\.poi holds no POI .* model version 1 was left as it is"):
        renew(town)
    assert stand(town, *RENEWED) == before
    for number in range(3):  # fewer than a training takes
        insert(town, "Only", "chapel", 0.001 * number)
    summary = renew(town)
    assert (summary.added, summary.removed, summary.pois) == (3, 300, 3)
    assert (summary.drift, summary.training_advised) == (1, True)
    with user_session(town) as connection:
        check_lattices(connection, 1)
        check_vectors(connection, 1)
        check_sample(connection, 1)


def test_a_model_by_coordinates(
    town: str, encoder: TextEncoder, renew: Callable[..., RefreshSummary], tmp_path: Path
) -> None:
    assert train_town(town, tmp_path, COORDINATE).version == 2
    moved = insert(town, "A", "kiosk")
    renew(town)
    before = stand(town, "cell_embedding_v2", "cell_sample")
    execute(town, "UPDATE poi SET geom = ST_Translate(geom, 0.001, 0) WHERE poi_id = %s", moved)
    execute(town, "UPDATE poi SET category = 'mill' WHERE poi_id = (SELECT min(poi_id) FROM poi)")
    execute(town, "DELETE FROM poi WHERE poi_id = (SELECT max(poi_id) FROM poi WHERE poi_id <> %s)", moved)
    insert(town, "C", "kiosk", 0.002)
    summary = renew(town)
    assert (summary.added, summary.changed, summary.removed) == (1, 2, 1)
    assert (summary.points, summary.cells, summary.lattice_cells) == (3, 0, 0)
    assert stand(town, "cell_embedding_v2", "cell_sample") == before
    check_fresh(town, encoder, 2, contextual=False)


RENEWED = (
    "context_cell",
    "cell_embedding_v1",
    "point_embedding_v1",
    "text_embedding_v1",
    "cell_sample",
    "model",
    "kind",
    "kind_name",
    "kind_phrase",
    "point_kind_v1",
    "point_name_v1",
    "poi_density",
)


def stand(dsn: str, *tables: str) -> dict[str, dict[str, str]]:
    """Where each row of the tables stands and who wrote it: any rewriting changes that."""
    return {
        table: dict(fetch(dsn, f"SELECT ctid::text, xmin::text FROM callipper.{table}"))  # type: ignore[arg-type]
        for table in tables
    }


def test_what_lies_far_from_the_changes_may_follow(
    town: str, encoder: TextEncoder, renew: Callable[..., RefreshSummary], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert renew(town, nearby=True).postponed == 0  # so few embeddings are no reason to
    coarse = "SELECT level, i, j, n, code_sum::text FROM context_cell WHERE level > 6 ORDER BY 1, 2, 3"
    stored = fetch(town, coarse)
    change_at_random(town, seed=3)
    monkeypatch.setattr("callipper_trainer.refresh.refresh.POSTPONED_FROM", 0)
    first = renew(town, nearby=True)
    assert first.lattice_cells > 0
    assert first.postponed > 0
    with user_session(town) as connection:
        expected = expected_lattices(connection, 1)
        fine = connection.execute("SELECT level, i, j, n FROM context_cell WHERE level <= 6").fetchall()
        check_vectors(connection, 1)  # by the lattices that stand there
        check_sample(connection, 1)
    assert {(i, j, k): n for i, j, k, n in fine} == {
        key: numbers[0] for key, numbers in expected.items() if key[0] <= 6
    }
    assert fetch(town, coarse) == stored
    again = renew(town, nearby=True)
    assert not again.anything
    assert again.postponed > 0
    last = renew(town)  # without compare
    assert (last.added, last.changed, last.removed, last.postponed) == (0, 0, 0, 0)
    assert 0 <= last.cells + last.points - first.postponed <= first.new_cells
    check_fresh(town, encoder)


def test_what_was_postponed_is_not_forgotten(
    town: str, encoder: TextEncoder, renew: Callable[..., RefreshSummary], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the triggers have noted nothing."""
    insert_known(town)
    execute(town, "DELETE FROM callipper.poi_change")
    monkeypatch.setattr("callipper_trainer.refresh.refresh.POSTPONED_FROM", 0)
    assert renew(town, nearby=True, compare=True).postponed > 0
    assert renew(town).cells > 0
    check_fresh(town, encoder)


def test_only_what_reads_a_change_is_written(
    town: str, encoder: TextEncoder, renew: Callable[..., RefreshSummary]
) -> None:
    here = "geom && ST_MakeEnvelope(5.0, 52.0, 5.22, 52.19, 4326)"
    for number in range(30):
        insert(town, "Far", "shed", FAR + 0.001 * number, FAR)
    first = renew(town)
    assert first.new_cells > 0
    untouched = {
        "cell_embedding_v1": f"SELECT e.ctid, e.xmin FROM cell_embedding_v1 e JOIN cell USING (cell_id) WHERE {here}",
        "point_embedding_v1": f"SELECT ctid, xmin FROM point_embedding_v1 WHERE {here}",
        "context_cell": "SELECT c.ctid, c.xmin FROM context_cell c JOIN model m USING (version)"
        " WHERE greatest(abs(i), abs(j)) * (jsonb_path_query_first(arch, '$.features[*].sizes_m') -> level)::float8 < 30000",
        "text_embedding_v1": "SELECT ctid, xmin FROM text_embedding_v1 WHERE NOT vocabulary",
    }
    before = {name: sorted(fetch(town, query)) for name, query in untouched.items()}
    assert all(len(rows) >= 10 for rows in before.values()), {name: len(rows) for name, rows in before.items()}
    insert(town, "Farther", "shed", FAR, FAR + 0.001)
    summary = renew(town)
    assert {name: sorted(set(fetch(town, query)) & set(before[name])) for name, query in untouched.items()} == before
    [(levels,)] = fetch(town, "SELECT count(DISTINCT level) FROM context_cell")
    assert (summary.added, summary.lattice_cells, summary.texts) == (1, levels, 0)
    assert 0 < summary.cells <= first.cells
    assert summary.points == 31
    check_fresh(town, encoder)


def test_nothing_to_do_writes_nothing(town: str, renew: Callable[..., RefreshSummary]) -> None:
    renew(town)
    before = stand(town, *RENEWED)
    for options in ({}, {"compare": True}):
        summary = renew(town, **options)
        assert not summary.anything
        assert (summary.version, summary.pois) == (1, 300)
    assert stand(town, *RENEWED) == before
    # A change that the model does not read is seen, and all that is written is that it is.
    execute(town, "UPDATE poi SET attributes = '{\"open\": true}'")
    assert not renew(town).anything
    after = stand(town, *RENEWED)
    assert after.pop("model") != before.pop("model")
    assert after == before
    assert fetch(town, "SELECT count(*) FROM poi_change") == [(0,)]


def test_pois_outside_the_grid_get_cells(town: str, renew: Callable[..., RefreshSummary]) -> None:
    [(cells, covered)] = fetch(town, "SELECT (SELECT count(*) FROM cells), ST_Area(extent) FROM model")
    east = MIDDLE[0] + FAR
    insert(town, "Far Out", "observatory", FAR, FAR)
    summary = renew(town)
    assert summary.new_cells == 25  # a block
    [found] = fetch(
        town,
        "SELECT (SELECT count(*) FROM cells), ST_Area(extent) > 2 * %s, ST_XMax(extent) > %s,"
        " (SELECT count(*) FROM cells c, poi WHERE poi.category = 'observatory' AND ST_Covers(c.geom, poi.geom)) FROM model",
        covered,
        east,
    )
    assert found == (cells + 25, True, True, 1)
    execute(town, "DELETE FROM poi WHERE category = 'observatory'")
    assert renew(town).new_cells == 0
    assert fetch(town, "SELECT count(*) FROM cells") == [(cells + 25,)]


def test_a_new_category_is_a_word_for_describe(town: str, renew: Callable[..., RefreshSummary]) -> None:
    question = "SELECT count(*) FROM text_embedding WHERE vocabulary AND text IN ('axe throwing', 'sport and fun')"
    assert fetch(town, question) == [(0,)]
    insert(town, "Woodcutters", "axe throwing", group="Sport and  fun")
    renew(town)
    assert fetch(town, question) == [(2,)]
    described = fetch(
        town, "SELECT text, pois, because FROM describe((SELECT geom FROM poi WHERE category = 'axe throwing'))"
    )
    assert ("axe throwing", 1, "Woodcutters (axe throwing)") in described


def test_plans_made_before_answer_as_of_now(town: str, renew: Callable[..., RefreshSummary]) -> None:
    place = f"ST_SetSRID(ST_Point({MIDDLE[0]}, {MIDDLE[1]}), 4326)"
    with user_session(town, autocommit=True) as connection:
        connection.execute("SET plan_cache_mode = force_generic_plan")
        connection.execute(f"PREPARE here AS SELECT loc_embed({place})::text")
        before = connection.execute("EXECUTE here").fetchone()
        insert(town, "Right Here", "lighthouse")
        renew(town)
        after = connection.execute("EXECUTE here").fetchone()
        assert after != before
        assert after == connection.execute("SELECT callipper._locate(" + place + ", 1)::text").fetchone()


# Whose changes


def test_the_version_that_has_just_become_active_is_compared(
    town: str, renew: Callable[..., RefreshSummary], tmp_path: Path
) -> None:
    renew(town)
    train_town(town, tmp_path, COORDINATE)
    insert(town, "A", "kiosk")
    assert renew(town).added == 1
    assert renew(town).added == 0
    models.activate_model(town, 1)  # what was noted is gone by now, but it was not seen by this version
    assert renew(town).added == 1
    insert(town, "B", "kiosk")
    models.activate_model(town, 2)
    assert renew(town).added == 1
    models.activate_model(town, 1)
    models.drop_model(town, 2)
    assert renew(town).added == 1
    assert not renew(town).anything


def test_a_change_during_a_refresh_is_left_for_the_next(
    town: str, tmp_path: Path, renew: Callable[..., RefreshSummary]
) -> None:
    insert_known(town)
    with running(tmp_path, "refresh", "--dsn", town) as command:
        with locked(town, "context_cell") as wait_until_held:
            wait_until_held()
            meanwhile = insert_known(town, 0.001)
        assert command.end() == 0
    assert "1 POIs added" in command.said[-1]
    assert fetch(town, "SELECT poi_id FROM poi_change JOIN poi ON poi_id <@ poi_ids") == [(meanwhile,)]
    assert renew(town).added == 1


def test_a_table_and_a_query_of_the_users_own(
    town: str, encoder: TextEncoder, renew: Callable[..., RefreshSummary], tmp_path: Path
) -> None:
    execute(
        town, "CREATE TABLE public.stop AS SELECT poi_id + 1000 AS number, category AS kind, geom AS place FROM poi"
    )
    for relation in ("public.stop", "SELECT number, kind, place FROM public.stop -- all of them"):
        source = Source(relation, template="A place of {kind}", identifier="number")
        version = train_town(town, tmp_path, replace(CONFIG, epochs=1), source=source).version
        assert not renew(town).anything
        execute(town, "INSERT INTO public.stop SELECT max(number) + 1, 'cafe', min(place) FROM public.stop")
        execute(town, "DELETE FROM public.stop WHERE number = (SELECT min(number) FROM public.stop)")
        summary = renew(town)
        assert (summary.version, summary.added, summary.removed) == (version, 1, 1)
        with user_session(town) as connection:
            check_vectors(connection, version)
    execute(town, "DROP TABLE public.stop")
    with pytest.raises(BadSource, match="stop"):
        renew(town)


# Notifications


def noted(dsn: str) -> list[str]:
    """The ids that are noted, as ranges without their end, and no more from now on."""
    return [str(ids) for (ids,) in fetch(dsn, "DELETE FROM callipper.poi_change RETURNING poi_ids::text")]


def test_triggers_note_every_way_to_change(database: str) -> None:
    row = "('test', 'x{}', ST_SetSRID(ST_Point(1, 2), 4326))"
    columns = "INSERT INTO callipper.poi (source, source_id, geom) VALUES "
    execute(database, columns + ", ".join(map(row.format, range(3))))
    assert noted(database) == ["{[1,4)}"]
    execute(database, "UPDATE callipper.poi SET name = 'y' WHERE poi_id > 1")
    assert noted(database) == ["{[2,4)}"]
    execute(database, "UPDATE callipper.poi SET poi_id = DEFAULT WHERE poi_id = 1")
    assert noted(database) == ["{[1,2),[4,5)}"]
    execute(database, "DELETE FROM callipper.poi WHERE poi_id IN (2, 4)")
    assert noted(database) == ["{[2,3),[4,5)}"]
    with (
        user_session(database) as connection,
        connection.cursor().copy("COPY callipper.poi (source, source_id, geom) FROM STDIN") as copy,
    ):
        copy.write_row(("test", "copied", "SRID=4326;POINT(1 2)"))
    assert noted(database) == ["{[5,6)}"]
    execute(database, columns + row.format(2) + " ON CONFLICT (source, source_id) DO UPDATE SET name = 'z'")
    assert noted(database) == ["{[3,4)}"]
    for nothing in ("DELETE FROM callipper.poi WHERE false", "UPDATE callipper.poi SET name = 'z' WHERE poi_id = 0"):
        execute(database, nothing)
    with pytest.raises(ZeroDivisionError), user_session(database) as connection:
        connection.execute("DELETE FROM callipper.poi")
        raise ZeroDivisionError
    assert noted(database) == []
    execute(database, "TRUNCATE callipper.poi")
    assert noted(database) == ["{(,)}"]


def test_listeners_are_told_once_a_transaction(database: str) -> None:
    with user_session(database, autocommit=True) as listener:
        listener.execute("LISTEN callipper_poi")
        with user_session(database) as connection:
            for number in range(3):
                connection.execute(
                    "INSERT INTO poi (source, source_id, geom) VALUES ('test', %s, ST_SetSRID(ST_Point(1, 2), 4326))",
                    [str(number)],
                )
        execute(database, "DELETE FROM poi WHERE false")  # says nothing
        execute(database, "NOTIFY callipper_poi, 'end'")
        heard = [notice.payload for notice in listener.notifies(timeout=20, stop_after=2)]
    assert heard == ["", "end"]


def test_who_may_write_pois_need_not_own_what_is_noted(
    cluster_dsn: str, database: str, run: Callable[..., Result]
) -> None:
    name = f"callipper_writer_{os.getpid()}"
    execute(database, f"CREATE ROLE {name} LOGIN")
    writer = make_conninfo(database, options=f"-c role={name}")
    try:
        execute(database, f"GRANT USAGE ON SCHEMA callipper TO {name}")
        execute(database, f"GRANT INSERT, DELETE, UPDATE, TRUNCATE, SELECT ON callipper.poi TO {name}")
        # A function of theirs that would take the place of a built-in one must not run in the owner's name.
        execute(database, f"CREATE SCHEMA theirs AUTHORIZATION {name}")
        execute(writer, "CREATE FUNCTION theirs.pg_notify(text, text) RETURNS void LANGUAGE sql AS 'SELECT 1 / 0'")
        with user_session(writer) as connection:
            connection.execute("SET search_path = theirs, callipper, public, pg_catalog")
            place = "ST_SetSRID(ST_Point(1, 2), 4326)"
            connection.execute(f"INSERT INTO poi (source, source_id, geom) VALUES ('a', '1', {place})")
            connection.execute("UPDATE poi SET name = 'x'")
            connection.execute("DELETE FROM poi")
            connection.execute("TRUNCATE poi")
        for statement in ("SELECT FROM callipper.poi_change", "DELETE FROM callipper.poi_change"):
            with pytest.raises(db.DatabaseFailed, match="permission denied for table poi_change"):
                execute(writer, statement)
        execute(database, f"GRANT callipper_reader TO {name}")
        with pytest.raises(db.DatabaseFailed, match="permission denied for table poi_change"):
            execute(writer, "SELECT FROM callipper.poi_change")
        assert noted(database) == ["{[1,2)}"] * 3 + ["{(,)}"]
    finally:
        execute(database, f"DROP OWNED BY {name} CASCADE")
        execute(database, f"DROP ROLE {name}")


def test_a_restored_database_goes_on_noting(
    town: str, empty_database: str, renew: Callable[..., RefreshSummary]
) -> None:
    renew(town)
    insert(town, "Before the dump", "cafe")
    folder = Path(str(fetch(town, "SELECT setting FROM pg_config WHERE name = 'BINDIR'")[0][0]))
    dump = subprocess.run([folder / "pg_dump", "--schema=callipper*", town], capture_output=True, check=True).stdout
    with user_session(empty_database) as connection:
        connection.execute("CREATE EXTENSION postgis")
        connection.execute("CREATE EXTENSION vector")
    psql = [folder / "psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-d", empty_database]
    subprocess.run(psql, input=dump, capture_output=True, check=True)
    insert(empty_database, "After the restore", "cafe")
    names = fetch(
        empty_database,
        "SELECT name FROM callipper.poi_change JOIN callipper.poi ON poi_id <@ poi_ids ORDER BY change_id",
    )
    assert names == [("Before the dump",), ("After the restore",)]
    assert renew(empty_database).added == 2


def test_the_page_says_how_to_be_told(town: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "refresh.md").read_text()
    tell, _, waiting = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    execute(town, "CREATE TABLE public.stop (number int)")
    execute(town, tell)
    with user_session(town, autocommit=True) as listener:
        listener.execute("LISTEN callipper_poi")
        execute(town, "INSERT INTO public.stop VALUES (1), (2)")
        assert [notice.channel for notice in listener.notifies(timeout=20, stop_after=1)] == ["callipper_poi"]
    execute(town, "DELETE FROM callipper.poi_change")
    insert(town, "The Waiting Room", "cafe")
    assert fetch(town, waiting) == [("The Waiting Room",)]


# What goes wrong


def test_kill_leaves_the_old_state(town: str, tmp_path: Path, renew: Callable[..., RefreshSummary]) -> None:
    insert_known(town)
    before = stand(town, *RENEWED, "poi_change")
    for relation in ("poi", "context_cell", "cell_embedding_v1", "point_embedding_v1", "cell_sample", "poi_change"):
        with running(tmp_path, "refresh", "--dsn", town) as command:
            with locked(town, relation) as wait_until_held:
                wait_until_held()
                assert command.end(signal.SIGKILL) == -signal.SIGKILL
            wait_until_alone(town)
        assert stand(town, *RENEWED, "poi_change") == before
    assert renew(town).added == 1


def test_a_reader_keeps_what_it_began_with(town: str, renew: Callable[..., RefreshSummary]) -> None:
    queries = (
        "SELECT cell_id, emb::text FROM cells ORDER BY 1",
        "SELECT point_id, text, emb::text FROM points ORDER BY 1",
        "SELECT * FROM search('park', 5)",
        f"SELECT loc_embed(ST_SetSRID(ST_Point({MIDDLE[0]}, {MIDDLE[1]}), 4326))::text",
    )
    with user_session(town) as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        before = [reader.execute(query.encode()).fetchall() for query in queries]
        insert(town, "New", "lighthouse", 0.002)
        renew(town)  # does not wait for the reader
        assert [reader.execute(query.encode()).fetchall() for query in queries] == before
        reader.commit()
        assert all(
            reader.execute(query.encode()).fetchall() != rows for query, rows in zip(queries, before, strict=True)
        )


def test_another_run_is_at_work(town: str, renew: Callable[..., RefreshSummary]) -> None:
    from callipper_trainer.lock import only_trainer

    with only_trainer(town, wait=False, reporter=Silent()), pytest.raises(TrainerBusy):
        renew(town)


def test_refusals(database: str, town: str, renew: Callable[..., RefreshSummary]) -> None:
    with pytest.raises(NoActiveModel):
        renew(database)
    insert(town, "New", "cafe")
    execute(town, "UPDATE callipper.text_encoder SET revision = 'another'")
    with pytest.raises(TextEncoderMissing, match="its weights are not those that the model was trained with"):
        renew(town)


# The command


def test_what_the_command_says(town: str, run: Callable[..., Result]) -> None:
    assert run("refresh", "--dsn", town).stdout == "Model version 1 is up to date with its 300 POIs.\n"
    execute(town, "DELETE FROM poi WHERE category = 'park'")
    insert(town, "New", "cafe")
    reported = json.loads(run("refresh", "--dsn", town, "--json").stdout)
    assert (reported["added"], reported["removed"], reported["drift"], reported["training_advised"]) == (
        1,
        60,
        0.2,
        False,
    )
    execute(town, "DELETE FROM poi WHERE name = 'School One'")
    said = run("refresh", "--dsn", town).stdout
    assert said.startswith("Model version 1 is fresh: 0 POIs added, 0 changed, 15 removed. Renewed in ")
    assert said.splitlines()[1] == (
        "25% of the POIs are not those that it was trained with. A new model would know them better: callipper-db train"
    )
    shown = json.loads(run("models", "show", "--dsn", town).stdout)["provenance"]
    assert shown["refreshed"]["removed"] == 15
    assert shown["refreshed"]["pois"] == 226
    assert shown["refreshed"]["at"] > shown["snapshot"]
    assert "--every goes with --watch" in run("refresh", "--every", "5", "--dsn", town, exit_code=2).stderr


def lines(command: Command) -> list[dict[str, Any]]:
    """The refreshes that it has reported."""
    return [json.loads(line) for line in command.said if line.startswith("{") and line.endswith("\n")]


def test_watch(town: str, tmp_path: Path) -> None:
    insert_known(town)  # while nobody watches
    with running(tmp_path, "refresh", "--dsn", town, "--watch", "--json") as command:
        assert wait_for(lambda: lines(command))[0]["added"] == 1
        watched = insert_known(town, 0.001)
        assert wait_for(lambda: lines(command)[1:])[0]["added"] == 1
        assert fetch(town, "SELECT count(*) FROM points WHERE point_id = %s", watched) == [(1,)]
        # A burst is one refresh; what goes wrong is said, and is no end.
        execute(town, "TRUNCATE callipper.poi")
        command.hear("callipper.poi holds no POI")
        for number in range(5):
            insert_known(town, 0.001 * number)
        reported = wait_for(lambda: lines(command)[2:])
        assert sum(line["added"] for line in reported) == 5 or wait_for(
            lambda: sum(line["added"] for line in lines(command)[2:]) == 5
        )
        assert command.end(signal.SIGINT) == 0
        assert command.said[-1] == "Stopped.\n"


@pytest.mark.parametrize(("settle_s", "patience_s"), [(0.5, 300.0), (300.0, 5.0)])
def test_watch_postpones_what_lies_far_from_the_changes(
    town: str, encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch, settle_s: float, patience_s: float
) -> None:
    """Until no change comes for a while, or although changes keep coming."""
    monkeypatch.setattr("callipper_trainer.refresh.refresh.POSTPONED_FROM", 0)
    monkeypatch.setattr("callipper_trainer.refresh.watch.SETTLE_S", settle_s)
    monkeypatch.setattr("callipper_trainer.refresh.watch.SETTLE_PATIENCE_S", patience_s)
    reported: list[RefreshSummary] = []

    def report(summary: RefreshSummary) -> None:
        reported.append(summary)
        if len(reported) > 1 and not summary.postponed:
            raise KeyboardInterrupt
        if len(reported) == 1 or settle_s > patience_s:
            insert_known(town, 0.001 * len(reported))

    with pytest.raises(KeyboardInterrupt):
        Watch(town, Silent(), report).run()
    _, *nearby, last = reported
    assert nearby[0].added == 1
    assert all(summary.postponed for summary in nearby)
    assert last.cells > 0
    if settle_s < patience_s:
        assert (len(nearby), last.added) == (1, 0)
    check_fresh(town, encoder)


def test_a_watch_that_fails_pauses(town: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when what was postponed is long due."""
    monkeypatch.setattr("callipper_trainer.refresh.refresh.POSTPONED_FROM", 0)
    monkeypatch.setattr("callipper_trainer.refresh.watch.SETTLE_PATIENCE_S", 0.0)
    waits: list[float] = []

    def wait(connection: db.Connection, seconds: float) -> bool:
        waits.append(seconds)
        if len(waits) == 2:
            execute(town, "TRUNCATE callipper.poi")
        if len(waits) == 4:
            raise KeyboardInterrupt
        if len(waits) == 1:
            insert_known(town)
        return True

    monkeypatch.setattr("callipper_trainer.refresh.watch.wait_for_change", wait)
    with pytest.raises(KeyboardInterrupt):
        Watch(town, Silent(), lambda summary: None).run()
    assert waits == [60.0, 0.0, 60.0, 60.0]


def test_watch_survives_a_restart(town: str, cluster_dsn: str, tmp_path: Path) -> None:
    name = sql.Identifier(str(fetch(town, "SELECT current_database()")[0][0]))
    with running(tmp_path, "refresh", "--dsn", town, "--watch", "--json") as command:
        wait_for(lambda: lines(command))
        insert_known(town)
        with psycopg.connect(cluster_dsn, autocommit=True) as admin:
            # Like a server that is down: sessions are ended, and new ones are refused.
            admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(name))
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name._obj[0]])
            wait_for(lambda: any("Trying again in 1 s." in line for line in command.said))
            admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(name))
        wait_for(lambda: sum(line["added"] for line in lines(command)) == 1)
        assert command.end(signal.SIGINT) == 0


def test_watch_of_a_source_without_triggers(town: str, tmp_path: Path, run: Callable[..., Result]) -> None:
    execute(town, "CREATE TABLE public.stop AS SELECT poi_id AS gid, category, geom FROM poi")
    train_town(town, tmp_path, replace(COORDINATE, epochs=1), source=Source("public.stop"))
    said = run("refresh", "--dsn", town, "--watch", exit_code=1).stderr
    assert "No trigger reports changes of public.stop" in said
    assert "Add --every SECONDS" in said
    with running(tmp_path / "home", "refresh", "--dsn", town, "--watch", "--every", "1", "--json") as command:
        wait_for(lambda: lines(command))
        execute(town, "DELETE FROM public.stop WHERE gid = (SELECT min(gid) FROM public.stop)")
        assert wait_for(lambda: lines(command)[1:])[0]["removed"] == 1
        assert command.end(signal.SIGINT) == 0
