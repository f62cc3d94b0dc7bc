"""The states of attempts in a store of their own, on each kind of store."""

from pathlib import Path

import pytest

from jobs.records import Lease
from worker.state_store import StateStore

JOB = "01K00000000000000000000000"
FILES = {"request.json": b"{}", "parts/4/0.safetensors": bytes(range(256)) * 30_000, "empty": b""}


@pytest.fixture(params=["folder", "bucket"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return f"file://{tmp_path / 'shared'}"
    return f"s3://{request.getfixturevalue('bucket')}/states"


def attempt(number: int) -> Lease:
    return Lease(JOB, number)


def state(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def held(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_another_worker_gets_what_was_whole(url: str, tmp_path: Path) -> None:
    here = state(tmp_path / "here", {**FILES, "parts/4/1.safetensors.partial": b"half"})
    assert StateStore(url).save(attempt(1), here)
    there = state(tmp_path / "there", {"old": b"of an earlier attempt"})
    assert StateStore(url).restore(attempt(2), there, after=0) == 1
    assert held(there) == FILES
    assert StateStore(url).job_ids() == [JOB]


def test_only_what_has_changed_goes_out(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, store = state(tmp_path / "here"), StateStore(url)
    assert store.save(attempt(1), here)
    assert not store.save(attempt(1), here)
    sent, put = list[str](), store._files.put
    monkeypatch.setattr(store._files, "put", lambda source, name: (sent.append(source.name), put(source, name))[1])
    (here / "empty").unlink()
    state(here, {"request.json": b'{"longer": 1}', "parts/4/1.safetensors": b"1"})
    assert store.save(attempt(1), here)
    assert sorted(sent) == ["1.safetensors", "request.json"]
    assert StateStore(url).restore(attempt(2), tmp_path / "there", after=0) == 1
    assert held(tmp_path / "there") == held(here)
    assert len(store._files.names(f"{JOB}/1")) == 4  # three files and the index: what is gone here is gone there


def test_what_this_machine_has_is_as_new(url: str, tmp_path: Path) -> None:
    StateStore(url).save(attempt(1), state(tmp_path / "here"))
    assert StateStore(url).restore(attempt(2), tmp_path / "there", after=1) is None
    assert StateStore(url).restore(attempt(1), tmp_path / "there", after=0) is None
    assert not (tmp_path / "there").exists()


def test_a_late_attempt_changes_nothing_of_its_successor(url: str, tmp_path: Path) -> None:
    late, next_one = StateStore(url), StateStore(url)
    first = state(tmp_path / "first")
    late.save(attempt(1), first)
    second = state(tmp_path / "second", {"request.json": b"{}", "newer": b"2"})
    next_one.save(attempt(2), second)
    state(first, {"late": b"1"})
    late.save(attempt(1), first)
    assert StateStore(url).restore(attempt(3), tmp_path / "third", after=0) == 2
    assert held(tmp_path / "third") == held(second)


@pytest.mark.parametrize("damage", ["changed", "missing", "no index"])
def test_what_is_damaged_is_not_used(url: str, damage: str, tmp_path: Path) -> None:
    store = StateStore(url)
    store.save(attempt(1), state(tmp_path / "here"))
    if damage == "changed":
        store._files.put_bytes(b"something else", f"{JOB}/1/1")
    else:
        store._files.remove_file(f"{JOB}/1/{'1' if damage == 'missing' else 'index.json'}")
    there = state(tmp_path / "there", {"own": b"state"})
    assert StateStore(url).restore(attempt(2), there, after=0) is None
    assert held(there) == {"own": b"state"}
    assert [path.name for path in tmp_path.glob("there*")] == ["there"]


def test_a_job_that_has_ended_leaves_nothing(url: str, tmp_path: Path) -> None:
    store = StateStore(url)
    store.save(attempt(1), state(tmp_path / "here"))
    store.remove(JOB)
    store.remove(JOB)
    assert store.job_ids() == []
