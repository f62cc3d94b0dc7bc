"""A child process is watched to its end, takes its group along, and does not outlive its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.processes import alive, descendants, wait_until
from worker.child_process import ChildProcess, Exit

FOREVER = "import time; print('ready', flush=True); time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + FOREVER
WITH_GRANDCHILD = f"import subprocess, sys; subprocess.Popen([sys.executable, '-S', '-c', {FOREVER!r}]); "
TIED = f"from worker.child_process import die_with_parent; die_with_parent(); {WITH_GRANDCHILD}{FOREVER}"


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", code)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "child.log"


def ended(child: ChildProcess) -> Exit:
    end = child.wait(30)
    assert end is not None
    return end


@pytest.mark.parametrize("code", [0, 1, 75])
def test_the_exit_code(log: Path, code: int) -> None:
    end = ended(ChildProcess(python(f"raise SystemExit({code})"), log))
    assert (end.code, end.reason) == (code, f"exit code {code}")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, "killed by SIGKILL (out of memory, or killed from outside)"),
        (signal.SIGSEGV, "killed by SIGSEGV"),
        (signal.SIGRTMIN + 3, f"killed by signal {signal.SIGRTMIN + 3}"),
    ],
)
def test_the_signal_that_killed_it(log: Path, number: int, words: str) -> None:
    end = ended(ChildProcess(python(f"import os; os.kill(os.getpid(), {int(number)})"), log))
    assert (end.code, end.reason) == (-number, words)


def test_the_memory_that_it_held_at_most(log: Path) -> None:
    """Its own, not that of an earlier child; measured by a small process, whose memory a child begins with."""
    held = (
        "block = bytearray({} * 2**20); block[::4096] = bytes(len(block[::4096])); import os; os.kill(os.getpid(), {})"
    )
    children = [held.format(300, 9), held.format(100, 0)]
    code = (
        "from pathlib import Path; import sys; from worker.child_process import ChildProcess\n"
        f"for child in {children!r}:\n"
        f"    print(ChildProcess((sys.executable, '-S', '-c', child), Path({str(log)!r})).wait(30).peak_memory_bytes)"
    )
    done = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True)
    large, small = (int(line) / 2**20 for line in done.stdout.split())
    assert 300 < large < 330
    assert 100 < small < 130


def test_the_last_lines_of_its_log(log: Path) -> None:
    code = "import os, sys; print('x' * 9000); print(*range(9), sep='\\n\\n', flush=True); os.write(2, b'\\xff end\\n')"
    child = ChildProcess(python(code), log)
    assert ended(child).reason == "exit code 0; last log lines: 5 | 6 | 7 | 8 | \ufffd end"


def test_the_log_of_an_earlier_child_is_kept(log: Path) -> None:
    for word in ("first", "second"):
        ended(ChildProcess(python(f"print({word!r})"), log))
    assert log.read_text() == "first\nsecond\n"


def test_waiting_does_not_end_it(log: Path) -> None:
    child = ChildProcess(python(FOREVER), log)
    assert child.wait(0.05) is None
    assert child.stop(10).code == -signal.SIGTERM
    assert child.wait(0) == child.stop(10)


def test_one_that_ignores_the_request_is_killed_after_the_grace(log: Path) -> None:
    child = ChildProcess(python(STUBBORN), log)
    wait_until(lambda: "ready" in log.read_text())
    started = time.monotonic()
    assert child.stop(0.5).code == -signal.SIGKILL
    assert 0.5 <= time.monotonic() - started < 10


@pytest.mark.parametrize("end", ["exits", "is stopped", "is killed"])
def test_what_it_started_goes_with_it(log: Path, end: str) -> None:
    child = ChildProcess(python(WITH_GRANDCHILD + ("input()" if end == "exits" else FOREVER)), log)
    wait_until(lambda: log.exists() and "ready" in log.read_text())
    wait_until(lambda: descendants(child.pid))
    started = descendants(child.pid)
    if end == "is stopped":
        child.stop(10)
    elif end == "is killed":
        os.kill(child.pid, signal.SIGKILL)
        ended(child)
    else:
        os.kill(child.pid, signal.SIGINT)
        ended(child)
    wait_until(lambda: not alive(started), seconds=10, what="the grandchild's end")


def test_a_signal_after_the_end_reaches_nobody(log: Path) -> None:
    child = ChildProcess(python("pass"), log)
    ended(child)
    child.signal_group(signal.SIGKILL)


def test_its_environment(log: Path) -> None:
    ended(ChildProcess(python("import os; print(os.environ)"), log, {"ONLY": "this"}))
    assert "'ONLY': 'this'" in log.read_text()
    assert "PATH" not in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_dies_with_its_parent(log: Path, number: signal.Signals) -> None:
    parent_code = (
        "import sys, time; from pathlib import Path; from worker.child_process import ChildProcess\n"
        f"ChildProcess([sys.executable, '-c', {TIED!r}], Path(sys.argv[1])); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", parent_code, str(log)])
    wait_until(lambda: log.exists() and log.read_text().count("ready") == 2)
    started = descendants(parent.pid)
    assert len(started) == 2
    assert len({os.getpgid(pid) for pid in started} - {os.getpgid(parent.pid)}) == 1
    parent.send_signal(number)
    parent.wait()
    wait_until(lambda: not alive(started), seconds=10, what="the end of the child and the grandchild")


def test_a_child_without_that_tie_would_live_on(log: Path) -> None:
    """So that the test above shows what `die_with_parent` does."""
    parent_code = (
        "import sys, time; from pathlib import Path; from worker.child_process import ChildProcess\n"
        f"ChildProcess([sys.executable, '-S', '-c', {FOREVER!r}], Path(sys.argv[1])); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", parent_code, str(log)])
    wait_until(lambda: log.exists() and "ready" in log.read_text())
    started = descendants(parent.pid)
    parent.kill()
    parent.wait()
    time.sleep(0.5)
    assert alive(started)
    for pid in started:
        psutil.Process(pid).kill()
