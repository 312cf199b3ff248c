"""Write sql/013_graphemes.sql: where Hugging Face's `tokenizers` finds grapheme clusters.

The normalisation of SentencePiece tokenizers replaces whole clusters. Which code points join the one before them is asked of
the library itself, and the other classes are those of the package `regex`, which knows Unicode at least as new. Run it again
when a new release of `tokenizers` makes tests/sql/test_unigram.py fail:  .venv/bin/python scripts/grapheme_table.py
"""

from __future__ import annotations

import struct
import textwrap
from itertools import groupby
from pathlib import Path

import regex
import tokenizers
from tokenizers.normalizers import Precompiled

TARGET = Path(__file__).parent.parent / "sql" / "013_graphemes.sql"
CODES = [code for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000]
JOINING = ("e", "f", "g", "m", "z")
# The first class that holds a code point is its class.
CLASSES = {
    "r": r"\r",
    "n": r"\n",
    "c": r"\p{GCB=Control}",
    "z": r"\p{GCB=ZWJ}",
    "m": r"\p{GCB=SpacingMark}",
    "g": r"\p{InCB=Linker}",
    "f": r"[\p{GCB=Extend}--\p{InCB=Extend}]",
    "e": r"\p{GCB=Extend}",
    "p": r"\p{GCB=Prepend}",
    "i": r"\p{GCB=Regional_Indicator}",
    "l": r"\p{GCB=L}",
    "v": r"\p{GCB=V}",
    "t": r"\p{GCB=T}",
    "w": r"[\p{GCB=LV}\p{GCB=LVT}]",
    "k": r"\p{InCB=Consonant}",
    "x": r"\p{ExtPict}",
}
HEADER = """\
-- Classes of code points that decide where grapheme clusters end, as tokenizers {version} ends them. Written by
-- scripts/grapheme_table.py. Do not edit.

{remark}
CREATE OR REPLACE FUNCTION callipper._grapheme_class(code integer) RETURNS "char"
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT ({values})[pg_catalog.width_bucket($1, {starts})]
$$;
COMMENT ON FUNCTION callipper._grapheme_class(integer) IS 'class of a code point in the rules for grapheme clusters';
"""
REMARK = (
    "The function finds the run of equal code points that holds its argument: first come their classes, then their beginnings."
    " r and n: carriage return and newline; c: control; e: joins what is before it; g, f, m, z: so do linkers, the non-joiner,"
    " spacing marks and the joiner; p: joins what follows; i: regional indicator; l, v, t, w: parts of Hangul and whole"
    " syllables; k: consonant that a linker joins to the next; x: pictograph; o: any other."
)


def replaces_a() -> Precompiled:
    """A normalisation with one rule, a -> X: a cluster of less than six bytes that begins with a becomes X."""
    units = {0: 2 << 10}  # the double array of a trie: the root, its child for "a", and the leaf of that
    child = 2 ^ ord("a")
    units[child] = ord("a") | 0x100 | 4 << 10
    units[child ^ 4] = 0x80000000
    trie = b"".join(struct.pack("<I", units.get(number, 0)) for number in range(512))
    return Precompiled(struct.pack("<I", len(trie)) + trie + b"X\0")


def classes() -> dict[int, str]:
    """The class of each code point."""
    normalizer = replaces_a()
    patterns = {name: regex.compile(pattern, regex.V1) for name, pattern in CLASSES.items()}
    found = {}
    for code in CODES:
        name = next((name for name, pattern in patterns.items() if pattern.match(chr(code))), "o")
        joins = normalizer.normalize_str("a" + chr(code)) == "X"
        assert name in JOINING or not joins, (
            f"U+{code:X} joins what is before it, which the package regex does not know"
        )
        found[code] = "o" if name in JOINING and not joins else name  # `regex` may be newer than the library
    return found


def array(values: list[str], kind: str) -> str:
    """An SQL array in lines that fit."""
    lines = textwrap.wrap(", ".join(values), 120, break_on_hyphens=False)
    return "'{\n" + "\n".join(lines) + f"\n    }}'::{kind}[]"


def main() -> None:
    """Write the file."""
    found = classes()
    runs = [(next(run), name) for name, run in groupby(CODES, found.__getitem__)]
    TARGET.write_text(
        HEADER.format(
            version=tokenizers.__version__,
            remark=textwrap.fill(REMARK, 120, initial_indent="-- ", subsequent_indent="-- "),
            values=array([name for _, name in runs], 'pg_catalog."char"'),
            starts=array([str(start) for start, _ in runs], "pg_catalog.int4"),
        ),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
