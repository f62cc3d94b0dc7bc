"""What Prometheus scrapes: jobs, queue, attempts, stages and memory, as the database has them.

The counts are the database's, not this process's, so any one API process gives those of all workers.
"""

from collections.abc import Iterator, Mapping, Sequence

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from starlette.responses import Response

from api.auth import admin_key
from api.problems import responses
from api.state import Parts
from jobs.records import Overview
from jobs.tallies import Histogram

router = APIRouter(tags=["service"])


@router.get(
    "/metrics",
    operation_id="metrics",
    response_class=Response,
    responses={200: {"description": "The metrics.", "content": {"text/plain": {}}}, **responses(401, 403, 503)},
    dependencies=[admin_key],
)
def metrics(parts: Parts) -> Response:
    """Jobs by state, queues and their workers, attempts and how they ended, stages, peak memory (Prometheus)."""
    registry = CollectorRegistry()
    registry.register(_Collected(parts.store.overview(), parts.settings.queues))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class _Collected(Collector):
    def __init__(self, overview: Overview, queues: Sequence[str]) -> None:
        self._overview, self._queues = overview, queues

    def collect(self) -> Iterator[Metric]:
        found = self._overview
        jobs = GaugeMetricFamily("flattengpt_jobs", "Jobs by state.", labels=["status"])
        for status, count in found.jobs.items():
            jobs.add_metric([status.value], count)
        yield jobs
        yield self._by_queue(
            "flattengpt_queue_age_seconds", "How long ago the oldest queued job was submitted.", found.queue_age_seconds
        )
        yield self._by_queue(
            "flattengpt_unserved_jobs", "Queued jobs that no worker which is alive may take.", found.unserved
        )
        yield self._by_queue("flattengpt_workers", "Workers that are alive.", found.workers)
        yield CounterMetricFamily("flattengpt_attempts_started", "Attempts at jobs.", found.attempts_started)
        ended = CounterMetricFamily(
            "flattengpt_attempts_ended", "Attempts by how they ended; lease_expired: a lost worker.", labels=["how"]
        )
        for how, ends in found.attempts_ended.items():
            ended.add_metric([how], ends)
        yield ended
        stages = HistogramMetricFamily("flattengpt_stage_seconds", "How long stages took.", labels=["stage"])
        for stage, histogram in found.stage_seconds.items():
            stages.add_metric([stage], *_samples(histogram))
        yield stages
        memory = HistogramMetricFamily(
            "flattengpt_peak_memory_bytes", "The most memory that an attempt held: on the GPU if it ran there."
        )
        if found.peak_memory_bytes is not None:
            memory.add_metric([], *_samples(found.peak_memory_bytes))
        yield memory

    def _by_queue(self, name: str, help: str, found: Mapping[str, float]) -> Metric:
        """A gauge for each queue of the service, and for others that are in use."""
        gauge = GaugeMetricFamily(name, help, labels=["queue"])
        for queue in sorted({*self._queues, *found}):
            gauge.add_metric([queue], found.get(queue, 0))
        return gauge


def _samples(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    bounds = [(floatToGoString(most), count) for most, count in histogram.buckets.items()]  # type: ignore[no-untyped-call]
    return bounds, histogram.sum
