"""A disk that is full, or will be: seen before, or named as the cause. The disk is a small file system in memory."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from callipper_db import schema
from callipper_db.disk import check_room
from callipper_db.errors import DiskFull, DiskTooSmall, ServerDiskFull
from callipper_db.progress import Silent
from callipper_db.server import EmbeddedServer
from callipper_trainer.install_text_encoder import install
from callipper_trainer.text_encoder import TextEncoder
from processes import running, wait_for
from sessions import user_session

SIZE_MB = 300


@pytest.fixture
def disk(open_folder: Path) -> Iterator[Path]:
    """The folder of a small disk."""
    folder = open_folder / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m,mode=755", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def server(disk: Path) -> Iterator[EmbeddedServer]:
    """A server on that disk, with the schema."""
    server = EmbeddedServer(disk / "home", durable=False, root_area=disk / "area")
    server.start()
    try:
        schema.init(server.dsn())
        yield server
    finally:
        free_again(disk)
        server.stop()


def fill(disk: Path, left_mb: float) -> None:
    """Leave so much room."""
    with (disk / "ballast").open("wb") as file:
        status = os.statvfs(disk)
        os.posix_fallocate(file.fileno(), 0, max(1, int(status.f_bavail * status.f_frsize - left_mb * 2**20)))


def free_again(disk: Path) -> None:
    (disk / "ballast").unlink(missing_ok=True)


def poi_file(folder: Path, count: int) -> Path:
    path = folder / "pois.csv"
    lines = (f"{n},pub,{n % 300 / 1e3},50,{'x' * 500}" for n in range(count))
    path.write_text("\n".join(["id,category,lon,lat,description", *lines]))
    return path


def test_the_encoder_is_not_begun_where_it_does_not_fit(
    server: EmbeddedServer, disk: Path, encoder: TextEncoder
) -> None:
    fill(disk, 60)
    with pytest.raises(DiskTooSmall) as caught:
        install(server.dsn(), encoder, Silent())
    assert str(caught.value).startswith(f"The text encoder {encoder.name} takes about 2")
    assert f"on the disk of the database ({server.data_dir}" in str(caught.value)
    with user_session(server.dsn()) as connection:  # it runs, and nothing was written
        assert connection.execute("SELECT count(*) FROM callipper.text_token").fetchone() == (0,)


def test_a_model_is_not_begun_where_it_does_not_fit(server: EmbeddedServer, disk: Path) -> None:
    with user_session(server.dsn()) as connection:
        check_room(connection, 10 * 2**20, "It", fresh=True)
        fill(disk, 100)
        check_room(connection, 30 * 2**20, "It", fresh=True)
        with pytest.raises(DiskTooSmall, match=r"^It takes about 124 MiB"):
            check_room(connection, 30 * 2**20, "It")
        with pytest.raises(DiskTooSmall, match="train goes on with --resume"):
            check_room(connection, 40 * 2**20, "It", fresh=True)


def test_the_server_of_another_machine_is_not_asked(cluster_dsn: str) -> None:
    with user_session(cluster_dsn) as connection:
        with pytest.raises(DiskTooSmall):
            check_room(connection, 2**60, "It")
        assert connection.info.host.startswith("/")


def test_pois_are_not_loaded_where_they_do_not_fit(
    server: EmbeddedServer, disk: Path, tmp_path: Path, run: Any
) -> None:
    file = poi_file(tmp_path, 40_000)
    fill(disk, 100)
    result = run("load", str(file), "--dsn", server.dsn(), exit_code=1)
    assert "Error: Loading pois.csv takes about" in result.stderr
    with user_session(server.dsn()) as connection:
        assert connection.execute("SELECT count(*) FROM callipper.poi").fetchone() == (0,)


def test_a_server_that_goes_down_with_its_disk_is_named(server: EmbeddedServer, disk: Path, tmp_path: Path) -> None:
    """Somebody else takes the room after it was looked for."""
    file, home = poi_file(tmp_path, 40_000), disk / "home"
    with user_session(server.dsn()) as holder, running(home, "load", str(file)) as load:
        holder.execute("LOCK TABLE callipper.poi IN SHARE ROW EXCLUSIVE MODE")
        query = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'callipper.poi'::regclass"
        with user_session(server.dsn(), autocommit=True) as watcher:
            wait_for(lambda: watcher.execute(query).fetchone())
        fill(disk, 4)
        holder.rollback()
        assert load.end() == 1
    assert "No space left on device" in load.complaint
    assert load.complaint.partition("\n")[2].startswith(  # the first line names the database
        ("Error: The embedded PostgreSQL cannot run", "Error: The database server has no room")
    )
    assert load.complaint.count("\n") == 2
    free_again(disk)
    server.start()
    with user_session(server.dsn()) as connection:
        assert connection.execute("SELECT count(*) FROM callipper.poi").fetchone() == (0,)


def test_a_server_that_cannot_start_for_its_disk_says_so(server: EmbeddedServer, disk: Path) -> None:
    server.stop()
    fill(disk, 0)
    with pytest.raises((ServerDiskFull, DiskFull), match="No space left on device") as caught:
        server.start()
    assert str(disk) in str(caught.value)
    free_again(disk)
    server.start()


def test_no_server_is_made_where_it_does_not_fit(disk: Path) -> None:
    fill(disk, 30)
    server = EmbeddedServer(disk / "home", durable=False, root_area=disk / "area")
    with pytest.raises(ServerDiskFull, match="a new database takes 100 MiB, and 30 MiB are free"):
        server.start()
    free_again(disk)
    server.start()
    server.stop()
