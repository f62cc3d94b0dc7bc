"""Where an attempt keeps its files on this machine. Knows nothing of what they hold."""

import shutil
from pathlib import Path

from jobs.records import Lease
from jobs.settings import Settings


def log_file(settings: Settings, lease: Lease) -> Path:
    """What the attempt's child process prints; kept."""
    return settings.data_dir.absolute() / "logs" / f"{lease.job_id}.{lease.attempt}.log"


def work_dir(settings: Settings, lease: Lease) -> Path:
    """The unfinished result, in a folder of the attempt's own."""
    return _work(settings) / f"{lease.job_id}.{lease.attempt}"


def clear_work(settings: Settings, job_id: str) -> None:
    """Remove what this and earlier attempts of the job left, also those whose worker died."""
    for folder in _work(settings).glob(f"{job_id}.*"):
        shutil.rmtree(folder, ignore_errors=True)


def _work(settings: Settings) -> Path:
    return settings.data_dir.absolute() / "work"
