"""The last words of a process are for people, whichever form its log has."""

import json
from pathlib import Path

import pytest

from worker.log_tail import LINES, log_tail

TOKEN = "hf_" + "a" * 34


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "child.log"


def test_a_line_of_json_is_its_message_and_how_its_traceback_ends(log: Path) -> None:
    trace = "Traceback (most recent call last):\n  File x\nMemoryError: 3 GiB"
    entries = [{"level": "info", "event": "loaded", "job_id": "1"}, {"event": "it failed", "exception": trace}]
    log.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + "Killed\n")
    assert log_tail(log) == "loaded | it failed: MemoryError: 3 GiB | Killed"


@pytest.mark.parametrize("line", ['{"event": "cut o', '{"loss": 0.5}', "[1, 2]", "12", '{"a":' * 9000])
def test_other_lines_stay_as_they_are(log: Path, line: str) -> None:
    log.write_text(f"{line}\n")
    assert log_tail(log) == line[:800]


def test_an_early_end_of_long_lines(log: Path) -> None:
    """What is put into a job's error must stay short."""
    log.write_text("\n".join(["y" * 200_000, *["x" * 2000] * LINES]))
    assert log_tail(log) == " | ".join(["x" * 800] * LINES)
    log.write_text(json.dumps({"event": "z" * 200_000}))
    assert len(log_tail(log)) == 800


def test_it_holds_no_secret(log: Path) -> None:
    log.write_text(f"{'x' * 780} {TOKEN}\n" + json.dumps({"event": f"with {TOKEN}"}) + "\n")
    assert log_tail(log) == f"{'x' * 780} [secret] | with [secret]"
