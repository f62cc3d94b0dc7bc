"""Finds what was lost: jobs that no worker was woken for, and jobs whose worker fell silent. Then the janitor comes.

Safe to run in several places at once, since each step is an atomic update in the store.
"""

import threading

import structlog
from sqlalchemy.exc import SQLAlchemyError

from jobs.broker import Announcer
from jobs.janitor import remove_old_artifacts
from jobs.settings import Settings
from jobs.store import JobStore

UNHEARD = 100
"""No more is announced while so many of a queue wait: without a worker they would pile up for days."""

log = structlog.get_logger()


def sweep_once(store: JobStore, announcer: Announcer, settings: Settings) -> None:
    """Give up attempts whose lease ran out, announce queued jobs that are due, and remove old artifacts."""
    for lease in store.release_expired(max_losses=settings.max_losses):
        log.warning("lease expired", job_id=lease.job_id, attempt=lease.attempt)
    for queue in store.queues_waiting():
        if announcer.waiting(queue) < UNHEARD:
            for job_id in store.due_for_announcement(queue, after_seconds=settings.announce_after_seconds):
                announcer.announce(job_id, queue)
    remove_old_artifacts(store, settings)


def sweep_until(stop: threading.Event, store: JobStore, announcer: Announcer, settings: Settings) -> None:
    """Sweep every `sweep_seconds` until `stop` is set; whatever goes wrong is tried again at the next turn."""
    while not stop.is_set():
        try:
            sweep_once(store, announcer, settings)
        except SQLAlchemyError as error:
            log.error("sweep failed", error=type(error).__name__)
        except Exception:  # a sweeper that ends would leave lost jobs lost
            log.exception("sweep failed")
        stop.wait(settings.sweep_seconds)
