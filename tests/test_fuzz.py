"""Any arguments of any SQL function, and any values of any option: an answer, or an error that is meant.

CALLIPPER_FUZZ=N draws N examples for each test; `make torture` draws 5,000.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import click
import psycopg
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from callipper_db import db
from callipper_db.cli.main import main

EXAMPLES = settings(
    deadline=None,
    max_examples=int(os.environ.get("CALLIPPER_FUZZ", "80")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

# SQL functions

TEXTS = st.one_of(
    st.sampled_from(
        ["park", "cafe", "school", "", " ", "?", "where can I park", "%s", "'; DROP TABLE x; --", "z" * 3000]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30),
)
COORDINATES = st.one_of(
    st.sampled_from([5.12, 52.09, 0.0, 180.0, -180.0, 90.0, -90.0, 1e-300, 1e308]),
    st.floats(-200, 200),
    st.floats(allow_nan=False, allow_infinity=False),
)
POSITIONS = st.tuples(COORDINATES, COORDINATES).map(lambda pair: f"{pair[0]} {pair[1]}")


def ring(points: list[str]) -> str:
    return ",".join([*points, points[0]])


GEOMETRIES = st.builds(
    lambda srid, shape: f"SRID={srid};{shape}" if srid else shape,
    st.sampled_from([4326, 4326, 4326, 32631, 3857, 0, 27700, 999999]),
    st.one_of(
        POSITIONS.map(lambda point: f"POINT({point})"),
        st.sampled_from(["POINT EMPTY", "POLYGON EMPTY", "GEOMETRYCOLLECTION EMPTY", "POINT Z (5.12 52.09 1)"]),
        st.lists(POSITIONS, min_size=2, max_size=4).map(lambda points: f"LINESTRING({','.join(points)})"),
        st.lists(POSITIONS, min_size=3, max_size=6).map(lambda points: f"POLYGON(({ring(points)}))"),
        st.lists(POSITIONS, min_size=1, max_size=3).map(lambda points: f"MULTIPOINT({','.join(points)})"),
    ),
)
WHOLE = st.one_of(st.sampled_from([0, 1, 2, 10, -1]), st.integers(-(2**31), 2**31 - 1))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "text": TEXTS,
    "text[]": st.lists(st.one_of(TEXTS, st.none()), max_size=3),
    "geometry": GEOMETRIES,
    "geometry[]": st.lists(GEOMETRIES, max_size=3),
    "integer": WHOLE,
    "bigint": st.one_of(WHOLE, st.integers(-(2**63), 2**63 - 1)),
    "double precision": st.one_of(COORDINATES, st.sampled_from([float("nan"), float("inf")])),
    "boolean": st.booleans(),
    "json": st.dictionaries(st.sampled_from(["query", "q"]), st.one_of(TEXTS, WHOLE, st.none())),
}
# What means that a function of ours went wrong inside: internal, a missing or ambiguous name, too many or no rows, too slow.
FAULTS = (
    "XX",
    "42883",
    "42P",
    "42702",
    "42703",
    "42601",
    "42725",
    "21",
    "57",
    "53",
    "54",
    "58",
    "P0003",
    "P0004",
)
# PostGIS gives all its errors the SQLSTATE of internal ones, also where it says well what is wrong with a place or a tile.
MEANT = ("ST_TileEnvelope: Invalid tile", "transform: ", "Invalid reserved SRID", "Cannot find SRID")
FAR_OUT = (
    "SRID=4326;POLYGON((1.1 -8.985252886508618e+234,-6.029743791694144e+16 52.09,-2.9252317368367812e+16 2.2e-251,"
    "49.15396395422272 -36.80370756618018,0.0 4.364932659470142e-143,-132.2 -51.7,1.1 -8.985252886508618e+234))"
)


def test_an_area_far_out_is_no_end_of_the_server(reading: db.Connection) -> None:
    """ST_WrapX of this polygon is a segmentation fault in PostGIS 3.3."""
    reading.execute("SELECT callipper.search('park', 3, %s::public.geometry)", [FAR_OUT])


def test_every_function_answers_or_says_what_is_wrong(reading: db.Connection) -> None:
    functions = [
        (name, [(kind, number >= required) for number, kind in enumerate(kinds)])
        for name, kinds, required in reading.execute(
            "SELECT p.oid::regproc::text,"
            " ARRAY(SELECT format_type(t, NULL) FROM unnest(p.proargtypes) WITH ORDINALITY AS a(t, n) ORDER BY n),"
            " p.pronargs - p.pronargdefaults FROM pg_proc p"
            " WHERE p.pronamespace IN ('callipper'::regnamespace, 'callipper_map'::regnamespace)"
            " AND left(p.proname, 1) <> '_' AND p.prorettype <> 'trigger'::regtype ORDER BY 1, p.oid"
        )
    ]
    assert len(functions) > 25
    reading.execute("SET LOCAL statement_timeout = '30s'")

    @EXAMPLES
    @given(data=st.data())
    def ask(data: st.DataObject) -> None:
        name, arguments = data.draw(st.sampled_from(functions))
        given_now = arguments[: data.draw(st.integers(sum(not optional for _, optional in arguments), len(arguments)))]
        values = [data.draw(st.one_of(VALUES[kind], VALUES[kind], st.none())) for kind, _ in given_now]
        holes = ", ".join(f"%s::{'public.' if kind.startswith('geometry') else ''}{kind}" for kind, _ in given_now)
        values = [psycopg.types.json.Json(value) if isinstance(value, dict) else value for value in values]
        try:
            with reading.transaction(force_rollback=True):
                reading.execute(f"SELECT * FROM {name}({holes})".encode(), values).fetchall()
        except psycopg.Error as error:
            said = f"{error.sqlstate} {error}"
            assert str(error).startswith(MEANT) or (not said.startswith(FAULTS) and "returned no rows" not in said), (
                f"{name}{values}: {said}"
            )

    ask()


# Options

# They start servers or write files whatever else is given.
NOT_RUN = {("server",), ("map",), ("mcp",), ("dsn",), ("extension",)}
WORDS = st.one_of(
    st.sampled_from(["", "0", "-1", "1e400", "nan", "4326", "epsg:27700", "POINT(5 52)", "5,52,6,53", "square", "[b]"]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12),
    st.integers().map(str),
)


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if (*path, name)[:1] in NOT_RUN:
            continue
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def test_every_option_takes_or_refuses_any_value(run: Callable[..., Any]) -> None:
    """With a server that nobody reaches, so that what gets past the options ends there."""
    known = list(commands())
    assert len(known) > 25

    @EXAMPLES
    @given(data=st.data())
    def call(data: st.DataObject) -> None:
        path, command = data.draw(st.sampled_from(known))
        options = [option for option in command.params if isinstance(option, click.Option) and option.name != "dsn"]
        words = list(path)
        for option in data.draw(st.lists(st.sampled_from(options), max_size=4)) if options else []:
            words.append(option.opts[-1])
            if not option.is_flag:
                kind = option.type
                choices = st.sampled_from(kind.choices) if isinstance(kind, click.Choice) else WORDS
                words.append(str(data.draw(st.one_of(choices, WORDS))))
        count = sum(isinstance(parameter, click.Argument) for parameter in command.params)
        words += data.draw(st.lists(WORDS, min_size=0, max_size=count + 1))
        dsn = ["--dsn", "postgresql://me:secret@127.0.0.1:1/city"]
        if any(parameter.name == "dsn" for parameter in command.params):
            words[len(path) : len(path)] = dsn
        result = CliRunner().invoke(main, words)
        assert result.exception is None or isinstance(result.exception, SystemExit), (words, result.exc_info)
        assert result.exit_code in (0, 1, 2), words
        assert "secret" not in result.output and "Traceback" not in result.output, words

    call()
