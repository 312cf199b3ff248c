"""`callipper-db mcp`."""

from __future__ import annotations

import click

from callipper_db.cli.options import with_dsn
from callipper_db.errors import needs_extra


@click.command("mcp")
@with_dsn
def mcp_command(dsn: str) -> None:
    """Answer an assistant over stdin and stdout, by the Model Context Protocol.

    Its tools are search, describe, similar and compare. They only read. The settings of the assistant name this command;
    docs/map.md has an example.

    \b
    Example:
      callipper-db mcp --dsn postgresql://me@localhost/city
    """
    with needs_extra("The server for assistants", "mcp"):
        from callipper_db.web.mcp_server import create_server

    create_server(dsn).run()
