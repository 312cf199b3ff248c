"""The SQL of docs/sql.md and docs/tools.md, run statement by statement on a model of Monaco."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from callipper_db import db
from callipper_db.load import load
from callipper_db.progress import Silent
from callipper_trainer.config import TrainConfig
from callipper_trainer.data.source import Source
from callipper_trainer.train import TrainOptions, train
from sessions import user_session
from test_architecture import FLOORS
from town import ENCODER

ROOT = Path(__file__).parent.parent


def statements() -> list[str]:
    """Every statement of the pages' SQL blocks."""
    pages = "".join((ROOT / "docs" / name).read_text() for name in ("sql.md", "tools.md"))
    blocks = re.findall(r"```sql\n(.*?)```", pages, re.DOTALL)
    return [statement.strip() for block in blocks for statement in block.split(";\n") if statement.strip()]


@pytest.fixture(scope="module")
def monaco(module_database: str, module_folder: Path) -> Iterator[db.Connection]:
    load(module_database, [ROOT / "demo" / "monaco.osm.pbf"])
    train(
        module_database,
        Source(template="A place of {category}"),
        TrainConfig(epochs=8),
        TrainOptions(
            text_encoder=ENCODER,
            checkpoint=module_folder / "checkpoint.pt",
            grid_size_m=50.0,
        ),
        Silent(),
    )
    with user_session(module_database, autocommit=True) as connection:
        yield connection


@pytest.mark.parametrize("statement", statements())
def test_statement_answers(monaco: db.Connection, statement: str) -> None:
    assert len(monaco.execute(statement).fetchall()) in (1, 4, 5, 10)  # type: ignore[call-overload]


def test_the_page_on_python_runs_as_it_stands(
    monaco: db.Connection, module_database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    names: dict[str, object] = {}
    exec(code.replace("postgresql://me@localhost/city", module_database), names)
    assert np.shape(names["similarity"]) == (2, 2)
    assert np.shape(names["of_h3"]) == (len(names["coffee"]), 256)  # type: ignore[arg-type]
    *_, score = capsys.readouterr().out.splitlines()
    assert float(score) > 0.5


def test_the_page_has_statements() -> None:
    assert len(statements()) >= 10


def test_doc_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_contributing_names_files_and_targets_that_are_there() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+)", page)) <= targets
    named = set(re.findall(r"\b((?:callipper_db|trainer|sql|docs|tests|migrations|benchmarks)/[\w./-]*)", page))
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name.rstrip(".")).exists()] == []


def test_the_architecture_page_has_the_floors_of_the_test() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    database, training = (
        [set(re.findall(r"`(\w+)`", line)) for line in re.findall(r"^\| \d \| (.*) \|$", table, re.MULTILINE)][::-1]
        for table in page.split("The torch side:")
    )
    assert (*database[:-1], database[-1] | {"__main__"}) == FLOORS["callipper_db"]
    assert tuple(training) == FLOORS["callipper_trainer"]


def test_the_settings_quote_the_experiments() -> None:
    """A comment of TrainConfig that quotes a line of docs/experiments.md quotes one that is there."""
    source = (ROOT / "trainer" / "callipper_trainer" / "config.py").read_text().split("class TrainConfig")[1]
    quoted = [text for line in re.findall(r"#(.*)", source) for text in re.findall(r'"([^"]+)"', line)]
    assert len(quoted) > 10
    lines = " ".join((ROOT / "docs" / "experiments.md").read_text().split())
    assert [text for text in quoted if text not in lines] == []


def test_what_the_pages_import_is_there() -> None:
    found = [
        line
        for page in (ROOT / "docs").glob("*.md")
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
        for line in re.findall(r"^(?:from|import) callipper_.*", block, re.MULTILINE)
    ]
    assert found
    for line in found:
        exec(line)
