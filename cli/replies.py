"""What the service answers, as a client reads it: fields it does not know yet are kept, not refused."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from jobs.states import TERMINAL

TERMINAL_NAMES = frozenset(status.value for status in TERMINAL)


class _Reply(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class Artifact(_Reply):
    """A file of a result. size: bytes. href: where to get it, relative to the service."""

    path: str
    size: int
    sha256: str
    href: str


class Job(_Reply):
    """A job as it was when the service answered. Times stay the text that the service sent."""

    id: str
    status: str
    stage: str | None
    progress: float
    attempt: int
    request: dict[str, Any]
    metrics: dict[str, Any] | None
    artifacts: list[Artifact]
    error: dict[str, Any] | None
    labels: dict[str, str]
    created_at: str
    started_at: str | None
    finished_at: str | None
    links: dict[str, str]
    artifacts_removed_at: str | None = None
    waiting_for: str | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to the job."""
        return self.status in TERMINAL_NAMES


class Stored(_Reply):
    """An uploaded model or text. size: bytes. Further fields as the service sends them."""

    name: str
    size: int
    created_at: str


class JobPage(_Reply):
    """Jobs, newest first; `next_cursor` gives the next page, None on the last."""

    jobs: list[Job]
    next_cursor: str | None


class Event(_Reply):
    """Something that happened to a job; `seq` counts from 1 without gaps."""

    seq: int
    type: str
    attempt: int
    data: dict[str, Any]
    created_at: str
