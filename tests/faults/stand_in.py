"""A worker whose jobs sleep and write instead of compressing, so that more of them load the queue than could run.

`celery -A tests.faults.stand_in worker`: everything but the job's own process is the service's.
"""

import sys
from collections.abc import Sequence

from jobs.broker import TASK, make_celery
from jobs.records import Lease
from worker.app import settings, work

app = make_celery(settings)


def sleeper(lease: Lease) -> Sequence[str]:
    """What runs one attempt of a job."""
    return (sys.executable, "-m", "tests.faults.sleeper", lease.job_id, str(lease.attempt))


@app.task(name=TASK)
def compress(job_id: str) -> None:
    """Work on the job, then on whatever else is queued."""
    work(job_id, sleeper)
