"""What the child's exit code tells the parent."""

from enum import IntEnum


class ExitCode(IntEnum):
    """0 and 1 follow a recorded end; STOPPED is a stop between two layers, as asked by SIGTERM."""

    DONE = 0
    FAILED = 1
    LEASE_LOST = 3
    STOPPED = 75  # EX_TEMPFAIL: try again
