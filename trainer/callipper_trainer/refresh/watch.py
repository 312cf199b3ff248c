"""`callipper-db refresh --watch`: refresh whenever the POIs have changed, for as long as nobody stops it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from callipper_db import db
from callipper_db.db import Connection
from callipper_db.errors import CallipperError, ChangesUnnoticed, ConnectionFailed, ConnectionLost
from callipper_db.progress import Reporter
from callipper_trainer.data.source import POI_TABLE
from callipper_trainer.refresh.refresh import RefreshCache, RefreshSummary, active_source, refresh

CHANNEL = "callipper_poi"
QUIET_S = 0.5  # without another change, until a refresh begins
PATIENCE_S = 3.0  # after which it begins although changes keep coming
SETTLE_S = 20.0  # without another change, until what lies far from the changes is renewed too
SETTLE_PATIENCE_S = 300.0  # after which it is although changes keep coming
LOOK_EVERY_S = 60.0  # to notice an activation, which notifies nobody, or a connection that is dead
RETRY_S, RETRY_AT_MOST_S = 0.5, 30.0


@dataclass
class Watch:
    """Refreshes at the start, after notifications, and every `every_s` seconds."""

    dsn: str
    reporter: Reporter
    report: Callable[[RefreshSummary], None]  # called after the first refresh, and after those that wrote something
    every_s: float | None = None
    compare: bool = False
    text_encoder: str | None = None

    def run(self) -> None:
        """Until KeyboardInterrupt.

        A connection that is lost is opened again, and what else fails is said and tried again at the next change. But what
        fails at the very first time is raised: ChangesUnnoticed for a source without triggers and no `every_s`, and all that
        refresh raises.
        """
        self.cache, self.begun = RefreshCache(), False
        self.postponed_at: float | None = None
        retry_s = RETRY_S
        while True:
            try:
                with db.session(self.dsn, autocommit=True) as connection:
                    connection.execute(f"LISTEN {CHANNEL}")
                    connection.execute("SET idle_session_timeout = 0")
                    nearby = True
                    while True:
                        self._refresh(connection, nearby)
                        retry_s = RETRY_S
                        nearby = self._wait(connection)
            except (ConnectionLost, ConnectionFailed) as error:
                if not self.begun:
                    raise
                self.reporter.note(f"{error} Trying again in {retry_s:g} s.")
            time.sleep(retry_s)
            retry_s = min(2 * retry_s, RETRY_AT_MOST_S)

    def _wait(self, connection: Connection) -> bool:
        """Until it is time for the next refresh; whether that may postpone what lies far from the changes."""
        if self.postponed_at is None:
            wait_for_change(connection, self.every_s or LOOK_EVERY_S)
            return True
        latest = self.postponed_at + SETTLE_PATIENCE_S
        settle_s = max(0.0, min(SETTLE_S, latest - time.monotonic()))
        return wait_for_change(connection, settle_s) and time.monotonic() < latest

    def _refresh(self, connection: Connection, nearby: bool) -> None:
        try:
            source = active_source(connection)
            if self.every_s is None and source != POI_TABLE:
                raise ChangesUnnoticed(source=source)
            summary = refresh(
                self.dsn,
                self.reporter,
                text_encoder=self.text_encoder,
                compare=self.compare,
                wait=True,
                cache=self.cache,
                nearby=nearby,
            )
        except (ConnectionLost, ConnectionFailed):
            raise
        except CallipperError as error:
            if not self.begun:
                raise
            self.reporter.note(str(error))
            self.postponed_at = None  # or a failure that lasts would be tried again without a pause
            return
        if summary.anything or not self.begun:
            self.report(summary)
        if not summary.postponed:
            self.postponed_at = None
        elif self.postponed_at is None:
            self.postponed_at = time.monotonic()
        self.begun = True


def wait_for_change(connection: Connection, seconds: float) -> bool:
    """Wait for a notification, at most so long, and then until they pause; whether one has come."""
    if not list(connection.notifies(timeout=seconds, stop_after=1)):
        return False
    latest = time.monotonic() + PATIENCE_S
    while (left := latest - time.monotonic()) > 0:
        if not list(connection.notifies(timeout=min(QUIET_S, left), stop_after=1)):
            break
    return True
