"""Write a model as rows and read it back, with the same weights and embeddings. publish.py adds the cells, points and texts."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from psycopg.types.json import Jsonb
from torch import Tensor, nn

from callipper_db import db
from callipper_db.arrays import Array
from callipper_db.errors import ModelUnreadable, NoActiveModel, UnknownModel
from callipper_db.tables import PEAK_DIMENSIONS
from callipper_trainer.config import TrainConfig
from callipper_trainer.features import KINDS, Feature
from callipper_trainer.model import CaLLiPer, TrainedModel
from callipper_trainer.peaks import read_peaks
from callipper_trainer.weight_rows import WeightRows


@dataclass(frozen=True)
class ModelRow:
    """The columns of a version's row in addition to the model itself."""

    srid: int
    extent: tuple[float, float, float, float]  # west, south, east, north of the training POIs, degrees
    grid_id: int
    text_encoder_id: int
    metrics: dict[str, Any]
    provenance: dict[str, Any]


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
        """The settings of the training, without those that this program does not know."""
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


def write_model(connection: db.Connection, trained: TrainedModel, config: TrainConfig, row: ModelRow) -> int:
    """Write a new version that is not active, with its weights; returns its number."""
    context = trained.model.location.context
    mean, scale = ([], []) if context is None else (context.mean.tolist(), context.scale.tolist())
    (version,) = connection.one(
        connection.named(
            "INSERT INTO callipper.model (status, srid, origin_easting, origin_northing, extent, grid_id, text_encoder_id,"
            " arch, standardisation, metrics, provenance)"
            # A little wider than the POIs, so that a single spot still makes a polygon.
            " VALUES ('ready', %s, %s, %s, "
            " ST_Expand(ST_MakeEnvelope(%s::float8, %s::float8, %s::float8, %s::float8, 4326), float8 '1e-6'),"
            " %s, %s, %s, %s, %s, %s) RETURNING version"
        ),
        [
            row.srid,
            *trained.origin.tolist(),
            *row.extent,
            row.grid_id,
            row.text_encoder_id,
            Jsonb(architecture(config, trained)),
            Jsonb({"mean": mean, "scale": scale}),
            Jsonb(row.metrics),
            Jsonb(row.provenance),
        ],
    )
    rows = WeightRows(connection, version)
    for name, layer in trained.model.location.linear_layers().items():
        rows.write_layer(name, *_arrays(layer))
    rows.write_projection(*_arrays(trained.model.text_projection))
    for feature in _features(trained):
        feature.write(rows)
    return rows.version


def architecture(config: TrainConfig, trained: TrainedModel) -> dict[str, Any]:
    """The location encoder as data: which features, then which layers, so that SQL can run it."""
    joins = trained.model.location.joins
    layers: list[dict[str, Any]] = [{"layer": "input", "activation": "relu"}]
    for number in range(config.blocks):
        layers += [
            {"layer": f"block{number}.first", "activation": "relu", "residual": "begin"},
            {"layer": f"block{number}.second", "activation": "relu", "residual": "add"},
        ]
    return {
        "encoder": config.encoder,
        "features": [feature.entry() for feature in _features(trained)],
        "layers": [*layers, {"layer": "output", "activation": None} | ({"residual": "join"} if joins else {})],
        "dimensions": trained.model.location.output.out_features,
        "logit_scale": float(trained.model.scale().detach()),
    } | ({} if trained.peaks is None else {"peaks": trained.peaks.entry()})


def _load(connection: db.Connection, version: int | None) -> LoadedModel:
    row = connection.execute(
        connection.named(
            "SELECT m.version, m.srid, ARRAY[ST_XMin(b), ST_YMin(b), ST_XMax(b), ST_YMax(b)],"
            " e.name, e.revision, e.dim, m.provenance, m.arch, m.standardisation, m.origin_easting, m.origin_northing"
            " FROM callipper.model m JOIN callipper.text_encoder e USING (text_encoder_id),"
            " LATERAL (SELECT m.extent::@box3d AS b) AS box"
            " WHERE m.version = coalesce(%s::bigint, callipper._active_version())"
        ),
        [version],
    ).fetchone()
    if row is None:
        raise NoActiveModel if version is None else UnknownModel(version=version)
    number, srid, extent, name, revision, dim, provenance, arch, standardisation, easting, northing = row
    model, summary = _read_model(WeightRows(connection, number), arch, dim)
    pyramid = None
    if (context := model.location.context) is not None:
        context.mean.copy_(torch.tensor(standardisation["mean"]))
        context.scale.copy_(torch.tensor(standardisation["scale"]))
        pyramid = context.pyramid
    peaks = read_peaks(connection, number, arch["peaks"], dim, summary) if "peaks" in arch else None
    trained = TrainedModel(model.eval(), np.array([easting, northing]), pyramid, best_epoch=0, peaks=peaks)
    return LoadedModel(number, srid, tuple(extent), (name, revision), provenance, trained)


def _read_model(rows: WeightRows, arch: dict[str, Any], text_dim: int) -> tuple[CaLLiPer, tuple[Array, Array] | None]:
    """The network, and the weights of the context's summary, which the last layer of an earlier program computes too."""
    features = _read_features(rows, arch)
    weights = {layer["layer"]: rows.read_layer(layer["layer"]) for layer in arch["layers"]}
    summary = None
    if "peaks" in arch and "echo" not in arch["peaks"]:
        weight, bias = weights["output"]
        context = next(feature.width for feature in features if feature.looked_up)
        summary = weight[:PEAK_DIMENSIONS, -context:], bias[:PEAK_DIMENSIONS]
        weights["output"] = weight[PEAK_DIMENSIONS:], bias[PEAK_DIMENSIONS:]
    blocks = sum(layer.get("residual") == "add" for layer in arch["layers"])
    config = TrainConfig(hidden=len(weights["input"][1]), blocks=blocks)
    joins = arch["layers"][-1].get("residual") == "join"
    model = CaLLiPer(config, text_dim, features, joins=joins)
    for name, layer in model.location.linear_layers().items():
        _fill(layer, *weights[name])
    _fill(model.text_projection, *rows.read_projection(text_dim))
    _set(model.logit_scale, torch.tensor(math.log(arch["logit_scale"])))
    return model, summary


def _read_features(rows: WeightRows, arch: dict[str, Any]) -> list[Feature]:
    """Raises ModelUnreadable for an architecture that this program does not have."""
    entries = arch.get("features", [])
    if not entries:
        raise ModelUnreadable(version=rows.version, reason="it has no location encoder. Train again.")
    kinds = {kind.kind: kind for kind in KINDS}
    if any(entry["kind"] not in kinds or entry.keys() - {"kind"} != kinds[entry["kind"]].keys for entry in entries):
        reason = "its features are not known to this program. Update it: pip install --upgrade callipper-db"
        raise ModelUnreadable(version=rows.version, reason=reason)
    return [kinds[entry["kind"]].read(entry, rows) for entry in entries]


def _features(trained: TrainedModel) -> list[Feature]:
    return [feature for feature in trained.model.location.features if isinstance(feature, Feature)]


def _arrays(layer: nn.Linear) -> tuple[Array, Array]:
    return layer.weight.detach().cpu().numpy(), layer.bias.detach().cpu().numpy()


def _fill(layer: nn.Linear, weight: Array, bias: Array) -> None:
    _set(layer.weight, torch.from_numpy(weight))
    _set(layer.bias, torch.from_numpy(bias))


@torch.no_grad()
def _set(parameter: Tensor, values: Tensor) -> None:
    assert parameter.shape == values.shape, f"{tuple(values.shape)} values for {tuple(parameter.shape)} weights"
    parameter.copy_(values)
