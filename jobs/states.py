"""The states of a job and the one table of legal changes between them."""

from enum import StrEnum

from flattengpt_core.progress import STAGES as CORE_STAGES


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


PUBLISHING = "publishing"
STAGES: tuple[str, ...] = (*CORE_STAGES, PUBLISHING)
"""What a running job does, in order; recovering and publishing only when asked for."""

TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.CANCELLED}),
    JobStatus.RUNNING: frozenset({JobStatus.QUEUED, JobStatus.CANCELLING, JobStatus.SUCCEEDED, JobStatus.FAILED}),
    JobStatus.CANCELLING: frozenset({JobStatus.CANCELLED, JobStatus.SUCCEEDED, JobStatus.FAILED}),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
}
"""running -> queued is a lost lease or a hand-back. A cancel that comes after the last step loses to the end."""

TERMINAL = frozenset(status for status, following in TRANSITIONS.items() if not following)


def sources(target: JobStatus) -> list[JobStatus]:
    """The states from which `target` can be reached, for the WHERE of an update."""
    return [status for status, following in TRANSITIONS.items() if target in following]
