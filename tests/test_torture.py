"""A few rounds of make torture, one of each command on its way and one in its commit."""

from __future__ import annotations

from pathlib import Path

from torture import PHASES, SHARES, table, torture


def test_nothing_is_lost(open_folder: Path) -> None:
    tallies = torture(len(SHARES) * len(PHASES), 30, 0, open_folder, lambda line: None)
    assert set(tallies) == {(command, phase) for command in SHARES for phase in PHASES}
    assert not [said for tally in tallies.values() for said in tally.lost], table(tallies)
