"""Keeps one worker process running beside the service, and takes it down with the service."""

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from worker.child_process import ChildProcess

WORKER = (sys.executable, "-m", "cli.main", "worker", "--while-stdin-open")
_LOOK_SECONDS = 0.5
_BACKOFF_SECONDS = (1.0, 30.0)  # after the first death, and at most
_HEALTHY_SECONDS = 60.0  # a worker that lived so long starts the backoff anew

log = structlog.get_logger()


class WorkerKeeper:
    """Runs `command` until stopped; starts it again when it dies, a little later each time.

    Args:
        log_file: where the worker's output goes.
        grace_seconds: between asking the worker to stop and killing it.
    """

    def __init__(self, log_file: Path, *, grace_seconds: float, command: Sequence[str] = WORKER) -> None:
        self._log_file, self._grace, self._command = log_file, grace_seconds, command
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="worker-keeper")

    def start(self) -> None:
        """Start the worker."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the worker and wait until it is gone. It hands a running job back."""
        self._stop.set()
        self._thread.join()

    def _keep(self) -> None:
        wait = _BACKOFF_SECONDS[0]
        while not self._stop.is_set():
            started = time.monotonic()
            reason = self._run_one()
            if reason is None:
                return
            if time.monotonic() - started > _HEALTHY_SECONDS:
                wait = _BACKOFF_SECONDS[0]
            log.error("the worker died and is started again", reason=reason, after_seconds=wait)
            self._stop.wait(wait)
            wait = min(2 * wait, _BACKOFF_SECONDS[1])

    def _run_one(self) -> str | None:
        """Run one worker to its end; why it died, or None if it was stopped."""
        child = ChildProcess(self._command, self._log_file)
        while not self._stop.is_set():
            if (ended := child.wait(_LOOK_SECONDS)) is not None:
                return ended.reason
        # Only the worker itself: a signal to its group would kill the pool process that hands the job back.
        os.kill(child.pid, signal.SIGTERM)
        if child.wait(self._grace) is None:
            log.error("the worker did not stop in time and is killed")
            child.signal_group(signal.SIGKILL)
            child.wait(self._grace)
        return None
