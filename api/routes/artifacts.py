"""A job's result, file by file."""

import mimetypes
import posixpath
from collections.abc import Iterator
from typing import IO, Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from api.auth import ReadableJobs
from api.problems import responses
from api.ranges import ByteRange, asked_range
from api.schemas import ArtifactPage, artifacts_of
from api.state import Parts
from jobs.errors import ArtifactNotFound, ArtifactsRemoved

router = APIRouter(prefix="/jobs", tags=["artifacts"], responses=responses(401, 403, 429))

_BLOCK_BYTES = 1024**2
_BYTES: dict[str, Any] = {
    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    "*/*": {},  # as the file's name has it
}


@router.get("/{job_id}/artifacts", operation_id="listJobArtifacts", responses=responses(404, 503))
def artifacts(job_id: str, jobs: ReadableJobs) -> ArtifactPage:
    """The files of the result; none before the job has stored it."""
    return ArtifactPage(artifacts=artifacts_of(jobs.get(job_id)))


@router.get(
    "/{job_id}/artifacts/{path:path}",
    operation_id="getJobArtifact",
    response_class=StreamingResponse,
    responses={
        200: {"description": "The file.", "content": _BYTES},
        206: {"description": "The range of bytes that was asked for.", "content": _BYTES},
        304: {"description": "The file is still the one of If-None-Match."},
        **responses(404, 410, 416, 503),
    },
)
def artifact(job_id: str, path: str, request: Request, parts: Parts, jobs: ReadableJobs) -> Response:
    """One file of the result; a byte range is honoured. The ETag is the file's sha256."""
    job = jobs.get(job_id)
    entry = next((entry for entry in job.artifacts if entry["path"] == path), None)
    if entry is None and job.artifacts_removed_at is not None:
        raise ArtifactsRemoved(
            f"The artifacts of job {job_id} were removed on {job.artifacts_removed_at:%Y-%m-%d}: submit its request "
            "again for new ones."
        )
    if entry is None:
        state = "" if job.artifacts else f"; the job is {job.status.value} and has stored no result"
        raise ArtifactNotFound(f"Job {job_id} has no artifact {path!r}{state}.")
    etag, size = f'"{entry["sha256"]}"', entry["size"]
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers={"ETag": etag})
    part = asked_range(request.headers, size=size, etag=etag)
    wanted = part or ByteRange(0, size)
    name = posixpath.basename(path)
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"attachment; filename*=utf-8''{quote(name)}",
        "Content-Length": str(wanted.length),
        "ETag": etag,
    }
    if part is not None:
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
    return StreamingResponse(
        _blocks(parts.artifacts.open(job_id, path), wanted),
        status_code=200 if part is None else 206,
        media_type=mimetypes.guess_type(name)[0] or "application/octet-stream",
        headers=headers,
    )


def _blocks(stream: IO[bytes], wanted: ByteRange) -> Iterator[bytes]:
    with stream:
        stream.seek(wanted.start)
        left = wanted.length
        while block := stream.read(min(_BLOCK_BYTES, left)):
            left -= len(block)
            yield block
