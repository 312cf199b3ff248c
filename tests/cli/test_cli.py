"""The command line: its help, its answers, and errors that are one sentence."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from callipper_db import schema, search
from callipper_db.cli.main import main
from callipper_trainer.config import TrainConfig
from callipper_trainer.data.source import Source
from callipper_trainer.train import TrainOptions
from handmade import ORIGIN, Model, write_model
from sessions import user_session
from town import MIDDLE

ROOT = Path(__file__).parents[2]


def leaves(
    command: click.Command = main, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from leaves(child, (*path, name))
    else:
        yield path, command


COMMANDS = dict(leaves())
each_command = pytest.mark.parametrize("path", COMMANDS, ids=" ".join)


@pytest.fixture
def model(database: str) -> Model:
    with user_session(database) as connection:
        return write_model(connection, ORIGIN[None] + 5)


def failure(result: Result) -> str:
    """The one sentence of an error."""
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert "Traceback" not in line and "{" not in line and "psycopg" not in line
    return line.removeprefix("Error: ")


# Help


@each_command
def test_every_command_says_what_it_does_with_an_example(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, [*path, "--help"])
    assert result.exit_code == 0
    assert re.search(r"^ *Examples?:$", result.output, re.MULTILINE)
    assert f"callipper-db {' '.join(path)}" in result.output
    for parameter in COMMANDS[path].params:
        if isinstance(parameter, click.Option):
            assert parameter.help and parameter.help.endswith(("." if parameter.help[0].isupper() else "", ")")), (
                parameter.name
            )


def examples() -> Iterator[tuple[tuple[str, ...], list[str]]]:
    for path, command in COMMANDS.items():
        for line in (command.help or "").replace("\\\n", " ").splitlines():
            words = shlex.split(line.strip().split(" > ")[0], comments=False) if "callipper-db " in line else []
            if words[:1] == ["callipper-db"]:
                yield path, words[1:]


@pytest.mark.parametrize(("path", "words"), list(examples()))
def test_examples_are_of_the_command_and_parse(path: tuple[str, ...], words: list[str]) -> None:
    assert tuple(words[: len(path)]) == path
    COMMANDS[path].make_context(path[-1], words[len(path) :])


def test_the_first_screen_names_every_command() -> None:
    result = CliRunner().invoke(main, ["--help"])
    for name, command in main.commands.items():
        assert re.search(rf"^  {name} +\S", result.output, re.MULTILINE)
        assert (command.help or "").strip()


@each_command
def test_the_readme_names_every_command(path: tuple[str, ...]) -> None:
    """In a line of its own, or with its siblings: `callipper-db models list`, `show`, `drop`."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert any({"callipper-db", *path} <= set(re.findall(r"[\w-]+", line)) for line in lines)


def test_every_option_of_train_is_one_setting() -> None:
    settings = [{field.name for field in fields(kind)} for kind in (Source, TrainConfig, TrainOptions)]
    for option in COMMANDS["train",].params:
        if option.name not in {"dsn", "resolution", "as_json"}:  # --resolution is another way to say --grid-size
            assert sum(option.name in names for names in settings) == 1, option.name


def test_the_version_is_printed() -> None:
    assert re.search(r"version \d+\.\d+\.\d+", CliRunner().invoke(main, ["--version"]).output)


# Answers


def test_init_says_what_it_did(run: Any, empty_database: str) -> None:
    printed = run("init", "--dsn", empty_database, "--sql").stdout
    assert "CREATE TABLE callipper.poi" in printed and "SET search_path = " in printed
    assert "ALTER DATABASE" not in run("init", "--dsn", empty_database, "--sql", "--no-search-path").stdout
    with user_session(empty_database) as connection:
        assert schema.revision(connection) is None
    result = run("init", "--dsn", empty_database, "--no-search-path")
    assert result.stdout == f"The schema callipper is at revision {schema.head()}.\n"
    result = run("init", "--dsn", empty_database)
    assert "callipper was appended to the database's search_path" in result.stdout
    assert run("init", "--dsn", empty_database).stdout == f"The schema callipper is at revision {schema.head()}.\n"


def test_the_environment_names_the_database(run: Any, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLIPPER_DSN", database)
    assert run("dsn").stdout == database + "\n"
    assert run("models", "list").stdout == "There is no model yet. Train one with: callipper-db train\n"


def test_query(run: Any, database: str, model: Model) -> None:
    lines = run("query", "pub", "--dsn", database, "-k", "3").stdout.splitlines()
    assert lines[0].split()[:4] == ["cell", "similarity", "percentile", "latitude,"]
    assert [int(line.split()[1]) for line in lines[1:]] == model.ranking("pub")[:3].tolist()
    assert "place 1" in lines[1]
    found = json.loads(run("query", "PUB ", "--dsn", database, "-k", "3", "--json").stdout)
    assert [cell["cell_id"] for cell in found] == model.ranking("pub")[:3].tolist()
    keys = {"cell_id", "similarity", "percentile", "lon", "lat", "relevant", "lift", "because", "places"}
    assert all(set(cell) == keys and cell["because"] is None for cell in found), "a model without evidence"
    within = json.loads(run("query", "pub", "--dsn", database, "--within", "-10,-10,0,0", "--json").stdout)
    assert within == []
    said = run("query", "pub", "--dsn", database, "--within", "-10,-10,0,0").stdout
    assert said == "No cell of the model touches --within -10,-10,0,0.\n"


def test_similar_within_nothing(run: Any, shared_town: str) -> None:
    said = run("similar", "5.12,52.09", "--dsn", shared_town, "--within", "0,0,1,1").stdout
    assert said == "No cell of the model touches --within 0,0,1,1.\n"


def test_query_says_why(run: Any, shared_town: str) -> None:
    lines = run("query", "cafe", "--dsn", shared_town, "-k", "3").stdout.splitlines()
    assert lines[0].split() == ["cell", "similarity", "percentile", "latitude,", "longitude", "POIs", "lift", "because"]
    first, *_ = json.loads(run("query", "cafe", "--dsn", shared_town, "-k", "3", "--json").stdout)
    assert first == search.nearest_cells(shared_town, "cafe", 3)[0]
    assert first["relevant"] > 3 and first["lift"] > 2 and "(cafe)" in first["because"]
    assert lines[1].split()[1:3] == [str(first["cell_id"]), f"{first['similarity']:.3f}"]
    assert lines[1].split()[6:8] == [str(first["relevant"]), f"{first['lift']:.1f}"]
    assert first["because"].split()[0] in lines[1]


def test_query_names_what_is_near_where_no_poi_is_the_reason(run: Any, shared_town: str) -> None:
    cells = json.loads(run("query", "cafe", "--dsn", shared_town, "-k", "1000", "--json").stdout)
    with_reason = [cell["because"] is not None for cell in cells]
    assert 0 < sum(with_reason) < len(cells)
    assert with_reason == sorted(with_reason, reverse=True)
    said = run("query", "cafe", "--dsn", shared_town, "-k", "1000").stdout
    assert said.count("(near:") == len(cells) - sum(with_reason)


def test_points(run: Any, shared_town: str) -> None:
    columns = ["name", "category", "similarity", "percentile", "latitude,", "longitude", "because", "of", "its"]
    lines = run("points", "The Old Park, park", "--dsn", shared_town, "-k", "2").stdout.splitlines()
    assert lines[0].split() == columns
    assert all("The Old Park" in line and line.split()[-1] == "name" for line in lines[1:])
    found = json.loads(run("points", "park", "--dsn", shared_town, "-k", "70", "--json").stdout)
    assert found == search.nearest_points(shared_town, "park", 70)
    keys = {"point_id", "name", "category", "text", "similarity", "percentile", "lon", "lat", "because"}
    assert all(set(point) == keys for point in found)
    assert [point["because"] for point in found] == ["name"] * 45 + ["kind"] * 15 + [None] * 10
    assert all(point["name"] is None and point["category"] == "park" for point in found[45:60])


def test_points_within(run: Any, shared_town: str) -> None:
    area = f"{MIDDLE[0] - 0.003},{MIDDLE[1] - 0.002},{MIDDLE[0] + 0.003},{MIDDLE[1] + 0.002}"
    west, south, east, north = map(float, area.split(","))
    found = json.loads(run("points", "cafe", "--dsn", shared_town, "--within", area, "-k", "500", "--json").stdout)
    assert 10 < len(found) < 300
    assert all(west <= point["lon"] <= east and south <= point["lat"] <= north for point in found)
    said = run("points", "cafe", "--dsn", shared_town, "--within", "0,0,1,1").stdout
    assert said == "No POI of the model is in --within 0,0,1,1.\n"
    assert run("points", "cafe", "--dsn", shared_town, "--within", "0,0,1,1", "--json").stdout == "[]\n"


def test_describe(run: Any, shared_town: str) -> None:
    place = f"{MIDDLE[0]},{MIDDLE[1]}"
    lines = run("describe", place, "--dsn", shared_town).stdout.splitlines()
    found = json.loads(run("describe", place, "--dsn", shared_town, "--json").stdout)
    assert found == search.describe_place(shared_town, place)
    assert set(found[0]) == {"text", "similarity", "percentile", "pois", "lift", "because"}
    assert lines[0].split() == ["text", "POIs", "lift", "because"]
    assert found[0]["text"] == "cafe" and found[0]["lift"] > 2
    assert lines[1].split()[:4] == ["1", "cafe", str(found[0]["pois"]), f"{found[0]['lift']:.1f}"]


def test_a_model_without_evidence(run: Any, town: str) -> None:
    """One of an earlier program: cells come with what is near, and words are said by their similarity."""
    with user_session(town) as connection:
        connection.execute("DROP TABLE callipper.point_kind_v1")
        connection.execute("DELETE FROM callipper.kind")
    lines = run("query", "cafe", "--dsn", town, "-k", "3").stdout.splitlines()
    assert lines[0].split()[5:] == ["nearest", "POIs"]
    lines = run("describe", "5.12,52.09", "--dsn", town, "-k", "3").stdout.splitlines()
    assert lines[0].split() == ["text", "similarity", "percentile"]
    assert len(lines) == 4


EMPTY_CORNER = (MIDDLE[0] + 0.018, MIDDLE[1] + 0.0115)  # inside the town's extent, between two quarters
OUTSIDE = "The place is outside of the area that the model was trained on"


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("POLYGON(({east} {north}, {east} 52.102, 5.1385 52.102, {east} {north}))", "There are no POIs in the area."),
        (
            "POLYGON((5 52, 5.3 52, 5.3 52.2, 5 52.2, 5 52))",
            "Nothing stands out: the 300 POIs in the area are a mix that is usual in the city.",
        ),
        ("1.5,2", f"{OUTSIDE}, and there are no POIs around it."),
        (
            "52.09,5.12",
            f"{OUTSIDE}. Did you swap longitude and latitude? Try: callipper-db describe 5.12,52.09",
        ),
        (
            "POINT(52.09 5.12)",
            f"{OUTSIDE}. Did you swap longitude and latitude? Try: callipper-db describe 'POINT(5.12 52.09)'",
        ),
    ],
)
def test_describe_says_why_it_says_nothing(run: Any, shared_town: str, place: str, said: str) -> None:
    place = place.format(east=EMPTY_CORNER[0], north=EMPTY_CORNER[1])
    assert run("describe", place, "--dsn", shared_town).stdout == f"{said}\n"
    assert run("describe", place, "--dsn", shared_town, "--json").stdout == "[]\n"


def test_describe_looks_farther_where_few_pois_are_near(run: Any, town: str) -> None:
    place = "{},{}".format(*EMPTY_CORNER)
    assert json.loads(run("describe", place, "--dsn", town, "--json").stdout)[0]["text"] == "factory"
    with user_session(town) as connection:
        near = "ST_DWithin(geom::geography, ST_Point(%s, %s)::geography, 1500)"
        query = f"WITH gone AS (DELETE FROM callipper.point_embedding WHERE {near} RETURNING point_id)"
        connection.execute(
            f"{query} DELETE FROM callipper.point_kind WHERE point_id IN (TABLE gone)".encode(), EMPTY_CORNER
        )
    assert run("describe", place, "--dsn", town).stdout == "There are no POIs within 1 km of the place.\n"


def test_a_name_with_brackets_is_printed_as_it_is(run: Any, database: str, model: Model) -> None:
    with user_session(database) as connection:
        connection.execute("UPDATE callipper.poi SET name = '[/b][red]Inn'")
    assert "[/b][red]Inn" in run("query", "pub", "--dsn", database).stdout


def test_models(run: Any, database: str, model: Model) -> None:
    with user_session(database) as connection:
        second = write_model(connection, seed=1, activate=False)
    lines = run("models", "list", "--dsn", database).stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [[str(second.version), "ready"], [str(model.version), "active"]]
    listed = json.loads(run("models", "list", "--dsn", database, "--json").stdout)
    assert [entry["version"] for entry in listed] == [second.version, model.version]
    shown = json.loads(run("models", "show", "--dsn", database).stdout)
    assert (shown["version"], shown["cells"]) == (model.version, len(model.cells))
    result = run("models", "activate", str(second.version), "--dsn", database)
    assert result.stdout == f"Model version {second.version} is active.\n"
    run("models", "drop", str(model.version), "--dsn", database)
    run("models", "drop", str(second.version), "--dsn", database, "--force")
    assert json.loads(run("models", "list", "--dsn", database, "--json").stdout) == []


def test_load(run: Any, database: str, tmp_path: Path) -> None:
    file = tmp_path / "pois.csv"
    file.write_text("id,name,category,lon,lat\n1,The Crown,pub,2.35,48.85\n2,Nowhere,pub,500,48.85\n")
    rejects = tmp_path / "rejects.csv"
    result = run("load", str(file), "--dsn", database, "--rejects", str(rejects))
    assert "2 rows, 1 inserted" in result.stdout and "refused 1" in result.stdout
    summary = json.loads(run("load", str(file), "--dsn", database, "--json", "--rejects", str(rejects)).stdout)
    assert summary["files"][0]["unchanged"] == 1


def test_plot(run: Any, database: str, model: Model, tmp_path: Path) -> None:
    picture = tmp_path / "pub.png"
    assert run("plot", "pub", "-o", str(picture), "--dsn", database).stdout == f"Wrote {picture}.\n"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_server_status_of_one_that_was_never_started(run: Any, tmp_path: Path) -> None:
    found = json.loads(run("server", "status", "--json", exit_code=3).stdout)
    assert (found["state"], found["pid"]) == ("stopped", None)
    assert "stopped" in run("server", "status", exit_code=3).stdout
    assert run("server", "stop").stdout == "Stopped.\n"
    assert not (tmp_path / "home").exists()


# doctor


def test_doctor_on_a_database_that_is_ready(run: Any, database: str, model: Model) -> None:
    lines = run("doctor", "--dsn", database).stdout.splitlines()
    assert all(line[:2] in {"ok", "--"} for line in lines)
    assert f"ok  active model: version {model.version}" in lines
    findings = {found["what"]: found for found in json.loads(run("doctor", "--dsn", database, "--json").stdout)}
    assert all(findings[name]["ok"] for name in ("PostgreSQL", "postgis", "vector", "schema callipper", "active model"))
    assert all(not found["needed"] for name, found in findings.items() if name.startswith("extra "))


def test_doctor_without_a_model(run: Any, database: str) -> None:
    assert "--  active model: none yet; run: callipper-db load" in run("doctor", "--dsn", database).stdout


def test_doctor_warns_of_a_schema_that_is_open_to_all(run: Any, database: str) -> None:
    assert "who may create functions" not in run("doctor", "--dsn", database).stdout
    with user_session(database) as connection:
        connection.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    said = run("doctor", "--dsn", database).stdout
    assert "--  who may create functions: PUBLIC may create functions in schema public" in said


def test_doctor_on_an_empty_database(run: Any, empty_database: str) -> None:
    output = run("doctor", "--dsn", empty_database, exit_code=1).stdout
    assert "NO  schema callipper: not there; run: callipper-db init" in output
    assert "available, not yet created: callipper-db init" in output


def test_doctor_on_an_older_schema(run: Any, database: str) -> None:
    with user_session(database) as connection:
        connection.execute(
            "CREATE OR REPLACE FUNCTION callipper._sql_digest() RETURNS text LANGUAGE sql AS 'SELECT ''old'''"
        )
    output = run("doctor", "--dsn", database, exit_code=1).stdout
    assert "NO  schema callipper: revision" in output and "run: callipper-db init" in output


def test_doctor_without_a_server(run: Any) -> None:
    result = run("doctor", "--dsn", "postgresql://me:secret@127.0.0.1:1/city", "--json", exit_code=1)
    finding = json.loads(result.stdout)[0]
    assert (finding["what"], finding["ok"]) == ("connection", False)
    assert "secret" not in result.output


# Errors

ASKS_THE_DATABASE: list[list[str]] = [
    ["init"],
    ["init", "--sql"],
    ["query", "pub"],
    ["points", "pub"],
    ["similar", "-0.1,51"],
    ["describe", "-0.1,51"],
    ["plot", "pub"],
    ["load", "pois.csv"],
    ["train"],
    ["remember", "pub"],
    ["models", "list"],
    ["models", "show"],
    ["models", "activate", "1"],
    ["models", "drop", "1"],
]


@pytest.mark.parametrize("arguments", ASKS_THE_DATABASE, ids=" ".join)
def test_a_server_that_is_not_there(run: Any, arguments: list[str]) -> None:
    message = failure(run(*arguments, "--dsn", "postgresql://me:secret@127.0.0.1:1/city", exit_code=1))
    assert message.startswith("Cannot connect to user=me dbname=city host=127.0.0.1 port=1: ")
    assert "secret" not in message


@pytest.mark.parametrize("dsn", ["nonsense", "postgresql://me@localhost:port/city", "host=", "\N{SNOWMAN}"])
def test_a_dsn_that_does_not_parse(run: Any, dsn: str) -> None:
    message = failure(run("models", "list", "--dsn", dsn or " ", exit_code=1))
    assert message.startswith("Cannot connect to ")
    assert "Check the DSN" in message


@pytest.mark.parametrize("arguments", [row for row in ASKS_THE_DATABASE if row[0] != "init"], ids=" ".join)
def test_a_database_without_the_schema(run: Any, empty_database: str, arguments: list[str]) -> None:
    message = failure(run(*arguments, "--dsn", empty_database, exit_code=1))
    assert message == "This database has no callipper schema yet, or an older one. Run: callipper-db init"


@pytest.mark.parametrize("arguments", [row for row in ASKS_THE_DATABASE if row[0] in {"query", "init"}], ids=" ".join)
def test_a_schema_from_the_future(run: Any, database: str, arguments: list[str]) -> None:
    with user_session(database) as connection:
        connection.execute("UPDATE callipper.alembic_version SET version_num = '9999'")
        connection.execute(
            "CREATE OR REPLACE FUNCTION callipper._sql_digest() RETURNS text LANGUAGE sql AS 'SELECT ''new'''"
        )
    message = failure(run(*arguments, "--dsn", database, exit_code=1))
    assert message.startswith(
        "The schema in this database is newer than this program knows: it is at revision 9999, and"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["query", "pub"],
        ["query", "pub", "--within", "1,2,3,4"],
        ["points", "pub"],
        ["similar", "-0.1,51"],
        ["describe", "-0.1,51"],
        ["plot", "pub"],
    ],
    ids=" ".join,
)
def test_no_active_model(run: Any, database: str, arguments: list[str]) -> None:
    message = failure(run(*arguments, "--dsn", database, exit_code=1))
    assert message == "No model is active in this database. Train one with: callipper-db train"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["models", "show", "99"], "There is no model version 99. See: callipper-db models list"),
        (["models", "activate", "99"], "There is no model version 99. See: callipper-db models list"),
        (["models", "drop", "99999999999"], "There is no model version 99999999999. See: callipper-db models list"),
        (
            ["models", "drop", "1"],
            "Model version 1 is the active one and is not dropped. Activate another first, or add --force.",
        ),
        (
            ["query", "zoo"],
            'model version 1 has not met the text "zoo", and its text encoder handmade is not in the database. Install it with:'
            " callipper-db text-encoder install handmade. Or add the text with: callipper-db remember 'zoo'",
        ),
        (["query", "it's {0}"], "model version 1 has not met the text \"it's"),
        (["query", ""], "the text is empty"),
        (["query", "\udcff"], "The text is not valid UTF-8."),
        (["query", "a\0b"], "The database refused: "),
        (["points", "zoo"], "model version 1 has not met the text"),
        (["points", "pub", "--within", "here"], "--within 'here' is neither a bounding box"),
        (["query", "pub", "--within", "here"], "--within 'here' is neither a bounding box"),
        (["similar", "200,3"], "'200,3' cannot be asked about as a place"),
        (["similar", "3,49", "--within", "here"], "--within 'here' is neither a bounding box"),
        (
            ["describe", "here"],
            "'here' cannot be asked about as a place, which is 'LON,LAT' in degrees or a WKT geometry: ",
        ),
        (["plot", "zoo"], "model version 1 has not met the text"),
        (["plot", "pub", "-o", "no/such/folder/pub.png"], "no/such/folder/pub.png: No such file or directory"),
        (["load", "no-such-file.csv"], "no-such-file.csv"),
    ],
    ids=lambda value: " ".join(value).encode("ascii", "backslashreplace").decode() if isinstance(value, list) else "",
)
def test_errors_are_one_sentence(run: Any, database: str, model: Model, arguments: list[str], expected: str) -> None:
    result = run(*arguments, "--dsn", database, exit_code=1)
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ") and expected in line
    assert result.stdout == ""


def test_a_setting_that_is_not_usable(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLIPPER_PG_BIN", "/no/such/folder")
    message = failure(run("models", "list", exit_code=1))
    assert message == "Setting CALLIPPER_PG_BIN='/no/such/folder' is not usable: it holds no initdb."
    monkeypatch.delenv("CALLIPPER_PG_BIN")
    monkeypatch.setenv("CALLIPPER_MAP_TOKEN", "gr\u00fcn & blau")
    message = failure(run("map", "--host", "0.0.0.0", "--dsn", "dbname=none", exit_code=1))
    assert message.startswith("Setting CALLIPPER_MAP_TOKEN='(not shown)' is not usable: it stands in an address")


@pytest.mark.parametrize(
    "arguments",
    [
        ["query", "pub", "-k", "0"],
        ["points", "pub", "-k", "0"],
        ["similar", "3,49", "--min-distance", "-1"],
        ["describe"],
        ["query"],
        ["models", "activate", "x"],
        ["train", "--srid", "WGS84"],
        ["train", "--text", "a", "--template", "b"],
        ["train", "--epochs", "0"],
        ["load"],
        ["load", "a.csv", "--where", "x"],
        ["no-such-command"],
    ],
    ids=" ".join,
)
def test_wrong_use_is_explained(run: Any, database: str, arguments: list[str]) -> None:
    dsn = ["--dsn", database] if arguments[0] != "no-such-command" else []
    result = run(*arguments, *dsn, exit_code=2)
    assert "Error: " in result.stderr and result.stderr.startswith("Usage: ")


def test_as_a_program(database: str, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "CALLIPPER_DSN": database, "CALLIPPER_HOME": str(tmp_path)}

    def program(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "callipper_db", *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment,
            check=False,
        )

    done = program("query", "pub")
    assert (done.returncode, done.stdout) == (1, "")
    announced, complaint = done.stderr.splitlines()
    assert announced.startswith("Database: ") and announced.endswith("(CALLIPPER_DSN of the environment).")
    assert complaint == "Error: No model is active in this database. Train one with: callipper-db train"
    done = program("models", "list", "--json")
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", f"{announced}\n")
