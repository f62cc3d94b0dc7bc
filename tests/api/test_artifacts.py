"""A result's files, from a folder of this machine and from a store that is none."""

import hashlib
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from jobs.artifacts import ArtifactStore, as_json
from jobs.settings import Settings
from jobs.store import JobStore
from tests.api.conftest import on_sqlite, problem, submitted
from tests.api.test_jobs import METRICS, taken

WEIGHTS = bytes(range(256)) * 8192  # more than one block of an answer
FILES = {"README.md": b"# tiny\n", "figures/a b.svg": b"<svg/>", "empty.txt": b"", "model.safetensors": WEIGHTS}
HOSTILE = [
    "", ".", "..", "/", "nothing", "readme.md", "README.md/", "./README.md", "figures", "figures/", "figures//a b.svg",
    "figures/../README.md", "../README.md", "../../flattengpt.db", "/etc/passwd", "..\\..\\flattengpt.db",
    "README.md\0", "\0", "README.md\0.svg", "*", "~", "%2e%2e/README.md", "file:///etc/passwd", "a" * 2000,
]  # fmt: skip

pytestmark = on_sqlite


@pytest.fixture(params=["folder", "memory", "bucket"])
def settings(settings: Settings, request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings with each kind of store."""
    if request.param == "folder":
        return settings
    if request.param == "bucket":
        return settings.model_copy(update={"artifacts_url": f"s3://{request.getfixturevalue('bucket')}/results"})
    return settings.model_copy(update={"artifacts_url": f"memory://{tmp_path.name}"})


@pytest.fixture
def job_id(api: TestClient, store: JobStore, settings: Settings, tmp_path: Path) -> str:
    """A job with a result."""
    return with_result(api, store, settings, tmp_path / "result", FILES)


def with_result(api: TestClient, store: JobStore, settings: Settings, folder: Path, files: dict[str, bytes]) -> str:
    job_id = submitted(api)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    lease = taken(store, job_id)
    artifacts = ArtifactStore(settings.artifacts).put_folder(job_id, folder)
    store.store_result(lease, metrics=METRICS, artifacts=as_json(artifacts))
    store.succeed(lease)
    return job_id


def test_each_listed_file_is_there(api: TestClient, job_id: str) -> None:
    listed = api.get(f"/jobs/{job_id}/artifacts").json()
    assert listed == {"artifacts": api.get(f"/jobs/{job_id}").json()["artifacts"]}
    assert [entry["path"] for entry in listed["artifacts"]] == sorted(FILES)
    for entry in listed["artifacts"]:
        content = FILES[entry["path"]]
        assert (entry["size"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        answer = api.get(entry["href"])
        assert (answer.status_code, answer.content) == (200, content)
        assert answer.headers["etag"] == f'"{entry["sha256"]}"'
        assert answer.headers["content-length"] == str(len(content))
        assert answer.headers["accept-ranges"] == "bytes"
        assert answer.headers["content-disposition"].startswith("attachment")


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=1048570-1048590", 1048570, 1048591),
        ("bytes=2000000-", 2000000, len(WEIGHTS)),
        ("bytes=2000000-99999999", 2000000, len(WEIGHTS)),
        ("bytes=-7", len(WEIGHTS) - 7, len(WEIGHTS)),
        ("bytes=-99999999", 0, len(WEIGHTS)),
        ("bytes=0-", 0, len(WEIGHTS)),
    ],
)
def test_a_range(api: TestClient, job_id: str, asked: str, start: int, stop: int) -> None:
    answer = api.get(f"/jobs/{job_id}/artifacts/model.safetensors", headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.content == WEIGHTS[start:stop]
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(WEIGHTS)}"
    assert answer.headers["content-length"] == str(stop - start)


@pytest.mark.parametrize("asked", [f"bytes={len(WEIGHTS)}-", f"bytes={len(WEIGHTS)}-{2**59}", "bytes=-0"])
def test_a_range_outside_the_file(api: TestClient, job_id: str, asked: str) -> None:
    answer = api.get(f"/jobs/{job_id}/artifacts/model.safetensors", headers={"Range": asked})
    problem(answer, 416, "range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{len(WEIGHTS)}"


@pytest.mark.parametrize(
    "asked", ["bytes=5-3", "bytes=a-b", "bytes=-", "bytes=", "items=0-1", "bytes=0-1,4-5", "x", f"bytes={'9' * 5000}-"]
)
def test_a_range_to_be_ignored(api: TestClient, job_id: str, asked: str) -> None:
    answer = api.get(f"/jobs/{job_id}/artifacts/README.md", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (200, FILES["README.md"])


def test_a_range_of_one_version_only(api: TestClient, job_id: str) -> None:
    address = f"/jobs/{job_id}/artifacts/README.md"
    etag = api.get(address).headers["etag"]
    same = api.get(address, headers={"Range": "bytes=0-1", "If-Range": etag})
    assert (same.status_code, same.content) == (206, b"# ")
    other = api.get(address, headers={"Range": "bytes=0-1", "If-Range": '"other"'})
    assert (other.status_code, other.content) == (200, FILES["README.md"])


def test_what_the_client_has_is_not_sent_again(api: TestClient, job_id: str) -> None:
    address = f"/jobs/{job_id}/artifacts/model.safetensors"
    etag = api.get(address).headers["etag"]
    again = api.get(address, headers={"If-None-Match": etag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert api.get(address, headers={"If-None-Match": '"other"'}).status_code == 200


def test_an_empty_file_has_no_range(api: TestClient, job_id: str) -> None:
    answer = api.get(f"/jobs/{job_id}/artifacts/empty.txt", headers={"Range": "bytes=0-"})
    problem(answer, 416, "range_not_satisfiable")


def encoded(path: str) -> str:
    """Each byte percent-encoded, so that no client tidies the path up on its way."""
    return "".join(f"%{byte:02x}" for byte in path.encode())


def test_hostile_paths(api: TestClient, store: JobStore, settings: Settings, job_id: str, tmp_path: Path) -> None:
    other = with_result(api, store, settings, tmp_path / "other", {"secret.txt": b"secret"})
    for path in [*HOSTILE, f"../{other}/secret.txt", f"{other}/secret.txt", "secret.txt"]:
        problem(api.get(f"/jobs/{job_id}/artifacts/{encoded(path)}"), 404, "artifact_not_found")
    problem(api.get(f"/jobs/{job_id}/artifacts/%ED%A0%80"), 404, "artifact_not_found")
    assert api.get(f"/jobs/{other}/artifacts/{encoded('secret.txt')}").content == b"secret"


def test_no_result_yet(api: TestClient, settings: Settings, tmp_path: Path) -> None:
    """Also when its files are there: they are a result once the job says so."""
    job_id = submitted(api)
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "config.json").touch()
    ArtifactStore(settings.artifacts).put_folder(job_id, tmp_path / "early")
    assert api.get(f"/jobs/{job_id}/artifacts").json() == {"artifacts": []}
    body = problem(api.get(f"/jobs/{job_id}/artifacts/config.json"), 404, "artifact_not_found")
    assert "is queued" in body["detail"]


def test_files_whose_time_is_over(api: TestClient, store: JobStore, settings: Settings, job_id: str) -> None:
    ArtifactStore(settings.artifacts).delete(job_id)
    store.artifacts_removed(job_id, kept_days=30)
    body = problem(api.get(f"/jobs/{job_id}/artifacts/README.md"), 410, "artifacts_removed")
    assert "submit its request again" in body["detail"]
    assert api.get(f"/jobs/{job_id}/artifacts").json() == {"artifacts": []}
    reply = api.get(f"/jobs/{job_id}").json()
    assert (reply["status"], reply["artifacts"]) == ("succeeded", [])
    assert reply["artifacts_removed_at"] >= reply["finished_at"]
    assert api.delete(f"/jobs/{job_id}").status_code == 204


def test_a_file_that_was_lost(api: TestClient, settings: Settings, job_id: str) -> None:
    ArtifactStore(settings.artifacts).delete(job_id)
    problem(api.get(f"/jobs/{job_id}/artifacts/README.md"), 404, "artifact_not_found")
