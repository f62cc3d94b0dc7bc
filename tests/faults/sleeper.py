"""A job's process that compresses nothing: it takes its stages, sleeps, and ends the job well."""

import sys
import time

from jobs.database import make_engine
from jobs.errors import LeaseLost
from jobs.records import Event, Lease
from jobs.settings import Settings
from jobs.store import JobStore
from worker.child_process import die_with_parent
from worker.exit_codes import ExitCode

SLEEP_SECONDS = 0.02


def main(job_id: str, attempt: int) -> ExitCode:
    """Write what a compression writes, at its pace if it were instant."""
    die_with_parent()
    store, lease = JobStore(make_engine(Settings().database)), Lease(job_id, attempt)
    try:
        for stage in ("loading", "compressing", "evaluating"):
            store.record(lease, stage=stage, events=[Event("stage", {"stage": stage})])
            time.sleep(SLEEP_SECONDS)
        store.store_result(lease, metrics={}, artifacts=[])
        store.succeed(lease)
    except LeaseLost:
        return ExitCode.LEASE_LOST
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
