"""`callipper-db map`."""

from __future__ import annotations

import secrets

import click

from callipper_db.cli.options import with_dsn
from callipper_db.config import Settings
from callipper_db.errors import needs_extra


@click.command("map")
@click.option("--port", default=8765, show_default=True, type=click.IntRange(0, 65535), help="0: any that is free.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on. Others than this machine's own ask for a token (CALLIPPER_MAP_TOKEN, or a new one).",
)
@click.option(
    "--basemap", metavar="URL", help="A MapLibre style, or raster tiles with {z}, {x} and {y}. Default: none."
)
@click.option("--title", help="Name of the city, for the page.")
@click.option(
    "--timeout", "timeout_s", default=20.0, show_default=True, type=click.FloatRange(0.1), help="Seconds for an answer."
)
@click.option(
    "--connections", default=8, show_default=True, type=click.IntRange(1, 200), help="To the database, at most."
)
@click.option("--json-log", is_flag=True, help="A JSON line on stderr for each request and error.")
@with_dsn
def map_command(
    dsn: str,
    port: int,
    host: str,
    basemap: str | None,
    title: str | None,
    timeout_s: float,
    connections: int,
    json_log: bool,
) -> None:
    """Serve a page to look at the city: heat maps of questions, the reasons, layers, and models side by side.

    The page needs no network. The same answers are JSON under /api; /openapi.json describes them.

    \b
    Examples:
      callipper-db map
      callipper-db map --port 9000 --title Monaco
      callipper-db map --host 0.0.0.0 --basemap 'https://tile.example.org/{z}/{x}/{y}.png'
    """
    with needs_extra("The map", "map"):
        from callipper_db.web.serve import listen, own_address, serve
        from callipper_db.web.settings import MapSettings, is_every_address, is_loopback

    token = None if is_loopback(host) else Settings.from_environment().map_token or secrets.token_urlsafe(18)
    listener = listen(host, port)
    port, query = listener.getsockname()[1], f"?token={token}" if token else ""
    if is_every_address(host):
        click.echo(f"The map is at {_address('localhost', port, query)} on this machine (Ctrl-C ends it).")
        own = own_address(host) or "NAME-OF-THIS-MACHINE"
        click.echo(f"Others reach it at {_address(own, port, query)}, through your network and firewall.")
    else:
        click.echo(f"The map is at {_address(host, port, query)} (Ctrl-C ends it).")
    settings = MapSettings(dsn, host, token, title, basemap, connections=connections, timeout_s=timeout_s)
    serve(settings, listener, json_log=json_log)


def _address(host: str, port: int, query: str) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/{query}"
