"""A child process in a group of its own that cannot outlive its parent, and how it ended.

Knows nothing of jobs.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.log_tail import log_tail

_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Exit:
    """How a child ended: its exit code, or minus the signal that killed it, and the last lines of its log.

    peak_memory_bytes: the most that it, or a process it has waited for, held at once; no less than this process held
    when it started it.
    """

    code: int
    log_tail: str
    peak_memory_bytes: int

    @property
    def reason(self) -> str:
        """One readable line."""
        if self.code >= 0:
            how = f"exit code {self.code}"
        else:
            how = f"killed by {_signal_name(-self.code)}"
            if -self.code == signal.SIGKILL:
                how += " (out of memory, or killed from outside)"
        return f"{how}; last log lines: {self.log_tail}" if self.log_tail else how


class ChildProcess:
    """A running child; its standard output and error go to `log`."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        self._ended: Exit | None = None
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # never written: its end tells the child that the parent died
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )

    @property
    def pid(self) -> int:
        """The child's process id, which is also its group's."""
        return self._process.pid

    def wait(self, seconds: float) -> Exit | None:
        """How the child ended, or None if it still runs after `seconds`."""
        deadline = time.monotonic() + seconds
        while self._ended is None:
            # wait4 instead of Popen.wait, because it says what this child alone has used.
            pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
            if pid == 0:
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                time.sleep(min(left, _LOOK_SECONDS))
                continue
            self.signal_group(signal.SIGKILL)  # nothing that it started may stay
            self._process.returncode = os.waitstatus_to_exitcode(status)
            if self._process.stdin is not None:
                self._process.stdin.close()
            unit = 1 if sys.platform == "darwin" else 1024
            self._ended = Exit(self._process.returncode, log_tail(self._log), usage.ru_maxrss * unit)
        return self._ended

    def stop(self, grace_seconds: float) -> Exit:
        """Ask the child's group to stop, kill it after the grace, and wait for its end."""
        self.signal_group(signal.SIGTERM)
        while (ended := self.wait(grace_seconds)) is None:
            self.signal_group(signal.SIGKILL)
        return ended

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to the child and all that it started; nothing happens if they are gone."""
        if self._ended is not None:
            return  # another process may have the id by now
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            pass
        except PermissionError:
            self._process.send_signal(number)


def die_with_parent() -> None:
    """Called by a child: end its process group at once when the pipe from the parent breaks, also by kill -9."""

    def watch() -> None:
        # os.read, because a thread inside sys.stdin's buffer makes the interpreter abort at its exit.
        while os.read(sys.stdin.fileno(), 4096):
            pass
        if os.getpgid(0) == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="die-with-parent", daemon=True).start()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"
