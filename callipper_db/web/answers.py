"""The answers that are JSON, and the download."""

from __future__ import annotations

import csv
import io
import json
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from callipper_db.web import queries, sql_shown
from callipper_db.web.questions import MOST_CELLS, CellQuestion, ChangeQuestion, Download, PlaceQuestion
from callipper_db.web.replies import Served

router = APIRouter(prefix="/api")


@router.get("/city")
def city(served: Served) -> dict[str, Any]:
    """The models, their sources, groups of cells and saved layers, and how the page is set up."""
    settings = served.database.settings
    page = {"title": settings.title, "basemap": settings.basemap, "most_cells": MOST_CELLS}
    program = {"version": version("callipper-db"), "stamp": served.database.stamp()}
    return {**page, **program, **queries.city(served.database, served.city_scans)}


@router.get("/examples")
def examples(request: Request, served: Served) -> Response:
    """Questions that this city answers."""
    return served.as_json(request, None, lambda: queries.examples(served.database))


@router.get("/search")
def search(request: Request, served: Served, question: Annotated[CellQuestion, Query()]) -> Response:
    """The best cells for a question, with the reasons."""

    def answer() -> dict[str, Any]:
        model = served.database.version_of(question.model)
        cells = queries.search_cells(served.database, question, model, served.vectors)
        statements = {"sql": sql_shown.of_cells(question), "heat_sql": sql_shown.of_heat(question)}
        return {"model": model, "cells": cells, **statements, "layer_sql": sql_shown.of_layer(question)}

    return served.as_json(request, question, answer)


@router.get("/place")
def place(request: Request, served: Served, question: Annotated[PlaceQuestion, Query()]) -> Response:
    """What a place is like, its support, and the cells most like it elsewhere, with the reasons."""

    def answer() -> dict[str, Any]:
        model = served.database.version_of(question.model)
        found = queries.describe_place(served.database, question, model)
        return {"model": model, **found, "sql": sql_shown.of_place(question)}

    return served.as_json(request, question, answer)


@router.get("/changes")
def changes(request: Request, served: Served, question: Annotated[ChangeQuestion, Query()]) -> Response:
    """The cells whose percentile for a question differs most between two versions."""

    def answer() -> dict[str, Any]:
        model = served.database.version_of(question.model)
        cells = queries.changed_cells(served.database, question, model, served.vectors)
        return {"model": model, "other": question.other, "cells": cells}

    return served.as_json(request, question, answer)


@router.get("/cells")
def cells(served: Served, question: Annotated[Download, Query()]) -> Response:
    """All cells and how well they fit, best first, as a file."""
    model = served.database.version_of(question.model)
    rows = queries.cells(served.database, question, model, served.vectors)
    headers = {"Content-Disposition": f'attachment; filename="cells.{question.format}"'}
    if question.format == "csv":
        return Response(_csv(rows), media_type="text/csv; charset=utf-8", headers=headers)
    return Response(_geojson(rows), media_type="application/geo+json", headers=headers)


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    names = ("cell_id", "lon", "lat", "similarity", "percentile")
    csv.writer(text).writerows([names, *([row[name] for name in names] for row in rows)])
    return text.getvalue()


def _geojson(rows: list[dict[str, Any]]) -> str:
    features = (
        f'{{"type":"Feature","id":{row["cell_id"]},"geometry":{row["geometry"]},"properties":'
        + json.dumps({"similarity": row["similarity"], "percentile": row["percentile"]})
        + "}"
        for row in rows
    )
    return f'{{"type":"FeatureCollection","features":[{",".join(features)}]}}'
