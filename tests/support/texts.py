"""Texts in all scripts, for tokenizers."""

from __future__ import annotations

import random
import sys
import unicodedata

# Inclusive ranges of code points: letters, marks, and what else the tokenizer treats in its own way.
ALPHABETS = {
    "ascii": [(0x21, 0x7E)],
    "letters": [(0x61, 0x7A)],
    "latin": [(0x61, 0x7A), (0xC0, 0x24F), (0x1E00, 0x1EFF), (0x2C60, 0x2C7F), (0xA720, 0xA7FF)],
    "accents": [(0x61, 0x7A), (0x300, 0x36F), (0x1AB0, 0x1AFF), (0x1DC0, 0x1DFF), (0x20D0, 0x20FF), (0xFE20, 0xFE2F)],
    "greek": [(0x370, 0x3FF), (0x1F00, 0x1FFF)],
    "cyrillic": [(0x400, 0x52F), (0x1C80, 0x1C8F), (0xA640, 0xA69F), (0x2DE0, 0x2DFF)],
    "caucasian": [(0x530, 0x58F), (0x10A0, 0x10FF), (0x1C90, 0x1CBF), (0x13A0, 0x13FF), (0xAB70, 0xABBF)],
    "other_cases": [(0x10400, 0x1044F), (0x104B0, 0x104FF), (0x10C80, 0x10CFF), (0x16E40, 0x16EBF), (0x1E900, 0x1E95F)],
    "ideographs": [(0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2F800, 0x2FA1F)],
    "rare_ideographs": [(0x2B700, 0x2B93F), (0x2CEA0, 0x2EBEF), (0x2E80, 0x2FDF), (0x31C0, 0x31EF)],
    "kana": [(0x3000, 0x30FF), (0xFF00, 0xFFEF)],
    "hangul": [(0xAC00, 0xD7FF), (0x1100, 0x11FF), (0x3130, 0x318F), (0xA960, 0xA97F)],
    "thai": [(0xE00, 0xE7F)],
    "lao_tibetan": [(0xE80, 0xFFF)],
    "arabic": [(0x600, 0x6FF), (0x750, 0x77F), (0x8A0, 0x8FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFF)],
    "hebrew": [(0x590, 0x5FF), (0xFB1D, 0xFB4F)],
    "devanagari": [(0x900, 0x97F), (0xA8E0, 0xA8FF)],
    "indic": [(0x980, 0xDFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x11000, 0x116FF)],
    "emoji": [(0x1F300, 0x1FAFF), (0x1F1E6, 0x1F1FF), (0x2600, 0x27BF), (0x200D, 0x200D), (0xFE0F, 0xFE0F)],
    "skin": [(0x1F466, 0x1F469), (0x1F3FB, 0x1F3FF), (0x200D, 0x200D), (0xE0020, 0xE007F)],
    "control": [(0x1, 0x1F), (0x7F, 0xA0), (0xAD, 0xAD), (0x200B, 0x200F), (0x2028, 0x202F), (0x2060, 0x206F)],
    "specials": [(0xFEFF, 0xFEFF), (0xFFF0, 0xFFFF), (0xFFFFE, 0xFFFFF), (0x10FFF0, 0x10FFFF)],
    "private": [(0xE000, 0xF8FF), (0xF0000, 0xF00FF)],
    "unassigned": [(0x378, 0x379), (0x5C8, 0x5CF), (0x2FE0, 0x2FEF), (0x1FFFE, 0x1FFFF), (0x50000, 0x500FF)],
    "punctuation": [(0xA0, 0xBF), (0x2000, 0x206F), (0x2E00, 0x2E7F), (0x3000, 0x303F), (0xFE10, 0xFE6F)],
    "symbols": [(0x2190, 0x23FF), (0x2A00, 0x2AFF), (0x1D400, 0x1D7FF)],
    # Marks that stay, but move: some with others, some with what separates them.
    "moving": [
        (0x1B44, 0x1B44),
        (0x302E, 0x302F),
        (0x1D157, 0x1D172),
        (0x1E000, 0x1E02A),
        (0x8D4, 0x8E1),
        (0x1E944, 0x1E94A),
    ],
    "moving_amid_marks": [
        (0x1D165, 0x1D16D),
        (0x8D4, 0x8D6),
        (0x302E, 0x302E),
        (0x300, 0x310),
        (0x901, 0x903),
        (0x93C, 0x93C),
    ],
    "any": [(0x1, 0xD7FF), (0xE000, 0x10FFFF)],
}
CODES = [code for code in range(1, sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]


def joined(texts: list[str], size: int) -> list[str]:
    """Texts of `size` lines each."""
    return ["\n".join(texts[start : start + size]) for start in range(0, len(texts), size)]


def generated(count: int, seed: int, special: list[str]) -> list[str]:
    """Texts of one to four words, each of one to three alphabets, with what else may stand in a text between them."""
    draw = random.Random(seed)
    gaps = [" "] * 6 + [
        "",
        "",
        "  ",
        ", ",
        ". ",
        "-",
        "\t",
        "\n",
        "\u00a0",
        "\u3000",
        *special,
        "[SEP",
        "SEP]",
        "[sep]",
    ]
    changes = [str.upper, str.title, str.swapcase, str] + [
        lambda t, f=f: unicodedata.normalize(f, t) for f in ("NFC", "NFD")
    ]

    def word(ranges: list[tuple[int, int]]) -> str:
        size = draw.choice([1, 2, 3, 4, 6, 9]) if draw.random() < 0.99 else draw.randint(95, 105)
        return "".join(chr(draw.randint(*draw.choice(ranges))) for _ in range(size))

    def text() -> str:
        ranges = [pair for name in draw.sample(sorted(ALPHABETS), draw.randint(1, 3)) for pair in ALPHABETS[name]]
        parts = [part for _ in range(draw.randint(1, 4)) for part in (word(ranges), draw.choice(gaps))]
        return draw.choice(changes)("".join(parts))

    return [text() for _ in range(count)]


def each_between(codes: list[int], size: int) -> list[str]:
    """All code points, each between two letters, in texts of several words."""
    return joined([f"A{chr(code)}b" for code in codes], size)
