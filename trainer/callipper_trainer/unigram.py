"""SentencePiece tokenizers of the kind Unigram: what callipper._unigram needs of a tokenizer.json."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

UNKNOWN_PENALTY = 10.0  # below the worst piece; a constant of the library
LONGEST_CLUSTER = 5  # bytes; the library replaces longer grapheme clusters character by character
JOINS_SPACES = {" {2,}", "[ ]{2,}"}

Refuse = Callable[[str], Exception]


@dataclass(frozen=True)
class Unigram:
    """Pieces with their scores, by token id; what replaces characters; and the settings of callipper._unigram."""

    pieces: list[str]
    scores: list[float]
    replaced: dict[str, str]
    settings: dict[str, Any]


def read_unigram(tokenizer: dict[str, Any], limit: int, refuse: Refuse) -> Unigram:
    """From the content of a tokenizer.json; `limit` is the most tokens of a text. Raises what `refuse` makes of a reason."""
    model = tokenizer["model"]
    pieces = [str(piece) for piece, _ in model["vocab"]]
    scores = [float(score) for _, score in model["vocab"]]
    if model.get("unk_id") is None:
        raise refuse("its tokenizer has no unknown token")
    steps, replaced = _steps(tokenizer.get("normalizer"), refuse)
    first, last = _ends(tokenizer.get("post_processor"), refuse)
    settings = {
        "type": "unigram",
        "max_tokens": limit,
        "max_piece_chars": max(map(len, pieces)),
        "unknown": pieces[model["unk_id"]],
        "unknown_id": model["unk_id"],
        "unknown_score": min(scores) - UNKNOWN_PENALTY,
        "join_unknown": True,
        "byte_fallback": bool(model.get("byte_fallback", False)),
        "first_id": first,
        "last_id": last,
        "steps": steps,
        "special": [_special(token, refuse) for token in tokenizer.get("added_tokens", [])],
    }
    return Unigram(pieces, scores, replaced, settings | _words(tokenizer.get("pre_tokenizer"), refuse))


def _steps(normalizer: dict[str, Any] | None, refuse: Refuse) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The steps of the normalisation, and the map of the step "map"."""
    steps: list[dict[str, Any]] = []
    replaced: dict[str, str] = {}
    for part in _flat(normalizer, "normalizers"):
        match part:
            case {"type": "Precompiled", "precompiled_charsmap": str(charsmap)} if not replaced:
                replaced = decode_charsmap(base64.b64decode(charsmap))
                keeps_ascii = not any(" " <= key[0] <= "~" for key in replaced if len(key) == 1 or key.isascii())
                steps.append({"type": "map", "keeps_ascii": keeps_ascii})
            case {"type": "Precompiled", "precompiled_charsmap": None | ""}:
                pass
            case {"type": "Replace", "pattern": {"Regex": pattern}, "content": content} if pattern in JOINS_SPACES:
                steps.append({"type": "join spaces", "by": content})
            case {"type": "Strip", "strip_left": left, "strip_right": right}:
                steps += [{"type": "strip left"}] * left + [{"type": "strip right"}] * right
            case _:
                raise refuse(f"its tokenizer normalises texts by {part.get('type')}, in a way that SQL does not")
    return steps, replaced


def _words(pre_tokenizer: dict[str, Any] | None, refuse: Refuse) -> dict[str, Any]:
    """How a text is split into words."""
    parts = list(_flat(pre_tokenizer, "pretokenizers"))
    kinds = [part.get("type") for part in parts]
    if kinds not in (["Metaspace"], ["WhitespaceSplit", "Metaspace"]):
        raise refuse(
            f"its tokenizer splits texts by {', '.join(map(str, kinds)) or 'nothing'}, not as SentencePiece does"
        )
    metaspace = parts[-1]
    prepend = metaspace.get("prepend_scheme") or ("always" if metaspace.get("add_prefix_space", True) else "never")
    if prepend == "first" and len(parts) > 1:
        raise refuse("its tokenizer marks the first word only, and splits at white space before")
    return {
        "mark": metaspace.get("replacement", "\u2581"),
        "prepend": prepend,
        "split": bool(metaspace.get("split", True)),
        "split_spaces": len(parts) > 1,
    }


def _ends(processor: dict[str, Any] | None, refuse: Refuse) -> tuple[int, int]:
    """Ids of the first and the last token of each text."""
    match processor:
        case {"type": "RobertaProcessing" | "BertProcessing", "cls": [_, int(first)], "sep": [_, int(last)]}:
            return first, last
        case {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": first}}, {"Sequence": _}, {"SpecialToken": {"id": last}}],
            "special_tokens": tokens,
        }:
            return tokens[first]["ids"][0], tokens[last]["ids"][0]
    raise refuse("its tokenizer does not put one token before a text and one after it")


def _special(token: dict[str, Any], refuse: Refuse) -> dict[str, Any]:
    if token.get("single_word") or token.get("normalized"):
        raise refuse(f"its tokenizer looks for {token['content']} in normalised texts or as a whole word")
    return {
        "content": token["content"],
        "id": token["id"],
        "strip_left": bool(token.get("lstrip")),
        "strip_right": bool(token.get("rstrip")),
    }


def _flat(part: dict[str, Any] | None, key: str) -> Iterator[dict[str, Any]]:
    """The members of a sequence, and of sequences in it."""
    if part is not None and part.get("type") == "Sequence":
        for member in part[key]:
            yield from _flat(member, key)
    elif part is not None:
        yield part


def decode_charsmap(charsmap: bytes) -> dict[str, str]:
    """What a precompiled map of SentencePiece replaces, for sources that the library can match: a character, or few bytes.

    The map is a trie in a double array (darts-clone), and the replacements, each ended by a zero byte.
    """
    (size,) = struct.unpack_from("<I", charsmap)
    units = struct.unpack_from(f"<{size // 4}I", charsmap, 4)
    targets = charsmap[4 + size :]
    found: dict[str, str] = {}

    def offset(unit: int) -> int:
        return (unit >> 10) << ((unit & 0x200) >> 6)

    open_nodes = [(offset(units[0]), b"")]
    while open_nodes:
        node, source = open_nodes.pop()
        for byte in range(1, 256):
            child = node ^ byte
            if child >= len(units) or units[child] & 0x800000FF != byte:
                continue
            longer, below = source + bytes([byte]), child ^ offset(units[child])
            if units[child] & 0x100:  # a source ends here
                start = units[below] & 0x7FFFFFFF
                text = longer.decode(errors="replace")
                if len(text) == 1 or len(longer) <= LONGEST_CLUSTER:
                    found[text] = targets[start : targets.index(b"\0", start)].decode()
            if len(longer) < LONGEST_CLUSTER:
                open_nodes.append((below, longer))
    return found
