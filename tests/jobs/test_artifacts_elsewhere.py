"""API and workers on different hosts: two data folders that share nothing but the artifact store's URL."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from fsspec.registry import _registry
from sqlalchemy import Engine, update

from api.app import create_app
from jobs.artifacts import ArtifactStore, as_json
from jobs.clock import now_plus
from jobs.errors import ArtifactNotFound, MissingExtra
from jobs.janitor import remove_old_artifacts
from jobs.records import Lease
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.store import JobStore
from jobs.tables import Job
from tests.s3_server import new_client

WEIGHTS = bytes(range(256)) * 40_000  # more than two blocks
FILES = {"README.md": b"# tiny\n", "empty.txt": b"", "figures/depth.svg": b"<svg/>", "model.safetensors": WEIGHTS}
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture(params=["folder", "bucket"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What both hosts see."""
    if request.param == "folder":
        return f"file://{tmp_path / 'shared'}"
    return f"s3://{request.getfixturevalue('bucket')}/results"


@pytest.fixture
def api_host(settings: Settings, url: str, tmp_path: Path) -> Settings:
    changes = {"artifacts_url": url, "data_dir": tmp_path / "api", "auth": "none", "keep_artifacts_days": 30.0}
    return settings.model_copy(update=changes)


@pytest.fixture
def worker_host(settings: Settings, url: str, tmp_path: Path) -> Settings:
    return settings.model_copy(update={"artifacts_url": url, "data_dir": tmp_path / "worker"})


@pytest.fixture
def api(api_host: Settings, store: JobStore) -> Iterator[TestClient]:
    with TestClient(create_app(api_host), base_url="http://127.0.0.1") as client:
        yield client


def result(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def taken(store: JobStore) -> Lease:
    lease = store.take(store.submit(JobSpec(model="local:tiny", layers=4)).id, worker="w", lease_seconds=60)
    assert lease is not None
    return lease


def stored(store: JobStore, worker_host: Settings) -> str:
    """A job that ended well on the worker's host."""
    lease = taken(store)
    folder = result(worker_host.data_dir / "work" / lease.job_id)
    artifacts = ArtifactStore(worker_host.artifacts).put_folder(lease.job_id, folder)
    store.store_result(lease, metrics={}, artifacts=as_json(artifacts))
    store.succeed(lease)
    return lease.job_id


def test_what_a_worker_stores_is_served_elsewhere(
    api: TestClient, api_host: Settings, worker_host: Settings, store: JobStore
) -> None:
    assert api.get("/readyz").status_code == 200
    job_id = stored(store, worker_host)
    listed = api.get(f"/jobs/{job_id}/artifacts").json()["artifacts"]
    assert [entry["path"] for entry in listed] == sorted(FILES)
    for entry in listed:
        answer = api.get(entry["href"])
        assert (answer.status_code, answer.content) == (200, FILES[entry["path"]])
    weights = f"/jobs/{job_id}/artifacts/model.safetensors"
    part = api.get(weights, headers={"Range": "bytes=5000000-5000099"})
    assert (part.status_code, part.content) == (206, WEIGHTS[5000000:5000100])
    last = api.get(weights, headers={"Range": "bytes=-7"})
    assert (last.status_code, last.content) == (206, WEIGHTS[-7:])
    assert not (api_host.data_dir / "artifacts").exists()
    assert api.delete(f"/jobs/{job_id}").status_code == 204
    assert not ArtifactStore(worker_host.artifacts).holds(job_id)


@on_sqlite
def test_what_was_looked_for_too_early_is_found_later(
    api_host: Settings, worker_host: Settings, store: JobStore
) -> None:
    """No process trusts what it has seen of the store before: another one may have put more there."""
    api, lease = ArtifactStore(api_host.artifacts), taken(store)
    with pytest.raises(ArtifactNotFound):
        api.open(lease.job_id, "README.md")
    assert not api.holds(lease.job_id)
    script = (
        "import sys; from pathlib import Path; from jobs.artifacts import ArtifactStore\n"
        "ArtifactStore(sys.argv[1]).put_folder(sys.argv[2], Path(sys.argv[3]))"
    )
    folder = result(worker_host.data_dir / "work")
    subprocess.run([sys.executable, "-c", script, worker_host.artifacts, lease.job_id, str(folder)], check=True)
    assert api.holds(lease.job_id)
    with api.open(lease.job_id, "README.md") as reader:
        assert reader.read() == FILES["README.md"]


def test_the_janitor_of_another_host_removes_them(
    api: TestClient, api_host: Settings, worker_host: Settings, store: JobStore, engine: Engine
) -> None:
    old, young = stored(store, worker_host), stored(store, worker_host)
    with engine.begin() as connection:
        connection.execute(update(Job).where(Job.id == old).values(finished_at=now_plus(-31 * 86_400)))
    remove_old_artifacts(store, api_host)
    assert api.get(f"/jobs/{old}/artifacts/README.md").status_code == 410
    assert api.get(f"/jobs/{young}/artifacts/README.md").status_code == 200
    assert not ArtifactStore(worker_host.artifacts).holds(old)


@on_sqlite
def test_a_store_that_fails_half_way_leaves_nothing(
    bucket: str, store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket's files get their names one after another."""
    artifacts = ArtifactStore(f"s3://{bucket}/results")
    copy, copied = artifacts._files._system.copy, list[str]()

    def failing(source: str, target: str, **options: Any) -> None:
        if len(copied) == 2:
            raise OSError("the store went away")
        copied.append(target)
        copy(source, target, **options)

    monkeypatch.setattr(artifacts._files._system, "copy", failing)
    with pytest.raises(OSError, match="went away"):
        artifacts.put_folder("J1", result(tmp_path / "result"))
    assert len(copied) == 2
    assert new_client().find(bucket) == []
    monkeypatch.undo()


def test_a_bucket_that_is_not_there_is_not_made(s3_server: str, tmp_path: Path) -> None:
    artifacts = ArtifactStore("s3://flattengpt-mistyped/results")
    with pytest.raises(OSError):  # noqa: PT011 - in the client's words
        artifacts.ping()
    with pytest.raises(OSError):  # noqa: PT011
        artifacts.put_folder("J1", result(tmp_path / "result"))
    assert "flattengpt-mistyped" not in new_client().ls("")


def test_a_library_that_is_missing_is_told_of_without_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    for name in ("s3", "s3a"):
        monkeypatch.delitem(_registry, name, raising=False)
    with pytest.raises(MissingExtra) as refused:
        ArtifactStore("s3://user:secret@bucket/results")
    assert "pip install 'flattengpt[s3]'" in refused.value.message
    assert "secret" not in str(refused.value)
