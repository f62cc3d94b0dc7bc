"""The last words of a process, out of its log, for people to read in one line."""

import json
from pathlib import Path

from jobs.redaction import redact

LINES = 5
_BYTES = 64 * 1024
_LONGEST = 800


def log_tail(log: Path) -> str:
    """The last lines that say something; of a line of JSON its message, and how its traceback ends."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _BYTES))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    last = [line for line in lines if line][-LINES:]
    return " | ".join(redact(_message(line))[:_LONGEST] for line in last)


def _message(line: str) -> str:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return line
    if not isinstance(event, dict) or "event" not in event:
        return line
    traceback = str(event.get("exception", "")).splitlines()
    return ": ".join([str(event["event"]), *traceback[-1:]])
