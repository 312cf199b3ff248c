"""Numbers in and out by binary COPY: whole numpy arrays, no Python object per row.

The wire format is PostgreSQL's: per row a field count (int16), then per field a length (int32) and its bytes, big-endian.
Rows whose fields have fixed lengths are one numpy structured array; texts vary, so rows are grouped by their text's length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from psycopg import sql

from callipper_db.arrays import Array
from callipper_db.db import Connection
from callipper_db.progress import Advance, silent

Columns = dict[str, tuple[str, Array | Sequence[bytes] | int]]  # name -> (type, values); see write_rows

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
POINT_EWKB = np.dtype([("order", "u1"), ("kind", "<u4"), ("srid", "<u4"), ("xy", "<f8", (2,))])
ROWS_PER_MESSAGE = 8192
MESSAGE_BYTES = 4 * 2**20
FLOATS = {"vector": ">f4", "halfvec": ">f2"}
SCALARS = {"bool": "?", "int2": ">i2", "int4": ">i4", "int8": ">i8", "float4": ">f4", "float8": ">f8"}


def write_rows(connection: Connection, table: sql.Composable, columns: Columns, advance: Advance = silent) -> int:
    """COPY arrays into a table; returns the number of rows.

    `columns` maps a column's name to its type and values: bool, int2, int4, int8, float4, float8 (N,); vector, halfvec (N, D),
    finite; point (N, 2) longitude and latitude, SRID 4326; text (N,) of UTF-8 bytes, which change the order of the rows.
    One number in place of an array is that of all rows.
    """
    (count,) = {len(values) for _, values in columns.values() if not isinstance(values, int)}
    arrays = [(kind, np.full(count, of) if isinstance(of, int) else of) for kind, of in columns.values()]
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
        table, sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    total = 0
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(HEADER)
        for rows, message in binary_rows(arrays):
            copy.write(message)
            total += rows
            advance(rows)
        copy.write(TRAILER)
    return total


def binary_rows(columns: list[tuple[str, Array | Sequence[bytes]]]) -> Iterator[tuple[int, bytes]]:
    """Yield (number of rows, their bytes) in messages of 4 MB at most, but for a single row that is larger."""
    count = len(columns[0][1])
    texts = [np.asarray(values, dtype=object) for kind, values in columns if kind == "text"]
    if not texts:
        yield from _fixed_rows(columns, np.arange(count))
        return
    lengths = np.stack([np.fromiter(map(len, values), np.int64, count) for values in texts], axis=1)
    _, group = np.unique(lengths, axis=0, return_inverse=True)
    order = np.argsort(group.reshape(-1), kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(group.reshape(-1)[order])) + 1):
        if len(rows):
            yield from _fixed_rows(columns, rows)


def _fixed_rows(columns: list[tuple[str, Array | Sequence[bytes]]], rows: Array) -> Iterator[tuple[int, bytes]]:
    fields: list[tuple[Any, ...]] = [("count", ">i2")]
    for number, (kind, values) in enumerate(columns):
        fields += [(f"length{number}", ">i4"), (f"value{number}", *_field(kind, values, rows))]
    dtype = np.dtype(fields)
    step = min(ROWS_PER_MESSAGE, max(1, MESSAGE_BYTES // dtype.itemsize))
    for start in range(0, len(rows), step):
        chosen = rows[start : start + step]
        block = np.empty(len(chosen), dtype)
        block["count"] = len(columns)
        for number, (kind, values) in enumerate(columns):
            block[f"length{number}"] = dtype[f"value{number}"].itemsize
            _fill(block[f"value{number}"], kind, values, chosen)
        yield len(chosen), block.tobytes()


def _field(kind: str, values: Array | Sequence[bytes], rows: Array) -> tuple[Any, ...]:
    if kind in FLOATS:
        dim = np.shape(values)[1]
        return ([("dim", ">i2"), ("unused", ">i2"), ("floats", FLOATS[kind], (dim,))],)
    if kind == "point":
        return (POINT_EWKB,)
    if kind == "text":
        return (f"V{len(values[rows[0]])}",)
    return (SCALARS[kind],)


def _fill(field: Array, kind: str, values: Array | Sequence[bytes], rows: Array) -> None:
    if kind in FLOATS:
        chosen = np.asarray(values)[rows]
        field["dim"], field["unused"], field["floats"] = chosen.shape[1], 0, chosen
    elif kind == "point":
        field["order"], field["kind"], field["srid"] = 1, 0x20000001, 4326
        field["xy"] = np.asarray(values)[rows]
    elif kind == "text":
        width = field.dtype.itemsize
        joined = b"".join(values[row] for row in rows)
        if width:
            field[:] = np.frombuffer(joined, f"V{width}")
    else:
        field[:] = np.asarray(values)[rows]


def read_rows(
    connection: Connection, query: sql.Composable, kinds: Sequence[str], dim: int = 0, advance: Advance = silent
) -> list[Array]:
    """COPY a query's rows into one array per column, in native byte order.

    `kinds` are the types of the columns, none of them NULL: a scalar as in write_rows, or vector with `dim` dimensions.
    """
    parts = list(read_parts(connection, query, kinds, None, dim, advance))
    assert len(parts) == 1
    return parts[0]


def read_parts(
    connection: Connection,
    query: sql.Composable,
    kinds: Sequence[str],
    rows: int | None,
    dim: int = 0,
    advance: Advance = silent,
) -> Iterator[list[Array]]:
    """As read_rows, in parts of about `rows` rows as they arrive; None: all in one part."""
    dtype = _row_type(kinds, dim)
    part_bytes = None if rows is None else rows * dtype.itemsize
    statement = sql.SQL("COPY ({}) TO STDOUT (FORMAT BINARY)").format(query)
    received, skipped, total, reported = bytearray(), len(HEADER), 0, 0
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for number, message in enumerate(copy, start=1):  # a row each, and the trailer
            received += message
            if number - reported > ROWS_PER_MESSAGE:
                advance(ROWS_PER_MESSAGE)
                reported += ROWS_PER_MESSAGE
            # One more whole row must be there, because the trailer could otherwise count as part of a row.
            if part_bytes is not None and len(received) >= skipped + part_bytes + dtype.itemsize:
                yield _columns(memoryview(received)[skipped : skipped + part_bytes], kinds, dtype)
                received, skipped, total = received[skipped + part_bytes :], 0, total + part_bytes // dtype.itemsize
    columns = _columns(memoryview(received)[skipped : -len(TRAILER)], kinds, dtype)
    advance(total + len(columns[0]) - reported)
    yield columns


def _row_type(kinds: Sequence[str], dim: int) -> np.dtype[Any]:
    fields: list[tuple[Any, ...]] = [("count", ">i2")]
    for number, kind in enumerate(kinds):
        value = [("head", "V4"), ("floats", ">f4", (dim,))] if kind == "vector" else SCALARS[kind]
        fields += [(f"length{number}", ">i4"), (f"value{number}", value)]
    return np.dtype(fields)


def _columns(body: memoryview, kinds: Sequence[str], dtype: np.dtype[Any]) -> list[Array]:
    rows = np.frombuffer(body, dtype)  # a NULL or a wrong width fails here, or in the check below
    for number in range(len(kinds)):
        expected = dtype[f"value{number}"].itemsize
        if not (rows[f"length{number}"] == expected).all():
            raise ValueError(f"column {number} of the stream is not always {expected} bytes long")
    columns = (rows[f"value{number}"] for number in range(len(kinds)))
    return [
        _native(values["floats"] if kind == "vector" else values) for kind, values in zip(kinds, columns, strict=True)
    ]


def _native(values: Array) -> Array:
    return values.astype(values.dtype.newbyteorder("="))
