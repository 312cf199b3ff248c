"""A server of the Model Context Protocol: an assistant asks the city, and gets short answers with reasons. Read-only."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from importlib.metadata import version
from typing import Annotated, Any

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import Field, ValidationError

from callipper_db.errors import CallipperError
from callipper_db.languages import ENGLISH
from callipper_db.web import queries
from callipper_db.web.database import MapDatabase
from callipper_db.web.questions import CellQuestion, PlaceQuestion
from callipper_db.web.settings import MapSettings

LONGEST_ANSWER = 2000  # bytes, so that many answers fit into an assistant's memory
INSTRUCTIONS = """A city's points of interest (POIs) and a model of what its places are like. Ask in everyday words. Each answer
names the POIs that are its reasons; where none are named, it is a guess by likeness alone. Distances are metres, places are
longitude and latitude in degrees. lift is a kind's share of the POIs within 250 m, divided by its share in the city."""
READ_ONLY = ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False)

Lon = Annotated[float, Field(ge=-180, le=180, description="Longitude, degrees.")]
Lat = Annotated[float, Field(ge=-90, le=90, description="Latitude, degrees.")]
Count = Annotated[int, Field(ge=1, le=20, description="How many, at most.")]


def create_server(dsn: str) -> MCPServer:
    """The server with its tools. Nothing is read before a tool is called."""
    server = MCPServer("callipper-db", instructions=INSTRUCTIONS, version=version("callipper-db"), log_level="WARNING")
    tools = Tools(MapDatabase(MapSettings(dsn, connections=2)))
    for tool in (tools.search, tools.describe, tools.similar, tools.compare):
        server.tool(annotations=READ_ONLY, structured_output=False)(_saying_why(tool))
    return server


class Tools:
    """What an assistant may call. The docstrings are what it reads."""

    def __init__(self, database: MapDatabase) -> None:
        self._database = database
        self._vectors = queries.Vectors(database)

    def search(
        self,
        text: Annotated[str, Field(description="What is looked for: 'a quiet park'.")],
        k: Count = 5,
        unlike: Annotated[list[str] | None, Field(description="Texts that the places should be unlike.")] = None,
        within: Annotated[str | None, Field(description="west,south,east,north in degrees, or WKT.")] = None,
    ) -> str:
        """The best places of the city for a text, at least 250 m apart, with the POIs that are the reasons."""
        question = CellQuestion(q=text, k=k, unlike=unlike or [], within=within, apart=queries.REACH_M)
        cells = queries.search_cells(self._database, question, self._database.version_of(None), self._vectors)
        return answer([_cell(cell) for cell in cells], "places")

    def describe(
        self,
        lon: Lon,
        lat: Lat,
        language: Annotated[str, Field(description="Of the names of kinds of places, such as de.")] = ENGLISH,
    ) -> str:
        """What stands out around a place, with POIs as reasons, and how well POIs support it (0 to 1)."""
        found = self._describe(PlaceQuestion(at=f"{lon},{lat}", k=8, language=language), similar=False)
        return answer([_kind(kind) for kind in found["kinds"]], "kinds", support=found["support"])

    def similar(
        self,
        lon: Lon,
        lat: Lat,
        k: Count = 5,
        min_distance: Annotated[float, Field(ge=0, le=1e7, description="Metres away at least.")] = 500,
    ) -> str:
        """The places that are most like a place, and what each is known for."""
        found = self._describe(PlaceQuestion(at=f"{lon},{lat}", k=k, min_distance=min_distance), similar=True)
        return answer([_cell(cell) for cell in found["similar"]], "places")

    def compare(self, lon: Lon, lat: Lat, other_lon: Lon, other_lat: Lat) -> str:
        """How like two places are (cosine of their embeddings), and what stands out at each, with the reasons."""
        places = [PlaceQuestion(at=f"{x},{y}", k=5) for x, y in ((lon, lat), (other_lon, other_lat))]
        first, other = (self._describe(place, similar=False) for place in places)
        kinds = [_kind(kind) | {"at": "first"} for kind in first["kinds"]]
        kinds += [_kind(kind) | {"at": "other"} for kind in other["kinds"]]
        kinds.sort(key=lambda kind: -kind["lift"])
        return answer(
            kinds,
            "kinds",
            similarity=queries.likeness(self._database, *(place.at for place in places)),
            first_support=first["support"],
            other_support=other["support"],
        )

    def _describe(self, place: PlaceQuestion, *, similar: bool) -> dict[str, Any]:
        return queries.describe_place(self._database, place, self._database.version_of(None), similar=similar)


def _saying_why(tool: Callable[..., str]) -> Callable[..., str]:
    """The tool, with errors that an assistant can act on."""

    @wraps(tool)
    def saying_why(*args: Any, **kwargs: Any) -> str:
        try:
            return tool(*args, **kwargs)
        except CallipperError as error:
            raise ToolError(str(error)) from error
        except ValidationError as error:
            first = error.errors()[0]
            name = "text" if first["loc"][0] == "q" else first["loc"][0]
            raise ToolError(f"{name}: {first['msg'].removeprefix('Value error, ')}.") from error

    return saying_why


def answer(rows: list[dict[str, Any]], name: str, **figures: object) -> str:
    """Rows as JSON of at most LONGEST_ANSWER bytes. The last ones give way, and `left_out` says how many."""
    for kept in range(len(rows), -1, -1):
        left_out = {"left_out": len(rows) - kept} if kept < len(rows) else {}
        text = json.dumps({**figures, name: rows[:kept], **left_out}, ensure_ascii=False, separators=(",", ":"))
        if len(text.encode()) <= LONGEST_ANSWER:
            return text
    raise AssertionError("an answer without rows is short")


def _cell(cell: dict[str, Any]) -> dict[str, Any]:
    place = {"lon": cell["lon"], "lat": cell["lat"]}
    if cell.get("because"):
        return place | {"because": cell["because"], "pois": cell["relevant"], "lift": cell["lift"]}
    kinds = [f"{kind['text']}: {(kind['because'] or '').split('; ')[0]}" for kind in cell["known_for"] or []]
    return place | {"percentile": cell["percentile"], "known_for": kinds}


def _kind(kind: dict[str, Any]) -> dict[str, Any]:
    return {"kind": kind["text"], "pois": kind["pois"], "lift": kind["lift"], "because": kind["because"]}
