"""What this machine has, from the files in which the system says so."""

from pathlib import Path

import pytest

from worker.machine import free_bytes, may_have_gpu, memory_bytes, same_disk

GIB = 2**30
NO_LIMIT = "9223372036854771712"


def written(root: Path, files: dict[str, str]) -> Path:
    """A root folder with these files of /proc and /sys."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


def test_without_cgroups_it_is_the_machines_memory(tmp_path: Path) -> None:
    installed = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    assert memory_bytes(tmp_path) == int(installed.split()[1]) * 1024


@pytest.mark.parametrize(
    "files",
    [
        {"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/memory.max": f"{GIB // 4}"},
        {
            "proc/self/cgroup": "0::/a/b",
            "sys/fs/cgroup/a/b/memory.max": "max",
            "sys/fs/cgroup/a/memory.max": f"{GIB // 4}",
            "sys/fs/cgroup/memory.max": f"{GIB // 2}",
        },
        {"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": f"{GIB // 4}"},
        {
            "proc/self/cgroup": "5:cpu:/a\n4:memory:/a\n0::/",
            "sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{GIB // 4}",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": NO_LIMIT,
        },
        {
            "proc/self/cgroup": "4:memory,hugetlb:/docker/0123",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GIB // 4}",
        },
    ],
    ids=["v2", "v2, of a group above", "v2, in a container", "v1", "v1, in a container"],
)
def test_a_cgroups_limit_counts(tmp_path: Path, files: dict[str, str]) -> None:
    assert memory_bytes(written(tmp_path, files)) == GIB // 4


def test_a_cgroup_without_a_limit_is_none(tmp_path: Path) -> None:
    for files in (
        {"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/memory.max": "max"},
        {"proc/self/cgroup": "4:memory:/a", "sys/fs/cgroup/memory/a/memory.limit_in_bytes": NO_LIMIT},
        {"proc/self/cgroup": "4:cpu:/a"},
    ):
        assert memory_bytes(written(tmp_path, files)) == memory_bytes(tmp_path / "none")


def test_a_disk_is_known_before_its_folders_are_made(tmp_path: Path) -> None:
    assert abs(free_bytes(tmp_path / "not" / "yet") - free_bytes(tmp_path)) < GIB
    assert same_disk(tmp_path / "not" / "yet", tmp_path)
    assert not same_disk(tmp_path, Path("/proc"))


@pytest.mark.parametrize(
    ("names", "may"),
    [(["null", "nvme0n1", "nvram"], False), (["nvidiactl"], True), (["nvidia0"], True), (["kfd"], True)],
)
def test_devices_that_tell_of_a_gpu(tmp_path: Path, names: list[str], may: bool) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert may_have_gpu(tmp_path) is may
