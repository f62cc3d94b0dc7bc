"""Lets a process stop when the one that started it dies, also by kill -9: the pipe on its standard input ends."""

import os
import signal
import sys
import threading
import time


def stop_when_stdin_ends(grace_seconds: float) -> None:
    """Watch standard input from a thread; at its end ask this process to stop, and kill it after the grace.

    A process that leads its own group takes the group with it.
    """
    threading.Thread(target=_watch, args=(grace_seconds,), name="stdin-watch", daemon=True).start()


def _watch(grace_seconds: float) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_seconds)
    if os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
