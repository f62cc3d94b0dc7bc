"""What is new about jobs, for any number of listeners: one query a tick and job, however many ask.

Listeners wait for themselves and share what one of them has read, so that nothing runs while nobody listens.
"""

import time
from collections import deque
from collections.abc import Callable
from weakref import WeakValueDictionary

import anyio
from anyio.to_thread import run_sync

from jobs.records import EventRecord, JobRecord
from jobs.store import JobStore

TICK_SECONDS = 0.3
KEPT_EVENTS = 1000
"""Newest events of a job that are shared; who is further behind reads the table."""


class JobNews:
    """One job as it was at most a tick ago, and its newest events."""

    def __init__(self, store: JobStore, job: JobRecord) -> None:
        self._store, self._job = store, job
        self._events: deque[EventRecord] = deque(maxlen=KEPT_EVENTS)
        self._last_seq = job.last_event  # of the events read so far
        self._read_at = time.monotonic()
        self._reading = anyio.Lock()

    async def after(self, seq: int) -> tuple[JobRecord, list[EventRecord]]:
        """The job, and its next events, those with a sequence number above `seq`: as many as are at hand, in order.

        Raises JobNotFound once it is deleted.
        """
        job = await self.job()
        first = self._events[0].seq if self._events else self._last_seq + 1
        if seq + 1 >= first:  # sequence numbers have no gaps
            return job, [event for event in self._events if event.seq > seq]
        return job, await run_sync(lambda: self._store.events(job.id, after=seq))

    async def job(self) -> JobRecord:
        """The job; raises JobNotFound once it is deleted."""
        async with self._reading:
            if time.monotonic() - self._read_at >= TICK_SECONDS:
                await self._read()
            return self._job

    async def until(self, enough: Callable[[JobRecord], bool], *, seconds: float) -> JobRecord:
        """The job as soon as it is `enough` or has ended, or after `seconds`; each state of it is judged once."""
        job = await self.job()
        with anyio.move_on_after(seconds):
            while not (job.ended or enough(job)):
                judged = job
                while job is judged:
                    await anyio.sleep(TICK_SECONDS)
                    job = await self.job()
        return job

    async def _read(self) -> None:
        # The job first: whatever it counts is in the table by then.
        job = await run_sync(self._store.get, self._job.id)
        if job.last_event > self._last_seq:
            self._events.extend(await run_sync(lambda: self._store.events(job.id, after=self._last_seq)))
            self._last_seq = self._events[-1].seq
        if job != self._job:
            self._job = job
        self._read_at = time.monotonic()


class NewsDesk:
    """The news of each job that somebody listens to."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._news: WeakValueDictionary[str, JobNews] = WeakValueDictionary()

    def of(self, job: JobRecord) -> JobNews:
        """What is new about the job since `job` was read; kept as long as its listeners hold it."""
        return self._news.setdefault(job.id, JobNews(self._store, job))
