"""Jobs whose result is stored: the job's process publishes it, however often it is killed, stopped or cancelled."""

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr
from sqlalchemy import Engine, select

from flattengpt_core.manifest import MANIFEST
from jobs.artifacts import ArtifactStore, as_json
from jobs.hub_token import HubToken
from jobs.records import JobRecord
from jobs.sealing import Sealer
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.states import JobStatus
from jobs.store import JobStore
from jobs.tables import Job
from tests.hub.state import READ_TOKEN, WRITE_TOKEN, Break, Hub
from tests.hub_server import running_hub
from tests.processes import Started, alive, descendants, wait_until
from tests.worker.conftest import SPEC, Worker, Workers, on_postgresql, on_sqlite
from tests.worker.test_parent import of_type, row, wait_for_child

REPO = "acme/tiny-flat4"
METRICS = {"compressed": {"layers": 4}}
SIZE = 24 * 1024**2
"""Of the weights: more than the buffers between client and server hold."""

BODIES = "PUT /storage/|POST /storage/xet/.*/v1/xorbs"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """With the usual time to stop in."""
    return settings.model_copy(update={"stop_grace_seconds": 10})


@pytest.fixture(params=["lfs"])
def transfer(request: pytest.FixtureRequest) -> str:
    """How large files go to the Hub: `lfs` or `xet`."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _environment(
    hub: Hub, transfer: str, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job's process uses the same settings, has a token, and cannot import torch."""
    (tmp_path / "poison" / "torch").mkdir(parents=True)
    (tmp_path / "poison" / "torch" / "__init__.py").write_text("raise SystemExit('torch was imported')")
    path = os.pathsep.join([str(tmp_path / "poison"), os.environ.get("PYTHONPATH", os.getcwd())])
    for name, value in {
        **environment,
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": WRITE_TOKEN,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1" if transfer == "lfs" else "0",
        "PYTHONPATH": path,
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def stored(store: JobStore, settings: Settings, tmp_path: Path) -> JobRecord:
    """A queued job whose last attempt died after it had stored its result."""
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n# tiny-flat4\n")
    (folder / "model.safetensors").write_bytes(random.Random(0).randbytes(SIZE))
    return with_result(store, settings, folder, {"repo_id": REPO})


def with_result(
    store: JobStore, settings: Settings, folder: Path, publish: dict[str, Any], token: HubToken | None = None
) -> JobRecord:
    """A queued job whose last attempt died after it had stored this folder."""
    job = store.submit(JobSpec.model_validate(SPEC.as_request() | {"publish": publish}), hub_token=token)
    lease = store.take(job.id, worker="w", lease_seconds=60)
    assert lease is not None
    artifacts = ArtifactStore(settings.artifacts).put_folder(job.id, folder)
    store.store_result(lease, metrics=METRICS, artifacts=as_json(artifacts))
    store.died(lease, reason="killed", max_attempts=3)
    return store.get(job.id)


def artifacts_of(settings: Settings, job: JobRecord) -> dict[str, tuple[int, bytes]]:
    """The job's stored files: which they are, and what is in them."""
    folder = settings.data_dir / "artifacts" / job.id
    return {file.name: (file.stat().st_ino, file.read_bytes()) for file in folder.iterdir()}


def check_published(hub: Hub, store: JobStore, settings: Settings, job: JobRecord) -> None:
    """Ended well, and one commit of the Hub is what is stored."""
    ended = store.get(job.id)
    assert (ended.status, ended.error) == (JobStatus.SUCCEEDED, None)
    assert (ended.metrics, ended.artifacts) == (METRICS, job.artifacts)
    assert ended.published_url == f"{hub.endpoint}/{REPO}"
    commits = hub.repositories[REPO].commits
    assert [commit.title for commit in commits[1:]] == [f"FlattenGPT job {job.id}"]
    there = {name: content for name, (_, content) in artifacts_of(settings, job).items()}
    assert {name: content for name, content in commits[-1].files.items() if name != ".gitattributes"} == there
    assert list((settings.data_dir / "work").iterdir()) == []


def test_the_next_attempt_goes_straight_to_publishing(
    hub: Hub, store: JobStore, settings: Settings, stored: JobRecord, workers: Workers
) -> None:
    before = artifacts_of(settings, stored)
    workers().run(stored.id)
    check_published(hub, store, settings, stored)
    assert artifacts_of(settings, stored) == before
    assert [event.data["stage"] for event in of_type(store, stored.id, "stage")] == ["loading", "publishing"]
    assert of_type(store, stored.id, "restored")[0].data == {"source": "the artifact store"}
    assert len(hub.uploaded) == 1


@on_sqlite
def test_the_result_on_this_machine_is_used_if_it_is_whole(
    hub: Hub, store: JobStore, settings: Settings, stored: JobRecord, workers: Workers, tmp_path: Path
) -> None:
    shutil.copytree(tmp_path / "made", settings.data_dir / "work" / f"{stored.id}.1" / "result")
    workers().run(stored.id)
    check_published(hub, store, settings, stored)
    assert of_type(store, stored.id, "restored")[0].data == {"source": "this worker's disk"}


@on_sqlite
def test_a_result_that_is_whole_nowhere_is_made_anew(
    hub: Hub, store: JobStore, settings: Settings, stored: JobRecord, workers: Workers
) -> None:
    """Which needs torch, and a model: there is none here."""
    (settings.data_dir / "artifacts" / stored.id / "model.safetensors").write_bytes(bytes(SIZE))
    workers().run(stored.id)
    job = store.get(stored.id)
    assert job.error is not None
    assert (job.status, job.error["code"]) == (JobStatus.FAILED, "model_not_found")
    assert hub.seen == []


@on_postgresql
def test_kill_9_at_the_commit_uploads_nothing_again(
    hub: Hub, store: JobStore, settings: Settings, engine: Engine, stored: JobRecord, workers: Workers
) -> None:
    hub.fail("POST .*/commit/", Break.SILENCE, times=1)
    worker = workers().start(stored.id)
    child = wait_for_child(store, stored.id, attempt=2)
    wait_until(lambda: hub.requests("POST .*/commit/"), what="the commit")
    os.kill(child, signal.SIGKILL)
    worker.finish()
    check_published(hub, store, settings, stored)
    assert store.get(stored.id).attempt == 3
    assert row(engine, stored.id).deaths == 2
    assert hub.uploaded == [SIZE]
    assert [event.data["source"] for event in of_type(store, stored.id, "restored")] == [
        "the artifact store",
        "this worker's disk",
    ]


@on_sqlite
def test_kill_9_after_the_commit_commits_nothing_again(
    hub: Hub, store: JobStore, settings: Settings, stored: JobRecord, workers: Workers
) -> None:
    hub.fail("POST .*/commit/", Break.UNANSWERED, times=1)
    worker = workers().start(stored.id)
    child = wait_for_child(store, stored.id, attempt=2)
    wait_until(lambda: REPO in hub.repositories and len(hub.repositories[REPO].commits) == 2, what="the commit")
    os.kill(child, signal.SIGKILL)
    worker.finish()
    check_published(hub, store, settings, stored)
    assert hub.uploaded == [SIZE]


def hanging_upload(
    hub: Hub, store: JobStore, stored: JobRecord, workers: Workers, **changes: float
) -> tuple[Worker, Started]:
    """A worker in mid-upload, to a Hub that reads no more of it, and the processes of its job."""
    hub.fail(BODIES, Break.SILENCE, times=1)
    worker = workers(**changes).start(stored.id)
    child = wait_for_child(store, stored.id, attempt=2)
    wait_until(lambda: hub.requests(BODIES), what="the upload")
    time.sleep(0.2)
    return worker, {child: descendants(os.getpid())[child]}


@pytest.mark.parametrize("transfer", ["lfs", "xet"], indirect=True)
@on_sqlite
def test_cancel_in_mid_upload(
    hub: Hub, store: JobStore, settings: Settings, stored: JobRecord, workers: Workers
) -> None:
    """Within 10 s, also by the times that the settings have by default, which are longer than those of tests."""
    worker, processes = hanging_upload(
        hub, store, stored, workers, heartbeat_seconds=5, poll_seconds=0.5, lease_seconds=30
    )
    asked = time.monotonic()
    store.cancel(stored.id)
    worker.finish()
    assert time.monotonic() - asked < 10
    job = store.get(stored.id)
    assert (job.status, job.artifacts, job.error, job.published_url) == (JobStatus.CANCELLED, [], None, None)
    assert not alive(processes)
    assert [commit.title for commit in hub.repositories[REPO].commits] == ["initial commit"]
    assert list((settings.data_dir / "artifacts").iterdir()) == []
    assert list((settings.data_dir / "work").iterdir()) == []
    assert of_type(store, stored.id, "commit_unanswered") == []


@on_postgresql
def test_a_hand_back_in_mid_upload(
    hub: Hub, store: JobStore, settings: Settings, engine: Engine, stored: JobRecord, workers: Workers
) -> None:
    worker, processes = hanging_upload(hub, store, stored, workers)
    wait_until(lambda: of_type(store, stored.id, "progress"), what="the news of the upload")
    told, total = of_type(store, stored.id, "progress")[0].data, sum(entry["size"] for entry in stored.artifacts)
    assert (told["stage"], told["done"], told["total"]) == ("publishing", 0, total)
    asked = time.monotonic()
    worker.stopping.set()
    worker.finish()
    assert time.monotonic() - asked < 30
    assert not alive(processes)
    job = row(engine, stored.id)
    assert (job.status, job.deaths) == ("queued", 1), "the death before, and no other"
    assert of_type(store, stored.id, "handed_back")[0].data["stage"] == "publishing"
    workers().run(stored.id)
    check_published(hub, store, settings, stored)


@on_sqlite
def test_a_cancel_that_comes_with_the_commit_loses_to_it(
    hub: Hub, store: JobStore, settings: Settings, stored: JobRecord, workers: Workers
) -> None:
    hub.fail("POST .*/commit/", Break.HELD, times=1)
    worker = workers().start(stored.id)
    wait_until(lambda: hub.requests("POST .*/commit/"), what="the commit")
    store.cancel(stored.id)
    time.sleep(1.5)  # by now the job's process has heard of it
    hub.released = True
    worker.finish()
    check_published(hub, store, settings, stored)
    assert len(of_type(store, stored.id, "cancelling")) == 1


@on_postgresql
def test_a_commit_that_is_never_answered_does_not_hold_the_cancel_up(
    hub: Hub, store: JobStore, settings: Settings, stored: JobRecord, workers: Workers
) -> None:
    hub.fail("POST .*/commit/", Break.SILENCE, times=1)
    worker = workers().start(stored.id)
    wait_until(lambda: hub.requests("POST .*/commit/"), what="the commit")
    asked = time.monotonic()
    store.cancel(stored.id)
    worker.finish()
    assert time.monotonic() - asked < 10
    assert store.get(stored.id).status is JobStatus.CANCELLED
    assert of_type(store, stored.id, "commit_unanswered")[0].data == {"repo_id": REPO}
    assert list((settings.data_dir / "artifacts").iterdir()) == []


@on_sqlite
def test_a_job_publishes_with_the_token_that_came_with_it(
    hub: Hub,
    store: JobStore,
    settings: Settings,
    workers: Workers,
    engine: Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not with the worker's; nothing that the service keeps has it, and its row no more after the end."""
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "README.md").write_text("# tiny-flat4\n")
    token = HubToken(SecretStr(WRITE_TOKEN), Sealer(settings))
    job = with_result(store, settings, tmp_path / "made", {"repo_id": REPO}, token)
    workers().run(job.id)
    assert (store.get(job.id).status, store.get(job.id).error) == (JobStatus.SUCCEEDED, None)
    assert {seen.authorization for seen in hub.seen} - {None} == {f"Bearer {WRITE_TOKEN}"}
    with engine.connect() as connection:
        assert connection.scalar(select(Job.hub_token).where(Job.id == job.id)) is None
    written = [file for file in tmp_path.rglob("*") if file.is_file() and WRITE_TOKEN.encode() in file.read_bytes()]
    assert written == []


@on_sqlite
def test_a_worker_that_cannot_open_the_jobs_token_says_so(
    hub: Hub, store: JobStore, settings: Settings, workers: Workers, tmp_path: Path
) -> None:
    keys = {"secret_keys": SecretStr(Fernet.generate_key().decode()), "broker_url": "redis://127.0.0.1:9"}
    token = HubToken(SecretStr(WRITE_TOKEN), Sealer(settings.model_copy(update=keys)))
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "README.md").write_text("# tiny-flat4\n")
    job = with_result(store, settings, tmp_path / "made", {"repo_id": REPO}, token)
    workers().run(job.id)
    error = store.get(job.id).error
    assert error is not None
    assert (error["code"], "FLATTENGPT_SECRET_KEYS" in error["message"]) == ("sealing_unavailable", True)
    assert hub.seen == []


@on_sqlite
def test_a_job_publishes_below_what_the_operator_allows(
    hub: Hub, store: JobStore, settings: Settings, workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / MANIFEST).write_text("{}")
    (tmp_path / "allowed").mkdir()
    monkeypatch.setenv("FLATTENGPT_PUBLISH_URLS", f"file://{tmp_path}/allowed")
    for place, allowed in [(f"file://{tmp_path}/allowed/team/x", True), (f"file://{tmp_path}/elsewhere/x", False)]:
        job = with_result(store, settings, tmp_path / "made", {"url": place})
        workers().run(job.id)
        ended = store.get(job.id)
        if allowed:
            assert (ended.status, ended.published_url) == (JobStatus.SUCCEEDED, place), ended.error
            assert (tmp_path / "allowed" / "team" / "x" / MANIFEST).read_text() == "{}"
        else:
            assert ended.error is not None
            assert (ended.error["code"], ended.error["field"]) == ("invalid_request", "publish.url")
    assert not (tmp_path / "elsewhere").exists()
    assert hub.seen == []


def test_artifacts_of_a_cancelled_job_that_were_left_go_with_the_next_job(
    store: JobStore, settings: Settings, stored: JobRecord, workers: Workers
) -> None:
    """Its worker died after the cancel was recorded; other jobs keep theirs."""
    store.cancel(stored.id)
    assert store.get(stored.id).artifacts == stored.artifacts
    kept = store.submit(SPEC).id
    ArtifactStore(settings.artifacts).put_folder(kept, settings.data_dir / "made")
    workers().run(kept)
    assert store.get(stored.id).artifacts == []
    assert [folder.name for folder in (settings.data_dir / "artifacts").iterdir()] == [kept]
