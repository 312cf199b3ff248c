"""Errors as answers: one table from class to HTTP status, and one sentence of JSON for each."""

from __future__ import annotations

import logging

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from callipper_db import errors
from callipper_db.web.log import NAME

# The first class that an error is of.
STATUS: tuple[tuple[type[errors.CallipperError], int], ...] = (
    (errors.UnknownModel, 404),
    (errors.NoActiveModel, 409),
    (errors.NotInitialised, 409),
    (errors.AnswerTooSlow, 504),
    (errors.MapBusy, 503),
    (errors.QuestionError, 400),
    (errors.ServerError, 503),
    (errors.CallipperError, 500),
)
RETRY_AFTER_S = {503: "5", 504: "5"}
log = logging.getLogger(NAME)


def sentence(status: int, text: str) -> JSONResponse:
    """An error as JSON: {"error": "What is wrong, and what to do."}."""
    headers = {"Retry-After": RETRY_AFTER_S[status]} if status in RETRY_AFTER_S else {}
    return JSONResponse({"error": text}, status, headers | {"Cache-Control": "no-store"})


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """One of our errors."""
    status = next(status for kind, status in STATUS if isinstance(error, kind))
    if status >= 500 and not isinstance(error, (errors.MapBusy, errors.AnswerTooSlow)):  # /metrics counts these
        log.error("%s %s: %s", request.method, request.url.path, error)
    return sentence(status, str(error))


async def answer_bad_request(_: Request, error: Exception) -> JSONResponse:
    """A parameter that cannot be used: its name, and what is wrong with it."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = str(next((part for part in first["loc"][1:] if isinstance(part, str)), "the request"))
    says = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return sentence(422, f"There is no parameter {name[:80]!r}.")
    if first["type"] == "missing":
        return sentence(422, f"The parameter {name} is missing.")
    return sentence(422, f"{name}: {says[:1].lower()}{says[1:]}.")


async def answer_http_error(request: Request, error: Exception) -> JSONResponse:
    """An address that is none, or a method that it does not have."""
    assert isinstance(error, HTTPException)
    says = {
        404: f"There is nothing at {request.url.path[:200]}.",
        405: f"{request.method} is not possible there; ask with GET.",
    }
    return sentence(error.status_code, says.get(error.status_code, str(error.detail)))


async def answer_unforeseen(_: Request, error: Exception) -> JSONResponse:
    """An error of the program itself; the log has it."""
    return sentence(500, f"The map met an error of its own ({type(error).__name__}). Its log has the details.")
