"""A published model back from the database into the modules that trained it: same weights, same embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from psycopg import sql
from torch import Tensor, nn

from callipper_db import db
from callipper_db.arrays import Array
from callipper_db.binary_copy import read_rows
from callipper_db.errors import ModelUnreadable, NoActiveModel, UnknownModel
from callipper_trainer.config import TrainConfig
from callipper_trainer.context import KindCode, Level, Pyramid, TextCode, cell_key
from callipper_trainer.fit import TrainedModel
from callipper_trainer.model import CaLLiPer

# What this program can read of a model: the features by kind, and the keys that say all about each.
FEATURES = {
    "grid": {"kind", "divisors_m"},
    "context": {"kind", "sizes_m", "code", "prior", "kinds", "kinds_from_m"},
}


@dataclass(frozen=True)
class LoadedModel:
    """A model version, ready to embed."""

    version: int
    srid: int
    extent: tuple[float, float, float, float]  # west, south, east, north of the training POIs, degrees
    text_encoder: tuple[str, str]  # name, revision
    provenance: dict[str, Any]
    trained: TrainedModel

    @property
    def config(self) -> TrainConfig:
        """What the version was trained with; settings that this program does not know are left out."""
        known = {field.name for field in fields(TrainConfig)}
        stored = self.provenance.get("config", {})
        return TrainConfig(**{name: value for name, value in stored.items() if name in known})


def load_model(connection: db.Connection, version: int | None = None) -> LoadedModel:
    """A version, or the active one, in evaluation mode on the CPU.

    The connection must be in no transaction, or in one of a single snapshot. Raises UnknownModel, NoActiveModel,
    ModelUnreadable.
    """
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        return _load(connection, version)


def _load(connection: db.Connection, version: int | None) -> LoadedModel:
    row = connection.execute(
        "SELECT m.version, m.srid, ARRAY[ST_XMin(m.extent), ST_YMin(m.extent), ST_XMax(m.extent), ST_YMax(m.extent)],"
        " e.name, e.revision, e.dim, m.provenance, m.arch, m.standardisation, m.origin_easting, m.origin_northing"
        " FROM callipper.model m JOIN callipper.text_encoder e USING (text_encoder_id)"
        " WHERE m.version = coalesce(%s::bigint, callipper._active_version())",
        [version],
    ).fetchone()
    if row is None:
        raise NoActiveModel if version is None else UnknownModel(version=version)
    number, srid, extent, name, revision, dim, provenance, arch, standardisation, easting, northing = row
    layers = _Layers(connection, number)
    features = _features(number, arch)
    pyramid = _read_pyramid(layers, features["context"]) if "context" in features else None
    model = _build(layers, arch, features["grid"]["divisors_m"], dim, pyramid.width if pyramid else 0)
    if pyramid is not None:
        model.location.context_mean.copy_(torch.tensor(standardisation["mean"]))
        model.location.context_scale.copy_(torch.tensor(standardisation["scale"]))
    trained = TrainedModel(model.eval(), np.array([easting, northing]), pyramid, best_epoch=0)
    return LoadedModel(number, srid, tuple(extent), (name, revision), provenance, trained)


class _Layers:
    """The weights of one version as they stand in the database."""

    def __init__(self, connection: db.Connection, version: int) -> None:
        self.connection, self.version = connection, version
        widths = connection.execute(
            "SELECT DISTINCT ON (layer) layer, vector_dims(weight) FROM callipper.location_weight WHERE version = %s",
            [version],
        )
        self.width: dict[str, int] = dict(widths.fetchall())

    def read(self, layer: str) -> tuple[Array, Array]:
        """Weight (outputs, inputs) and bias (outputs,) of a layer."""
        if layer not in self.width:
            raise ModelUnreadable(version=self.version, reason=f"the layer {layer} is missing. Train again.")
        query = sql.SQL(
            "SELECT weight, bias FROM callipper.location_weight WHERE version = {} AND layer = {} ORDER BY neuron"
        ).format(sql.Literal(self.version), sql.Literal(layer))
        weight, bias = read_rows(self.connection, query, ["vector", "float4"], self.width[layer])
        return weight, bias

    def read_projection(self, dim: int) -> tuple[Array, Array]:
        """Of the text tower: (128, dim) and (128,)."""
        query = sql.SQL("SELECT weight, bias FROM callipper.text_projection WHERE version = {} ORDER BY neuron")
        weight, bias = read_rows(self.connection, query.format(sql.Literal(self.version)), ["vector", "float4"], dim)
        return weight, bias

    def read_level(self, number: int, size_m: float, width: int) -> Level:
        """One lattice of the pyramid, whose cells hold sums of that many numbers."""
        query = sql.SQL(
            "SELECT i, j, n, code_sum FROM callipper.context_cell WHERE version = {} AND level = {} ORDER BY i, j"
        ).format(sql.Literal(self.version), sql.Literal(number))
        i, j, count, code_sum = read_rows(self.connection, query, ["int4", "int4", "float4", "vector"], width)
        ij = np.column_stack([i, j]).astype(np.int64)
        return Level(size_m, cell_key(ij), ij, count, code_sum)


def _features(version: int, arch: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The features by kind. Raises ModelUnreadable for an architecture that this program does not have."""
    found: dict[str, dict[str, Any]] = {feature["kind"]: feature for feature in arch.get("features", [])}
    if not found:
        raise ModelUnreadable(version=version, reason="it has no location encoder. Train again.")
    if list(found) not in (["grid"], ["grid", "context"]) or any(set(found[kind]) != FEATURES[kind] for kind in found):
        reason = "its features are not known to this program. Update it: pip install --upgrade callipper-db"
        raise ModelUnreadable(version=version, reason=reason)
    return found


def _build(layers: _Layers, arch: dict[str, Any], divisors: list[float], dim: int, context_width: int) -> CaLLiPer:
    weights = {layer["layer"]: layers.read(layer["layer"]) for layer in arch["layers"]}
    blocks = sum(layer.get("residual") == "add" for layer in arch["layers"])
    config = TrainConfig(frequencies=len(divisors), hidden=len(weights["input"][1]), blocks=blocks)
    joins = arch["layers"][-1].get("residual") == "join"
    model = CaLLiPer(config, dim, context_width, joins=joins)
    model.location.encoding.divisors.copy_(torch.tensor(divisors, dtype=torch.float64))
    for name, layer in model.location.linear_layers().items():
        _fill(layer, *weights[name])
    _fill(model.text_projection, *layers.read_projection(dim))
    _set(model.logit_scale, torch.tensor(math.log(arch["logit_scale"])))
    return model


def _read_pyramid(layers: _Layers, context: dict[str, Any]) -> Pyramid:
    """From what the architecture says, whatever this program's own sizes are."""
    codes = TextCode(*layers.read("text_code")), KindCode(*layers.read("kind_code"))
    empty = Pyramid(*codes, [], context["prior"], context["kinds_from_m"])
    levels = [layers.read_level(number, size_m, empty.sums(size_m)) for number, size_m in enumerate(context["sizes_m"])]
    return replace(empty, levels=levels)


def _fill(layer: nn.Linear, weight: Array, bias: Array) -> None:
    _set(layer.weight, torch.from_numpy(weight))
    _set(layer.bias, torch.from_numpy(bias))


@torch.no_grad()
def _set(parameter: Tensor, values: Tensor) -> None:
    assert parameter.shape == values.shape, f"{tuple(values.shape)} values for {tuple(parameter.shape)} weights"
    parameter.copy_(values)
