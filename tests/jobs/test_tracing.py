"""Traces are asked for, and cost nothing where they are not."""

import os
import subprocess
import sys

SPANS = """
import sys
from jobs import tracing
from jobs.logs import configure_logs
from jobs.settings import Settings

{before}
settings = Settings()
configure_logs(settings)
provider = tracing.start(settings, "worker")
with tracing.span("attempt", {{"flattengpt.job.attempt": 1}}):
    tracing.annotate({{"flattengpt.job.status": "failed"}}, failed=True)
    print(provider, tracing.traceparent(), tracing.environment(), dict(tracing.span_ids()))
tracing.stop()
print(*sorted(name for name in sys.modules if name.startswith("opentelemetry.")))
"""
NOTHING = "None None None {}\n"


def printed(before: str = "", **env: str) -> tuple[str, str]:
    """What a process says that has a span."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    script = SPANS.format(before=before)
    done = subprocess.run([sys.executable, "-c", script], env=inherited | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_without_a_collector_nothing_is_imported() -> None:
    assert printed() == (f"{NOTHING}\n", "")


def test_without_the_extra_work_goes_on_and_the_log_says_why() -> None:
    before = "sys.modules['opentelemetry.sdk'] = None"  # as where it is not installed
    out, log = printed(before, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    assert out.startswith(NOTHING)
    assert "install flattengpt[otel]" in log


def test_settings_that_opentelemetry_refuses_cost_the_traces_and_not_the_work() -> None:
    wrong = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_MAX_QUEUE_SIZE": "0"}
    out, log = printed(**wrong)
    assert out.startswith(NOTHING)
    assert "OpenTelemetry refused its settings" in log
    assert "max_queue_size" in log
