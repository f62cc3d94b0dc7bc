"""The names of queues, and what a worker serves."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import StringConstraints

DEFAULT = "default"

# No dot: it ends the name of a queue in the files of the embedded broker.
QueueName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


@dataclass(frozen=True)
class Serves:
    """Which jobs a worker may take: those of these queues that need no more GPU memory than it has."""

    queues: tuple[str, ...] = (DEFAULT,)
    gpu_memory_gib: float = 0.0


PLAIN = Serves()
"""What jobs ask for that say nothing of it."""
