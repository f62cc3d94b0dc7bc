"""A job's run on an MLflow server, kept by a process of its own for as long as an attempt lasts.

Nothing that goes wrong with it is an error of the job.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import structlog

from jobs.records import Lease
from jobs.settings import Settings
from worker.child_process import ChildProcess
from worker.mlflow_server import is_installed
from worker.places import tracking_log_file

_NOT_NEEDED = ("FLATTENGPT_SECRET_KEYS", "HF_TOKEN")

log = structlog.get_logger()


@contextmanager
def tracked(settings: Settings, lease: Lease) -> Iterator[None]:
    """Have MLflow told of the attempt in the block, if the settings name a server.

    At the block's end the rest is told, for at most `stop_grace_seconds`.
    """
    tracker = _tracker(settings, lease) if settings.mlflow_tracking_uri.get_secret_value() else None
    try:
        yield
    finally:
        if tracker is not None and tracker.stop(settings.stop_grace_seconds).code != 0:
            log.warning(
                "MLflow was not told all of the job: see the log of its tracking; `flattengpt track` tells it again",
                log=tracking_log_file(settings, lease).name,
            )


def _tracker(settings: Settings, lease: Lease) -> ChildProcess | None:
    if not is_installed():
        log.warning("no MLflow: install flattengpt[mlflow], or unset FLATTENGPT_MLFLOW_TRACKING_URI")
        return None
    command = (sys.executable, "-m", "worker.track", lease.job_id, str(lease.attempt))
    try:
        return ChildProcess(command, tracking_log_file(settings, lease), _environment())
    except OSError as error:
        log.warning("MLflow is not told of the job: its process cannot be started", error=error.strerror)
        return None


def _environment() -> Mapping[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _NOT_NEEDED}
