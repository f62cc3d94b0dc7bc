"""What Prometheus reads, by its own parser."""

import time

from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from jobs.store import JobStore
from tests.api.conftest import submitted
from tests.api.test_jobs import METRICS, taken

LONG_AGO = -1


def scraped(api: TestClient) -> dict[tuple[str, ...], float]:
    """Sample name and label values, by the labels' names, to value."""
    answer = api.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    families = list(text_string_to_metric_families(answer.text))
    assert all(family.documentation for family in families)
    return {
        (
            sample.name.removeprefix("flattengpt_"),
            *(sample.labels[name] for name in sorted(sample.labels)),
        ): sample.value
        for family in families
        for sample in family.samples
    }


def test_an_empty_service(api: TestClient) -> None:
    found = scraped(api)
    assert {key: value for key, value in found.items() if key[0] == "jobs"} == {
        ("jobs", status): 0 for status in ("queued", "running", "cancelling", "succeeded", "failed", "cancelled")
    }
    for of_queue in ("queue_age_seconds", "unserved_jobs", "workers"):
        assert found[of_queue, "default"] == 0
    assert found["attempts_started_total",] == 0


def test_jobs_attempts_stages_and_memory(api: TestClient, store: JobStore) -> None:
    first, second, third = (submitted(api) for _ in range(3))
    time.sleep(0.2)
    lease = taken(store, first)
    store.record(lease, stage="loading")
    store.record(lease, stage="compressing")
    time.sleep(1.1)
    store.store_result(lease, metrics=METRICS | {"peak_memory_bytes": 3 * 2**30}, artifacts=[])
    store.succeed(lease)
    store.died(taken(store, second), reason="killed", max_attempts=3, peak_memory_bytes=5 * 2**29)
    store.take(second, worker="w", lease_seconds=LONG_AGO)
    store.release_expired(max_losses=3)
    store.cancel(third)
    found = scraped(api)
    assert (found["jobs", "succeeded"], found["jobs", "queued"], found["jobs", "cancelled"]) == (1, 1, 1)
    assert 1.3 <= found["queue_age_seconds", "default"] < 60
    assert found["attempts_started_total",] == 3
    ended = {key[1]: value for key, value in found.items() if key[0] == "attempts_ended_total"}
    assert ended == {"succeeded": 1, "died": 1, "lease_expired": 1}
    assert (found["stage_seconds_count", "loading"], found["stage_seconds_count", "compressing"]) == (1, 1)
    assert 1.1 <= found["stage_seconds_sum", "compressing"] < 5
    for most, values in (("1.0", 0), ("5.0", 1)):
        assert found["stage_seconds_bucket", most, "compressing"] == values
    assert found["peak_memory_bytes_sum",] == 5.5 * 2**30
    assert found["peak_memory_bytes_count",] == 2


def test_counts_stay_when_jobs_are_deleted_and_refused_writes_count_nothing(api: TestClient, store: JobStore) -> None:
    job_id = submitted(api)
    lease = taken(store, job_id)
    store.succeed(lease)
    for _ in range(2):
        assert api.post(f"/jobs/{job_id}/cancel").status_code == 409
    before = scraped(api)
    assert api.delete(f"/jobs/{job_id}").status_code == 204
    after = scraped(api)
    assert after["attempts_ended_total", "succeeded"] == before["attempts_ended_total", "succeeded"] == 1
    assert after["jobs", "succeeded"] == 0
