"""The Celery application, for `celery -A worker.app worker -P prefork -c 1`. Imports no torch."""

import functools
import os
import signal
import socket
from dataclasses import dataclass

import billiard
import structlog
from celery.signals import (
    celeryd_after_setup,
    setup_logging,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)
from celery.worker import WorkController

from jobs import tracing
from jobs.broker import TASK, job_queue, make_celery
from jobs.database import make_engine
from jobs.logs import configure_logs
from jobs.queues import Serves
from jobs.roster import Roster
from jobs.settings import Settings
from jobs.store import JobStore
from worker.disk_floor import DiskFloor
from worker.machine import gpu_memory_bytes
from worker.parent import Command, Parent, child_command
from worker.presence import Presence

log = structlog.get_logger()
settings = Settings()
configure_logs(settings)
app = make_celery(settings)

# Made before the pool forks, so that Celery's main process can tell the process that runs the task to stop.
stopping = billiard.Event()
floor = DiskFloor(settings)


@dataclass(frozen=True)
class Worker:
    """What this worker is called, and which jobs it may take."""

    name: str
    serves: Serves


@functools.cache
def this_worker() -> Worker:
    """Found out once, by Celery's main process before its pool forks: to look at a GPU takes seconds."""
    queues = tuple(sorted(map(job_queue, app.amqp.queues.consume_from)))
    gib = settings.gpu_memory_gib
    serves = Serves(queues, gpu_memory_bytes() / 2**30 if gib is None else gib)
    name = f"{socket.gethostname()}:{os.getpid()}"
    log.info("this worker serves", worker=name, queues=queues, gpu_memory_gib=serves.gpu_memory_gib)
    return Worker(name, serves)


@functools.cache
def presence() -> Presence:
    """That of this worker, for Celery's main process."""
    worker = this_worker()
    return Presence(Roster(make_engine(settings.database)), worker.name, worker.serves, settings)


@setup_logging.connect
def keep_logging(**_: object) -> None:
    """Celery sets no logging up where anything answers this signal."""


@celeryd_after_setup.connect
def without_banner(instance: WorkController, **_: object) -> None:
    """Celery's banner is no line of the log."""
    instance.quiet = True


@celeryd_after_setup.connect
def know_itself(**_: object) -> None:
    """By now Celery knows which queues it was told to listen to."""
    this_worker()


@worker_ready.connect
def begin_presence(**_: object) -> None:
    """After the fork of the pool, which must not inherit a connection."""
    presence().start()


@worker_shutdown.connect
def end_presence(**_: object) -> None:
    """The job, if there was one, is handed back by now."""
    presence().stop()


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
        me = this_worker()
        Parent(JobStore(engine), settings, me.name, me.serves, stopping.is_set, floor, command).work_from(job_id)
    finally:
        engine.dispose()
        tracing.stop()
        signal.signal(signal.SIGTERM, usual)
