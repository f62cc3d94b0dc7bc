"""Models that jobs can compress: upload, list, remove."""

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
from jobs.model_store import Package, StoredModel

router = APIRouter(prefix="/models", tags=["models"], responses=responses(401, 403, 429))

PACKAGES = {
    "application/octet-stream": Package.ANY,
    "application/x-tar": Package.TAR,
    "application/gzip": Package.TAR_GZ,
    "application/x-gzip": Package.TAR_GZ,
}
"""What a body may be, by its media type."""

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in PACKAGES},
    }
}


class Model(BaseModel):
    """A model of the service's model folder."""

    name: str = Field(examples=["tiny"])
    model: str = Field(description="What a job's request calls it.", examples=["local:tiny"])
    size: int = Field(description="Bytes of all its files.")
    format: str | None = Field(description="`safetensors` or `gguf`.")
    family: str | None = Field(description="Its architecture.", examples=["LlamaForCausalLM"])
    layers: int | None
    parameters: int | None
    problem: str | None = Field(description="Why jobs cannot use it; what was uploaded was checked before.")
    created_at: datetime

    @classmethod
    def of(cls, model: StoredModel) -> "Model":
        """The reply for a stored model."""
        info = model.info
        return cls(
            name=model.name,
            model=f"{LOCAL}{model.name}",
            size=model.size,
            format=info.format if info else None,
            family=info.family.architecture if info else None,
            layers=info.num_layers if info else None,
            parameters=info.parameters if info else None,
            problem=model.problem,
            created_at=model.created_at,
        )


class ModelPage(BaseModel):
    """Every model of the model folder, by name."""

    models: list[Model]


@router.put(
    "/{name}",
    operation_id="putModel",
    status_code=201,
    openapi_extra=_BODY,
    responses={
        200: {"description": "The same model is there already.", "model": Model},
        **responses(408, 409, 413, 415, 422, 503, 507),
    },
    dependencies=[uploading_key],
)
async def put(name: LocalName, request: Request, response: Response, parts: Parts) -> Model:
    """Upload a model: a tar archive of its files, plain or gzipped, or a GGUF file. Nothing of it is executed."""
    package = PACKAGES.get(content_type(request))
    if package is None:
        raise HTTPException(
            415,
            "Say what the model is in Content-Type: application/x-tar or application/gzip for an archive of its "
            "files; application/octet-stream for a GGUF file, or for any of them.",
        )
    model, is_new = await parts.uploads.read(request, lambda blocks: parts.models.put(name, package, blocks))
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/models/{name}"
    return Model.of(model)


@router.get("", operation_id="listModels", responses=responses(503), dependencies=[reading_key])
def page(parts: Parts) -> ModelPage:
    """Every model of the model folder, whoever put it there."""
    return ModelPage(models=[Model.of(model) for model in parts.models.all()])


@router.get("/{name}", operation_id="getModel", responses=responses(404, 422, 503), dependencies=[reading_key])
def show(name: LocalName, parts: Parts) -> Model:
    """One model of the model folder."""
    return Model.of(parts.models.get(name))


@router.delete(
    "/{name}",
    operation_id="deleteModel",
    status_code=204,
    responses=responses(404, 409, 422, 503),
    dependencies=[uploading_key],
)
def remove(name: LocalName, parts: Parts) -> None:
    """Remove a model that no job which has not ended names."""
    parts.models.get(name)
    if parts.store.any_unended_with(model=f"{LOCAL}{name}"):
        raise InUse(f"A job that has not ended names {LOCAL}{name}: wait for its end, or cancel it.", field="name")
    parts.models.remove(name)
