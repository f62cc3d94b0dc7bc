"""Where a job keeps its files on this machine. Knows nothing of what they hold."""

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from jobs.records import Lease
from jobs.settings import Settings

_ADOPTED = "adopted"
"""Names the attempt that an attempt's files on this machine come from."""
_KEPT = ("state", "result", "download")
"""What the next attempt can use of one that ended: they hold whole files only, or say which are."""
_LOG = re.compile(r"([0-9A-Z]{26})\.\d+(?:\.mlflow)?\.log")


def log_file(settings: Settings, lease: Lease) -> Path:
    """What the attempt's child process prints; kept, see `old_logs`."""
    return settings.data_dir.absolute() / "logs" / f"{lease.job_id}.{lease.attempt}.log"


def tracking_log_file(settings: Settings, lease: Lease) -> Path:
    """What the process prints that tells MLflow of the attempt; kept as the other."""
    return log_file(settings, lease).with_suffix(".mlflow.log")


def old_logs(settings: Settings) -> list[tuple[str, Path]]:
    """The logs that nobody has written to for `keep_artifacts_days`, each with its job's id; none if that is 0."""
    logs = settings.data_dir.absolute() / "logs"
    if not settings.keep_artifacts_days or not logs.exists():
        return []
    oldest = time.time() - settings.keep_artifacts_days * 86_400
    found = []
    for file in logs.iterdir():
        match = _LOG.fullmatch(file.name)
        with suppress(FileNotFoundError):  # another worker may have removed it just now
            if match and file.stat().st_mtime < oldest:
                found.append((match[1], file))
    return found


def result_dir(settings: Settings, lease: Lease) -> Path:
    """The result, before it is stored."""
    return _own(settings, lease) / "result"


def state_dir(settings: Settings, lease: Lease) -> Path:
    """What the attempt has finished, for the next one to go on from."""
    return _own(settings, lease) / "state"


def download_dir(settings: Settings, lease: Lease) -> Path:
    """What was downloaded with the token of the job's client, for this job alone."""
    return _own(settings, lease) / "download"


def adopt_work(settings: Settings, lease: Lease) -> None:
    """Give the attempt the state and the result of the one before it, if this machine has them, and nothing else.

    By a rename, so that an earlier attempt which only seemed dead does not write between its successor's files.
    """
    own = _own(settings, lease)
    earlier = sorted((folder for folder in _of_job(settings, lease.job_id)), key=_attempt, reverse=True)
    for folder in earlier:
        if any((folder / name).is_dir() for name in _KEPT) and not own.exists():
            folder.rename(own)
            (own / _ADOPTED).write_text(str(_attempt(folder)), encoding="utf-8")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    for entry in own.iterdir() if own.exists() else ():
        if entry.name not in _KEPT:
            shutil.rmtree(entry, ignore_errors=True)


def adopted(settings: Settings, lease: Lease) -> int:
    """The attempt whose files this one has got on this machine, the last that ran here; 0 if there are none."""
    file = _own(settings, lease) / _ADOPTED
    return int(file.read_text(encoding="utf-8")) if file.exists() else 0


def clear_work(settings: Settings, job_id: str) -> None:
    """Remove what all attempts of the job left."""
    for folder in _of_job(settings, job_id):
        shutil.rmtree(folder, ignore_errors=True)


def jobs_with_work(settings: Settings) -> set[str]:
    """The ids of the jobs that have files here."""
    work = _work(settings)
    return {folder.name.rsplit(".", 1)[0] for folder in work.iterdir()} if work.exists() else set()


def _of_job(settings: Settings, job_id: str) -> Iterator[Path]:
    return _work(settings).glob(f"{job_id}.*")


def _attempt(folder: Path) -> int:
    number = folder.name.rsplit(".", 1)[1]
    return int(number) if number.isdecimal() else 0


def _own(settings: Settings, lease: Lease) -> Path:
    return _work(settings) / f"{lease.job_id}.{lease.attempt}"


def _work(settings: Settings) -> Path:
    return settings.data_dir.absolute() / "work"
