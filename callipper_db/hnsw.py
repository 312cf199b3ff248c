"""The HNSW index over a version's cells, and the progress of building it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

from psycopg import sql
from psycopg.conninfo import make_conninfo

from callipper_db import db
from callipper_db.db import Connection, version_tuple
from callipper_db.errors import CallipperError
from callipper_db.partitions import partition
from callipper_db.progress import Advance, silent
from callipper_db.versions import SAFE_PARALLEL_BUILD

WATCH_S = 0.5  # pause between two looks at the progress
CELL_BYTES = 1800  # of the graph in memory: a vector of 1,032, and 16 for each of its 32 neighbours, with their levels

# The build takes several times as long from the cell on for which maintenance_work_mem has no room. More than the server's
# cache is not taken. Parallel workers would share the memory in /dev/shm, where a container has 64 MB.
MAKE_ROOM = """
SELECT set_config('maintenance_work_mem', wanted || 'kB', true), set_config('max_parallel_maintenance_workers', '0', true)
FROM (
    SELECT least(
        (SELECT count(*) FROM {cells}) * %s / 1024, 8 * (SELECT setting::bigint FROM pg_settings WHERE name = 'shared_buffers')
    ) AS wanted
) AS room
WHERE wanted > (SELECT setting::bigint FROM pg_settings WHERE name = 'maintenance_work_mem')
"""


def build_hnsw(connection: Connection, version: int, advance: Advance = silent) -> None:
    """An HNSW index over the cells of one version, for `ORDER BY emb <-> ... LIMIT k` without a filter.

    `advance` counts cells as they enter the index, from another thread; it counts none where the server takes no second
    connection.
    """
    row = connection.execute("SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'vector'").fetchone()
    if row and version_tuple(row[0]) < SAFE_PARALLEL_BUILD:
        connection.execute("SET LOCAL max_parallel_maintenance_workers = 0")
    connection.execute(sql.SQL(MAKE_ROOM).format(cells=partition("cell_embedding", version)), [CELL_BYTES])
    with _watched(connection, advance):
        connection.execute(
            connection.named("CREATE INDEX ON {} USING hnsw (emb @extschema:vector@.vector_l2_ops)").format(
                partition("cell_embedding", version)
            )
        )


@contextmanager
def _watched(connection: Connection, advance: Advance) -> Iterator[None]:
    """Report the progress. A second connection asks for it, because the one that builds the index is busy."""
    info, ended = connection.info, Event()
    dsn = make_conninfo(info.dsn, password=info.password or None)
    watcher = Thread(target=_watch, args=(dsn, info.backend_pid, advance, ended), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _watch(dsn: str, backend: int, advance: Advance, ended: Event) -> None:
    """Watch the progress. Any failure is ignored, because progress is not worth an error."""
    done = 0
    with suppress(CallipperError), db.session(dsn, autocommit=True) as connection:
        while not ended.wait(WATCH_S):
            row = connection.execute(
                "SELECT tuples_done FROM pg_catalog.pg_stat_progress_create_index WHERE pid = %s", [backend]
            ).fetchone()
            if row is not None and row[0] > done:
                advance(row[0] - done)
                done = row[0]
