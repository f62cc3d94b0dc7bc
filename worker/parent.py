"""The parent's side of a job: take it, start the child, keep the lease honest, record how the child ended.

Imports no torch. The child writes progress and a good end itself; the parent speaks up only when it cannot.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum, auto

import structlog
from pydantic import SecretStr
from sqlalchemy.exc import OperationalError
from structlog.contextvars import bound_contextvars

from jobs import tracing
from jobs.artifacts import ArtifactStore
from jobs.discard import discard, discard_left_over
from jobs.errors import LeaseLost, RunTooLong, SealingUnavailable
from jobs.queues import Serves
from jobs.records import Lease
from jobs.sealing import Sealer
from jobs.settings import Settings
from jobs.states import JobStatus
from jobs.store import JobStore, patiently
from worker.child_process import ChildProcess, Exit
from worker.disk_floor import DiskFloor
from worker.exit_codes import ExitCode
from worker.heartbeat import Heartbeat
from worker.mlflow_server import OWN_VARIABLES
from worker.places import adopt_work, clear_work, jobs_with_work, log_file, old_logs
from worker.state_store import StateStore
from worker.tracking import tracked

NOT_INHERITED = frozenset(("FLATTENGPT_SECRET_KEYS", *OWN_VARIABLES))
"""What must not be where models are: the keys that open stored secrets, and what opens the MLflow server."""

Command = Callable[[Lease], Sequence[str]]

log = structlog.get_logger()


def child_environment(hub_token: SecretStr | None = None) -> dict[str, str]:
    """What a child inherits.

    Args:
        hub_token: of the job's client, in place of the worker's.
    """
    inherited = tracing.environment() or os.environ
    own = {"HF_TOKEN": hub_token.get_secret_value()} if hub_token else {}
    return {name: value for name, value in inherited.items() if name not in NOT_INHERITED} | own


def child_command(lease: Lease) -> Sequence[str]:
    """What runs one attempt of a job."""
    return (sys.executable, "-m", "worker.run", lease.job_id, str(lease.attempt))


class Stop(Enum):
    """Why a child was told to stop."""

    CANCELLING = auto()
    TOO_LONG = auto()
    WORKER_STOPS = auto()


class Parent:
    """One worker's loop over jobs, one at a time.

    Args:
        name: what this worker is called in the job's row.
        serves: which jobs it may take.
        stopping: whether the worker has been told to stop.
        floor: the free disk below which it takes no jobs.
        command: what runs an attempt.
    """

    def __init__(
        self,
        store: JobStore,
        settings: Settings,
        name: str,
        serves: Serves,
        stopping: Callable[[], bool],
        floor: DiskFloor,
        command: Command = child_command,
    ) -> None:
        self._store, self._settings, self._name, self._serves = store, settings, name, serves
        self._stopping, self._floor, self._command = stopping, floor, command
        self._artifacts = ArtifactStore(settings.artifacts)
        self._states = StateStore(settings.state_url) if settings.state_url else None

    def work_from(self, job_id: str) -> None:
        """Run every queued job that this worker may take, the most urgent first, whichever it was woken for.

        Until none is left, the worker stops, or its disk is nearly full.
        """
        while (next_id := self._store.next_queued(self._serves)) is not None:
            if self._stopping() or not self._floor.holds(self._clear_ended):
                self._store.ring_again(next_id)  # for another worker
                return
            lease = self._store.take(
                next_id, worker=self._name, lease_seconds=self._settings.lease_seconds, serves=self._serves
            )
            if lease is not None:
                with (
                    bound_contextvars(job_id=lease.job_id, attempt=lease.attempt),
                    tracing.span("attempt", tracing.of_job(lease), parent=lease.traceparent),
                    tracked(self._settings, lease),
                ):
                    self._run(lease)
            self._clear_ended()
        self._clear_ended()
        self._store.pass_on(job_id)

    def _run(self, lease: Lease) -> None:
        log.info("attempt started", worker=self._name)
        adopt_work(self._settings, lease)
        try:
            environment = child_environment(self._hub_token(lease))
        except LeaseLost as error:
            log.info("the attempt is over", reason=error.message)
            return
        except SealingUnavailable as error:
            log.error("the job's Hub token cannot be opened", reason=error.message)
            with suppress(LeaseLost):
                self._store.fail_unless_cancelling(lease, error.as_dict())
            return
        child = ChildProcess(self._command(lease), log_file(self._settings, lease), environment)
        try:
            ended, stop = self._watch(lease, child)
            status = self._settle(lease, ended, stop)
            if status is JobStatus.CANCELLED:
                with suppress(OperationalError):  # the row lists them until the next job's end
                    discard(self._store, self._artifacts, lease.job_id)
            log.info("attempt ended", code=ended.code, status=status.value)
        except LeaseLost as error:
            # Mostly the end of the job, which the child records before it exits.
            log.info("the attempt is over", reason=error.message)
        finally:
            child.stop(self._settings.stop_grace_seconds)

    @patiently
    def _hub_token(self, lease: Lease) -> SecretStr | None:
        """The token that the job's client sent, if it sent one. Raises LeaseLost, SealingUnavailable."""
        sealed = self._store.sealed_hub_token(lease)
        return None if sealed is None else Sealer(self._settings).open(sealed)

    def _clear_ended(self) -> None:
        """Remove the files of jobs that have ended, here or on another worker; the others may go on from theirs.

        Their logs stay for a while.
        """
        with suppress(OperationalError):  # the next job clears it
            discard_left_over(self._store, self._artifacts)
        for job_id in jobs_with_work(self._settings):
            with suppress(OperationalError):  # the next job clears it
                if self._store.has_ended(job_id):
                    clear_work(self._settings, job_id)
        if self._states is not None:
            self._clear_states(self._states)
        for job_id, log in old_logs(self._settings):
            with suppress(OperationalError):
                if self._store.has_ended(job_id):
                    log.unlink(missing_ok=True)

    def _clear_states(self, states: StateStore) -> None:
        try:
            for job_id in states.job_ids():
                if self._store.has_ended(job_id):
                    states.remove(job_id)
        except Exception as error:  # each store's client has errors of its own; the next job clears it
            log.warning("states of jobs that have ended are not removed", error=type(error).__name__)

    def _watch(self, lease: Lease, child: ChildProcess) -> tuple[Exit, Stop | None]:
        """How the child ended, and why it had been told to stop, if it had been. Raises LeaseLost."""
        heartbeat, stop = Heartbeat(self._store, lease, self._settings), None
        started = killed_at = time.monotonic()
        while (ended := child.wait(self._settings.poll_seconds)) is None:
            cancelling = heartbeat.beat() is JobStatus.CANCELLING
            if stop is not None:
                if time.monotonic() > killed_at:
                    log.warning("killing the job's process, which did not stop in time")
                    child.signal_group(signal.SIGKILL)
            elif stop := self._reason_to_stop(cancelling, time.monotonic() - started):
                log.info("asking the job's process to stop", reason=stop.name.lower())
                child.signal_group(signal.SIGTERM)
                killed_at = time.monotonic() + self._settings.stop_grace_seconds
        return ended, stop

    def _reason_to_stop(self, cancelling: bool, seconds: float) -> Stop | None:
        if cancelling:
            return Stop.CANCELLING
        if 0 < self._settings.max_run_seconds < seconds:
            return Stop.TOO_LONG
        return Stop.WORKER_STOPS if self._stopping() else None

    @patiently
    def _settle(self, lease: Lease, ended: Exit, stop: Stop | None) -> JobStatus:
        """Record an end that the child has not recorded itself. Raises LeaseLost."""
        job = self._store.get(lease.job_id)
        if job.ended or job.attempt != lease.attempt:
            return job.status
        if job.status is JobStatus.CANCELLING:
            self._store.cancelled(lease)
            return JobStatus.CANCELLED
        if stop is Stop.TOO_LONG:
            return self._store.fail_unless_cancelling(lease, self._ran_too_long().as_dict())
        if stop is not None or ended.code == ExitCode.STOPPED:
            return self._store.hand_back(lease, reason="the worker was told to stop")
        tracing.annotate({"process.exit.code": ended.code}, failed=True)
        return self._store.died(
            lease,
            reason=ended.reason,
            max_attempts=self._settings.max_attempts,
            peak_memory_bytes=ended.peak_memory_bytes,
        )

    def _ran_too_long(self) -> RunTooLong:
        return RunTooLong(
            f"The attempt was stopped after {self._settings.max_run_seconds:g} s, the longest that this service lets "
            "one run (FLATTENGPT_MAX_RUN_SECONDS): ask for fewer calibration samples, recovery steps or evaluation "
            "windows, or have the limit raised."
        )
