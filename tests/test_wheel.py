"""The sdist, and the wheel that is built from it: what it puts into an environment that others share."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The files in the wheel, which is built from the sdist."""
    folder = tmp_path_factory.mktemp("wheel")
    # Without isolation: hatchling is installed, and the build needs no network.
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_it_takes_two_names_at_the_top_level(names: list[str]) -> None:
    found = {name.split("/")[0] for name in names}
    assert {name for name in found if not name.endswith(".dist-info")} == {"callipper_db", "callipper_trainer"}


def test_it_carries_all_that_the_program_reads(names: list[str]) -> None:
    packages = {"callipper_db": ROOT, "callipper_trainer": ROOT / "trainer"}
    needed = {
        path.relative_to(folder).as_posix()
        for package, folder in packages.items()
        for path in (folder / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    needed |= {f"callipper_db/sql/{path.name}" for path in (ROOT / "sql").glob("*.sql")}
    needed |= {f"callipper_db/migrations/versions/{path.name}" for path in (ROOT / "migrations/versions").glob("*.py")}
    assert {"callipper_db/place_words.toml", "callipper_db/py.typed", "callipper_trainer/py.typed"} <= needed
    assert not needed - set(names)
