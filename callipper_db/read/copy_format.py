"""How places are sent to the server: as text, or in the binary format for Arrow's columns, which the server reads faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from callipper_db.binary_copy import HEADER, TRAILER
from callipper_db.read.bulk import COPY_FORMAT, bulk_csv, csv_of
from callipper_db.read.place import Place, Rules
from callipper_db.read.record import Block, Reader


@dataclass(frozen=True)
class CopyFormat:
    """The options of COPY, and how blocks and single places are written for it."""

    options: str
    of_block: Callable[[Block, Rules], str | bytes | None]  # None: some row needs Rules.place
    of_places: Callable[[Sequence[Place]], str | bytes]
    begin: bytes = b""
    end: bytes = b""


def copy_format(reader: Reader) -> CopyFormat:
    """The format for the blocks of this reader."""
    if not reader.in_arrow:
        return CopyFormat(COPY_FORMAT, bulk_csv, csv_of)
    from callipper_db.read.arrow_copy import binary_of, bulk_binary

    return CopyFormat("(FORMAT BINARY)", bulk_binary, binary_of, HEADER, TRAILER)
