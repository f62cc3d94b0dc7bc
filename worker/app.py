"""The Celery application, for `celery -A worker.app worker -P prefork -c 1`. Imports no torch."""

import os
import signal
import socket

import billiard
from celery.signals import celeryd_after_setup, setup_logging, worker_shutting_down
from celery.worker import WorkController

from jobs import tracing
from jobs.broker import TASK, make_celery
from jobs.database import make_engine
from jobs.logs import configure_logs
from jobs.settings import Settings
from jobs.store import JobStore
from worker.disk_floor import DiskFloor
from worker.parent import Command, Parent, child_command

settings = Settings()
configure_logs(settings)
app = make_celery(settings)

# Made before the pool forks, so that Celery's main process can tell the process that runs the task to stop.
stopping = billiard.Event()
floor = DiskFloor(settings)


@setup_logging.connect
def keep_logging(**_: object) -> None:
    """Celery sets no logging up where anything answers this signal."""


@celeryd_after_setup.connect
def without_banner(instance: WorkController, **_: object) -> None:
    """Celery's banner is no line of the log."""
    instance.quiet = True


@worker_shutting_down.connect
def stop_children(**_: object) -> None:
    """Celery waits for a running task on shutdown; the task must hear of it to hand its job back."""
    stopping.set()


@app.task(name=TASK)
def compress(job_id: str) -> None:
    """Work on the job, then on whatever else is queued: the message only wakes, the database says what to do."""
    work(job_id, child_command)


def work(job_id: str, command: Command) -> None:
    """As `compress`; `command` is what runs an attempt."""
    # A signal to the whole service, as systemd sends it, reaches this process too, and must not kill it first.
    usual = signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    engine = make_engine(settings.database)
    tracing.start(settings, "worker")
    try:
        name = f"{socket.gethostname()}:{os.getppid()}"
        Parent(JobStore(engine), settings, name, stopping.is_set, floor, command).work_from(job_id)
    finally:
        engine.dispose()
        tracing.stop()
        signal.signal(signal.SIGTERM, usual)
