"""Run the map's server."""

from __future__ import annotations

import socket

import uvicorn
from uvicorn.config import LOGGING_CONFIG

from callipper_db.errors import PortTaken
from callipper_db.web.app import create_app
from callipper_db.web.log import json_lines
from callipper_db.web.settings import MapSettings


def listen(host: str, port: int) -> socket.socket:
    """A socket that waits for browsers. Raises PortTaken."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise PortTaken(host=host, port=port, reason=error.strerror or str(error)) from error


def own_address(host: str) -> str | None:
    """The address of this machine by which others reach a map that listens on all addresses; None if it has none.

    No packet is sent: the system only says from which address it would send one.
    """
    family, other = (socket.AF_INET6, "2001:db8::1") if ":" in host else (socket.AF_INET, "192.0.2.1")
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((other, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return None


def serve(settings: MapSettings, listener: socket.socket, *, json_log: bool = False) -> None:
    """Answer until a signal ends it. json_log: a line of JSON on stderr for each request."""
    config = uvicorn.Config(
        create_app(settings),
        log_config=json_lines() if json_log else LOGGING_CONFIG,
        log_level=None if json_log else "warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=60,  # people look at a view before they move on
    )
    uvicorn.Server(config).run(sockets=[listener])
