"""A reader of Mapbox vector tiles, by the specification alone: https://github.com/mapbox/vector-tile-spec."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

Message = list[tuple[int, Any]]


def features(tile: bytes, layer: str) -> list[dict[str, Any]]:
    """id and properties of each feature of a layer; none where the layer is missing."""
    for number, body in _fields(tile):
        if number == 3:
            found = list(_fields(body))
            if dict(found)[1] == layer.encode():
                return list(_features(found))
    return []


def _features(layer: Message) -> Iterator[dict[str, Any]]:
    keys = [value.decode() for number, value in layer if number == 3]
    values = [_value(value) for number, value in layer if number == 4]
    for number, body in layer:
        if number == 2:
            feature = dict(_fields(body))
            tags = list(_numbers(feature.get(2, b"")))
            pairs = zip(tags[::2], tags[1::2], strict=True)
            yield {"id": feature.get(1), "properties": {keys[key]: values[value] for key, value in pairs}}


def _value(body: bytes) -> Any:
    [(number, value)] = _fields(body)
    if number == 1:
        return value.decode()
    if number == 6:
        return (value >> 1) ^ -(value & 1)
    return value


def _fields(body: bytes) -> Iterator[tuple[int, Any]]:
    at = 0
    while at < len(body):
        tag, at = _number(body, at)
        if tag & 7 == 0:
            value, at = _number(body, at)
            yield tag >> 3, value
        elif tag & 7 == 2:
            length, at = _number(body, at)
            yield tag >> 3, body[at : at + length]
            at += length
        else:
            width = {1: 8, 5: 4}[tag & 7]
            yield tag >> 3, struct.unpack("<d" if width == 8 else "<f", body[at : at + width])[0]
            at += width


def _numbers(body: bytes) -> Iterator[int]:
    at = 0
    while at < len(body):
        value, at = _number(body, at)
        yield value


def _number(body: bytes, at: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = body[at]
        result |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return result, at
