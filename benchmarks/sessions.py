"""Sessions of a user, with the search_path of the database, and what they cost the processor."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from callipper_db import db
from callipper_db.server import EmbeddedServer

TICKS = os.sysconf("SC_CLK_TCK")  # a second, in /proc


@contextmanager
def user_session(dsn: str, *, autocommit: bool = False) -> Iterator[db.Connection]:
    """As db.session(), but for the search_path."""
    with db.session(dsn, autocommit=autocommit) as connection:
        connection.execute("SELECT set_config('search_path', %s::text, false)", [connection.users_path])
        yield connection


def server_cpu_s(server: EmbeddedServer) -> float:
    """CPU seconds of this process and of all server sessions that have ended."""
    postmaster = server.status().pid
    assert postmaster is not None
    return time.process_time() + process_cpu_s(postmaster, ended_children=True)


def process_cpu_s(process: int, *, ended_children: bool = False) -> float:
    """Of a process, user and system; of those that it has started and that have ended, if they are asked for (man 5 proc)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    first = 13 if ended_children else 11
    return sum(map(int, fields[first : first + 2])) / TICKS
