"""One job seen from outside: its trace, through every process that works on it, and the lines that they log."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.client import Client
from cli.demo_service import embedded_service
from tests.collector import Collector, running_collector
from tests.hub.state import WRITE_TOKEN
from tests.hub_server import running_hub
from tests.tiny_models import tiny_checkpoint

REQUEST: dict[str, Any] = {
    "model": "local:tiny",
    "layers": 4,
    "calibration": {"dataset": "python-docs", "samples": 8, "sequence_length": 64},
    "evaluation": {"perplexity": ["python-docs"], "sequence_length": 64, "windows": 4, "benchmark": False},
    "publish": {"repo_id": "acme/tiny-flat4"},
}
STAGES = ["loading", "calibrating", "compressing", "evaluating", "publishing"]


@pytest.mark.slow
def test_a_job_is_one_trace_and_its_lines_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_checkpoint(tmp_path / "models" / "tiny")
    log = tmp_path / "service.log"
    with running_hub() as hub, running_collector() as collector:
        environment = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": WRITE_TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
            "FLATTENGPT_LOG_FORMAT": "json",
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with embedded_service(tmp_path, log) as url, Client(url) as client:
            answer = httpx.post(f"{url}/jobs", json=REQUEST, headers={"X-Request-ID": "from-the-test"})
            job_id = answer.json()["id"]
            assert [event.type for event in client.events(job_id)][-1] == "succeeded"
    trace_id = check_trace(collector, job_id)
    check_lines(log, tmp_path / "logs" / "worker.log", job_id, trace_id)


def check_trace(collector: Collector, job_id: str) -> str:
    """Request, attempt and stages hang together and name the job; the trace's id."""
    [request] = collector.named("POST /jobs")
    assert (request.service, request.attributes["flattengpt.job.id"]) == ("flattengpt-api", job_id)
    assert (request.parent_id, request.attributes["http.response.status_code"], request.failed) == ("", 202, False)
    [attempt] = collector.named("attempt")
    assert (attempt.service, attempt.trace_id, attempt.parent_id) == (
        "flattengpt-worker", request.trace_id, request.span_id,
    )  # fmt: skip
    names = {"flattengpt.job.id": job_id, "flattengpt.job.attempt": 1}
    assert attempt.attributes.items() >= names.items()
    assert not attempt.failed
    stages = [span for span in collector.spans if span.parent_id == attempt.span_id]
    assert [span.name for span in stages] == STAGES
    assert {(span.trace_id, tuple(span.attributes.items()), span.failed) for span in stages} == {
        (request.trace_id, tuple(names.items()), False)
    }
    assert not [span for span in collector.spans if "readyz" in span.name], "probes are not traced"
    return request.trace_id


def check_lines(service: Path, worker: Path, job_id: str, trace_id: str) -> None:
    """Every line is one event of JSON; those of the request and of the attempt name what they belong to."""
    asked = [line for line in lines(service) if line.get("request_id") == "from-the-test"]
    told = asked[-1]
    assert (told["event"], told["method"], told["path"], told["status"]) == ("request", "POST", "/jobs", 202)
    assert {line["trace_id"] for line in asked} == {trace_id}
    loggers = {line["logger"] for line in lines(service)}
    assert loggers >= {"uvicorn.error", "api.request_log"}
    assert "uvicorn.access" not in loggers

    worked = [line for line in lines(worker) if line["logger"] == "worker.parent"]
    assert worked[0]["event"] == "attempt started"
    assert {(line["job_id"], line["attempt"], line["trace_id"]) for line in worked} == {(job_id, 1, trace_id)}
    assert any("ready." in line["event"] for line in lines(worker) if line["logger"].startswith("celery."))


def lines(log: Path) -> list[dict[str, Any]]:
    """The log's events."""
    # Celery prints this one from a signal's handler.
    texts = [text for text in log.read_text().splitlines() if text and "Warm shutdown" not in text]
    events: list[dict[str, Any]] = [json.loads(text) for text in texts]
    assert all(list(event)[:4] == ["timestamp", "level", "logger", "event"] for event in events)
    return events
