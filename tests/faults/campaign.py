"""Runs scenarios on a deployment, one after the other, and checks after each what must hold of every job."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.faults import scenarios
from tests.faults.deployment import REQUEST, Deployment
from tests.faults.invariants import check, digests
from tests.faults.scenarios import Extent

Scenario = Callable[[Any, Extent, random.Random], Sequence[str]]

SPREAD: tuple[Scenario, ...] = (
    scenarios.worker_killed_in_each_stage,
    scenarios.worker_killed_at_random,
    scenarios.worker_told_to_stop,
    scenarios.worker_stopped_past_its_lease,
    scenarios.api_killed_before_it_announces,
    scenarios.sweeper_killed,
    scenarios.broker_emptied,
    scenarios.broker_down,
    scenarios.messages_delivered_three_times,
    scenarios.database_connections_cut,
    scenarios.database_restarted,
    scenarios.database_unreachable,
    scenarios.serialization_failures,
    scenarios.clocks_apart,
    scenarios.hub_errors,
    scenarios.disk_full,
)
EMBEDDED: tuple[Scenario, ...] = (
    scenarios.service_killed,
    scenarios.service_killed_on_submit,
    scenarios.queue_emptied,
    scenarios.database_locked,
    scenarios.disk_full,
)


@dataclass(frozen=True)
class Outcome:
    """What a scenario came to. Counts: of all its jobs' attempts, and of those that did not end their job.

    not_run: why this machine cannot show it. failed: what did not hold.
    """

    scenario: str
    what: str
    deployment: str
    seconds: float
    jobs: int = 0
    attempts: int = 0
    handed_back: int = 0
    died: int = 0
    lease_expired: int = 0
    not_run: str | None = None
    failed: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The outcome as JSON."""
        return asdict(self)


def undisturbed(service: Deployment, request: Mapping[str, Any] = REQUEST) -> dict[str, str]:
    """SHA-256 by file of what a job gives when nothing happens to it."""
    (job,) = service.wait_for_end(service.submit(**request))
    check(service.store, service.artifacts, [job.id], reference=None)
    return digests(service.artifacts, job)


def run(scenario: Scenario, service: Deployment, extent: Extent, seed: int, reference: dict[str, str]) -> Outcome:
    """Run one scenario to the end of its jobs. Raises AssertionError for whatever does not hold."""
    what = (scenario.__doc__ or "").splitlines()[0]
    started = time.monotonic()
    try:
        ids = scenario(service, extent, random.Random(f"{seed} {scenario.__name__}"))
    except scenarios.NotRun as reason:
        return Outcome(scenario.__name__, what, service.kind, 0.0, not_run=str(reason))
    service.wait_for_end(ids)
    tally = check(service.store, service.artifacts, ids, reference=reference)
    seconds = round(time.monotonic() - started, 1)
    return Outcome(scenario.__name__, what, service.kind, seconds, **asdict(tally))
