"""Reads and writes the weights of one model version as rows."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from psycopg import sql

from callipper_db.arrays import Array
from callipper_db.binary_copy import Columns, read_rows, write_rows
from callipper_db.db import Connection
from callipper_db.errors import ModelUnreadable
from callipper_db.tables import SCHEMA

LAYER = {"weight": "vector", "bias": "float4"}


class WeightRows:
    """The rows of one version."""

    def __init__(self, connection: Connection, version: int) -> None:
        self.connection, self.version = connection, version

    def write(self, table: str, columns: Columns) -> None:
        """COPY arrays into a table, under the version."""
        write_rows(self.connection, sql.Identifier(SCHEMA, table), {"version": ("int4", self.version), **columns})

    def read(self, table: str, columns: dict[str, str], key: dict[str, Any], dim: int) -> list[Array]:
        """The version's rows with a key, in the order of their primary key; `columns` are names and types."""
        conditions = [
            sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value))
            for name, value in {"version": self.version, **key}.items()
        ]
        query = sql.SQL("SELECT {} FROM {} WHERE {} ORDER BY {}").format(
            sql.SQL(", ").join(map(sql.Identifier, columns)),
            sql.Identifier(SCHEMA, table),
            sql.SQL(" AND ").join(conditions),
            sql.SQL(", ").join(map(sql.Identifier, ("i", "j") if "i" in columns else ("neuron",))),
        )
        return read_rows(self.connection, query, list(columns.values()), dim)

    def write_layer(self, layer: str, weight: Array, bias: Array) -> None:
        """A layer of the location encoder: (outputs, inputs) and (outputs,)."""
        self.write("location_weight", {"layer": ("text", [layer.encode()] * len(weight)), **_neurons(weight, bias)})

    def read_layer(self, layer: str) -> tuple[Array, Array]:
        """Weight (outputs, inputs) and bias (outputs,) of a layer. Raises ModelUnreadable."""
        if layer not in self._inputs:
            raise ModelUnreadable(version=self.version, reason=f"the layer {layer} is missing. Train again.")
        weight, bias = self.read("location_weight", LAYER, {"layer": layer}, self._inputs[layer])
        return weight, bias

    def write_projection(self, weight: Array, bias: Array) -> None:
        """The text tower's projection: (D, T) and (D,)."""
        self.write("text_projection", _neurons(weight, bias))

    def read_projection(self, text_dim: int) -> tuple[Array, Array]:
        """The text tower's projection from text_dim numbers: (D, T) and (D,)."""
        weight, bias = self.read("text_projection", LAYER, {}, text_dim)
        return weight, bias

    @cached_property
    def _inputs(self) -> dict[str, int]:
        """How many inputs each layer has."""
        rows = self.connection.execute(
            self.connection.named(
                "SELECT DISTINCT ON (layer) layer, @extschema:vector@.vector_dims(weight)"
                " FROM callipper.location_weight WHERE version = %s"
            ),
            [self.version],
        )
        return dict(rows.fetchall())


def _neurons(weight: Array, bias: Array) -> Columns:
    return {"neuron": ("int4", np.arange(len(weight))), "weight": ("vector", weight), "bias": ("float4", bias)}
