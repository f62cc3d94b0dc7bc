"""Publishing into a folder and into a bucket of a server on this machine."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import stamina

from flattengpt_core.errors import InvalidRequest
from flattengpt_core.manifest import MANIFEST
from jobs.errors import PublishConflict, PublishFailed
from tests.s3_server import new_client
from worker.interruptible import LastStep, LeftBehind
from worker.publish_files import MARKER, TRIES, Place, check_place, publish_files

JOB, OTHER = "01KB0000000000000000000001", "01KB0000000000000000000002"


class Shop:
    """A root that the operator names, as whoever reads there sees it."""

    def __init__(self, root: str) -> None:
        import fsspec

        self.root = root
        self.files, self._path = fsspec.core.url_to_fs(root, skip_instance_cache=True, use_listings_cache=False)

    def place(self, name: str = "tiny-flat4") -> Place:
        return Place(f"{self.root}/{name}", self.root)

    def holds(self, name: str = "tiny-flat4") -> dict[str, bytes]:
        """All files below, but for the marker."""
        here = f"{self._path}/{name}/"
        found = {path.removeprefix(here): self.files.cat_file(path) for path in self.files.find(here)}
        return {path: content for path, content in found.items() if path != MARKER}

    def put(self, path: str, content: bytes) -> None:
        self.files.makedirs(f"{self._path}/{path}".rpartition("/")[0], exist_ok=True)
        self.files.pipe_file(f"{self._path}/{path}", content)


in_both = pytest.mark.parametrize("shop", ["folder", "bucket"], indirect=True)
"""The other tests are about what is the same in both, and a bucket's server is slow."""


@pytest.fixture
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Shop:
    if getattr(request, "param", "folder") == "bucket":
        return Shop(f"s3://{request.getfixturevalue('bucket')}/models")
    (tmp_path / "models").mkdir()
    return Shop(f"file://{tmp_path / 'models'}")


@pytest.fixture(autouse=True)
def _no_pauses() -> Iterator[None]:
    with stamina.set_testing(True, attempts=TRIES):
        yield


@pytest.fixture
def result(tmp_path: Path) -> Path:
    folder = tmp_path / "result"
    (folder / "figures").mkdir(parents=True)
    (folder / MANIFEST).write_text("{}")
    (folder / "README.md").write_text("# tiny-flat4")
    (folder / "figures" / "groups.svg").write_text("<svg/>")
    for number in (1, 2):
        (folder / f"model-{number}.safetensors").write_bytes(random.Random(number).randbytes(100_000))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def publish(result: Path, place: Place, *, job: str = JOB, overwrite: bool = False, **more: Any) -> str:
    return publish_files(result, place, job_id=job, overwrite=overwrite, **more)


def watched(place: Place, monkeypatch: pytest.MonkeyPatch, before: Callable[[str], None]) -> list[str]:
    """The names of what is sent from now on; `before` is called with each."""
    sent: list[str] = []
    put = place.put

    def watch(file: Path, name: str) -> None:
        before(name)
        sent.append(name)
        put(file, name)

    monkeypatch.setattr(place, "put", watch)
    return sent


@in_both
def test_everything_is_there_and_the_manifest_came_last(
    shop: Shop, result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, told = shop.place("team/tiny-flat4"), list[tuple[int, int]]()
    sent = watched(place, monkeypatch, lambda name: None)
    assert publish(result, place, progress=lambda *news: told.append(news)) == f"{shop.root}/team/tiny-flat4"
    assert shop.holds("team/tiny-flat4") == contents(result)
    assert sent[-1] == MANIFEST
    assert (told[0][0], told == sorted(told)) == (0, True)
    assert publish(result, place) == place.url
    assert len(sent) == len(contents(result)), "the second time sent nothing"


@in_both
def test_a_later_attempt_sends_the_rest(shop: Shop, result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def kill(name: str) -> None:
        if name == "model-2.safetensors":
            raise Killed

    first = shop.place()
    watched(first, monkeypatch, kill)
    with pytest.raises(Killed):
        publish(result, first)
    assert MANIFEST not in shop.holds()
    with pytest.raises(PublishConflict, match=f"is job {JOB}'s"):
        publish(result, shop.place(), job=OTHER)
    later = shop.place()
    sent = watched(later, monkeypatch, lambda name: None)
    publish(result, later)
    assert sent == ["model-2.safetensors", MANIFEST]
    assert shop.holds() == contents(result)


def test_what_was_stored_anew_replaces_what_an_attempt_left(shop: Shop, result: Path) -> None:
    publish(result, shop.place())
    (result / "README.md").write_text("# measured anew")
    (result / "model-2.safetensors").unlink()
    publish(result, shop.place())
    assert shop.holds() == contents(result)


@in_both
def test_what_is_there_is_left_alone_unless_it_may_be_overwritten(
    shop: Shop, result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.put("tiny-flat4/model.safetensors", b"someone's work")
    shop.put(f"tiny-flat4/{MANIFEST}", b"someone's record")
    with pytest.raises(PublishConflict, match="not this service's"):
        publish(result, shop.place())
    assert shop.holds() == {"model.safetensors": b"someone's work", MANIFEST: b"someone's record"}

    place = shop.place()
    parts: list[bool] = []
    watched(place, monkeypatch, lambda name: parts.append(MANIFEST in shop.holds()))
    publish(result, place, overwrite=True)
    assert shop.holds() == contents(result)
    assert not any(parts), "while it was replaced nobody could take it for whole"

    (result / "figures" / "groups.svg").unlink()
    with pytest.raises(PublishConflict, match=f"is job {JOB}'s"):
        publish(result, shop.place(), job=OTHER)
    publish(result, shop.place(), job=OTHER, overwrite=True)
    assert shop.holds() == contents(result)


def test_results_in_folders_below_are_others(shop: Shop, result: Path) -> None:
    shop.put("team/tiny-flat2/model.safetensors", b"another result")
    publish(result, shop.place("team"), overwrite=True)
    assert shop.holds("team/tiny-flat2") == {"model.safetensors": b"another result"}


def test_a_marker_that_someone_has_written_leads_nowhere(shop: Shop, result: Path) -> None:
    shop.put("kept", b"not below the place")
    for odd in (
        json.dumps({"job": JOB, "files": {"../kept": "0" * 64}}).encode(),
        json.dumps({"job": JOB, "files": {"/kept": "0" * 64}}).encode(),
        b"\xff{",
        b"[1]",
    ):
        shop.put(f"tiny-flat4/{MARKER}", odd)
        with pytest.raises(PublishConflict, match="not this service's"):
            publish(result, shop.place())
        publish(result, shop.place(), overwrite=True)
    assert shop.files.cat_file(f"{shop.root}/kept") == b"not below the place"


def test_another_job_that_takes_the_place_meanwhile(shop: Shop, result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = shop.place()
    other = json.dumps({"job": OTHER, "files": {}}).encode()
    watched(
        place,
        monkeypatch,
        lambda name: shop.put(f"tiny-flat4/{MARKER}", other) if name == "model-2.safetensors" else None,
    )
    monkeypatch.setattr(place, "mark", lambda marker: None)
    with pytest.raises(PublishConflict, match="Another job has taken"):
        publish(result, place)
    assert MANIFEST not in shop.holds()


def test_a_last_step_that_nobody_waits_for_is_not_begun(shop: Shop, result: Path) -> None:
    commit = LastStep()
    assert commit.close()
    with pytest.raises(LeftBehind):
        publish(result, shop.place(), commit=commit)
    assert MANIFEST not in shop.holds()


def test_what_passes_is_overcome_and_what_does_not_is_said(
    shop: Shop, result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, broken = shop.place(), iter([OSError("secret words of the store")] * 2)

    def fail(name: str) -> None:
        for error in broken:
            raise error

    sent = watched(place, monkeypatch, fail)
    publish(result, place)
    assert shop.holds() == contents(result)
    assert len(sent) == len(contents(result))

    def refuse(name: str) -> None:
        raise PermissionError("secret words of the store")

    place = shop.place("other")
    watched(place, monkeypatch, refuse)
    with pytest.raises(PublishFailed, match=r"was not published at .*/other \(PermissionError\)") as caught:
        publish(result, place)
    assert "secret words" not in str(caught.value.as_dict())
    assert f"flattengpt download {JOB}" in caught.value.message


def test_a_bucket_or_folder_that_is_not_there_is_not_made(tmp_path: Path, s3_server: str, result: Path) -> None:
    for root in (f"file://{tmp_path / 'none'}", "s3://no-such-bucket"):
        with pytest.raises(PublishFailed, match="FileNotFoundError"):
            publish(result, Place(f"{root}/tiny", root))
    assert not (tmp_path / "none").exists()
    assert "no-such-bucket" not in new_client().ls("")


def test_links_do_not_lead_out_of_the_root(tmp_path: Path) -> None:
    for name in ("models", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "models" / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidRequest, match="leads out of"):
        Place(f"file://{tmp_path}/models/link/tiny", f"file://{tmp_path}/models")


def test_a_place_is_checked_without_a_trace(shop: Shop) -> None:
    check_place(shop.place(), job_id=JOB, overwrite=False)
    assert shop.holds() == {}
