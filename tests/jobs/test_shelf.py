"""A shelf of uploads: each name is given once, whatever comes at the same time or dies half way."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from jobs.errors import NameTaken, NoRoom
from jobs.shelf import Shelf
from tests.jobs.at_once import at_once


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "shelf", min_free_bytes=0)


def put(shelf: Shelf, name: str, content: bytes) -> bool:
    with shelf.scratch() as scratch:
        shelf.write(scratch / name, [content])
        return shelf.place(scratch / name)


def scratches(shelf: Shelf) -> list[Path]:
    return list(shelf.folder.glob(".upload-*"))


def test_a_name_is_given_once(shelf: Shelf) -> None:
    def compete(index: int) -> str:
        try:
            return "new" if put(shelf, "a", str(index // 2).encode()) else "same"
        except NameTaken:
            return "taken"

    outcomes = at_once(*(partial(compete, index) for index in range(8)))
    assert sorted(outcomes) == ["new", "same", *["taken"] * 6]
    assert shelf.names() == ["a"]
    assert scratches(shelf) == []


def test_a_rival_keeps_the_name(shelf: Shelf) -> None:
    put(shelf, "a.txt", b"")
    with shelf.scratch() as scratch:
        shelf.write(scratch / "a.jsonl", [b""])
        with pytest.raises(NameTaken):
            shelf.place(scratch / "a.jsonl", ["a.txt"])
    assert shelf.names() == ["a.txt"]


def test_a_link_that_leads_nowhere_keeps_the_name(shelf: Shelf) -> None:
    shelf.folder.mkdir()
    (shelf.folder / "a").symlink_to("nowhere")
    with pytest.raises(NameTaken):
        put(shelf, "a", b"")
    assert (shelf.folder / "a").is_symlink()


def test_what_another_process_is_at_stays_and_what_a_killed_one_left_goes(shelf: Shelf) -> None:
    script = (
        "import sys; from pathlib import Path; from jobs.shelf import Shelf\n"
        "with Shelf(Path(sys.argv[1]), min_free_bytes=0).scratch() as scratch:\n"
        "    (scratch / 'half').write_text('x'); print('ready', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(shelf.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    put(shelf, "a", b"")
    assert len(scratches(shelf)) == 1
    process.kill()
    process.wait()
    put(shelf, "b", b"")
    assert scratches(shelf) == []
    assert shelf.names() == ["a", "b"]


def test_removing(shelf: Shelf) -> None:
    assert not shelf.remove("a")
    put(shelf, "a", b"1")
    assert shelf.remove("a")
    assert not shelf.remove("a")
    assert put(shelf, "a", b"2")
    assert scratches(shelf) == []


def test_a_disk_that_is_full_or_nearly_so(tmp_path: Path) -> None:
    low = Shelf(tmp_path / "shelf", min_free_bytes=2**60)
    with pytest.raises(NoRoom, match="FLATTENGPT_MIN_FREE_DISK_BYTES"):
        put(low, "a", b"")
    full = Shelf(tmp_path / "shelf", min_free_bytes=0)

    def blocks() -> Iterator[bytes]:
        yield b"some"
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(NoRoom, match="full"), full.scratch() as scratch:
        full.write(scratch / "a", blocks())
    assert (full.names(), scratches(full)) == ([], [])
