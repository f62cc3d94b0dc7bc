"""A worker watches its disk: it says once that it is nearly full, and once that it no longer is."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from jobs.settings import Settings
from worker.disk_floor import DiskFloor

MIB = 2**20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of four MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no right to mount a disk: a low one is NOT tested")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_and_empties(disk: Path) -> None:
    floor = DiskFloor(Settings(data_dir=disk / "data", min_free_disk_bytes=2 * MIB))
    (disk / "data").mkdir()
    ballast, asked = disk / "ballast", []
    with structlog.testing.capture_logs() as logs:
        assert floor.holds(lambda: asked.append(1))
        assert (asked, logs) == ([], [])
        ballast.write_bytes(bytes(3 * MIB))
        assert [floor.holds(lambda: asked.append(1)) for _ in range(3)] == [False] * 3
        assert len(asked) == 3
        assert [(line["log_level"], line["free_bytes"]) for line in logs] == [("warning", MIB)]
        ballast.unlink()
        assert [floor.holds(lambda: asked.append(1)) for _ in range(2)] == [True] * 2
        assert [line["log_level"] for line in logs] == ["warning", "info"]


def test_room_is_made_before_jobs_are_refused(disk: Path) -> None:
    floor = DiskFloor(Settings(data_dir=disk, min_free_disk_bytes=2 * MIB))
    (disk / "work").mkdir()
    (disk / "work" / "layers").write_bytes(bytes(3 * MIB))
    with structlog.testing.capture_logs() as logs:
        assert floor.holds(lambda: shutil.rmtree(disk / "work"))
    assert logs == []
