"""Fetch a job's result into a folder that appears under its name only when every file is whole."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

from cli.client import Client
from cli.errors import BadUsage, CommandFailed, DownloadDamaged
from cli.replies import Artifact, Job

_PARTIAL = ".partial"


def download_result(
    client: Client, job: Job, out: Path, *, replace: bool = False, on_bytes: Callable[[int], object] = lambda _: None
) -> None:
    """Fetch all artifacts of `job` into the folder `out`.

    Args:
        replace: whether an `out` that exists gives way once the new one is complete.
        on_bytes: told of each block's size as it arrives.

    Raises:
        BadUsage: `out` exists and `replace` is not set.
        CommandFailed: the job has no result.
        DownloadDamaged: a file's size or SHA-256 is not what the service said; nothing is left under `out`.
    """
    if out.exists() and not replace:
        raise BadUsage(f"{out} exists already; choose another folder, or remove it first.")
    if job.artifacts_removed_at is not None:
        raise CommandFailed(f"The result of job {job.id} was removed at {job.artifacts_removed_at}: submit it again.")
    if not job.artifacts:
        raise CommandFailed(f"Job {job.id} is {job.status} and has no result to download.")
    aside = out.with_name(out.name + _PARTIAL)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        for artifact in job.artifacts:
            _fetch(client, artifact, _inside(aside, artifact.path), on_bytes)
        if out.exists():
            shutil.rmtree(out)
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _fetch(client: Client, artifact: Artifact, target: Path, on_bytes: Callable[[int], object]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with target.open("wb") as file:

        def write(block: bytes) -> None:
            nonlocal size
            file.write(block)
            digest.update(block)
            size += len(block)
            on_bytes(len(block))

        client.read(artifact, write)
    if (size, digest.hexdigest()) != (artifact.size, artifact.sha256):
        raise DownloadDamaged(
            f"{artifact.path} arrived with {size} bytes and SHA-256 {digest.hexdigest()}, but the service announced "
            f"{artifact.size} bytes and {artifact.sha256}; try again."
        )


def _inside(folder: Path, path: str) -> Path:
    """`path` within `folder`; a service must not write anywhere else on this machine."""
    target = (folder / path).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise DownloadDamaged(f"The service named an artifact outside its folder ({path!r}), which is refused.")
    return target
