"""An attempt's span hangs on the request that submitted its job, the stages' on the attempt's, and failures show."""

from collections.abc import Iterator

import pytest

from jobs import tracing
from jobs.records import Lease
from jobs.settings import Settings
from jobs.store import JobStore
from tests.collector import Collector, running_collector
from tests.worker.conftest import SPEC, Workers, stand_in
from worker.stage_spans import StageSpans


@pytest.fixture
def collector(settings: Settings) -> Iterator[Collector]:
    """A collector that this process sends its spans to."""
    with running_collector() as collector:
        tracing.start(settings.model_copy(update={"otlp_endpoint": collector.endpoint}), "worker")
        yield collector
        tracing.stop()


def test_each_attempt_belongs_to_the_request(
    store: JobStore, settings: Settings, workers: Workers, collector: Collector
) -> None:
    with tracing.span("request", {}):
        job_id = store.submit(SPEC).id
    die = stand_in("import os; print(os.environ['TRACEPARENT']); raise SystemExit(9)")
    workers(die, max_attempts=2).run(job_id)
    tracing.stop()
    [request], attempts = collector.named("request"), collector.named("attempt")
    assert [(span.trace_id, span.parent_id, span.failed, span.attributes) for span in attempts] == [
        (
            request.trace_id,
            request.span_id,
            True,
            {"flattengpt.job.id": job_id, "flattengpt.job.attempt": attempt, "process.exit.code": 9},
        )
        for attempt in (1, 2)
    ]
    told = [(settings.data_dir / "logs" / f"{job_id}.{attempt}.log").read_text() for attempt in (1, 2)]
    assert [line.split("-")[1:3] for line in told] == [[span.trace_id, span.span_id] for span in attempts]


def test_a_job_submitted_without_traces_begins_its_own(store: JobStore, workers: Workers, collector: Collector) -> None:
    workers(stand_in("raise SystemExit(9)"), max_attempts=1).run(store.submit(SPEC).id)
    tracing.stop()
    [attempt] = collector.named("attempt")
    assert attempt.parent_id == ""


def test_only_the_stage_that_failed_is_an_error_and_says_no_more_than_its_kind(collector: Collector) -> None:
    def run() -> None:
        with StageSpans(Lease("01JOB", 2), f"00-{'a' * 32}-{'b' * 16}-01") as stages:
            for stage in ("loading", "loading", "compressing"):
                stages.enter(stage)
            raise ConnectionError("at https://user:password@host")

    with pytest.raises(ConnectionError):
        run()
    tracing.stop()
    names = {"flattengpt.job.id": "01JOB", "flattengpt.job.attempt": 2}
    assert [(span.name, span.failed, span.attributes) for span in collector.spans] == [
        ("loading", False, names),
        ("compressing", True, names | {"error.type": "ConnectionError"}),
    ]
    assert {(span.trace_id, span.parent_id) for span in collector.spans} == {("a" * 32, "b" * 16)}
