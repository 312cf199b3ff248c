"""Write sql/014_unicode.sql: what the BERT tokenizer does to each code point, asked of the `tokenizers` library itself.

The library mixes the tables of three Unicode versions, so no server's own tables give its answers. Run it again when a new
release of `tokenizers` makes tests/sql/test_wordpiece.py fail:  .venv/bin/python scripts/unicode_tables.py
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import tokenizers
from tokenizers.normalizers import NFD, BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

TARGET = Path(__file__).parent.parent / "sql" / "014_unicode.sql"
CODES = [code for code in range(0x80, 0x110000) if not 0xD800 <= code < 0xE000]  # all but ASCII, which needs no table
PLAIN, DROPPED, SPACE, IDEOGRAPH, PUNCTUATION, MARK, STARTING_MARK, RESTLESS = range(8)
DECOMPOSES = 8  # added to the kind
UPPER_IF_EVEN, UPPER_IF_ODD = 1_000_001, 1_000_002  # in place of an offset, where capitals and small letters alternate
DOTTED_I = 0x130  # the only code point whose lower case is two
HEADER = """\
-- What the BERT tokenizer does to each code point from U+0080 on. Written by scripts/unicode_tables.py from tokenizers
-- {version}, whose categories are those of Unicode 8, decompositions of Unicode 9, letter cases of Unicode 17. Do not edit.
-- Each function finds the run of equal code points that holds its argument: first come their values, then their beginnings.
-- NULL for ASCII, of which sql/015_wordpiece.sql takes care.
"""
LOWEST, HIGHEST = "\u0334", "\u0345"  # marks of the combining classes 1 and 240: the ends, but for two


def normalizer(**steps: bool) -> Callable[[str], str]:
    """The BERT normalisation with these steps alone."""
    off = {"clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": False}
    function: Callable[[str], str] = BertNormalizer(**(off | steps)).normalize_str
    return function


clean = normalizer(clean_text=True)
split = normalizer(handle_chinese_chars=True)
strip = normalizer(strip_accents=True)
lower = normalizer(lowercase=True)
decompose = NFD().normalize_str


def kind(code: int) -> int:
    """What the steps of the normalisation and the splitting into words do to a code point."""
    char = chr(code)
    decomposes = DECOMPOSES if decompose(char) != char else 0
    if clean(char) == "":
        return DROPPED
    if clean(char) == " ":
        return SPACE
    if split(char) != char:
        return IDEOGRAPH + decomposes
    if len(BertPreTokenizer().pre_tokenize_str(f"a{char}b")) == 3:
        return PUNCTUATION + decomposes
    if strip(char) == "":
        return MARK if is_reordered(char) else STARTING_MARK
    if is_reordered(char):
        assert not decomposes, f"U+{code:X} is moved and decomposes"
        return RESTLESS
    return PLAIN + decomposes


def is_reordered(char: str) -> bool:
    """Whether the canonical order moves it (its combining class is not 0)."""
    char = decompose(char)[0]
    after_it, before_it = f"a{char}{LOWEST}", f"a{HIGHEST}{char}"
    return decompose(after_it) != "a" + decompose(char) + LOWEST or decompose(before_it) != "a" + HIGHEST + decompose(
        char
    )


def combining_classes(kinds: dict[int, int]) -> dict[int, int]:
    """Canonical combining class of the restless code points, 0 for all others; the library must agree with their order."""
    moved = [code for code in CODES if kinds[code] in (MARK, RESTLESS) and decompose(chr(code)) == chr(code)]
    examples = {unicodedata.combining(chr(code)): chr(code) for code in moved}
    classes = {code: unicodedata.combining(chr(code)) if kinds[code] == RESTLESS else 0 for code in CODES}
    for code, number in classes.items():
        for other, mark in examples.items():
            pair = mark + chr(code)
            assert not number or decompose(f"a{pair}")[1:] == (pair if other <= number else pair[::-1]), f"U+{code:X}"
    return classes


def lower_offset(code: int) -> int:
    """From a code point to its lower case."""
    return 0 if code == DOTTED_I else ord(lower(chr(code))) - code


def runs(values: dict[int, int]) -> Iterator[tuple[int, int]]:
    """First code point and value of each run of equal values."""
    for value, run in groupby(CODES, values.__getitem__):
        yield next(run), value


def lower_runs() -> Iterator[tuple[int, int]]:
    """As runs(), with stretches where capitals and small letters alternate made one run."""
    offsets = {code: lower_offset(code) for code in CODES}
    for code in CODES:
        if offsets[code] == 1:
            alternate = UPPER_IF_ODD if code % 2 else UPPER_IF_EVEN
            offsets[code] = alternate
            if offsets.get(code + 1) == 0:
                offsets[code + 1] = alternate
    return runs(offsets)


def check(kinds: dict[int, int]) -> None:
    """Assert what callipper._bert_words relies on."""
    for code, found in kinds.items():
        parts = decompose(chr(code))
        if found & DECOMPOSES:
            assert parts == unicodedata.normalize("NFD", chr(code)), f"PostgreSQL decomposes U+{code:X} otherwise"
        if found == IDEOGRAPH + DECOMPOSES:
            assert len(parts) == 1 and kinds[ord(parts)] == IDEOGRAPH, f"U+{code:X} is an ideograph only before"
        elif found & DECOMPOSES:
            assert all(kinds.get(ord(part), PLAIN) != IDEOGRAPH for part in parts), f"U+{code:X} is one only after"
            assert all(kinds.get(ord(part), PLAIN) not in (DROPPED, SPACE) for part in parts), f"U+{code:X} holds such"
        if found & ~DECOMPOSES in (SPACE, IDEOGRAPH, PUNCTUATION):
            assert not is_reordered(chr(code)), f"U+{code:X} moves across words"


def array(numbers: list[int]) -> str:
    """An SQL array of integers, in lines that fit."""
    lines = textwrap.wrap(", ".join(map(str, numbers)), 120, break_on_hyphens=False)
    return "'{\n" + "\n".join(lines) + "\n    }'::pg_catalog.int4[]"


def function(name: str, pairs: list[tuple[int, int]], remark: str, comment: str) -> str:
    """An SQL function from a code point to the value of its run, NULL before the first."""
    starts, values = ([pair[column] for pair in pairs] for column in (0, 1))
    assert starts[0] == CODES[0]
    return f"""
{textwrap.fill(remark, 120, initial_indent="-- ", subsequent_indent="-- ")}
CREATE OR REPLACE FUNCTION callipper.{name}(code integer) RETURNS integer
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT ({array(values)})[pg_catalog.width_bucket($1, {array(starts)})]
$$;
COMMENT ON FUNCTION callipper.{name}(integer) IS '{comment}';
"""


def main() -> None:
    """Write the file."""
    kinds = {code: kind(code) for code in CODES}
    check(kinds)
    TARGET.write_text(
        HEADER.format(version=tokenizers.__version__)
        + function(
            "_char_kind",
            list(runs(kinds)),
            "0 a part of words, 1 dropped, 2 a space, 3 a Chinese ideograph, 4 punctuation, 5 an accent, 6 an accent that the"
            " canonical order does not move, 7 no accent, but moved by the canonical order; 8 more when NFD decomposes it."
            " Everything here that decomposes has done so since Unicode 9, so that normalize() agrees on every server.",
            "how the BERT tokenizer takes a code point from U+0080 on",
        )
        + function(
            "_combining_class",
            list(runs(combining_classes(kinds))),
            "By which number NFD orders the code points of kind 7; 0 for all others.",
            "canonical combining class of a code point of kind 7 of _char_kind",
        )
        + function(
            "_lower_offset",
            list(lower_runs()),
            f"How far the small letter is from a capital. {UPPER_IF_EVEN}: capitals are the even code points, and small letters"
            f" follow them; {UPPER_IF_ODD}: the odd ones. Without U+0130, whose lower case is two characters.",
            "what to add to a code point from U+0080 on for its lower case",
        ),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
