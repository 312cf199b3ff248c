"""scripts/install-python.sh: where it takes torch from. In the place of pip stands a script that has what a case says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CONSTRAINTS = (ROOT / "constraints.txt").read_text().splitlines()
(TORCH,) = (line for line in CONSTRAINTS if line.startswith("torch=="))

# Python as the script calls it: a version check, which passes, the look for an installed torch, which finds none, and pip.
PYTHON = """#!/usr/bin/env bash
case "$*" in
  *"m.version('torch')"*) exit 1 ;;
  "-m pip"*) ;;
  *) exec {python} "$@" ;;
esac
echo "$*" >>{log}
case "$*" in
  *whl/cpu*+cpu) has={on_cpu_index} ;;
  *+cpu) has={found_by_pip} ;;
  *) has=yes ;;
esac
case $has in
  yes) exit 0 ;;
  no) echo "ERROR: No matching distribution found for torch" >&2 ;;
  broken) echo "ERROR: Could not install packages: the disk is full" >&2 ;;
esac
exit 1
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what the script reads."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("scripts/install-python.sh", "constraints.txt", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    return tmp_path


def install(
    checkout: Path, *, found_by_pip: str, on_cpu_index: str = "no", torch: str = ""
) -> tuple[int, str, list[str]]:
    """Exit status, output, and what pip was asked to install."""
    log = checkout / "log"
    python = checkout / ".venv" / "bin" / "python"
    python.write_text(
        PYTHON.format(python=sys.executable, log=log, found_by_pip=found_by_pip, on_cpu_index=on_cpu_index)
    )
    python.chmod(0o755)
    uname = checkout / "uname"
    uname.write_text("#!/bin/sh\necho Linux x86_64\n")
    uname.chmod(0o755)
    done = subprocess.run(
        ["bash", "scripts/install-python.sh"],
        cwd=checkout,
        env={"PATH": f"{checkout}:/usr/bin:/bin", "TORCH": torch},
        capture_output=True,
        text=True,
        check=False,
    )
    asked = [line.rsplit(" ", 1)[1] + (" index" if CPU_INDEX in line else "") for line in log.read_text().splitlines()]
    return done.returncode, done.stdout + done.stderr, asked


def test_the_cpu_build_that_pip_finds(checkout: Path) -> None:
    status, _, asked = install(checkout, found_by_pip="yes")
    assert status == 0
    assert asked == [f"{TORCH}+cpu", ".[all,dev]"]


def test_else_the_cpu_build_of_pytorchs_index(checkout: Path) -> None:
    status, said, asked = install(checkout, found_by_pip="no", on_cpu_index="yes")
    assert status == 0
    assert asked == [f"{TORCH}+cpu", f"{TORCH}+cpu index", ".[all,dev]"]
    assert CPU_INDEX in said


def test_else_the_plain_package_and_how_large_it_is(checkout: Path) -> None:
    status, said, asked = install(checkout, found_by_pip="no")
    assert status == 0
    assert asked == [f"{TORCH}+cpu", f"{TORCH}+cpu index", TORCH, ".[all,dev]"]
    assert "the CUDA build: a download of about 3 GB" in said


def test_a_failure_of_pip_is_no_reason_to_take_gigabytes(checkout: Path) -> None:
    status, said, asked = install(checkout, found_by_pip="broken")
    assert status == 1
    assert asked == [f"{TORCH}+cpu"]
    assert "the disk is full" in said


def test_cuda_on_request(checkout: Path) -> None:
    _, _, asked = install(checkout, found_by_pip="yes", torch="cuda")
    assert asked == [TORCH, ".[all,dev]"]
