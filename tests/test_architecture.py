"""The shape of the code: who imports whom, who opens connections, reads the environment and talks to a person."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from callipper_db.versions import MINIMUM, MINIMUM_POSTGRES, SAFE_PARALLEL_BUILD

ROOT = Path(__file__).parent.parent
PACKAGES = {"callipper_db": ROOT, "callipper_trainer": ROOT / "trainer"}
# The rooms of each side, from the ground up. A room is a module or a folder. It imports only rooms on lower floors.
DATABASE_FLOORS = (
    {"arrays", "errors", "figures", "place_words", "progress", "tables", "versions"},
    {"area_of_use", "brands", "config", "db", "h3_cells", "holes", "land", "languages"},
    {
        "binary_copy",
        "disk",
        "layers",
        "models",
        "name_words",
        "other_degrees",
        "outliers",
        "partitions",
        "points",
        "pois",
        "text_encoders",
        "waiting",
    },
    {"export", "grid", "hnsw", "misplaced", "place_encoder", "plot", "read", "schema", "search", "server", "upsert"},
    {"changes", "doctor", "extension", "load", "own_file", "own_table", "spark", "status", "web"},
    {"city", "cli"},
    {"place_embedder", "__main__"},
)
TRAINER_FLOORS = (
    {
        "checkpoint",
        "config",
        "device",
        "distributed",
        "lock",
        "standing_out",
        "stopwatch",
        "text_encoder",
        "unigram",
        "weight_rows",
    },
    {"cell_summary", "context", "ngram_network"},
    {"context_targets", "features", "install_text_encoder", "peaks"},
    {"model"},
    {"embed", "loss", "model_rows"},
    {"data", "onnx_towers", "remember"},
    {"fit", "kinds"},
    {"fit_peaks", "publish"},
    {"evaluation", "refresh", "train"},
)
FLOORS = {"callipper_db": DATABASE_FLOORS, "callipper_trainer": TRAINER_FLOORS}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "base", "manager", "service", "repository", "common", "misc"}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for package, folder in PACKAGES.items():
        for path in sorted((folder / package).rglob("*.py")):
            name = ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")
            yield name, ast.parse(path.read_text(encoding="utf-8"), path)


MODULES = dict(modules())


def imports(tree: ast.AST, known: set[str]) -> set[str]:
    """The modules that are imported: `from a import b` is a.b where that is one of `known`, else a."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else str(node.module) for name in names}
    return found


def imports_at_start(tree: ast.Module, known: set[str]) -> set[str]:
    """What importing the module imports: not what stands in the bodies of functions."""
    found: set[str] = set()
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= imports(node, known)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return found


def part(name: str) -> str:
    """callipper_db.read.pbf belongs to read."""
    return name.split(".")[1] if "." in name else ""


def floor(name: str) -> int:
    package = name.split(".")[0]
    found = [number for number, rooms in enumerate(FLOORS[package]) if part(name) in rooms]
    assert found, f"{name} is on no floor: add it to FLOORS"
    return found[0]


DATABASE_SIDE = sorted(name for name in MODULES if name.startswith("callipper_db."))
TRAINING_SIDE = sorted(name for name in MODULES if name.startswith("callipper_trainer"))


@pytest.mark.parametrize("name", [name for name in MODULES if part(name)])
def test_a_room_imports_only_lower_floors(name: str) -> None:
    package = name.split(".")[0]
    for target in imports(MODULES[name], set(MODULES)):
        if target.startswith(f"{package}.") and part(target) != part(name):
            assert floor(target) < floor(name), f"{name} imports {target}"


@pytest.mark.parametrize("package", FLOORS)
def test_every_room_is_on_the_lowest_floor_that_it_can_be_on(package: str) -> None:
    arrows: dict[str, set[str]] = {}
    for name, tree in MODULES.items():
        if part(name) and name.startswith(f"{package}."):
            below = {target for target in imports(tree, set(MODULES)) if target.startswith(f"{package}.")}
            arrows.setdefault(part(name), set()).update({part(target) for target in below} - {part(name)})
    lowest: dict[str, int] = {}
    for room in TopologicalSorter(arrows).static_order():
        lowest[room] = 1 + max((lowest[below] for below in arrows[room]), default=-1)
    assert {room: number for number, rooms in enumerate(FLOORS[package]) for room in rooms} == lowest


def test_the_oldest_versions_are_those_that_the_set_up_installs() -> None:
    script = (ROOT / "scripts" / "install-postgres.sh").read_text()
    vector, safe = (".".join(map(str, version)) for version in (MINIMUM["vector"], SAFE_PARALLEL_BUILD))
    assert f"min_postgres={MINIMUM_POSTGRES} suggested_vector={safe}\n" in script
    assert f"PGVECTOR_MIN:-{vector}}}" in script


def test_there_is_no_cycle() -> None:
    graph = {name: imports(tree, set(MODULES)) & set(MODULES) - {name} for name, tree in MODULES.items()}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("name", DATABASE_SIDE)
def test_the_database_side_reaches_the_trainer_lazily_and_from_few_places(name: str) -> None:
    lazily = {target for target in imports(MODULES[name], set(MODULES)) if target.startswith("callipper_trainer")}
    assert not {
        target for target in imports_at_start(MODULES[name], set(MODULES)) if target.startswith("callipper_trainer")
    }
    if lazily:
        assert part(name) in {"cli", "place_encoder"}


@pytest.mark.parametrize("name", TRAINING_SIDE)
def test_the_trainer_leaves_the_command_line_alone(name: str) -> None:
    found = imports(MODULES[name], set(MODULES))
    assert not {target for target in found if target.startswith(("callipper_db.cli", "click", "rich"))}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_only_db_opens_connections(name: str) -> None:
    calls = {ast.unparse(node.func) for node in ast.walk(MODULES[name]) if isinstance(node, ast.Call)}
    openers = {"psycopg.connect", "psycopg.Connection.connect", "Connection.connect", "psycopg.AsyncConnection.connect"}
    assert not calls & openers or name == "callipper_db.db"
    names = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(MODULES[name])
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert "psycopg.connect" not in names
    if "sqlalchemy.create_engine" in names:
        assert name == "callipper_db.schema", "only alembic needs SQLAlchemy, on a connection that db.py opened"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_only_config_reads_the_environment(name: str) -> None:
    used = {ast.unparse(node) for node in ast.walk(MODULES[name]) if isinstance(node, ast.Attribute)}
    names = {alias.name for node in ast.walk(MODULES[name]) if isinstance(node, ast.ImportFrom) for alias in node.names}
    reads = used & {"os.environ", "os.environb", "os.getenv"} or names & {"environ", "environb", "getenv"}
    assert not reads or name == "callipper_db.config"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_only_the_command_line_talks_to_a_person(name: str) -> None:
    if part(name) == "cli":
        return
    calls = {ast.unparse(node.func) for node in ast.walk(MODULES[name]) if isinstance(node, ast.Call)}
    assert not calls & {"print", "input", "sys.stdout.write", "sys.stderr.write", "sys.exit"}
    assert not imports(MODULES[name], set(MODULES)) & {"click", "rich", "rich.console", "rich.progress"}


@pytest.mark.parametrize("name", [name for name in sorted(MODULES) if part(name) != "cli"])
def test_a_function_takes_eight_parameters_at_most(name: str) -> None:
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            assert len([each for each in every if each.arg not in ("self", "cls")]) <= 8, f"{name}.{node.name}"


def test_names_say_what_is_inside() -> None:
    assert not {name for name in MODULES if set(name.split(".")) & FORBIDDEN_NAMES}


def test_the_command_line_starts_without_the_heavy_packages() -> None:
    heavy = [
        "torch",
        "transformers",
        "sentence_transformers",
        "matplotlib",
        "fastapi",
        "uvicorn",
        "psycopg_pool",
        "pyarrow",
        "osmium",
        "scipy",
        "callipper_trainer",
    ]
    code = f"import sys; import callipper_db.cli.main; print(sorted(set(sys.modules) & set({heavy})))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


SQL = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "sql").glob("*.sql"))}
MIGRATIONS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "migrations" / "versions").glob("*.py")}
HEADER = re.compile(r"^CREATE (OR REPLACE )?FUNCTION (.*?)\sAS\s+\$", re.DOTALL | re.MULTILINE)


def code(text: str) -> str:
    """SQL without its comments."""
    return re.sub(r"--.*", "", text)


@pytest.mark.parametrize("name", sorted(MIGRATIONS))
def test_a_migration_does_not_lean_on_sql_files(name: str) -> None:
    functions = set(re.findall(r"FUNCTION callipper\.(\w+)\s*\(", "".join(SQL.values())))
    assert functions
    text = re.sub(
        r"(?s)DROP FUNCTION IF EXISTS .*?\)\s*(;|\")", "", MIGRATIONS[name]
    )  # what init makes anew it may drop
    assert not {function for function in functions if re.search(rf"\b{function}\s*\(", text)}


@pytest.mark.parametrize("name", sorted(SQL))
def test_sql_files_hold_only_what_can_be_said_again(name: str) -> None:
    text = code(SQL[name])
    # A function may drop the tables of a model version, whose names it gets as arguments.
    text = re.sub(r"(ALTER|DROP) TABLE callipper\.%I", "", text)
    assert not re.search(r"\b(CREATE|ALTER|DROP)\s+(TABLE|TYPE|INDEX|SEQUENCE|DOMAIN)\b", text, re.IGNORECASE)
    assert "BEGIN ATOMIC" not in text.upper()
    assert len(SQL[name].splitlines()) <= 250


@pytest.mark.parametrize("name", sorted(SQL))
def test_every_function_is_replaced_and_states_its_behaviour(name: str) -> None:
    for replaces, header in HEADER.findall(code(SQL[name])):
        function = header.split("(")[0]
        assert replaces, f"{function}: CREATE OR REPLACE"
        assert re.search(r"\b(IMMUTABLE|STABLE|VOLATILE)\b", header), f"{function} states no volatility"
        assert re.search(r"\bPARALLEL (SAFE|RESTRICTED|UNSAFE)\b", header), f"{function} states no parallel safety"
        assert header.startswith(("callipper.", "callipper_map.")), f"{function} names no schema"
        assert re.search(rf"COMMENT ON FUNCTION {re.escape(function)}\(", SQL[name]), f"{function} has no comment"
