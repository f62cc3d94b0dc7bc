"""What this machine has for a job: free disk, memory, perhaps a GPU. Imports no torch and knows nothing of jobs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import structlog

_GPU_DEVICES = ("nvidia*", "nvmap", "nvgpu", "nvhost-gpu", "kfd", "dxg")
"""Device files of CUDA and ROCm, also on Jetson boards and under WSL."""
SEE_GPU = (sys.executable, "-m", "worker.see_gpu")
_SEE_SECONDS = 300

log = structlog.get_logger()


def free_bytes(folder: Path) -> int:
    """What can be written on the disk of `folder`, which need not exist yet."""
    return shutil.disk_usage(existing(folder)).free


def existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def same_disk(one: Path, other: Path) -> bool:
    """Whether what is written in one folder takes room from the other."""
    return existing(one).stat().st_dev == existing(other).stat().st_dev


def may_have_gpu(devices: Path = Path("/dev")) -> bool:
    """Whether there may be a GPU that torch can use; without torch nobody knows for sure."""
    return any(next(devices.glob(pattern), None) is not None for pattern in _GPU_DEVICES)


def gpu_memory_bytes() -> int:
    """The memory of the GPU that a job here would run on; 0 without one. Where there may be one, torch is asked."""
    if not may_have_gpu():
        return 0
    try:
        said = subprocess.run(SEE_GPU, capture_output=True, text=True, timeout=_SEE_SECONDS, check=True).stdout
        return int(said.split()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        log.warning("the GPU's memory is not known, and taken to be none", error=type(error).__name__)
        return 0


def memory_bytes(root: Path = Path("/")) -> int:
    """What this process and its children may hold at once: the machine's memory, or less by the limit of a cgroup.

    Args:
        root: where `proc` and `sys` are.
    """
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([installed, *_cgroup_limits(root)])


def _cgroup_limits(root: Path) -> list[int]:
    """The limits of this process's cgroups and of those above them, of either version; none where there are none."""
    limits: list[int] = []
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return limits
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if controllers == "":
            mount, file = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            mount, file = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        own = mount / path.lstrip("/")  # inside a container it may not be there, but the mount is the container's own
        for folder in (own, *own.parents):
            if folder.is_relative_to(mount):
                limits.extend(_limit(folder / file))
    return limits


def _limit(file: Path) -> list[int]:
    try:
        text = file.read_text(encoding="utf-8").strip()
    except OSError:
        return []
    return [int(text)] if text.isdecimal() else []  # "max" is none
