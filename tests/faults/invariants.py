"""What must hold of every job, whatever happened to the processes and servers on the way."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from jobs.artifacts import ArtifactStore
from jobs.changes import DIED, HANDED_BACK, LEASE_EXPIRED
from jobs.records import EventRecord, JobRecord
from jobs.states import TERMINAL, JobStatus
from jobs.store import JobStore

DIGESTS = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
"""The files whose bytes do not depend on what happened on the way."""
_ENDS = {status.value for status in TERMINAL}
_GIVEN_UP = (HANDED_BACK, DIED, LEASE_EXPIRED)


@dataclass(frozen=True)
class Tally:
    """What the jobs of a scenario went through: attempts, and how they ended which did not end the job."""

    jobs: int
    attempts: int
    handed_back: int
    died: int
    lease_expired: int


def check(
    store: JobStore,
    artifacts: ArtifactStore,
    ids: Iterable[str],
    *,
    reference: Mapping[str, str] | None,
    status: JobStatus = JobStatus.SUCCEEDED,
) -> Tally:
    """Fail if a job was lost, ended twice or otherwise than `status`, or has other bytes than an undisturbed one.

    Args:
        reference: SHA-256 by file of an undisturbed run; None where the jobs compress nothing.
    """
    jobs = [store.get(job_id) for job_id in ids]
    histories = [store.events(job.id, limit=100_000) for job in jobs]
    for job, events in zip(jobs, histories, strict=True):
        assert job.status is status, f"job {job.id} is {job.status.value}: {job.error}"
        _check_history(job, events)
        if reference is not None and status is JobStatus.SUCCEEDED:
            found = digests(artifacts, job)
            assert found == reference, f"job {job.id} has other bytes after {[event.type for event in events]}"
    types = [event.type for events in histories for event in events]
    given_up = {name: types.count(name) for name in _GIVEN_UP}
    return Tally(jobs=len(jobs), attempts=sum(job.attempt for job in jobs), **given_up)


def digests(artifacts: ArtifactStore, job: JobRecord) -> dict[str, str]:
    """SHA-256 of the stored weights, config and tokenizer, which must be what the job's row says they are."""
    recorded = {artifact["path"]: artifact["sha256"] for artifact in job.artifacts or []}
    found = {}
    for name in DIGESTS:
        with artifacts.open(job.id, name) as file:
            found[name] = hashlib.sha256(file.read()).hexdigest()
        assert recorded[name] == found[name], f"job {job.id}: {name} is not what was stored"
    return found


def _check_history(job: JobRecord, events: list[EventRecord]) -> None:
    """Events are numbered without gaps, end once and last, and each attempt begins after the one before has ended."""
    assert [event.seq for event in events] == list(range(1, len(events) + 1)), f"job {job.id}: events are missing"
    types = [event.type for event in events]
    assert types[0] == "queued"
    assert [name for name in types if name in _ENDS] == [job.status.value], f"job {job.id} ended twice: {types}"
    assert types[-1] == job.status.value, f"job {job.id} went on after its end: {types}"
    times = [event.created_at for event in events]
    assert times == sorted(times), f"job {job.id}: the times of its events are out of order"
    running = 0
    for event in events:
        if event.type == "started":
            assert not running, f"job {job.id}: attempt {event.attempt} began in the middle of {running}"
            running = event.attempt
        elif event.type in _GIVEN_UP:
            assert event.attempt == running
            running = 0
        elif event.type not in ("queued", "cancelling") and event.type not in _ENDS:
            assert event.attempt == running, f"job {job.id}: attempt {event.attempt} wrote in the time of {running}"
    assert types.count("started") == job.attempt
