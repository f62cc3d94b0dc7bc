"""Fetch a job's result into a folder that appears under its name only when every file is whole.

What an interrupted download has fetched stays beside it, and the next one goes on from there.
"""

import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from cli.errors import BadUsage, CommandFailed, DownloadDamaged, ServiceRefused, ServiceUnreachable
from cli.patience import Patience
from cli.replies import Artifact, Job

_BLOCK_BYTES = 1024**2


class Read(Protocol):
    """Hands an artifact's bytes to `write`, but for the first `start`."""

    def __call__(self, artifact: Artifact, write: Callable[[bytes], object], *, start: int) -> None: ...


def download_result(
    read: Read, job: Job, out: Path, *, replace: bool = False, on_bytes: Callable[[int], object] = lambda _: None
) -> None:
    """Fetch all artifacts of `job` into the folder `out`. A broken connection goes on where it broke.

    Args:
        read: how to get bytes; `Client.read`.
        replace: whether an `out` that exists gives way once the new one is complete.
        on_bytes: told of each block's size as it arrives, or is found to be there already.

    Raises:
        BadUsage: `out` exists and `replace` is not set.
        CommandFailed: the job has no result.
        DownloadDamaged: a file's size or SHA-256 is not what the service said; the next call fetches it anew.
        ServiceUnreachable: the service was gone for too long; the next call goes on.
    """
    if out.exists() and not replace:
        raise BadUsage(f"{out} exists already; choose another folder, or remove it first.")
    if job.artifacts_removed_at is not None:
        raise CommandFailed(f"The result of job {job.id} was removed at {job.artifacts_removed_at}: submit it again.")
    if not job.artifacts:
        raise CommandFailed(f"Job {job.id} is {job.status} and has no result to download.")
    aside = out.with_name(f"{out.name}.{job.id}.partial")
    targets = [_inside(aside, artifact.path) for artifact in job.artifacts]
    for artifact, target in zip(job.artifacts, targets, strict=True):
        _fetch(read, artifact, target, on_bytes)
    if out.exists():
        shutil.rmtree(out)
    aside.rename(out)


def _fetch(read: Read, artifact: Artifact, target: Path, on_bytes: Callable[[int], object]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with target.open("a+b") as file:

        def count(block: bytes) -> None:
            nonlocal size
            digest.update(block)
            size += len(block)
            on_bytes(len(block))

        def write(block: bytes) -> None:
            file.write(block)
            count(block)
            patience.renew()

        file.seek(0)
        while block := file.read(_BLOCK_BYTES):
            count(block)
        patience = Patience()
        while size < artifact.size:
            try:
                read(artifact, write, start=size)
                break
            except (ServiceUnreachable, ServiceRefused) as error:
                time.sleep(patience.pause_after(error))
    if (size, digest.hexdigest()) != (artifact.size, artifact.sha256):
        target.unlink()
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
