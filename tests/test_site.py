"""The documentation as a site: no broken link, and nothing is loaded from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (built.returncode, built.stderr) == (0, "")
    return folder


def test_every_page_is_there(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert pages | {"start", "contributing", "changes", "sql-reference", "messages"} <= {
        p.stem for p in site.glob("*.html")
    }


def test_the_reference_has_every_function_that_users_call(site: Path) -> None:
    text = (site / "sql-reference.html").read_text()
    for name in ("callipper.search", "callipper.describe", "callipper.text_embed", "callipper_map.similarity_tile"):
        assert re.search(rf"<h2[^>]*>{re.escape(name)}<", text), name
    assert "callipper._" not in re.sub(r"<p>.*?</p>", "", text)


def test_messages_say_what_to_do(site: Path) -> None:
    text = (site / "messages.html").read_text()
    assert "No model is active in this database. Train one with: callipper-db train" in text


def test_no_page_loads_from_another_server(site: Path) -> None:
    for page in site.glob("*.html"):
        loaded = re.findall(r"<(?:script|img|link)[^>]*(?:src|href)=\"(https?://[^\"]*)\"", page.read_text())
        assert not loaded, page.name
