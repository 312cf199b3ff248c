"""Versions that answer alike in a space of their own: mixing two of them gives wrong similarities at once."""

from __future__ import annotations

from psycopg import sql

from callipper_db import partitions
from callipper_db.db import Connection
from callipper_db.tables import DIMENSIONS, PARTITIONED

HALF = DIMENSIONS // 2
MODEL = "srid, origin_easting, origin_northing, extent, grid_id, text_encoder_id, arch, standardisation, metrics, provenance"
COPIED = {
    "location_weight": "layer, {neuron}, weight, bias",
    "text_projection": "{neuron}, weight, bias",
    "context_cell": "level, i, j, n, code_sum",
    "cell_sample": "number, {emb}",
    "text_embedding": "text, {emb}, vocabulary, city_distances",
    "cell_embedding": "cell_id, {emb}",
    "point_embedding": "point_id, text, geom, {emb}, name, trained",
    "kind": "kind_id, name, said, landmark, prominent, area_share, pois, own_pois, sure_pois",
    "kind_name": "language, kind_id, name",
    "kind_phrase": "kind_id, phrase, vec",
    "kind_term": "kind_id, term",
    "kind_word": "kind_id, word, phrases",
    "kind_peak": "kind_id, threshold, gain, {direction}",
    "point_kind": "point_id, kind_id, basis, easting, northing",
    "point_name": "point_id, vec",
    "poi_density": "i, j, pois",
}


def clone_model(connection: Connection, version: int, shift: int) -> int:
    """A copy of a version with the dimensions of its embeddings shifted in a circle, each half by itself; it is not activated.

    Returns its number. All similarities stay as they are, but those of a vector of one version to a vector of another mean
    nothing.
    """
    (new,) = connection.one(
        f"INSERT INTO callipper.model (status, {MODEL}) SELECT 'ready', {MODEL} FROM callipper.model WHERE version = %s"
        " RETURNING version",
        [version],
    )
    emb = " || ".join(_shifted("emb", first, shift) for first in (1, HALF + 1))
    neuron = f"neuron / {HALF} * {HALF} + (neuron + {HALF - shift}) % {HALF}"
    same = {"emb": "emb", "neuron": "neuron", "direction": "direction"}
    for table, columns in COPIED.items():
        target = sql.Identifier("callipper", table)
        if table in PARTITIONED:
            target = partitions.create_partition(connection, table, new)
        shifted = {"emb": emb, "neuron": neuron, "direction": _shifted("direction", 1, shift)}
        if table == "location_weight":  # of the location encoder's layers the last one gives the embedding
            shifted["neuron"] = f"CASE WHEN layer = 'output' THEN {neuron} ELSE neuron END"
        connection.execute(
            sql.SQL("INSERT INTO {} (version, {}) SELECT {}, {} FROM callipper.{} WHERE version = {}").format(
                target,
                sql.SQL(columns.format(**same)),
                sql.Literal(new),
                sql.SQL(columns.format(**shifted)),
                sql.Identifier(table),
                sql.Literal(version),
            )
        )
        if table in PARTITIONED:
            partitions.attach_partition(connection, table, new)
    return new


def _shifted(vector: str, first: int, shift: int) -> str:
    """Half of a vector, from its number `first` on, shifted in a circle."""
    return f"subvector({vector}, {first + shift}, {HALF - shift}) || subvector({vector}, {first}, {shift})"
