"""Vector tiles from the database."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from callipper_db.errors import AnswerUnusable
from callipper_db.web.questions import Question
from callipper_db.web.replies import Replies, Served

HIGHEST_ZOOM = 22
MATCH = "SELECT callipper._match_tile(%s, %s::text::@vector, %s, %s, %s)"
LAYER = "SELECT callipper._layer_tile(z => %s, x => %s, y => %s, name => %s)"

Zoom = Annotated[int, Path(ge=0, le=HIGHEST_ZOOM)]
Column = Annotated[int, Path(ge=0, lt=2**HIGHEST_ZOOM)]
Row = Annotated[int, Path(ge=0, lt=2**HIGHEST_ZOOM)]
Address = tuple[int, int, int]

router = APIRouter(prefix="/tiles", default_response_class=Response)


@router.get("/match/{z}/{x}/{y}.mvt")
def match_tile(
    request: Request, served: Served, z: Zoom, x: Column, y: Row, question: Annotated[Question, Query()]
) -> Response:
    """How well cells fit a question: layer `cells`, whole percents."""
    address = _checked(z, x, y)
    model = served.database.version_of(question.model)

    def make() -> bytes:
        with served.database.reading() as connection:
            vector = served.vectors.of(connection, question, model)
            return served.database.bytes_of(connection, MATCH, model, vector, *address)

    return served.as_tile(request, ("match", model, question.key, address), make)


@router.get("/cells/{z}/{x}/{y}.mvt")
def cell_tile(request: Request, served: Served, z: Zoom, x: Column, y: Row) -> Response:
    """Groups, colours and support of the active version's cells: layer `cells`."""
    return _tile(request, served, "SELECT callipper_map.cell_tile(%s, %s, %s)", _checked(z, x, y))


@router.get("/places/{z}/{x}/{y}.mvt")
def place_tile(request: Request, served: Served, z: Zoom, x: Column, y: Row) -> Response:
    """POIs: layer `places`."""
    return _tile(request, served, "SELECT callipper_map.place_tile(%s, %s, %s)", _checked(z, x, y))


@router.get("/layer/{name}/{z}/{x}/{y}.mvt")
def layer_tile(request: Request, served: Served, name: str, z: Zoom, x: Column, y: Row) -> Response:
    """A saved layer: as /tiles/match."""
    if "\x00" in name or len(name) > 63:
        raise AnswerUnusable(reason="There is no layer of this name.")
    return _tile(request, served, LAYER, _checked(z, x, y), name)


def _checked(z: int, x: int, y: int) -> Address:
    if x >= 2**z or y >= 2**z:
        raise AnswerUnusable(reason=f"There is no tile {x}, {y} at zoom {z}: both go from 0 to {2**z - 1}.")
    return z, x, y


def _tile(request: Request, served: Replies, statement: str, address: Address, *values: Hashable) -> Response:
    """A tile that the statement and its values name."""

    def make() -> bytes:
        with served.database.reading() as connection:
            return served.database.bytes_of(connection, statement, *address, *values)

    return served.as_tile(request, (statement, address, values), make)
