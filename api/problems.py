"""RFC 9457 problem documents for every error, from the one error hierarchy and from the framework's own."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, BeforeValidator, Field
from sqlalchemy.exc import DatabaseError, DataError, DBAPIError, IntegrityError, InterfaceError, TimeoutError
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from flattengpt_core.errors import FlattenGPTError
from jobs.errors import NotReady, TooMany

MEDIA_TYPE = "application/problem+json"

log = structlog.get_logger()

MOST_CHARACTERS, MOST_FIELDS = 1000, 20
"""Of a message, and named in one problem, whatever is wrong with a request: no more helps anyone."""


def _utf8(text: str) -> str:
    """The text without half surrogate pairs, which JSON may hold, and which are no UTF-8."""
    return text.encode("utf-8", "replace").decode()


def _sentence(text: str) -> str:
    """The text on one line, as a terminal may print it: it may quote what a client has sent."""
    shown = "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in _utf8(text))
    return shown if len(shown) <= MOST_CHARACTERS else f"{shown[: MOST_CHARACTERS - 1]}…"


Text = Annotated[str, BeforeValidator(_utf8)]
Name = Annotated[str, BeforeValidator(lambda name: _utf8(name)[:MOST_CHARACTERS])]
Sentence = Annotated[str, BeforeValidator(_sentence)]


class FieldError(BaseModel):
    """What is wrong with one field of the request; nested fields are joined by dots."""

    field: Name = Field(examples=["calibration.samples"])
    message: Sentence = Field(examples=["Input should be less than or equal to 4096"])


class Problem(BaseModel):
    """An error, as RFC 9457 describes it."""

    type: str = Field(examples=["urn:flattengpt:problem:invalid_request"])
    title: str = Field(examples=["The request is not valid"])
    status: int = Field(examples=[422])
    detail: Sentence = Field(examples=["sparsity: Input should be less than 1"])
    instance: Text = Field(examples=["/jobs"])
    code: str = Field(examples=["invalid_request"])
    errors: list[FieldError] = []
    retryable: bool = False


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem documents a route can answer with, for its OpenAPI entry."""
    return {
        status: {"description": _phrase(status), "content": {MEDIA_TYPE: {"schema": _REFERENCE}}, **_headers(status)}
        for status in statuses
    }


_REFERENCE = {"$ref": "#/components/schemas/Problem"}
_PHRASES = {413: "Content Too Large", 416: "Range Not Satisfiable", 422: "Unprocessable Content"}
"""What RFC 9110 calls them, for Python before 3.13: a problem's code must not depend on it."""
_CHALLENGE = ("WWW-Authenticate", "What the key lacks, as RFC 6750 says it.")
_HEADERS = {401: [_CHALLENGE], 403: [_CHALLENGE], 429: [("Retry-After", "Seconds after which to try again.")]}


def refusal(request: Request, status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The problem document of a status that needs no code of its own: the code is the status's name."""
    phrase = _phrase(status)
    return _answer(request, status, phrase.lower().replace(" ", "_").replace("-", "_"), phrase, detail, headers=headers)


def install(app: FastAPI) -> None:
    """Answer every error of the application with a problem document."""

    @app.exception_handler(FlattenGPTError)
    def known(request: Request, error: FlattenGPTError) -> JSONResponse:
        errors = [FieldError(field=error.field, message=error.message)] if error.field else []
        detail = f"{error.field}: {error.message}" if error.field else error.message
        headers = {"Retry-After": str(error.retry_after_seconds)} if isinstance(error, TooMany) else None
        return _answer(
            request, error.status, error.code, error.title, detail, errors, retryable=error.retryable, headers=headers
        )

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        found = error.errors()
        errors = [_field_error(entry) for entry in found[:MOST_FIELDS]]
        detail = "; ".join(f"{entry.field}: {entry.message}" for entry in errors)
        if len(found) > len(errors):
            detail = f"{len(found)} fields are wrong, among them {detail}"
        return _answer(request, 422, "invalid_request", "The request is not valid", detail, errors)

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 405:
            # The framework names the methods of one route only, where each method has one.
            allowed = ", ".join(_methods(app, request.scope))
            return refusal(request, 405, f"This address takes {allowed} only.", {"Allow": allowed})
        return refusal(request, error.status_code, str(error.detail), error.headers)

    @app.exception_handler(DatabaseError)
    @app.exception_handler(InterfaceError)
    @app.exception_handler(TimeoutError)
    def no_database(request: Request, error: Exception) -> JSONResponse:
        # Not the driver's words, which may hold addresses and values.
        cause = error.orig if isinstance(error, DBAPIError) else error
        log.error("database unusable", error=type(cause).__name__)
        return known(request, NotReady("The database does not answer; try again in a moment."))

    @app.exception_handler(DataError)
    @app.exception_handler(IntegrityError)
    @app.exception_handler(Exception)
    def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.exception("unexpected error", path=request.url.path)
        title = FlattenGPTError.title
        return _answer(request, 500, FlattenGPTError.code, title, "The service's log has the details.")


def _answer(
    request: Request,
    status: int,
    code: str,
    title: str,
    detail: str,
    errors: list[FieldError] | None = None,
    *,
    retryable: bool = False,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    problem = Problem(
        type=f"urn:flattengpt:problem:{code}",
        title=title,
        status=status,
        detail=detail,
        instance=request.url.path,
        code=code,
        errors=errors or [],
        retryable=retryable,
    )
    return JSONResponse(problem.model_dump(), status, media_type=MEDIA_TYPE, headers=dict(headers) if headers else None)


def _methods(app: FastAPI, scope: Scope) -> list[str]:
    """The methods that the address of a request takes."""
    return [
        method
        for method in ("DELETE", "GET", "HEAD", "POST", "PUT")
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in app.routes)
    ]


def _headers(status: int) -> dict[str, Any]:
    """The headers of such an answer, for its OpenAPI entry."""
    described = {name: {"description": words, "schema": {"type": "string"}} for name, words in _HEADERS.get(status, ())}
    return {"headers": described} if described else {}


def _phrase(status: int) -> str:
    return _PHRASES.get(status) or HTTPStatus(status).phrase


def _field_error(entry: Mapping[str, Any]) -> FieldError:
    """The field without the word that says where it stood (body, query ...)."""
    if entry["type"] == "json_invalid":
        return FieldError(
            field="body", message=f"not valid JSON: {entry['ctx']['error']} at character {entry['loc'][-1]}"
        )
    location = [str(part) for part in entry["loc"][1:]]
    message = str(entry["msg"]).removeprefix("Value error, ")
    if not location:
        # A check across fields names the one it is about first.
        location = ["sparsity"] if "sparsity" in message else ["body"]
    return FieldError(field=".".join(location), message=message)
