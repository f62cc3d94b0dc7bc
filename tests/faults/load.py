"""Many clients at once: they submit jobs and look after them until they end, while workers are killed."""

import random
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from cli.client import Client
from cli.errors import ServiceRefused, ServiceUnreachable
from tests.faults.deployment import Spread

T = TypeVar("T")
POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Latency:
    """Of one kind of request, in milliseconds, over all clients."""

    requests: int
    p50_ms: float
    p99_ms: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Latency":
        """The percentiles of these times; two or more."""
        hundredths = statistics.quantiles(seconds, n=100)
        return cls(len(seconds), round(1000 * hundredths[49], 1), round(1000 * hundredths[98], 1))


@dataclass(frozen=True)
class Load:
    """What a load came to. jobs_per_second: from the first request to the last job's end."""

    jobs: int
    clients: int
    workers: int
    kills: int
    seconds: float
    jobs_per_second: float
    submit: Latency
    poll: Latency


@dataclass
class _Times:
    submit: list[float] = field(default_factory=list)
    poll: list[float] = field(default_factory=list)


def load(
    service: Spread,
    request: Mapping[str, Any],
    *,
    jobs: int,
    clients: int,
    kill_seconds: float | None,
    rng: random.Random,
) -> tuple[list[str], Load]:
    """Have `clients` clients submit `jobs` jobs in all and wait for each by polls; the ids, and how long it took.

    Args:
        kill_seconds: how often a worker is killed with all it started, and started again; None for never.
    """
    times, ended = _Times(), threading.Event()
    started = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        shares = [len(range(client, jobs, clients)) for client in range(clients)]
        running = [pool.submit(_use, service, request, share, times) for share in shares]
        killer = threading.Thread(target=lambda: kills.extend(_kill(service, kill_seconds, rng, ended)))
        kills: list[int] = []
        killer.start()
        try:
            ids = [job_id for future in running for job_id in future.result()]
        finally:
            ended.set()
            killer.join()
    seconds = time.monotonic() - started
    found = Load(
        jobs=jobs,
        clients=clients,
        workers=len(service.workers),
        kills=len(kills),
        seconds=round(seconds, 1),
        jobs_per_second=round(jobs / seconds, 3),
        submit=Latency.of(times.submit),
        poll=Latency.of(times.poll),
    )
    return ids, found


def _use(service: Spread, request: Mapping[str, Any], jobs: int, times: _Times) -> list[str]:
    """What one client does: submit its jobs, then wait for each in turn; their ids, all of them ended."""
    with service.client() as client:
        ids = [_timed(times.submit, _submission(client, request)) for _ in range(jobs)]
        for job_id in ids:
            while not _timed(times.poll, partial(client.get, job_id)).ended:
                time.sleep(POLL_SECONDS)
    return ids


def _submission(client: Client, request: Mapping[str, Any]) -> Callable[[], str]:
    key = f"load-{random.random()}"
    return lambda: client.submit(request, idempotency_key=key).id


def _timed(seconds: list[float], ask: Callable[[], T]) -> T:
    """The answer; a request that the service refuses or does not answer is made again, and counts as one."""
    started = time.perf_counter()
    while True:
        try:
            answer = ask()
        except (ServiceRefused, ServiceUnreachable):
            time.sleep(0.2)
            continue
        seconds.append(time.perf_counter() - started)
        return answer


def _kill(service: Spread, every: float | None, rng: random.Random, ended: threading.Event) -> list[int]:
    """Kill a worker now and then until the load has ended; which ones."""
    killed = []
    while every is not None and not ended.wait(every):
        killed.append(rng.randrange(len(service.workers)))
        service.workers[killed[-1]].kill()
        service.restart_worker(killed[-1])
    return killed
