"""RFC 9457 problem documents for every error, from the one error hierarchy and from the framework's own."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy.exc import InterfaceError, OperationalError
from starlette.exceptions import HTTPException

from flattengpt_core.errors import FlattenGPTError
from jobs.errors import NotReady

MEDIA_TYPE = "application/problem+json"

log = structlog.get_logger()


class FieldError(BaseModel):
    """What is wrong with one field of the request; nested fields are joined by dots."""

    field: str = Field(examples=["calibration.samples"])
    message: str = Field(examples=["Input should be less than or equal to 4096"])


class Problem(BaseModel):
    """An error, as RFC 9457 describes it."""

    type: str = Field(examples=["urn:flattengpt:problem:invalid_request"])
    title: str = Field(examples=["The request is not valid"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["sparsity: Input should be less than 1"])
    instance: str = Field(examples=["/jobs"])
    code: str = Field(examples=["invalid_request"])
    errors: list[FieldError] = []
    retryable: bool = False


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem documents a route can answer with, for its OpenAPI entry."""
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": _REFERENCE}}}
        for status in statuses
    }


_REFERENCE = {"$ref": "#/components/schemas/Problem"}


def install(app: FastAPI) -> None:
    """Answer every error of the application with a problem document."""

    @app.exception_handler(FlattenGPTError)
    def known(request: Request, error: FlattenGPTError) -> JSONResponse:
        errors = [FieldError(field=error.field, message=error.message)] if error.field else []
        detail = f"{error.field}: {error.message}" if error.field else error.message
        return _answer(request, error.status, error.code, error.title, detail, errors, retryable=error.retryable)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        errors = [_field_error(entry) for entry in error.errors()]
        detail = "; ".join(f"{entry.field}: {entry.message}" for entry in errors)
        return _answer(request, 422, "invalid_request", "The request is not valid", detail, errors)

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> JSONResponse:
        phrase = HTTPStatus(error.status_code).phrase
        code = phrase.lower().replace(" ", "_").replace("-", "_")
        detail = str(error.detail) if error.detail else phrase
        return _answer(request, error.status_code, code, phrase, detail, headers=error.headers)

    @app.exception_handler(OperationalError)
    @app.exception_handler(InterfaceError)
    def no_database(request: Request, error: Exception) -> JSONResponse:
        log.error("database unreachable", error=type(error).__name__)
        return known(request, NotReady("The database does not answer; try again in a moment."))

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


def _field_error(entry: Mapping[str, Any]) -> FieldError:
    """The field without the words that say where it stood (body, query ...)."""
    location = [str(part) for part in entry["loc"] if part not in ("body", "query", "header", "path")]
    message = str(entry["msg"]).removeprefix("Value error, ")
    if not location:
        # A check across fields names the one it is about first.
        location = ["sparsity"] if "sparsity" in message else ["body"]
    return FieldError(field=".".join(location), message=message)
