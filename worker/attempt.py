"""What one attempt at a job works with."""

from dataclasses import dataclass

from jobs.records import JobRecord, Lease
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.store import JobStore
from worker.reporter import Reporter


@dataclass(frozen=True)
class Attempt:
    """What one attempt works with."""

    lease: Lease
    spec: JobSpec
    settings: Settings
    store: JobStore
    reporter: Reporter
    job: JobRecord
    """The job's row as it was when the attempt began."""
