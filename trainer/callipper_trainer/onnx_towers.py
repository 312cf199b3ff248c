"""Both towers as ONNX files, so that programs in any language embed places and texts without a database.

torch.onnx translates torch code. So what context.py and peaks.py compute with numpy and scipy is here again in operations that
ONNX has: no sparse matrices, and a bisection instead of searchsorted.

Shapes: B rows, L lattices, M cells of all lattices, Q cells per row, S squares, K kinds, T dimensions of the sentence encoder.
"""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from callipper_db import db
from callipper_db.arrays import Array
from callipper_db.export import ExportSummary, crs_text
from callipper_db.progress import Reporter
from callipper_db.tables import PEAK_DIMENSIONS
from callipper_trainer.context import CORNERS, Pyramid
from callipper_trainer.features import ContextFeatures
from callipper_trainer.model import TrainedModel
from callipper_trainer.model_rows import LoadedModel, load_model
from callipper_trainer.peaks import FEWEST_PHRASES, SQUARE_M, KindPeaks

OPSET = 18  # the first that scatters with a sum is 16


def export_onnx(dsn: str, path: Path, reporter: Reporter) -> ExportSummary:
    """Write the active model's towers: model.onnx makes model.places.onnx and model.texts.onnx.

    Places: `metres`, (B, 2) float64 easting and northing in the model's CRS. Texts: `vectors`, (B, T) float32 of the sentence
    encoder, and `shared`, (B, K) float64, the words that a text shares with each kind of place (callipper._shared_words), zeros
    where these are not known. Both give `emb`, (B, 256) float32. The metadata of each file has the model version, CRS and
    sentence encoder, that of texts the numbers of the kinds.
    Raises NoActiveModel, ModelUnreadable; ModuleNotFoundError without onnx and onnxscript.
    """
    import onnx  # noqa: F401
    import onnxscript  # noqa: F401

    began = time.monotonic()
    reporter.stage("reading weights")
    with db.session(dsn, autocommit=True) as connection:
        loaded = load_model(connection)
        about = _about(connection, loaded)
    places, texts = (path.with_name(f"{path.stem}.{tower}.onnx") for tower in ("places", "texts"))
    reporter.stage("writing towers", 2)
    origin = torch.from_numpy(loaded.trained.origin)
    # Two rows, because torch takes the size of a batch of one for a constant.
    _write(PlaceTower(loaded.trained), {"metres": torch.stack([origin, origin + 1])}, places, about)
    reporter.advance(1)
    text_dim = loaded.trained.model.text_projection.in_features
    peaks = loaded.trained.peaks
    asked = {"vectors": torch.ones(2, text_dim)}
    if peaks is not None:
        asked["shared"] = torch.zeros(2, len(peaks.kind_id), dtype=torch.float64)
        about["callipper_db.kinds"] = json.dumps(peaks.kind_id.tolist())
    _write(TextTower(loaded.trained), asked, texts, about)
    reporter.advance(1)
    return ExportSummary(f"{places} and {texts}", loaded.version, 2, round(time.monotonic() - began, 2))


def _about(connection: db.Connection, loaded: LoadedModel) -> dict[str, str]:
    """The metadata of both files. known_places: longitude, latitude, easting and northing of some places inside the extent.

    With them, a program that projects by itself can check its metres.
    """
    encoder, revision = loaded.text_encoder
    west, south, east, north = loaded.extent
    known = connection.execute(
        connection.named(
            "SELECT ST_X(p), ST_Y(p), ST_X(m), ST_Y(m) FROM unnest(ARRAY[0.25, 0.5, 0.75]::float8[]) x,"
            " unnest(ARRAY[0.25, 0.5, 0.75]::float8[]) y,"
            " LATERAL (SELECT ST_SetSRID(ST_MakePoint(%(west)s::float8 + x * %(wide)s::float8,"
            " %(south)s::float8 + y * %(high)s::float8), 4326) AS p) AS place,"
            " LATERAL (SELECT ST_Transform(p, %(srid)s::int4) AS m) AS projected"
        ),
        {"west": west, "wide": east - west, "south": south, "high": north - south, "srid": loaded.srid},
    ).fetchall()
    return {
        "callipper_db.version": str(loaded.version),
        "callipper_db.srid": str(loaded.srid),
        "callipper_db.crs": crs_text(connection, loaded.srid),
        "callipper_db.extent": json.dumps(loaded.extent),
        "callipper_db.known_places": json.dumps(known),
        "callipper_db.text_encoder": f"{encoder} {revision}",
    }


def _write(tower: nn.Module, inputs: dict[str, Tensor], path: Path, about: dict[str, str]) -> None:
    log = logging.getLogger("torch.onnx")
    level = log.level
    rows = torch.export.Dim("rows")
    log.setLevel(logging.ERROR)  # it warns that torchvision is missing
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                tower.eval(),
                tuple(inputs.values()),
                dynamo=True,
                input_names=list(inputs),
                output_names=["emb"],
                dynamic_shapes=tuple({0: rows} for _ in inputs),
                opset_version=OPSET,
                verbose=False,
            )
    finally:
        log.setLevel(level)
    assert program is not None
    program.model.metadata_props.update(about)
    program.save(path)


class SortedKeys(nn.Module):
    """Finds cells by their (i, j) in sorted lists, one list a lattice."""

    key: Tensor
    start: Tensor
    end: Tensor

    def __init__(self, keys: Sequence[Array]) -> None:
        """keys: per lattice (M_l,) int64, ascending, see context.cell_key()."""
        super().__init__()
        ends = np.cumsum([len(key) for key in keys])
        self.register_buffer("key", torch.from_numpy(np.concatenate(keys)))
        self.register_buffer("start", torch.from_numpy(ends - [len(key) for key in keys])[:, None])
        self.register_buffer("end", torch.from_numpy(ends)[:, None])
        self.steps = max(len(key) for key in keys).bit_length()

    def forward(self, ij: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, Q, 2) int64 -> (B, L, Q) int64 their rows in their lattice, and whether they are there."""
        wanted = ij[..., 0] * (1 << 32) + ij[..., 1]
        low = torch.zeros_like(wanted) + self.start
        high = torch.zeros_like(wanted) + self.end
        last = len(self.key) - 1
        for _ in range(self.steps):
            middle = (low + high) // 2
            before = (self.key[middle.clamp(max=last)] < wanted) & (low < high)
            low = torch.where(before, middle + 1, low)
            high = torch.where(before, high, middle)
        found = (low < self.end) & (self.key[low.clamp(max=last)] == wanted)
        return torch.where(found, low - self.start, 0), found


class ContextLookup(nn.Module):
    """Pyramid.features(), standardised."""

    size_m: Tensor
    corners: Tensor

    def __init__(self, pyramid: Pyramid, features: ContextFeatures) -> None:
        super().__init__()
        self.features = features
        self.keys = SortedKeys([level.key for level in pyramid.levels])
        self.code_size, self.prior = pyramid.code_size, pyramid.prior
        self.register_buffer("size_m", torch.tensor([level.size_m for level in pyramid.levels], dtype=torch.float64))
        self.register_buffer("corners", torch.from_numpy(CORNERS))
        for number, level in enumerate(pyramid.levels):
            sums = np.concatenate([level.count[:, None], level.code_sum], axis=1).astype(np.float32)
            self.register_buffer(f"sums{number}", torch.from_numpy(sums))

    def forward(self, metres: Tensor) -> Tensor:
        """(B, 2) float64 metres from the origin -> (B, C) float32."""
        position = metres[:, None] / self.size_m[:, None] - 0.5  # (B, L, 2); cell centres are whole numbers here
        corner = position.floor()
        fraction = (position - corner)[:, :, None]
        weight = torch.where(self.corners == 1, fraction, 1 - fraction).prod(dim=3)
        row, found = self.keys(corner.long()[:, :, None] + self.corners)
        weight = torch.where(found, weight, 0).float()
        parts = []
        for number in range(len(self.size_m)):
            sums = self.get_buffer(f"sums{number}")
            mixed = (sums[row[:, number]] * weight[:, number, :, None]).sum(dim=1)
            count, code, kinds = mixed[:, :1], mixed[:, 1 : 1 + self.code_size], mixed[:, 1 + self.code_size :]
            count = count.clamp(min=0)
            parts += [code / (count + self.prior), count.log1p(), kinds.clamp(min=0).log1p()]
        return self.features.standardise(torch.cat(parts, dim=1))


class Peaks(nn.Module):
    """KindPeaks.embed_places()."""

    grid: Tensor
    pois: Tensor
    kind: Tensor
    held: Tensor
    threshold: Tensor
    gain: Tensor
    direction: Tensor
    summary_weight: Tensor | None
    summary_bias: Tensor | None

    def __init__(self, peaks: KindPeaks) -> None:
        super().__init__()
        self.rule = peaks.rule
        key, held, pois = peaks.squares
        kinds = held.shape[1]
        widest = max(int(np.diff(held.indptr).max()), 1)
        # A square has few of the kinds. Rows are filled up with a kind that does not count.
        column = np.arange(widest) + held.indptr[:-1, None]
        used = column < held.indptr[1:, None]
        column = np.minimum(column, len(held.indices) - 1)
        self.keys = SortedKeys([key])
        steps = np.arange(int(2 * self.reach) + 1)
        grid = np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)
        summary = peaks.summary
        for name, values in {
            "grid": grid,
            "pois": pois.astype(np.float32),
            "kind": np.where(used, held.indices[column], kinds).astype(np.int64),
            "held": np.where(used, held.data[column], 0).astype(np.float32),
            "threshold": peaks.threshold,
            "gain": peaks.gain,
            "direction": peaks.code,
            "summary_weight": None if summary is None else summary.weight,
            "summary_bias": None if summary is None else summary.bias,
        }.items():
            self.register_buffer(name, None if values is None else torch.from_numpy(np.ascontiguousarray(values)))

    @property
    def reach(self) -> float:
        return self.rule.reach_m / SQUARE_M

    def forward(self, metres: Tensor, context: Tensor, second: Tensor) -> Tensor:
        """(B, 2) float64 easting and northing, (B, C) standardised context, (B, 128) -> (B, 128) float32, length <= 1."""
        here = metres / SQUARE_M - 0.5  # centres of squares are whole numbers here
        first = (here - self.reach).ceil().long()
        ij = first[:, None] + self.grid  # (B, Q, 2)
        share = (1 - (here[:, None] - ij).abs() / self.reach).clamp(min=0).prod(dim=2)
        row, found = self.keys(ij[:, None])
        row, share = row[:, 0], torch.where(found[:, 0], share, 0).float()
        surroundings = ((share * self.pois[row]).sum(dim=1, keepdim=True) + self.rule.prior) ** -self.rule.power
        counted = metres.new_zeros(metres.shape[0], len(self.threshold) + 1, dtype=torch.float32)
        counted = counted.scatter_add(1, self.kind[row].flatten(1), (self.held[row] * share[:, :, None]).flatten(1))
        evidence = counted[:, :-1] * surroundings
        over = torch.where(evidence > 0, (evidence - self.threshold).clamp(min=0) * self.gain, 0)
        result = _shorten(over @ self.direction, self.rule.length)
        if self.summary_weight is None:
            result = result + self.rule.echo * second
        else:
            summary = functional.normalize(functional.linear(context, self.summary_weight, self.summary_bias), dim=1)
            result = result + self.rule.summary * summary
        return self.rule.most * _shorten(result / self.rule.most, 1)


def _shorten(rows: Tensor, length: float) -> Tensor:
    """(B, D): rows longer than `length` become of length 1, others a `length`-th of what they are."""
    divisor: Tensor = rows.norm(dim=1, keepdim=True).clamp(min=length)
    return rows / divisor


class PlaceTower(nn.Module):
    """embed.embed_places()."""

    origin: Tensor

    def __init__(self, trained: TrainedModel) -> None:
        super().__init__()
        self.location = trained.model.location
        self.register_buffer("origin", torch.from_numpy(trained.origin))
        features, pyramid = self.location.context, trained.pyramid
        self.context = None if features is None or pyramid is None else ContextLookup(pyramid, features)
        self.peaks = None if trained.peaks is None else Peaks(trained.peaks)

    def forward(self, metres: Tensor) -> Tensor:
        """(B, 2) float64 easting and northing in the model's CRS -> (B, 256) float32, unit length."""
        inside = metres - self.origin
        context = None if self.context is None else self.context(inside)
        second = self.location(inside, context)
        if self.peaks is None or context is None:
            return functional.pad(second, (PEAK_DIMENSIONS, 0))
        first = self.peaks(metres, context, second)
        return torch.cat([first, second * (1 - (first**2).sum(dim=1, keepdim=True)).clamp(min=0).sqrt()], dim=1)


class TextTower(nn.Module):
    """embed.embed_texts()."""

    phrases: Tensor
    phrase: Tensor
    counts: Tensor
    kind: Tensor
    direction: Tensor
    added: Tensor

    def __init__(self, trained: TrainedModel) -> None:
        super().__init__()
        self.projection = trained.model.text_projection
        self.rule = None
        if (peaks := trained.peaks) is None:
            return
        self.rule = peaks.rule
        starts = np.flatnonzero(np.diff(peaks.phrase_kind, prepend=-1))
        ends = np.append(starts[1:], len(peaks.phrase_kind))
        # The phrases of each kind. Rows are filled up with a phrase that does not count.
        phrase = np.arange((ends - starts).max()) + starts[:, None]
        if (summary := peaks.summary) is None:
            added = self.rule.echoed * np.eye(PEAK_DIMENSIONS, dtype=np.float32)
        else:
            added = self.rule.summary * summary.foretold
        for name, values in {
            "phrases": peaks.phrases,
            "phrase": np.minimum(phrase, ends[:, None] - 1),
            "counts": phrase < ends[:, None],
            "kind": peaks.phrase_kind[starts],
            "direction": peaks.code[peaks.phrase_kind[starts]],
            "added": added,
        }.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(values)))

    def forward(self, vectors: Tensor, shared: Tensor | None = None) -> Tensor:
        """(B, T) float32 vectors of the sentence encoder, (B, K) float64 shared words -> (B, 256) float32, unit length."""
        second = functional.normalize(self.projection(vectors), dim=1)
        if (rule := self.rule) is None:
            return functional.pad(second, (PEAK_DIMENSIONS, 0))
        likeness = (functional.normalize(vectors, dim=1) @ self.phrases.T).double()
        asks = likeness.amax(dim=1, keepdim=True) >= rule.floor
        likeness = likeness[:, self.phrase]  # (V, K, phrases of a kind)
        if rule.softness is None:
            likeness = likeness.amax(dim=2)
        else:
            summed = (torch.exp(rule.softness * likeness) * self.counts).sum(dim=2).log()
            likeness = (
                summed - rule.evenness * self.counts.sum(dim=1).clamp(min=FEWEST_PHRASES).double().log()
            ) / rule.softness
        if shared is not None:
            likeness = likeness + rule.by_words * shared[:, self.kind]
        nearest = likeness.amax(dim=1, keepdim=True)
        weight = (rule.sharpness * (likeness - nearest)).exp()
        asked = (likeness >= nearest - rule.width) & asks
        first = functional.normalize(torch.where(asked, weight, 0).float() @ self.direction, dim=1)
        joined = torch.where(asks, rule.text_context * second - first @ self.added, second)
        return functional.normalize(torch.cat([first, joined], dim=1), dim=1)
