"""How the map is served."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address


@dataclass(frozen=True)
class MapSettings:
    """What `callipper-db map` is told."""

    dsn: str
    host: str = "127.0.0.1"
    token: str | None = None  # needed where the host is not a loopback address
    title: str | None = None  # of the page, such as the city's name
    basemap: str | None = None  # URL of a MapLibre style, or of raster tiles with {z}, {x} and {y}
    connections: int = 8  # to the database, at most
    waiting: int = 400  # requests that may wait for a connection; more are refused
    wait_s: float = 20.0  # for a connection
    timeout_s: float = 20.0  # of a statement


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def is_every_address(host: str) -> bool:
    """Whether a server that listens on it is reached by any address of this machine, as with 0.0.0.0."""
    try:
        return ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return not host
