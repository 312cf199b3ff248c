"""`callipper-db refresh --watch`: refresh after each change of the POIs, until somebody stops it."""

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
QUIET_S = 0.5  # a refresh begins when there was no change for this long
PATIENCE_S = 3.0  # or when changes have kept coming for this long
SETTLE_S = 20.0  # a refresh of places far from the changes begins when there was no change for this long
SETTLE_PATIENCE_S = 300.0  # or when changes have kept coming for this long
LOOK_EVERY_S = 60.0  # pause between looks for an activation, which sends no notification, or a dead connection
RETRY_S, RETRY_AT_MOST_S = 0.5, 30.0


@dataclass
class Watch:
    """Refreshes at the start, after each notification, and every `every_s` seconds."""

    dsn: str
    reporter: Reporter
    report: Callable[[RefreshSummary], None]  # called after the first refresh, and after those that wrote something
    every_s: float | None = None
    compare: bool = False
    text_encoder: str | None = None
    keep: int | None = None  # of the first refresh that finds POIs to differ; the later ones add to its state

    def run(self) -> None:
        """Run until KeyboardInterrupt.

        It opens a lost connection again. It reports any other error and tries again at the next change. But it raises the
        errors of the first refresh: ChangesUnnoticed for a source without triggers and no `every_s`, and those of refresh().
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
        """Wait until the next refresh; returns whether that one may postpone places far from the changes."""
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
                keep=self.keep,
            )
            if summary.kept:
                self.keep = None
        except (ConnectionLost, ConnectionFailed):
            raise
        except CallipperError as error:
            if not self.begun:
                raise
            self.reporter.note(str(error))
            self.postponed_at = None  # otherwise a lasting failure would be tried again without a pause
            return
        if summary.anything or not self.begun:
            self.report(summary)
        if not summary.postponed:
            self.postponed_at = None
        elif self.postponed_at is None:
            self.postponed_at = time.monotonic()
        self.begun = True


def wait_for_change(connection: Connection, seconds: float) -> bool:
    """Wait for a notification, at most `seconds`, and then until they pause; returns whether one has come."""
    if not list(connection.notifies(timeout=seconds, stop_after=1)):
        return False
    latest = time.monotonic() + PATIENCE_S
    while (left := latest - time.monotonic()) > 0:
        if not list(connection.notifies(timeout=min(QUIET_S, left), stop_after=1)):
            break
    return True
