"""What a published version answers, against its own rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from callipper_db import db
from callipper_db.arrays import Array
from callipper_trainer.text_encoder import TextEncoder
from town import SRID


def unpack(vector: str) -> list[float]:
    return [float(number) for number in vector.strip("[]").split(",")]


def read_vectors(connection: db.Connection, query: str) -> Array:
    """The vectors that a query of one column yields."""
    return np.array([unpack(text) for (text,) in connection.execute(query).fetchall()])


def layer(connection: db.Connection, version: int, name: str) -> tuple[Array, Array]:
    rows = connection.execute(
        "SELECT weight::text, bias FROM callipper.location_weight WHERE version = %s AND layer = %s ORDER BY neuron",
        [version, name],
    ).fetchall()
    return np.array([unpack(weight) for weight, _ in rows]), np.array([bias for _, bias in rows])


def grid_features(feature: dict[str, Any], metres: Array) -> Array:
    angles = metres[:, :, None] / np.array(feature["divisors_m"])
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=2).reshape(len(metres), -1)


def context_features(connection: db.Connection, version: int, feature: dict[str, Any], metres: Array) -> Array:
    """Of each level the mean code and log(1 + number) of the four cells around, by their share; of large cells each kind."""
    levels = []
    for number, size_m in enumerate(feature["sizes_m"]):
        rows = connection.execute(
            "SELECT i, j, n, code_sum::text FROM callipper.context_cell WHERE version = %s AND level = %s",
            [version, number],
        ).fetchall()
        cells = {(i, j): np.array([n, *unpack(code)]) for i, j, n, code in rows}
        code = slice(1, 1 + feature["code"])
        nothing = np.zeros(code.stop + (feature["kinds"] if size_m >= feature["kinds_from_m"] else 0))
        columns = []
        for place in metres / size_m - 0.5:
            i, j = np.floor(place).astype(int)
            east, north = place - [i, j]
            mix = (
                (1 - east) * (1 - north) * cells.get((i, j), nothing)
                + east * (1 - north) * cells.get((i + 1, j), nothing)
                + (1 - east) * north * cells.get((i, j + 1), nothing)
                + east * north * cells.get((i + 1, j + 1), nothing)
            )
            counts = np.log1p([mix[0], *mix[code.stop :]])
            columns.append([*(mix[code] / (mix[0] + feature["prior"])), *counts])
        levels.append(columns)
    return np.concatenate(levels, axis=1)


def embed_by_rows(connection: db.Connection, version: int, metres: Array) -> Array:
    """(N, 2) easting and northing -> (N, 128)."""
    found = connection.execute(
        "SELECT origin_easting, origin_northing, arch, standardisation FROM callipper.model WHERE version = %s",
        [version],
    ).fetchone()
    assert found is not None
    easting, northing, arch, standardisation = found
    metres = metres - [easting, northing]
    parts = []
    for feature in arch["features"]:
        if feature["kind"] == "grid":
            parts.append(grid_features(feature, metres))
        else:
            context = context_features(connection, version, feature, metres)
            parts.append((context - standardisation["mean"]) * standardisation["scale"])
    features = np.hstack(parts)
    x = before = features
    for step in arch["layers"]:
        weight, bias = layer(connection, version, step["layer"])
        if step.get("residual") == "begin":
            before = x
        if step.get("residual") == "join":
            x = np.hstack([x, features])
        x = x @ weight.T + bias
        if step["activation"] == "relu":
            x = np.maximum(x, 0)
        if step.get("residual") == "add":
            x = before + x
    assert x.shape[1] == arch["dimensions"]
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def check_embeddings(connection: db.Connection, version: int) -> None:
    """The views hold what the rows of this version make of cells and points."""
    for view, key, place in (
        ("cells", "cell_id", f"ST_Centroid(ST_Transform(geom, {SRID}))"),
        ("points", "point_id", f"ST_Transform(geom, {SRID})"),
    ):
        rows = connection.execute(f"SELECT ST_X(p), ST_Y(p) FROM (SELECT {place} p FROM {view} ORDER BY {key}) q")
        expected = embed_by_rows(connection, version, np.array(rows.fetchall()))
        found = read_vectors(connection, f"SELECT emb::text FROM {view} ORDER BY {key}")
        assert len(found) > 100
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(found, expected, atol=2e-5)


def check_texts(connection: db.Connection, version: int, encoder: TextEncoder, texts: list[str]) -> None:
    """text_embed answers with the encoder's vectors, projected by the rows of this version."""
    rows = connection.execute(
        "SELECT weight::text, bias FROM callipper.text_projection WHERE version = %s ORDER BY neuron", [version]
    ).fetchall()
    weight, bias = np.array([unpack(weight) for weight, _ in rows]), np.array([bias for _, bias in rows])
    expected = encoder.transformer.encode(texts).astype(np.float64) @ weight.T + bias
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = connection.execute("SELECT text_embed(t)::text FROM unnest(%s::text[]) t", [texts]).fetchall()
    np.testing.assert_allclose([unpack(vector) for (vector,) in found], expected, atol=1e-5)
