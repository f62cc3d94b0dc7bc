"""Logs: a line an event on standard error, and no secrets in a traceback."""

import subprocess
import sys

LOGGING = """
import structlog
from jobs.logs import configure_logs

def connect(token):
    password = token[::-1]
    raise ConnectionError("no route")

configure_logs()
log = structlog.get_logger()
log.info("listening", port=8000)
try:
    connect("_".join(["hf", "planted"]))
except ConnectionError:
    log.exception("went wrong", job_id="01JOB")
"""


def test_a_traceback_shows_no_variables() -> None:
    done = subprocess.run([sys.executable, "-c", LOGGING], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    first, second, *traceback = done.stderr.splitlines()
    assert ("listening" in first, "8000" in first) == (True, True)
    assert ("went wrong" in second, "01JOB" in second) == (True, True)
    assert "\n".join(traceback).startswith("Traceback (most recent call last):")
    assert traceback[-1] == "ConnectionError: no route"
    assert "planted" not in done.stderr
    assert "detnalp" not in done.stderr
