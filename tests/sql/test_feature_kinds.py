"""A kind of feature that is made for the test, from the code of docs/feature-kinds.md: in torch, in SQL, out and back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from psycopg import sql

from callipper_db import db
from callipper_db.errors import ModelUnreadable
from callipper_db.progress import Silent
from callipper_trainer import features, model_rows
from callipper_trainer.config import TrainConfig
from callipper_trainer.embed import embed_places
from callipper_trainer.features import KINDS, make_features
from callipper_trainer.kinds import KindRows, Kinds
from callipper_trainer.model import CaLLiPer, TrainedModel
from callipper_trainer.model_rows import load_model
from callipper_trainer.publish import Encoded, Publication, publish
from sessions import user_session
from untrained import MIDDLE, SIZES, TEXT_DIM, embed, places, register, samples_at

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "feature-kinds.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def changed(name: str) -> str:
    """A file of sql/ with the page's changes: each line that is taken away, by those that are put in its place."""
    text = (ROOT / "sql" / name).read_text(encoding="utf-8")
    for block in blocks("diff"):
        for old, new in re.findall(r"((?:^-.*\n)+)((?:^\+.*\n)+)", block, re.MULTILINE):
            before, after = (
                "".join(line[1:] for line in part.splitlines(keepends=True)).rstrip("\n") for part in (old, new)
            )
            text = text.replace(before, after)
    return text


@pytest.fixture
def distance() -> Any:
    """The class of the page."""
    names = dict(vars(features))
    exec(compile(blocks("python")[0], "docs/feature-kinds.md", "exec", dont_inherit=True, flags=0x1000000), names)
    return names["DistanceFeatures"]


def test_a_new_kind_in_torch_and_in_sql(database: str, distance: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(encoder="coordinate", device="cpu", **SIZES["small"])
    with user_session(database) as connection:
        for name in ("029_location_encoder.sql", "030_loc_embed.sql"):
            text = changed(name)
            assert text != (ROOT / "sql" / name).read_text(encoding="utf-8"), f"the page's change fits {name}"
            text = text.replace("-- The input of the network:", f"{blocks('sql')[0]}\n-- The input of the network:")
            connection.execute(db.name_extensions(text, db.extension_schemas(connection)))  # type: ignore[call-overload]
        samples = samples_at(connection, places())
        torch.manual_seed(3)
        model = CaLLiPer(config, TEXT_DIM, [*make_features(config), distance(500.0)]).eval()
        trained = TrainedModel(model, samples.origin, None, best_epoch=1)
        vectors = np.random.default_rng(1).normal(size=(len(samples.texts), TEXT_DIM)).astype(np.float32)
        kinds = Kinds()
        kinds.read_texts(samples.texts)
        rows = KindRows.of(kinds, 0, lambda texts: np.ones((len(texts), TEXT_DIM), np.float32))
        encoded = Encoded(vectors, kinds, rows, [], vectors[:0])
        publication = Publication(register(connection), encoded, 250.0, "square", "none", {}, {})
        version, _ = publish(connection, trained, samples, config, publication, Silent())
        asked = MIDDLE + np.random.default_rng(5).normal(0, 1500, (40, 2))
        np.testing.assert_allclose(embed(connection, asked), embed_places(trained, asked), atol=1e-5)
        connection.commit()
        with pytest.raises(ModelUnreadable, match="not known to this program"):
            load_model(connection, version)
        monkeypatch.setattr(model_rows, "KINDS", (*KINDS, distance))
        again = load_model(connection, version).trained
        np.testing.assert_array_equal(embed_places(again, asked), embed_places(trained, asked))
        kinds = connection.execute(
            sql.SQL(
                "SELECT jsonb_path_query_array(arch, '$.features[*].kind') FROM callipper.model WHERE version = {}"
            ).format(sql.Literal(version))
        ).fetchone()
        assert kinds == (["grid", "distance"],)
