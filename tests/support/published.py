"""What a published version answers, against its own rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from callipper_db import db
from callipper_db.arrays import Array
from callipper_trainer.text_encoder import TextEncoder
from kind_words import lexemes, lexemes_of_kinds, shared_words
from town import SRID

HALF = 128


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
    """(N, 2) easting and northing -> (N, 256)."""
    found = connection.execute(
        "SELECT origin_easting, origin_northing, arch, standardisation FROM callipper.model WHERE version = %s",
        [version],
    ).fetchone()
    assert found is not None
    easting, northing, arch, standardisation = found
    peaks = place_peaks(connection, version, arch["peaks"], metres) if "peaks" in arch else None
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
    if peaks is None:
        return np.hstack([np.zeros((len(x), HALF)), unit(x)])
    second = unit(x[:, -HALF:])
    echo = arch["peaks"].get("echo")
    first = peaks + (arch["peaks"]["summary"] * unit(x[:, :HALF]) if echo is None else echo * second)
    first /= np.maximum(np.linalg.norm(first, axis=1, keepdims=True) / arch["peaks"]["most"], 1)
    return np.hstack([first, second * np.sqrt(1 - (first**2).sum(axis=1, keepdims=True))])


def unit(vectors: Array) -> Array:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def place_peaks(connection: db.Connection, version: int, rule: dict[str, Any], metres: Array) -> Array:
    """(N, 2) -> (N, 128) how far the kinds of the POIs around stand out, along their directions."""
    kinds = {
        kind: (threshold, gain, np.array(unpack(direction)))
        for kind, threshold, gain, direction in connection.execute(
            "SELECT kind_id, threshold, gain, direction::text FROM callipper.kind_peak WHERE version = %s", [version]
        )
    }
    rows = connection.execute(
        "SELECT kind_id, basis > 0, floor(easting / 100), floor(northing / 100) FROM callipper.point_kind"
        " WHERE version = %s AND basis < 4",
        [version],
    ).fetchall()
    kind, by_name, *squares = map(np.array, zip(*rows, strict=True))
    centres = (np.column_stack(squares).astype(float) + 0.5) * 100
    weight = np.where(by_name, rule["by_name"], 1.0)
    result = np.zeros((len(metres), HALF))
    for row, place in enumerate(metres):
        share = np.prod(np.maximum(0, 1 - np.abs(centres - place) / rule["reach_m"]), axis=1)
        around = (share[~by_name].sum() + rule["prior"]) ** rule["power"]
        for number in set(kind[share > 0].tolist()) & kinds.keys():
            threshold, gain, direction = kinds[number]
            here = kind == number
            result[row] += gain * max(0.0, (share[here] * weight[here]).sum() / around - threshold) * direction
    return result / np.maximum(np.linalg.norm(result, axis=1, keepdims=True), rule["length"])


def text_peaks(
    connection: db.Connection, version: int, rule: dict[str, Any], texts: list[str], vectors: Array
) -> Array:
    """(V,) texts, (V, T) vectors of the sentence encoder -> (V, 128) the directions of the kinds that each asks for."""
    rows = connection.execute(
        "SELECT kind_id, direction::text, vec::text FROM callipper.kind_peak JOIN callipper.kind_phrase"
        " USING (version, kind_id) WHERE version = %s",
        [version],
    ).fetchall()
    directions = {kind: np.array(unpack(direction)) for kind, direction, _ in rows}
    kinds, phrases = np.array([kind for kind, *_ in rows]), np.array([unpack(phrase) for *_, phrase in rows])
    result, of_kinds = np.zeros((len(vectors), HALF)), lexemes_of_kinds(connection, version)
    for row, vector in enumerate(unit(vectors.astype(np.float64))):
        cosines = phrases @ vector
        shared = shared_words(of_kinds, directions.keys(), lexemes(connection, version, texts[row]))
        likeness = {
            kind: (
                float(np.log(np.exp(rule["softness"] * cosines[kinds == kind]).sum()))
                - rule["evenness"] * np.log(max(10, (kinds == kind).sum()))
            )
            / rule["softness"]
            + rule["by_words"] * shared[kind]
            for kind in directions
        }
        nearest = max(likeness.values())
        for kind, near in likeness.items():
            if cosines.max() >= rule["floor"] and near >= nearest - rule["width"]:
                result[row] += np.exp(rule["sharpness"] * (near - nearest)) * directions[kind]
    return result / np.maximum(np.linalg.norm(result, axis=1, keepdims=True), 1e-12)


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
    expected = expected_texts(connection, version, texts, encoder.transformer.encode(texts).astype(np.float64))
    found = connection.execute("SELECT text_embed(t)::text FROM unnest(%s::text[]) t", [texts]).fetchall()
    np.testing.assert_allclose([unpack(vector) for (vector,) in found], expected, atol=1e-5)


def expected_texts(connection: db.Connection, version: int, texts: list[str], vectors: Array) -> Array:
    """(V,) texts, (V, T) vectors of the sentence encoder -> (V, 256), by the rows of a version."""
    rows = connection.execute(
        "SELECT weight::text, bias FROM callipper.text_projection WHERE version = %s ORDER BY neuron", [version]
    ).fetchall()
    weight, bias = np.array([unpack(weight) for weight, _ in rows]), np.array([bias for _, bias in rows])
    second = unit(vectors @ weight.T + bias)
    rule = connection.execute("SELECT arch -> 'peaks' FROM callipper.model WHERE version = %s", [version]).fetchall()[
        0
    ][0]
    first = np.zeros((len(vectors), HALF)) if rule is None else text_peaks(connection, version, rule, texts, vectors)
    if rule is not None:
        if (echo := rule.get("echo")) is None:
            added = rule["summary"] * first @ layer(connection, version, "foretold")[0].T
        else:
            added = echo / np.sqrt(1 - echo**2) * first
        second = np.where(first.any(axis=1, keepdims=True), rule["text_context"] * second - added, second)
    return unit(np.hstack([first, second]))
