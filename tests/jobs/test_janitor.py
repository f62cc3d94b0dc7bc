"""Artifacts go when their time is over, and only then; whatever stops the janitor half way, its next round finishes."""

from pathlib import Path

import pytest
import structlog
from sqlalchemy import Engine, update

from jobs.artifacts import ArtifactStore, as_json
from jobs.clock import now_plus
from jobs.errors import ArtifactNotFound
from jobs.janitor import BATCH, remove_old_artifacts
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.store import JobStore
from jobs.tables import Job
from tests.jobs.at_once import at_once

DAY = 86_400


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings that keep artifacts for a month."""
    return settings.model_copy(update={"keep_artifacts_days": 30.0})


@pytest.fixture
def artifacts(settings: Settings) -> ArtifactStore:
    return ArtifactStore(settings.artifacts)


@pytest.fixture
def result(tmp_path: Path) -> Path:
    folder = tmp_path / "result"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


class Ended:
    """Makes jobs that ended so many days ago, with a result."""

    def __init__(self, engine: Engine, store: JobStore, artifacts: ArtifactStore, result: Path, spec: JobSpec) -> None:
        self._engine, self._store, self._artifacts = engine, store, artifacts
        self._result, self._spec = result, spec

    def __call__(self, days: float, *, end: str = "succeed") -> str:
        lease = self._store.take(self._store.submit(self._spec).id, worker="w", lease_seconds=60)
        assert lease is not None
        stored = as_json(self._artifacts.put_folder(lease.job_id, self._result))
        self._store.store_result(lease, metrics={}, artifacts=stored)
        if end == "succeed":
            self._store.succeed(lease)
        elif end == "fail":
            self._store.fail(lease, {"code": "publish_failed"})
        if end != "none":
            with self._engine.begin() as connection:
                past = {"finished_at": now_plus(-days * DAY)}
                connection.execute(update(Job).where(Job.id == lease.job_id).values(past))
        return lease.job_id


@pytest.fixture
def ended(engine: Engine, store: JobStore, artifacts: ArtifactStore, result: Path, spec: JobSpec) -> Ended:
    return Ended(engine, store, artifacts, result, spec)


def test_what_is_old_goes_and_its_job_stays(
    store: JobStore, settings: Settings, artifacts: ArtifactStore, ended: Ended
) -> None:
    old, failed, young, running = ended(30.01), ended(400, end="fail"), ended(29.99), ended(0, end="none")
    before = store.get(old)
    for _ in range(2):
        remove_old_artifacts(store, settings)
    job = store.get(old)
    assert job.artifacts_removed_at is not None
    assert (job.artifacts, job.last_event) == ([], before.last_event + 1)
    assert (job.status, job.metrics, job.finished_at) == (before.status, before.metrics, before.finished_at)
    event = store.events(old)[-1]
    assert (event.type, event.seq, event.data) == ("artifacts_removed", job.last_event, {"kept_days": 30.0})
    assert (store.get(failed).artifacts, artifacts.holds(failed), artifacts.holds(old)) == ([], False, False)
    for kept in (young, running):
        job = store.get(kept)
        assert (len(job.artifacts), job.artifacts_removed_at) == (1, None)
        assert artifacts.open(kept, "config.json").read() == b"{}"
    store.delete(old)


def test_for_ever_by_default(store: JobStore, settings: Settings, ended: Ended) -> None:
    job_id = ended(10_000)
    remove_old_artifacts(store, settings.model_copy(update={"keep_artifacts_days": 0.0}))
    assert len(store.get(job_id).artifacts) == 1


def test_a_round_that_was_killed_between_files_and_row_is_made_good(
    store: JobStore, settings: Settings, artifacts: ArtifactStore, ended: Ended
) -> None:
    job_id = ended(31)
    artifacts.delete(job_id)
    with pytest.raises(ArtifactNotFound):
        artifacts.open(job_id, "config.json")
    assert len(store.get(job_id).artifacts) == 1
    remove_old_artifacts(store, settings)
    assert store.get(job_id).artifacts == []
    assert [event.type for event in store.events(job_id)][-2:] == ["succeeded", "artifacts_removed"]


def test_several_janitors_tell_of_each_job_once(store: JobStore, settings: Settings, ended: Ended) -> None:
    jobs = [ended(31 + n) for n in range(BATCH)]
    at_once(*[lambda: remove_old_artifacts(store, settings)] * 3)
    for job_id in jobs:
        assert [event.type for event in store.events(job_id)].count("artifacts_removed") == 1


def test_a_job_that_was_deleted_meanwhile(store: JobStore, ended: Ended) -> None:
    job_id = ended(31)
    store.delete(job_id)
    assert not store.artifacts_removed(job_id, kept_days=30)


def test_a_running_jobs_artifacts_are_not_noted_as_gone(store: JobStore, ended: Ended) -> None:
    job_id = ended(0, end="none")
    assert not store.artifacts_removed(job_id, kept_days=30)
    assert len(store.get(job_id).artifacts) == 1


def test_the_longest_ended_go_first_a_few_at_a_time(store: JobStore, settings: Settings, ended: Ended) -> None:
    jobs = [ended(31 + n) for n in range(BATCH + 1)]
    remove_old_artifacts(store, settings)
    assert [bool(store.get(job_id).artifacts) for job_id in jobs] == [True] + [False] * BATCH
    remove_old_artifacts(store, settings)
    assert store.get(jobs[0]).artifacts == []


def test_what_cannot_be_removed_is_not_said_to_be_gone(
    store: JobStore, settings: Settings, artifacts: ArtifactStore, ended: Ended
) -> None:
    stuck, other = ended(32), ended(31)
    artifacts.delete(stuck)
    (settings.data_dir / "artifacts" / stuck).touch()  # no folder, and so not the store's to remove
    with structlog.testing.capture_logs() as logs:
        remove_old_artifacts(store, settings)
    assert [line["job_id"] for line in logs] == [stuck, other]
    assert [bool(store.get(job_id).artifacts) for job_id in (stuck, other)] == [True, False]


def test_a_store_that_does_not_answer_is_asked_again_later(store: JobStore, settings: Settings, ended: Ended) -> None:
    job_id = ended(31)
    away = settings.model_copy(update={"artifacts_url": "no-such-protocol://bucket"})
    with structlog.testing.capture_logs() as logs:
        remove_old_artifacts(store, away)
    assert [line["event"] for line in logs] == ["the artifact store does not answer"]
    assert len(store.get(job_id).artifacts) == 1
    remove_old_artifacts(store, settings)
    assert store.get(job_id).artifacts == []
