"""A stored result comes back byte for byte, or not at all."""

import shutil
from pathlib import Path

import pytest

from jobs.artifacts import Artifact, ArtifactStore
from worker.restore import Source, restore


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(f"file://{tmp_path / 'artifacts'}")


@pytest.fixture
def artifacts(store: ArtifactStore, tmp_path: Path) -> list[Artifact]:
    """What `folder` held when it was stored."""
    folder = tmp_path / "result"
    (folder / "figures").mkdir(parents=True)
    (folder / "config.json").write_bytes(b"{}")
    (folder / "figures" / "curve.svg").write_bytes(b"<svg/>")
    return store.put_folder("J1", folder)


def held(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


WHOLE = {"config.json": b"{}", "figures/curve.svg": b"<svg/>"}


def test_what_is_here_is_used_as_it_is(store: ArtifactStore, artifacts: list[Artifact], tmp_path: Path) -> None:
    store.delete("J1")
    assert restore(store, "J1", artifacts, tmp_path / "result") is Source.WORKER
    assert held(tmp_path / "result") == WHOLE


@pytest.mark.parametrize("damage", ["changed", "cut", "missing", "more", "all gone"])
def test_what_is_not_whole_here_comes_from_the_store(
    store: ArtifactStore, artifacts: list[Artifact], tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "result"
    match damage:
        case "changed":
            (folder / "config.json").write_bytes(b"[]")
        case "cut":
            (folder / "config.json").write_bytes(b"{")
        case "missing":
            (folder / "config.json").unlink()
        case "more":
            (folder / "secret").touch()
        case _:
            shutil.rmtree(folder)
    assert restore(store, "J1", artifacts, folder) is Source.STORE
    assert held(folder) == WHOLE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifacts", "result"]


@pytest.mark.parametrize("damage", ["changed", "missing", "deleted"])
def test_what_is_whole_nowhere_is_not_used(
    store: ArtifactStore, artifacts: list[Artifact], tmp_path: Path, damage: str
) -> None:
    shutil.rmtree(tmp_path / "result")
    match damage:
        case "changed":
            (tmp_path / "artifacts" / "J1" / "figures" / "curve.svg").write_bytes(b"<SVG/>")
        case "missing":
            (tmp_path / "artifacts" / "J1" / "figures" / "curve.svg").unlink()
        case _:
            store.delete("J1")
    assert restore(store, "J1", artifacts, tmp_path / "result") is None
    assert not (tmp_path / "result").exists()


def test_a_result_that_was_not_stored_is_removed(store: ArtifactStore, tmp_path: Path) -> None:
    """Its attempt died too early; the next one makes its own in the same place."""
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "config.json").touch()
    assert restore(store, "J1", [], tmp_path / "result") is None
    assert not (tmp_path / "result").exists()
