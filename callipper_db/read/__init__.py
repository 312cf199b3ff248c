"""POIs from files: one module per format. All read in constant memory, by iterators."""

from __future__ import annotations

from callipper_db.read.formats import SOURCE_SUFFIXES, open_reader
from callipper_db.read.record import Block, LeftOut, Reader, ReadOptions, Record, Refused

__all__ = ["SOURCE_SUFFIXES", "Block", "LeftOut", "ReadOptions", "Reader", "Record", "Refused", "open_reader"]
