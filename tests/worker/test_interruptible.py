"""Work in a thread that its caller can leave behind, and a last step that is either waited for or never begun."""

import threading
import time
from collections.abc import Iterator

import pytest

from worker.interruptible import LastStep, LeftBehind, interruptibly


class Enough(Exception):
    """The caller waits no longer."""


@pytest.fixture
def go_on() -> Iterator[threading.Event]:
    """What the work waits for; set at the end, so that no thread stays."""
    event = threading.Event()
    yield event
    event.set()


def enough() -> None:
    raise Enough


def never() -> None:
    return None


def test_the_works_result_comes_out() -> None:
    assert interruptibly(lambda: 7, enough) == 7


def test_the_works_error_comes_out() -> None:
    def fail() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        interruptibly(fail, never)


def test_work_that_hangs_is_left_behind_at_once(go_on: threading.Event) -> None:
    started = time.monotonic()
    with pytest.raises(Enough):
        interruptibly(go_on.wait, enough, patience_seconds=60)
    assert time.monotonic() - started < 5


def test_it_is_looked_at_often(go_on: threading.Event) -> None:
    looks = []

    def look() -> None:
        looks.append(time.monotonic())
        if len(looks) == 3:
            go_on.set()

    assert interruptibly(go_on.wait, look) is True
    assert looks[2] - looks[0] < 5


def test_what_is_left_behind_does_not_begin_its_last_step(go_on: threading.Event) -> None:
    step, ended = LastStep(), threading.Event()

    def work() -> None:
        go_on.wait()
        try:
            with step.taken():
                pytest.fail("it went on")
        except LeftBehind:
            ended.set()

    with pytest.raises(Enough):
        interruptibly(work, enough, last_step=step, patience_seconds=60)
    go_on.set()
    assert ended.wait(5)
    assert not step.begun


def at_its_last_step(step: LastStep, go_on: threading.Event, error: Exception | None = None) -> str:
    with step.taken():
        go_on.wait()
        if error is not None:
            raise error
    return "done"


def test_a_last_step_is_waited_for(go_on: threading.Event) -> None:
    step = LastStep()

    def look() -> None:
        if step.begun:
            threading.Timer(0.1, go_on.set).start()
            raise Enough

    done = interruptibly(lambda: at_its_last_step(step, go_on), look, last_step=step, patience_seconds=10)
    assert done == "done"


def test_but_not_for_ever(go_on: threading.Event) -> None:
    step = LastStep()

    def look() -> None:
        if step.begun:
            raise Enough

    with pytest.raises(Enough):
        interruptibly(lambda: at_its_last_step(step, go_on), look, last_step=step, patience_seconds=0.1)
    assert step.begun


def test_a_last_step_that_fails_while_it_is_waited_for_does_not_count(go_on: threading.Event) -> None:
    step = LastStep()

    def look() -> None:
        if step.begun:
            go_on.set()
            raise Enough

    with pytest.raises(Enough):
        interruptibly(lambda: at_its_last_step(step, go_on, OSError()), look, last_step=step, patience_seconds=10)
    assert not step.begun


def test_a_last_step_that_failed_may_be_begun_anew() -> None:
    step = LastStep()
    with pytest.raises(OSError, match="no"), step.taken():
        raise OSError("no")
    assert not step.begun
    with step.taken():
        assert step.begun
    assert not step.close()
