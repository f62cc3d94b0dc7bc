"""Texts that jobs can calibrate on and report on: upload, list, remove."""

from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from api.auth import reading_key, uploading_key
from api.problems import responses
from api.state import Parts
from api.uploads import LocalName, content_type
from flattengpt_core.local_names import LOCAL
from jobs.errors import InUse
from jobs.text_store import StoredText, TextFormat

router = APIRouter(prefix="/datasets", tags=["datasets"], responses=responses(401, 403, 429))

FORMATS = {
    "text/plain": TextFormat.PLAIN,
    "application/jsonl": TextFormat.JSON_LINES,
    "application/x-ndjson": TextFormat.JSON_LINES,
}
"""What a body may be, by its media type."""

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": {"type": "string"}} for kind in FORMATS},
    }
}


class Dataset(BaseModel):
    """An uploaded text."""

    name: str = Field(examples=["my-text"])
    dataset: str = Field(description="What a job's request calls it.", examples=["local:my-text"])
    format: TextFormat
    size: int = Field(description="Bytes.")
    created_at: datetime

    @classmethod
    def of(cls, text: StoredText) -> "Dataset":
        """The reply for a stored text."""
        return cls(
            name=text.name,
            dataset=f"{LOCAL}{text.name}",
            format=text.format,
            size=text.size,
            created_at=text.created_at,
        )


class DatasetPage(BaseModel):
    """Every uploaded text, by name."""

    datasets: list[Dataset]


@router.put(
    "/{name}",
    operation_id="putDataset",
    status_code=201,
    openapi_extra=_BODY,
    responses={
        200: {"description": "The same text is there already.", "model": Dataset},
        **responses(408, 409, 413, 415, 422, 503, 507),
    },
    dependencies=[uploading_key],
)
async def put(name: LocalName, request: Request, response: Response, parts: Parts) -> Dataset:
    """Upload a text: UTF-8 as `text/plain`, or as JSON Lines with one object with a string `text` a line."""
    form = FORMATS.get(content_type(request))
    if form is None:
        raise HTTPException(415, f"Say what the text is in Content-Type: one of {', '.join(FORMATS)}.")
    text, is_new = await parts.uploads.read(request, lambda blocks: parts.texts.put(name, form, blocks))
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/datasets/{name}"
    return Dataset.of(text)


@router.get("", operation_id="listDatasets", responses=responses(503), dependencies=[reading_key])
def page(parts: Parts) -> DatasetPage:
    """Every uploaded text, whoever uploaded it."""
    return DatasetPage(datasets=[Dataset.of(text) for text in parts.texts.all()])


@router.get("/{name}", operation_id="getDataset", responses=responses(404, 422, 503), dependencies=[reading_key])
def show(name: LocalName, parts: Parts) -> Dataset:
    """One uploaded text."""
    return Dataset.of(parts.texts.get(name))


@router.delete(
    "/{name}",
    operation_id="deleteDataset",
    status_code=204,
    responses=responses(404, 409, 422, 503),
    dependencies=[uploading_key],
)
def remove(name: LocalName, parts: Parts) -> None:
    """Remove a text that no job which has not ended names."""
    parts.texts.get(name)
    if parts.store.any_unended_with(text=f"{LOCAL}{name}"):
        raise InUse(f"A job that has not ended names {LOCAL}{name}: wait for its end, or cancel it.", field="name")
    parts.texts.remove(name)
