"""A job's result, file by file."""

from collections.abc import Iterator
from typing import IO

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, Response, StreamingResponse

from api.problems import responses
from api.schemas import ArtifactPage, artifacts_of
from api.state import Parts
from jobs.errors import ArtifactNotFound

router = APIRouter(prefix="/jobs", tags=["artifacts"])

_BLOCK_BYTES = 1024**2


@router.get("/{job_id}/artifacts", operation_id="listJobArtifacts", responses=responses(404, 503))
def artifacts(job_id: str, parts: Parts) -> ArtifactPage:
    """The files of the result; none before the job has stored it."""
    return ArtifactPage(artifacts=artifacts_of(parts.store.get(job_id)))


@router.get(
    "/{job_id}/artifacts/{path:path}",
    operation_id="getJobArtifact",
    response_class=FileResponse,
    responses={206: {"description": "The asked range of bytes."}, **responses(404, 503)},
)
def artifact(job_id: str, path: str, request: Request, parts: Parts) -> Response:
    """One file of the result; byte ranges are honoured. The ETag is the file's sha256."""
    job = parts.store.get(job_id)
    entry = next((entry for entry in job.artifacts if entry["path"] == path), None)
    if entry is None:
        state = "" if job.artifacts else f"; the job is {job.status.value} and has stored no result"
        raise ArtifactNotFound(f"Job {job_id} has no artifact {path!r}{state}.")
    etag = f'"{entry["sha256"]}"'
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers={"ETag": etag})
    file = parts.artifacts.local_file(job_id, path)
    if file is not None:
        return FileResponse(file, filename=file.name, headers={"ETag": etag})
    return StreamingResponse(
        _blocks(parts.artifacts.open(job_id, path)),
        media_type="application/octet-stream",
        headers={"ETag": etag, "Content-Length": str(entry["size"])},
    )


def _blocks(stream: IO[bytes]) -> Iterator[bytes]:
    with stream:
        while block := stream.read(_BLOCK_BYTES):
            yield block
