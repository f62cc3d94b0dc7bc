"""Keeps a lease alive, and learns from it what is to become of the job."""

import time

import structlog
from sqlalchemy.exc import OperationalError

from jobs.errors import LeaseLost
from jobs.records import Lease
from jobs.settings import Settings
from jobs.states import JobStatus
from jobs.store import JobStore

log = structlog.get_logger()


class Heartbeat:
    """The heartbeat of one attempt, which its worker gives by calling `beat` often."""

    def __init__(self, store: JobStore, lease: Lease, settings: Settings) -> None:
        self._store, self._lease, self._settings = store, lease, settings
        self._status = JobStatus.RUNNING
        self._renewed = time.monotonic()
        self._next = self._renewed

    def beat(self) -> JobStatus:
        """Renew the lease if that is due; the job's status as last seen.

        Raises:
            LeaseLost: another attempt may own the job; so it is, too, when the database is silent beyond the lease.
        """
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._settings.heartbeat_seconds
            try:
                self._status = self._store.heartbeat(self._lease, lease_seconds=self._settings.lease_seconds)
                self._renewed = now
            except OperationalError as error:
                log.warning("heartbeat failed", error=type(error).__name__)
                if now - self._renewed > self._settings.lease_seconds:
                    message = f"The database was silent for longer than the lease of job {self._lease.job_id}."
                    raise LeaseLost(message) from None
        return self._status
