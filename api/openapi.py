"""The OpenAPI document: what FastAPI makes of the routes, and what it cannot know of them."""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI

from api.problems import Problem

TAGS = [
    {"name": "jobs", "description": "Submit, list, look at, cancel, retry and delete jobs."},
    {"name": "events", "description": "What happens to a job."},
    {"name": "artifacts", "description": "A job's result, file by file."},
    {"name": "models", "description": "Models that jobs can compress: `local:NAME`."},
    {"name": "datasets", "description": "Texts that jobs can calibrate on and report on: `local:NAME`."},
    {"name": "webhooks", "description": "What a job's webhook was told, and the secret it is signed with."},
    {"name": "service", "description": "Whether the service lives and is ready, and what it can compress."},
]

_THIS_JOB = {"job_id": "$request.path.job_id"}
_OF_A_JOB = ("getJob", "cancelJob", "retryJob", "deleteJob", "listJobEvents", "listJobArtifacts", "listJobWebhooks")
_NEW_JOB = {operation: {"job_id": "$response.body#/id"} for operation in _OF_A_JOB}
_STORED = {"name": "$response.body#/name"}
_LINKS: dict[str, dict[str, dict[str, str]]] = {
    "submitJob": _NEW_JOB,
    "retryJob": _NEW_JOB,
    "listJobArtifacts": {"getJobArtifact": {**_THIS_JOB, "path": "$response.body#/artifacts/0/path"}},
    "listJobWebhooks": {"replayJobWebhook": {**_THIS_JOB, "delivery_id": "$response.body#/deliveries/0/id"}},
    "putModel": {operation: _STORED for operation in ("getModel", "deleteModel")},
    "putDataset": {operation: _STORED for operation in ("getDataset", "deleteDataset")},
}
"""What can be called with what an operation answers: operation, next operation, its parameters."""


def describe(app: FastAPI) -> None:
    """Let the document tell of the application's problem documents and links, and of parameters as they can be sent."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = plain()
            _describe_problems(document)
            for operation in _operations(document):
                _forget_null(operation)
                _link(operation)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in document["paths"].values():
        yield from path.values()


def _describe_problems(document: dict[str, Any]) -> None:
    """Name the problem documents that the routes really answer with, in place of FastAPI's own."""
    schemas = document["components"]["schemas"]
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(problem.pop("$defs"))
    schemas["Problem"] = problem
    for operation in _operations(document):
        # FastAPI's own entry, on routes whose parameters cannot be invalid.
        if "application/json" in operation["responses"].get("422", {}).get("content", {}):
            del operation["responses"]["422"]


def _forget_null(operation: dict[str, Any]) -> None:
    """A parameter may be left out; no way of writing it in a URL or a header is null."""
    for parameter in operation.get("parameters", ()):
        schema = parameter["schema"]
        kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
        if len(kinds) == 1:
            del schema["anyOf"]
            parameter["schema"] = {**kinds[0], **schema}


def _link(operation: dict[str, Any]) -> None:
    links = {
        target: {"operationId": target, "parameters": parameters}
        for target, parameters in _LINKS.get(operation["operationId"], {}).items()
    }
    if links:
        done = min(status for status in operation["responses"] if status in ("200", "201", "202"))
        operation["responses"][done]["links"] = links
