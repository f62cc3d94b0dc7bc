"""Refuses, before any work, a job that this machine cannot hold. Imports no torch."""

from pathlib import Path

import structlog

from flattengpt_core.checkpoint import CheckpointInfo
from jobs import needs
from jobs.artifacts import ArtifactStore
from jobs.errors import NotEnoughDisk, NotEnoughMemory
from jobs.records import Lease
from jobs.settings import Settings
from jobs.spec import JobSpec
from worker import machine
from worker.places import result_dir, state_dir

log = structlog.get_logger()


def check_room(settings: Settings, lease: Lease, spec: JobSpec, info: CheckpointInfo) -> None:
    """Compare what the job needs at least with what there is.

    An attempt that goes on from an earlier one's state needs less: what is on the disk already counts there, and
    memory is not looked at again, since how far that attempt was is not known here.

    Raises:
        InvalidTarget: as `JobSpec.goal`.
        NotEnoughDisk, NotEnoughMemory: with both figures.
    """
    shape = needs.shape_of(info)
    done = _size(state_dir(settings, lease))
    _check_disk(settings, result_dir(settings, lease).parent, spec, shape, done)
    if not done:
        _check_memory(settings, spec, shape)


def _check_disk(settings: Settings, work: Path, spec: JobSpec, shape: needs.Shape, done: int) -> None:
    artifacts = ArtifactStore(settings.artifacts).folder
    stored_here = artifacts is not None and machine.same_disk(work, artifacts)
    needed = needs.disk_bytes(shape, spec, stored_here=stored_here) - done
    free = machine.free_bytes(work)
    log.info("disk", folder=str(work.parent), needed_bytes=needed, free_bytes=free)
    if needed > free:
        raise NotEnoughDisk(
            f"The job needs at least {_readable(needed)} of disk, and {_readable(free)} are free for the worker's "
            "folder FLATTENGPT_DATA_DIR/work: make room there, or ask for fewer layers or a smaller dtype."
        )


def _check_memory(settings: Settings, spec: JobSpec, shape: needs.Shape) -> None:
    stages = needs.memory_bytes(shape, spec, gpu=machine.may_have_gpu())
    stage = max(stages, key=stages.__getitem__)
    there = settings.max_memory_bytes or machine.memory_bytes()
    log.info("memory", stage=stage, needed_bytes=stages[stage], there_bytes=there)
    if stages[stage] > there:
        raise NotEnoughMemory(
            f"The job needs at least {_readable(stages[stage])} of memory when {stage}, and the worker has "
            f"{_readable(there)} for it: {_REMEDIES[stage]}, or run it on a worker with more memory "
            "(FLATTENGPT_MAX_MEMORY_BYTES)."
        )


_REMEDIES = {
    "loading": "take a smaller model",
    "compressing": "ask for fewer calibration samples or another method, take a smaller model",
    "recovering": "ask for smaller batch_tokens or for LoRA, take a smaller model",
    "evaluating": "ask for fewer evaluation windows or smaller benchmark sizes, take a smaller model",
}


def _size(folder: Path) -> int:
    """What the folder's files take, in bytes."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())


def _readable(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.2f} MiB"
