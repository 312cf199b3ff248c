"""The database itself: set it up, check it, name it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from callipper_db import schema
from callipper_db.cli.console import make_reporter, print_json, print_table
from callipper_db.cli.options import json_option, resolve_dsn, with_dsn


@click.command()
@click.option("--sql", "print_sql", is_flag=True, help="Print what would run, and run nothing.")
@click.option("--no-search-path", is_flag=True, help="Leave the database's search_path alone.")
@with_dsn
def init(dsn: str, print_sql: bool, no_search_path: bool) -> None:
    """Create or update the schema callipper in a database.

    Needs the extensions postgis and vector, or the right to create them. Doing it twice changes nothing.

    \b
    Examples:
      callipper-db init --dsn postgresql://me@localhost/city
      callipper-db init --sql > review.sql
    """
    if print_sql:
        click.echo(schema.pending_sql(dsn, search_path=not no_search_path), nl=False)
        return
    with make_reporter(as_json=False) as reporter:
        report = schema.init(dsn, search_path=not no_search_path, reporter=reporter)
    changed = f"from revision {report.before} to" if report.before not in (None, report.after) else "at revision"
    click.echo(f"The schema callipper is {changed} {report.after}.")
    for note in report.notes:
        click.echo(note)


@click.command()
@with_dsn
@json_option
def doctor(dsn: str, as_json: bool) -> None:
    """Check the server, the extensions, the schema and the Python packages, and say what to do about each.

    Exits with 1 when something that is needed does not work.

    \b
    Example:
      callipper-db doctor --dsn postgresql://me@localhost/city
    """
    from callipper_db.doctor import examine

    findings = examine(dsn)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            click.echo(f"{'ok' if finding.ok else 'NO' if finding.needed else '--'}  {finding.what}: {finding.says}")
    if any(finding.needed and not finding.ok for finding in findings):
        sys.exit(1)


@click.command()
@with_dsn
@json_option
def status(dsn: str, as_json: bool) -> None:
    """The state of the database: versions, sizes, freshness, indexes, remembered texts and slow questions.

    \b
    Examples:
      callipper-db status
      callipper-db status --json
    """
    from callipper_db.status import read_status

    found = read_status(dsn)
    if as_json:
        print_json(found)
        return
    print_table(["", ""], [[name, says] for name, says in _status_lines(found).items()])


def _status_lines(found: dict[str, Any]) -> dict[str, str]:
    """What a person reads of a status."""
    lines = {name: str(version) for name, version in found["versions"].items() if name != "standby"}
    lines["role of the server"] = "standby" if found["versions"]["standby"] else "primary"
    lines["model versions"] = ", ".join(str(model["version"]) for model in found["models"]) or "none"
    if active := found["active"]:
        lines["active version"] = f"{active['version']}, {active['pois'] or 0:,} POIs of {active['source']}"
        refreshed = active["refreshed_at"]
        lines["last refresh"] = f"{refreshed:%Y-%m-%d %H:%M}" if refreshed else "none since the training"
        changed = found["changed_pois"]
        lines["POIs changed since"] = "not known; refresh compares all" if changed is None else f"{changed:,}"
    lines |= {f"MB of {what}": f"{size / 1e6:,.1f}" for what, size in found["bytes"].items()}
    lines["HNSW indexes"] = (
        ", ".join(
            f"{index['name']} ({'valid' if index['valid'] else 'INVALID: REINDEX it'})" for index in found["indexes"]
        )
        or "none, so all cells are compared"
    )
    lines |= {
        f"building on {build['table']}": f"{build['phase']}, {build['tuples_done']:,} of {build['tuples_total']:,}"
        for build in found["index_builds"]
    }
    rate = found["texts"]["hit_rate"]
    lines["texts remembered"] = (
        "none asked yet" if rate is None else f"{rate:.0%} of {found['texts']['looked_up']:,} asked"
    )
    if found["slow_statements"] is None:
        lines["slow questions"] = "not known without the extension pg_stat_statements"
    for number, slow in enumerate(found["slow_statements"] or [], 1):
        took = f"{slow['mean_ms'] + slow['mean_plan_ms']:,.0f} ms, {slow['calls']:,} times"
        lines[f"slow question {number}"] = f"{took}: {' '.join(slow['query'].split())}"
    return lines


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--extensions-in",
    default="public",
    metavar="SCHEMA",
    help="The schema that holds postgis and vector (default: public).",
)
def extension(folder: Path, extensions_in: str) -> None:
    """Write the schema as a PostgreSQL extension, for those who want CREATE EXTENSION in place of init.

    Copy the .control and .sql files to the folder that pg_config --sharedir names, extension/ in it. Where nobody may write
    there but pg_tle is installed, run the file .pgtle.sql in the database instead.

    \b
    Example:
      callipper-db extension build/extension
    """
    from callipper_db.extension import write_extension

    for path in write_extension(folder, extensions_in):
        click.echo(path)


@click.command("dsn")
def print_dsn() -> None:
    """Print the DSN in use, for any client. Starts the embedded server if that is in use.

    \b
    Example:
      psql "$(callipper-db dsn)"
    """
    click.echo(resolve_dsn(None))
