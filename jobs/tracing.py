"""Spans of the service's work for an OpenTelemetry collector, for those who ask for them.

A trace begins with the request that submits a job and goes on through the job's row to the attempts, and from an
attempt to its process by TRACEPARENT. Off unless OTEL_EXPORTER_OTLP_ENDPOINT is set and the extra `otel` is installed:
then nothing of OpenTelemetry is imported here, and a span is an empty block. A span holds no texts of errors, which may
quote what others said.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

from jobs.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

    from jobs.records import Lease

_SEND_SECONDS = 3
"""A collector that does not answer must not hold a process for long at its end; what it misses is lost."""

Attributes = Mapping[str, str | int]

log = structlog.get_logger()

_provider: "TracerProvider | None" = None


def start(settings: Settings, part: str) -> "TracerProvider | None":
    """Send this process's spans to the settings' collector until `stop`; None if there is none to send them to.

    The SDK's own variables, such as OTEL_EXPORTER_OTLP_HEADERS, OTEL_TRACES_SAMPLER and OTEL_SERVICE_NAME, hold.

    Args:
        part: the part of the service that this process is, `api` or `worker`.
    """
    global _provider
    if settings.otlp_endpoint:
        try:
            _provider = _exporting(f"{settings.otlp_endpoint.rstrip('/')}/v1/traces", part)
        except ImportError as error:
            log.warning("no traces: install flattengpt[otel], or unset OTEL_EXPORTER_OTLP_ENDPOINT", missing=error.name)
        except Exception as error:  # whatever is wrong with its variables must not keep the service from its work
            log.warning("no traces: OpenTelemetry refused its settings", error=repr(error))
    return _provider


def stop() -> None:
    """Send what is left, and send no more."""
    global _provider
    if _provider is not None:
        _provider.shutdown()
        _provider = None


@contextmanager
def span(name: str, attributes: Attributes, *, parent: str | None = None) -> Iterator[None]:
    """A span around the block.

    Args:
        parent: `traceparent` of a span of another process; if None the span is a child of the current one.
    """
    if _provider is None:
        yield
        return
    tracer = _provider.get_tracer("flattengpt")
    # The SDK's own records of an exception hold its text.
    with tracer.start_as_current_span(
        name, _context(parent), attributes=attributes, record_exception=False, set_status_on_exception=False
    ):
        try:
            yield
        except BaseException as error:
            annotate({"error.type": type(error).__name__}, failed=True)
            raise


def annotate(attributes: Attributes, *, failed: bool = False) -> None:
    """Add attributes to the current span, if there is one."""
    if _provider is None:
        return
    from opentelemetry.trace import Status, StatusCode, get_current_span

    current = get_current_span()
    current.set_attributes(attributes)
    if failed:
        current.set_status(Status(StatusCode.ERROR))


def of_job(lease: "Lease") -> Attributes:
    """The attributes that name an attempt."""
    return {"flattengpt.job.id": lease.job_id, "flattengpt.job.attempt": lease.attempt}


def traceparent() -> str | None:
    """The current span as W3C's Trace Context writes it, or None if there is none."""
    if _provider is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


def environment() -> dict[str, str] | None:
    """The environment of a process whose spans belong to the current one; None if it needs nothing of its own."""
    parent = traceparent()
    return None if parent is None else {**os.environ, "TRACEPARENT": parent}


def span_ids() -> Attributes:
    """The current span's ids, for a line of the log."""
    if _provider is None:
        return {}
    from opentelemetry.trace import format_span_id, format_trace_id, get_current_span

    current = get_current_span().get_span_context()
    if not current.is_valid:
        return {}
    return {"trace_id": format_trace_id(current.trace_id), "span_id": format_span_id(current.span_id)}


def _exporting(endpoint: str, part: str) -> "TracerProvider":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = Resource.create({"service.name": f"flattengpt-{part}", "service.namespace": "flattengpt"})
    provider = TracerProvider(resource=named.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=_SEND_SECONDS)))
    return provider


def _context(parent: str | None) -> "Context | None":
    if parent is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": parent})
