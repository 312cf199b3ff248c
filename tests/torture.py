"""Kills commands again and again, and looks whether anything was lost: make torture, or python tests/torture.py --help.

Each round runs one command on a server with fsync and holds it at a lock: somewhere on its way, or when it commits (a deferred
trigger waits there). Then the client, its backends or the whole server is killed; in the commit phase sometimes just after the
lock was let go. Afterwards all that stands in the database must be as before the command or as after it, never anything
between, and as after it where the command has said that it was done. The same rounds, a few of them, are test_torture.py.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

sys.path.insert(0, str(Path(__file__).parent / "support"))

from callipper_db import models, schema
from callipper_db.own_table import CHUNK, embed_table
from callipper_db.progress import Silent
from callipper_db.server import EmbeddedServer
from callipper_trainer.config import TrainConfig
from deployments import kill_server
from handmade import write_model
from locks import locked, locked_row
from processes import Command, running, wait_for
from sessions import user_session
from town import fill_town, train_town

GATE = 0x0CA1_0099  # advisory lock at which commits wait
TARGETS = ("client", "backend", "server")
PHASES = ("on the way", "commit")
# How many rounds of 300; the slower a command, the fewer.
SHARES = {
    "load": 56,
    "activate": 56,
    "drop": 42,
    "refresh": 42,
    "embed": 26,
    "train": 26,
    "init": 26,
    "encoder install": 26,
}
PLACES = CHUNK + 300  # rows of a table of the user's own: two chunks
# Where a command is held on its way: a relation that it locks, reads or writes. embed is held at a row of its table.
WAY = {
    "load": ("poi",),
    "activate": ("model", "change"),
    "drop": ("model",),
    "refresh": ("poi", "context_cell"),
    "train": ("poi", "text_vector", "cell", "context_cell", "cell_embedding", "change"),
    "init": ("model",),
    "encoder install": ("text_norm", "text_token"),
}
GATES = f"""
CREATE SCHEMA torture;
GRANT USAGE ON SCHEMA torture TO PUBLIC;
CREATE FUNCTION torture.wait() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_catalog.pg_advisory_xact_lock({GATE});
    RETURN NULL;
END $$;
CREATE FUNCTION torture.wait_at_the_end_of_init() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_query() LIKE '%sql_version%' THEN
        PERFORM pg_catalog.pg_advisory_xact_lock({GATE});
    END IF;
END $$;
CREATE EVENT TRIGGER torture_init ON ddl_command_end WHEN TAG IN ('GRANT')
    EXECUTE FUNCTION torture.wait_at_the_end_of_init();
"""
# Tables whose rows a command writes: their trigger waits when it commits.
GATED = {
    "callipper.poi": "INSERT OR UPDATE OR DELETE",
    "callipper.model": "INSERT OR UPDATE OR DELETE",
    "own.place": "UPDATE",
    "callipper.text_encoder": "INSERT",  # train and refresh also update it, in a transaction of its own before theirs
}


@dataclass
class Tally:
    """What has become of the rounds of one command in one phase."""

    kills: Counter[str] = field(default_factory=Counter)  # by target
    before: int = 0  # as before the command
    after: int = 0  # as after it
    lost: list[str] = field(default_factory=list)


class Town:
    """A server of its own, with fsync, and a town in it whose version 1 is active."""

    def __init__(self, home: Path) -> None:
        # Here, since each command's process imports this file, and transformers takes seconds.
        from tiny_encoder import write_encoder

        self.home = home
        self.server = EmbeddedServer(home / "server", root_area=home / "area")
        self.server.start()
        self.dsn = self.server.dsn()
        schema.init(self.dsn)
        fill_town(self.dsn)
        self.encoder = write_encoder(home / "encoder")
        self.other_encoder = write_encoder(home / "other", seed=1)
        config = TrainConfig(hidden=32, blocks=1, epochs=1, device="cpu")
        for _ in range(2):
            train_town(self.dsn, home, config, encoder=str(self.encoder.folder), text_tower=True)
        models.activate_model(self.dsn, 1)
        self.file = home / "pois.csv"
        self.file.write_text("id,category,lon,lat\n" + "".join(f"{n},cafe,5.12{n:03},52.09\n" for n in range(500)))
        self.execute("CREATE SCHEMA own")
        self.execute(
            "CREATE TABLE own.place (id int PRIMARY KEY, geom geometry(Point, 4326), emb vector(256), undisturbed vector(256))"
        )
        self.execute(
            f"INSERT INTO own.place SELECT n, ST_SetSRID(ST_Point(5.1 + n % 200 * 0.0002, 52.08 + n / 200 * 0.0002), 4326)"
            f" FROM generate_series(1, {PLACES}) AS n"
        )
        with psycopg.connect(self.server.administrator_dsn()) as connection:
            connection.execute(GATES.encode())
            for table, events in GATED.items():
                connection.execute(
                    f"CREATE CONSTRAINT TRIGGER torture AFTER {events} ON {table}"
                    " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION torture.wait()".encode()
                )

    def state(self) -> tuple[object, ...]:
        """All that commands change, as a value; it is checked for being whole on the way."""
        with psycopg.connect(self.dsn) as connection:

            def one(query: str) -> object:
                row = connection.execute(query.encode()).fetchone()
                return row[0] if row and len(row) == 1 else row

            connection.execute("SET search_path = callipper, public")
            versions = one("SELECT array_agg(version ORDER BY version) FROM model")
            for parent in ("cell_embedding", "point_embedding", "text_embedding"):
                parts = one(
                    f"SELECT array_agg(substring(relname FROM '_v(\\d+)$')::int ORDER BY 1) FROM pg_class WHERE relkind = 'r'"
                    f" AND relnamespace = 'callipper'::regnamespace AND relname ~ '^{parent}_v\\d+$'"
                )
                assert sorted(parts or []) == versions, f"{parent} has parts {parts}, and there are versions {versions}"  # type: ignore[call-overload]
            active = one("SELECT array_agg(version) FROM model WHERE status = 'active'")
            assert active == [one("SELECT _active_version()")], f"{active} are active"
            assert one("SELECT count(*) FROM search('park', 5)") == 5, "search does not answer"
            # Embeddings are those of the lattices that are stored: a refresh was whole, or was not.
            off = one(
                "SELECT max(e.emb <-> loc_embed(ST_Centroid(c.geom), m.version)) FROM model m, cell_embedding e"
                " JOIN cell c USING (cell_id) WHERE m.status = 'active' AND e.version = m.version AND e.cell_id % 97 = 0"
            )
            assert off is None or float(str(off)) < 1e-4, f"cells are {off} off the lattices"
            encoders = connection.execute(
                "SELECT revision, (SELECT count(*) FROM text_token t WHERE t.text_encoder_id = e.text_encoder_id),"
                " (SELECT count(*) FROM text_weight t WHERE t.text_encoder_id = e.text_encoder_id),"
                " (SELECT count(*) FROM text_norm t WHERE t.text_encoder_id = e.text_encoder_id)"
                " FROM text_encoder e ORDER BY 1"
            ).fetchall()
            return (
                versions,
                active,
                one("SELECT count(*), count(*) FILTER (WHERE source = 'pois') FROM poi"),
                one("SELECT sum(hashtextextended(c::text, 0)) FROM context_cell c WHERE version = 1"),
                one("SELECT count(*), sum(hashtextextended(p.text, 0)) FROM point_embedding p WHERE version = 1"),
                one("SELECT _sql_digest()"),
                one("SELECT count(emb) FROM own.place"),
                encoders,
            )

    def prepare(self, command: str) -> tuple[list[str], Callable[[], None]]:
        """What is to be done before a round of a command: its arguments, and what takes its effect back."""
        home = self.home
        if command == "load":
            return ["load", str(self.file)], lambda: self.execute("DELETE FROM callipper.poi WHERE source = 'pois'")
        if command == "activate":
            return ["models", "activate", "2"], lambda: models.activate_model(self.dsn, 1)
        if command == "drop":
            with user_session(self.dsn) as connection:
                version = write_model(connection, activate=False).version
                connection.execute("DELETE FROM callipper.poi WHERE source NOT IN ('town', 'torture')")  # its own
            return ["models", "drop", str(version)], self.drop_others
        if command == "refresh":
            self.execute(
                "INSERT INTO callipper.poi (source, source_id, category, category_group, geom) VALUES ('torture',"
                " gen_random_uuid(), 'cafe', 'food', ST_SetSRID(ST_Point(5.12 + random() / 100, 52.09), 4326))"
            )
            return ["refresh", "--text-encoder", str(self.encoder.folder), "--compare"], lambda: None
        if command == "train":
            options = ["--epochs", "1", "--grid-size", "150", "--text-encoder", str(self.encoder.folder)]
            return ["train", *options], self.drop_others
        if command == "embed":
            self.execute("UPDATE own.place SET emb = NULL, undisturbed = NULL")
            return ["embed", "own.place"], self.finish_embedding
        if command == "init":
            self.execute(
                "CREATE OR REPLACE FUNCTION callipper._sql_digest() RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT 'old' $$"
            )
            return ["init"], lambda: schema.init(self.dsn) and None
        return ["text-encoder", "install", str(home / "other")], self.remove_other_encoder

    def drop_others(self) -> None:
        models.activate_model(self.dsn, 1)
        for model in models.list_models(self.dsn):
            if model["version"] > 2:
                models.drop_model(self.dsn, model["version"])

    def finish_embedding(self) -> None:
        """What was killed goes on where it was: whole chunks are there, and in the end all is as in a run without a kill."""
        with psycopg.connect(self.dsn) as connection:
            ((filled,),) = connection.execute("SELECT count(emb) FROM own.place").fetchall()
            assert filled in (0, CHUNK, PLACES), f"a part of a chunk was written: {filled} rows"
            left = embed_table(self.dsn, "own.place", "emb", Silent()).rows
            assert left == PLACES - filled, f"{left} rows were embedded again or left out, {filled} were there"
            embed_table(self.dsn, "own.place", "undisturbed", Silent())
            ((off,),) = connection.execute("SELECT max(emb <-> undisturbed) FROM own.place").fetchall()
            assert off < 1e-4, f"places are {off} off"

    def remove_other_encoder(self) -> None:
        self.execute(
            f"DELETE FROM callipper.text_encoder WHERE revision = '{self.other_encoder.revision}'",
        )

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.dsn) as connection:
            connection.execute("SET search_path = callipper, public")
            connection.execute(statement.encode())


@contextmanager
def gate(dsn: str) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """No commit gets through. Yields what waits until one tries, and what lets it through."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [GATE])
        query = "SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'advisory' AND objid = %s"
        yield (
            lambda: wait_for(lambda: connection.execute(query, [GATE]).fetchone()),
            lambda: connection.execute("SELECT pg_advisory_unlock(%s)", [GATE]) and None,
        )


def kill(town: Town, command: Command, target: str) -> None:
    if target == "client":
        command.end(signal.SIGKILL)
    elif target == "server":
        kill_server(town.server)
    else:
        with suppress(psycopg.OperationalError), psycopg.connect(town.dsn, autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name = 'callipper-db'"
            )


def one_round(
    town: Town, command: str, phase: str, target: str, tally: Tally, number: int, chance: random.Random
) -> None:
    """Run a command, kill it, and see what is left."""
    arguments, take_back = town.prepare(command)
    before = town.state()
    home = town.home / f"round{number}"
    with running(home, *arguments, "--dsn", town.dsn) as run:
        with suppress(psycopg.OperationalError):  # the server is gone with the lock
            if phase == "commit":
                with gate(town.dsn) as (wait_until_held, let_go):
                    try:
                        wait_until_held()
                    except AssertionError as error:
                        raise AssertionError(f"{command} did not come to its commit: {run.said}") from error
                    if chance.random() < 0.5:
                        let_go()
                        until = time.perf_counter() + chance.uniform(0, 0.005)
                        while time.perf_counter() < until:
                            pass
                    kill(town, run, target)
            else:
                if command == "embed":
                    relation, hold = "own.place", locked_row(town.dsn, "own.place", chance.randint(1, PLACES))
                else:
                    relation = chance.choice(WAY[command])
                    hold = locked(town.dsn, relation)
                with hold as wait_until_held:
                    try:
                        wait_until_held()
                    except AssertionError as error:
                        raise AssertionError(f"{command} was not held at {relation}: {run.said}") from error
                    kill(town, run, target)
        code = run.end()
    shutil.rmtree(home, ignore_errors=True)
    if target == "server":
        town.server.start()
    settle(town.dsn)
    tally.kills[target] += 1
    try:
        after = town.state()
    except (AssertionError, psycopg.Error) as error:
        tally.lost.append(f"{command}, {phase}, {target}: {error}")
        raise
    changed = after != before
    tally.after += changed
    tally.before += not changed
    if code == 0 and not changed:
        tally.lost.append(f"{command}, {phase}, {target}: it said that it was done, and nothing has changed")
    differing = sum(one != other for one, other in zip(before, after, strict=True))
    if differing > {"train": 2, "refresh": 2}.get(command, 1):
        tally.lost.append(f"{command}, {phase}, {target}: {before} has become {after}")
    take_back()


def settle(dsn: str) -> None:
    """Until the backends of the round are gone: those that wait for a lock notice late that nobody listens to them."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        others = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'callipper-db'"
        wait_for(lambda: connection.execute(f"SELECT 1 {others}".encode()).fetchone() is None)


def rounds(kills: int, commands: Sequence[str]) -> list[tuple[str, str, str]]:
    """(command, phase, target) of each, half of them in the commit phase, the targets in turn."""
    found = []
    for command in commands:
        count = 2 * max(1, round(SHARES[command] * kills / sum(SHARES[name] for name in commands) / 2))
        found += [(command, PHASES[number % 2], TARGETS[number // 2 % 3]) for number in range(count)]
    return found


def torture(
    kills: int,
    minutes: float,
    seed: int,
    home: Path,
    say: Callable[[str], None],
    commands: Sequence[str] = tuple(SHARES),
) -> dict[tuple[str, str], Tally]:
    """Kill so often, or until the time is over; what has become of it, by command and phase."""
    chance, until = random.Random(seed), time.monotonic() + 60 * minutes
    tallies: dict[tuple[str, str], Tally] = {}
    plan = rounds(kills, commands)
    chance.shuffle(plan)
    town = Town(home)
    try:
        for number, (command, phase, target) in enumerate(plan, start=1):
            if time.monotonic() > until:
                say(f"The time is over after {number - 1} of {len(plan)} kills.")
                break
            tally = tallies.setdefault((command, phase), Tally())
            one_round(town, command, phase, target, tally, number, chance)
            if number % 20 == 0:
                say(f"{number} of {len(plan)} kills, lost: {sum(len(tally.lost) for tally in tallies.values())}")
    finally:
        town.server.stop()
    return tallies


def table(tallies: dict[tuple[str, str], Tally]) -> str:
    """What a person reads."""
    lines = [f"{'command':<16} {'phase':<10} {'kills':>5}  client backend server   before  after   lost"]
    total: Counter[str] = Counter()
    for (command, phase), tally in sorted(tallies.items()):
        number = tally.kills.total()
        by = " ".join(f"{tally.kills[target]:>6}" for target in TARGETS)
        lines.append(
            f"{command:<16} {phase:<10} {number:>5}  {by}   {tally.before:>6} {tally.after:>6} {len(tally.lost):>6}"
        )
        total += Counter({"kills": number, phase: number, "lost": len(tally.lost)})
    lines.append(f"{total['kills']} kills, {total['commit']} of them in the commit phase; lost: {total['lost']}.")
    return "\n".join([*lines, *(said for tally in tallies.values() for said in tally.lost)])


def main() -> None:
    """Parse, torture, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--commands", nargs="+", choices=SHARES, default=list(SHARES), metavar="COMMAND")
    parser.add_argument("--minutes", type=float, default=60, help="stop after this many minutes")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="callipper-torture-"))
    home.chmod(0o755)

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    say(f"seed {options.seed}")
    began = time.monotonic()
    try:
        tallies = torture(options.kills, options.minutes, options.seed, home, say, options.commands)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    say(table(tallies))
    say(f"{time.monotonic() - began:.0f} s")
    sys.exit(any(tally.lost for tally in tallies.values()))


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
