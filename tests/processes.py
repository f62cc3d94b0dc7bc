"""Looks at real processes: who was started by whom, and whether all of them are gone."""

import time
from collections.abc import Callable

import psutil

Started = dict[int, float]
"""Creation time by process id, since ids are used again."""


def descendants(pid: int) -> Started:
    """Every process that `pid` started, directly or not, also those in groups of their own."""
    return {process.pid: process.create_time() for process in psutil.Process(pid).children(recursive=True)}


def alive(started: Started) -> list[str]:
    """The command lines of those processes that still run."""
    found = []
    for pid, created in started.items():
        try:
            process = psutil.Process(pid)
            if process.create_time() == created and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.NoSuchProcess:
            continue
    return found


def wait_until(condition: Callable[[], object], *, seconds: float = 60, what: str = "the condition") -> None:
    """Return once the condition holds; fail if it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s"
        time.sleep(0.05)
