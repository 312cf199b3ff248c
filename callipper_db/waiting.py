"""Whom a command waits for: the sessions that hold locks on what it changes."""

from __future__ import annotations

from callipper_db.db import Connection
from callipper_db.progress import Reporter

SHOWN = 3  # sessions that a message names
# Of another role's session, a role without pg_read_all_stats sees neither the age nor the query.
HOLDERS = """
SELECT a.pid, coalesce(a.usename::text, a.backend_type, 'an unknown role'), coalesce(a.state, ''),
    extract(epoch FROM pg_catalog.clock_timestamp() - a.xact_start)::int,
    pg_catalog.left(pg_catalog.regexp_replace(a.query, '\\s+', ' ', 'g'), 80)
FROM pg_catalog.pg_stat_activity a
WHERE a.pid <> pg_catalog.pg_backend_pid() AND a.pid IN (
    SELECT l.pid FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_class c ON c.oid = l.relation
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE l.granted AND n.nspname IN ('callipper', 'callipper_map')
        AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
        AND (%s::boolean OR l.mode NOT IN ('AccessShareLock', 'RowShareLock'))
) ORDER BY a.xact_start, a.pid
"""


class Waiting:
    """Says whom a command waits for: once, and again when somebody else is among them."""

    def __init__(self, connection: Connection, reporter: Reporter) -> None:
        self.connection, self.reporter = connection, reporter
        self.said: set[int] = set()

    def say(self, *, readers: bool) -> None:
        """Look who it is, and say so unless they were named before. readers: also those that only read."""
        found = self.holders(readers=readers)
        if not found.keys() <= self.said:
            self.said |= found.keys()
            self.reporter.note(f"Waiting for {describe(found)}")

    def holders(self, *, readers: bool) -> dict[int, str]:
        """The sessions that hold locks in our schemas, by process, the oldest first."""
        # Else the first look's answer comes again.
        self.connection.execute("SELECT pg_catalog.pg_stat_clear_snapshot()")
        return {row[0]: _describe(*row) for row in self.connection.execute(HOLDERS, [readers]).fetchall()}


def describe(found: dict[int, str]) -> str:
    """Sessions as a message names them."""
    named = list(found.values())
    more = [f"{len(named) - SHOWN} more"] if len(named) > SHOWN else []
    return "; ".join([*named[:SHOWN], *more]) or "gone by now"


def _describe(pid: int, user: str, state: str, age_s: int | None, query: str | None) -> str:
    if age_s is None:
        return f"process {pid} of {user}"
    return (
        f"process {pid} of {user}, in a transaction for {age_s} s, {'idle after' if 'idle' in state else 'at'}: {query}"
    )
