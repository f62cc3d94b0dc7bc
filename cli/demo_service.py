"""Runs the embedded service as a process of its own for as long as a `with` block lasts."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from cli.client import Client
from cli.errors import CommandFailed

_READY_SECONDS = 60
_STOP_SECONDS = 60
_ELSEWHERE = ("FLATTENGPT_DATABASE_URL", "FLATTENGPT_BROKER_URL", "FLATTENGPT_ARTIFACTS_URL")


@contextmanager
def embedded_service(data_dir: Path, log_file: Path, *, auth: Literal["required", "none"] = "none") -> Iterator[str]:
    """The URL of a service on a free loopback port that keeps everything in `data_dir`.

    It is stopped at the end of the block, and stops by itself when this process dies.

    Raises:
        CommandFailed: it did not start; the message names the log.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "serve", "--port", "0", "--json", "--while-stdin-open"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C in the terminal is for the caller, which stops the service in order
            env=inherited | {"FLATTENGPT_AUTH": auth, "FLATTENGPT_DATA_DIR": str(data_dir.absolute())},
        )
    try:
        yield _url_when_ready(process, log_file)
    finally:
        _stop(process)


def _url_when_ready(process: subprocess.Popen[bytes], log_file: Path) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()  # also ends, empty, when the process does
    if not line:
        raise CommandFailed(f"The service did not start; its log is {log_file}.")
    url = str(json.loads(line)["url"])
    deadline = time.monotonic() + _READY_SECONDS
    with Client(url) as client:
        while not client.is_ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise CommandFailed(f"The service did not become ready; its log is {log_file}.")
            time.sleep(0.1)
    return url


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the service to stop, and wait: it stops its worker and that one's job first."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
