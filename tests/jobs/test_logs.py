"""Logs: a line an event on standard error whichever library logs, no variables in a traceback, no secrets."""

import json
import os
import pty
import subprocess
import sys
from typing import Any

TOKEN = "hf_" + "planted7" * 4

START = """
import logging, threading, warnings
import structlog
from jobs.logs import configure_logs
from jobs.settings import Settings

logging.getLogger("early").addHandler(logging.StreamHandler())
configure_logs(Settings(), job_id="01JOB")
log = structlog.get_logger()
"""

EVERYTHING = (
    START
    + """
def connect(token):
    password = token[::-1]
    raise ConnectionError("no route")

log.info("listening", port=8000)
log.debug("too much")
logging.getLogger("library").warning("from a %s", "library")
stubborn = logging.getLogger("stubborn")
stubborn.addHandler(logging.StreamHandler())
stubborn.propagate = False
stubborn.error("once")
logging.getLogger("early").error("once")
logging.getLogger("httpx").info("GET https://host/?signature=x")
warnings.warn("be warned")
with structlog.contextvars.bound_contextvars(attempt=2):
    log.info("bound")
    logging.getLogger("library").warning("bound")
thread = threading.Thread(target=lambda: logging.getLogger("library").warning("elsewhere"))
thread.start(); thread.join()
log.warning("sent " + "_".join(["hf", "planted7" * 4]))
try:
    connect("_".join(["hf", "planted"]))
except ConnectionError:
    log.exception("went wrong")
    logging.getLogger("library").exception("went wrong there")
"""
)


def environment() -> dict[str, str]:
    """This process's own, without settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FLATTENGPT_")}


def said(script: str, *, code: int = 0, **env: str) -> str:
    """What a process of the service says on standard error."""
    done = subprocess.run([sys.executable, "-c", script], env=environment() | env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    return done.stderr


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_each_line_is_an_event_for_machines() -> None:
    """Also where no format is asked for, since this is no terminal."""
    text = said(EVERYTHING)
    seen = events(text)
    assert [
        (event["logger"], event["level"], event["event"]) for event in seen if event["logger"] != "py.warnings"
    ] == [
        ("__main__", "info", "listening"),
        ("library", "warning", "from a library"),
        ("stubborn", "error", "once"),
        ("early", "error", "once"),
        ("__main__", "info", "bound"),
        ("library", "warning", "bound"),
        ("library", "warning", "elsewhere"),
        ("__main__", "warning", "sent [secret]"),
        ("__main__", "error", "went wrong"),
        ("library", "error", "went wrong there"),
    ]
    assert seen[0]["port"] == 8000
    assert {event["job_id"] for event in seen} == {"01JOB"}
    assert [event["attempt"] for event in seen if event["event"] == "bound"] == [2, 2]
    assert all(event["timestamp"].endswith("Z") for event in seen)
    assert [event for event in seen if "be warned" in event["event"]]
    for event in seen[-2:]:
        assert event["exception"].startswith("Traceback (most recent call last):")
        assert event["exception"].endswith("ConnectionError: no route")
    check_nothing_planted(text)


def test_lines_for_people() -> None:
    text = said(EVERYTHING, FLATTENGPT_LOG_FORMAT="console")
    first, *_, last = text.splitlines()
    assert all(word in first for word in ("listening", "8000", "01JOB", "[info", "__main__"))
    assert text.count("once") == 2
    assert text.count("Traceback (most recent call last):") == 2
    assert last == "ConnectionError: no route"
    check_nothing_planted(text)


def check_nothing_planted(text: str) -> None:
    for secret in (TOKEN, "hf_planted", "detnalp"):
        assert secret not in text


def test_the_least_level_and_an_uncaught_exception() -> None:
    script = START + (
        "log.info('too much'); logging.getLogger('library').info('too much'); log.warning('enough')\n"
        "thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join(); int('x')"
    )
    enough, first, second = events(said(script, code=1, FLATTENGPT_LOG_LEVEL="WARNING"))
    assert enough["event"] == "enough"
    assert (first["event"], first["level"]) == (second["event"], second["level"]) == ("uncaught exception", "critical")
    assert first["exception"].endswith("ZeroDivisionError: division by zero")
    assert second["exception"].endswith("ValueError: invalid literal for int() with base 10: 'x'")


def test_a_terminal_gets_lines_for_people_and_so_do_the_logs_of_what_is_started_there() -> None:
    child = START + "log.info('child')"
    script = START + (
        "import subprocess, sys; log.info('parent')\n"
        f"print(subprocess.run([sys.executable, '-c', {child!r}], capture_output=True, text=True).stderr)"
    )
    terminal, end = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), stdout=subprocess.PIPE, stderr=end, text=True
    )
    seen = {"parent": os.read(terminal, 4096).decode(), "child": done.stdout}
    for word, line in seen.items():
        assert word in line
        assert not line.startswith("{")
    os.close(terminal)
    os.close(end)
