"""The artifact store: what is put in comes out whole, and no name leads out of a job's folder."""

import hashlib
import resource
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from jobs.artifacts import Artifact, ArtifactStore, as_json, is_whole
from jobs.errors import ArtifactNotFound
from jobs.settings import Settings

HOSTILE = [
    "",
    ".",
    "..",
    "../J2/secret",
    "../J2",
    "a/../config.json",
    "figures/../../J2/secret",
    "./config.json",
    "config.json/",
    "config.json/.",
    "figures//depth.png",
    "/config.json",
    "//config.json",
    "/etc/passwd",
    "file:///etc/passwd",
    "memory://J2/secret",
    "~",
    "figures",
    "figures/",
    "..\\J2\\secret",
    "figures\\depth.png",
    "config.jso*",
    "config.json\0",
    "config.json" + "x" * 5000,
    "missing.json",
]


@pytest.fixture(params=["folder", "memory", "bucket"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where a store may be; nothing is there yet."""
    if request.param == "folder":
        yield f"file://{tmp_path / 'results' / 'here'}"
        return
    if request.param == "bucket":
        yield f"s3://{request.getfixturevalue('bucket')}/results/here"
        return
    root = f"memory://{secrets.token_hex(4)}/results"
    yield root
    files, path = fsspec.core.url_to_fs(root)
    if files.exists(path):
        files.rm(path, recursive=True)


@pytest.fixture
def store(url: str) -> ArtifactStore:
    return ArtifactStore(url)


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """A folder as a job leaves it."""
    return folder(tmp_path / "result", {"config.json": b"{}", "empty": b"", "figures/depth.png": b"\x89PNG" * 9})


def folder(at: Path, files: dict[str, bytes]) -> Path:
    """A folder of these files."""
    for name, content in files.items():
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_bytes(content)
    return at


def stored(url: str) -> set[str]:
    """The paths of all files under the URL."""
    files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return {path.removeprefix(root).lstrip("/") for path in files.find(root)} if files.exists(root) else set()


def content(store: ArtifactStore, job_id: str, path: str) -> bytes:
    with store.open(job_id, path) as reader:
        return reader.read()


@contextmanager
def disk_full_after(size: int) -> Iterator[None]:
    """A disk on which no file can grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_is_put_comes_out(store: ArtifactStore, url: str, result: Path) -> None:
    artifacts = store.put_folder("J1", result)
    assert [artifact.path for artifact in artifacts] == ["config.json", "empty", "figures/depth.png"]
    for artifact in artifacts:
        written = (result / artifact.path).read_bytes()
        assert content(store, "J1", artifact.path) == written
        assert (artifact.size, artifact.sha256) == (len(written), hashlib.sha256(written).hexdigest())
    assert stored(url) == {"J1/config.json", "J1/empty", "J1/figures/depth.png"}


def test_a_file_of_many_blocks(store: ArtifactStore, tmp_path: Path) -> None:
    written = secrets.token_bytes(1024) * (9 * 1024 + 1)  # a little over two blocks
    (artifact,) = store.put_folder("J1", folder(tmp_path / "big", {"model.safetensors": written}))
    assert (artifact.size, artifact.sha256) == (len(written), hashlib.sha256(written).hexdigest())
    assert content(store, "J1", "model.safetensors") == written


def test_a_folder_comes_back(store: ArtifactStore, result: Path, tmp_path: Path) -> None:
    artifacts = store.put_folder("J1", result)
    store.get_folder("J1", artifacts, tmp_path / "back")
    assert is_whole(tmp_path / "back", artifacts)
    assert not is_whole(result.parent, artifacts)


def test_a_folder_that_is_not_what_was_stored_does_not_come_back(
    store: ArtifactStore, result: Path, tmp_path: Path
) -> None:
    artifacts = store.put_folder("J1", result)
    for wrong in (replace(artifacts[0], sha256="0" * 64), replace(artifacts[0], path="../J2/config.json")):
        with pytest.raises(ArtifactNotFound):
            store.get_folder("J1", [*artifacts[1:], wrong], tmp_path / "back")
        assert not (tmp_path / "back").exists()


def test_artifacts_can_be_read_from_any_point(store: ArtifactStore, result: Path) -> None:
    store.put_folder("J1", result)
    with store.open("J1", "figures/depth.png") as reader:
        reader.seek(33)
        assert reader.read() == b"PNG"


def test_as_json() -> None:
    assert as_json([Artifact("a/b", 3, "00")]) == [{"path": "a/b", "size": 3, "sha256": "00"}]


def test_an_earlier_attempt_is_replaced(store: ArtifactStore, url: str, result: Path, tmp_path: Path) -> None:
    store.put_folder("J1", result)
    files, root = fsspec.core.url_to_fs(url)
    files.makedirs(f"{root}/J1.partial/figures", exist_ok=True)
    files.pipe_file(f"{root}/J1.partial/figures/half.png", b"of an attempt that was killed")
    store.put_folder("J2", result)
    store.put_folder("J1", folder(tmp_path / "second", {"config.json": b"{2}", "README.md": b"#"}))
    assert {path for path in stored(url) if path.startswith("J1")} == {"J1/config.json", "J1/README.md"}
    assert content(store, "J1", "config.json") == b"{2}"
    assert content(store, "J2", "config.json") == b"{}"


def test_nothing_appears_by_halves(tmp_path: Path, result: Path) -> None:
    url = f"file://{tmp_path / 'store'}"
    store = ArtifactStore(url)
    store.put_folder("J1", result)
    second = folder(tmp_path / "second", {"a.json": b"[]", "model.safetensors": b"x" * 100_000})
    for job_id in ("J1", "J2"):
        with disk_full_after(50_000), pytest.raises(OSError, match="File too large"):
            store.put_folder(job_id, second)
    assert content(store, "J1", "config.json") == b"{}"
    assert {path.split("/")[0] for path in stored(url)} == {"J1"}, "what was half written takes room"
    for job_id in ("J1", "J2"):
        with pytest.raises(ArtifactNotFound):
            store.open(job_id, "a.json")
    store.put_folder("J1", second)
    store.put_folder("J2", second)
    assert stored(url) == {f"{job_id}/{name}" for job_id in ("J1", "J2") for name in ("a.json", "model.safetensors")}


@pytest.mark.parametrize("path", HOSTILE, ids=lambda path: repr(path[:24]))
def test_no_path_leads_out_of_the_folder(store: ArtifactStore, result: Path, tmp_path: Path, path: str) -> None:
    store.put_folder("J1", folder(result, {"figures\\depth.png": b"what Windows takes for the other one"}))
    store.put_folder("J2", folder(tmp_path / "other", {"secret": b"!"}))
    with pytest.raises(ArtifactNotFound):
        store.open("J1", path)


def test_deleting_takes_one_jobs_artifacts(store: ArtifactStore, url: str, result: Path) -> None:
    store.put_folder("J1", result)
    store.put_folder("J10", result)
    files, root = fsspec.core.url_to_fs(url)
    files.makedirs(f"{root}/J1.partial", exist_ok=True)
    files.pipe_file(f"{root}/J1.partial/half", b"")
    for _ in range(2):
        store.delete("J1")
        assert stored(url) == {"J10/config.json", "J10/empty", "J10/figures/depth.png"}
    with pytest.raises(ArtifactNotFound):
        store.open("J1", "config.json")


def test_a_store_that_can_be_written_to_is_ready(store: ArtifactStore, url: str) -> None:
    store.ping()
    store.ping()
    assert stored(url) == set()


def test_a_store_that_cannot_be_written_to_is_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="file"):
        ArtifactStore(f"file://{tmp_path / 'file' / 'store'}").ping()
    (tmp_path / "store" / ".ready").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        ArtifactStore(f"file://{tmp_path / 'store'}").ping()


def test_artifacts_live_in_the_data_folder_whatever_its_name(tmp_path: Path, result: Path) -> None:
    data = tmp_path / "ünser Ordner 100%25"
    ArtifactStore(Settings(data_dir=data, artifacts_url="").artifacts).put_folder("J1", result)
    assert (data / "artifacts" / "J1" / "config.json").read_bytes() == b"{}"
