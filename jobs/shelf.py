"""A folder of uploads: each appears under its name only when it is whole and durable, and never changes after that.

Safe for several processes at once, also on several hosts that share the folder. Knows nothing of what is kept.
"""

import errno
import fcntl
import filecmp
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from jobs.errors import NameTaken, NoRoom

_SCRATCH = ".upload-"
_LOCK = ".lock"


class Shelf:
    """Files and folders in `folder`, which is made when it is needed.

    Args:
        min_free_bytes: what must stay free on the folder's disk.
    """

    def __init__(self, folder: Path, *, min_free_bytes: int) -> None:
        self.folder, self._min_free_bytes = folder.absolute(), min_free_bytes

    @contextmanager
    def scratch(self, *, room: bool = True) -> Iterator[Path]:
        """A new folder on the shelf's disk for what is not whole yet; it goes at the end, however that comes.

        What processes that were killed left goes first.

        Args:
            room: whether the disk must have room.

        Raises:
            NoRoom: it has none; also in place of a full disk's own error.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with _told_of_a_full_disk():
            if room:
                self.check_room()
            with self._locked():
                self._clear_left_over()
                scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=self.folder))
                alive = _lock(scratch / _LOCK)
            try:
                yield scratch
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
                os.close(alive)

    def check_room(self, wanted_bytes: int = 0) -> None:
        """Make sure that so many bytes more leave enough free. Raises NoRoom."""
        free = shutil.disk_usage(self.folder).free
        if free - wanted_bytes < self._min_free_bytes:
            raise NoRoom(
                f"The service's disk has {free} bytes free, of which {self._min_free_bytes} must stay so "
                "(FLATTENGPT_MIN_FREE_DISK_BYTES): delete models or texts that are not needed, or have room made."
            )

    def write(self, file: Path, blocks: Iterable[bytes]) -> None:
        """Write the new file `file` durably. Raises NoRoom."""
        with file.open("xb") as stream:
            for block in blocks:
                self.check_room(len(block))
                stream.write(block)
            stream.flush()
            os.fsync(stream.fileno())

    def place(self, made: Path, rivals: Sequence[str] = ()) -> bool:
        """Put `made`, a file or a flat folder of durable files, on the shelf under its own name.

        Args:
            rivals: further names that must be free.

        Returns:
            False if the same, byte for byte, is there already.

        Raises:
            NameTaken: the name or a rival is there with other content.
        """
        if made.is_dir():
            _sync(made)
        target = self.folder / made.name
        with self._locked():
            taken = [name for name in (made.name, *rivals) if os.path.lexists(self.folder / name)]
            if not taken:
                made.rename(target)
                _sync(self.folder)
                return True
        if taken == [made.name] and _same(made, target):
            return False
        raise NameTaken(
            "There is another one of that name, and what is stored never changes: delete it first, or choose another "
            "name.",
            field="name",
        )

    def remove(self, name: str) -> bool:
        """Take the file or folder off the shelf, at once as a whole; False if it is not there."""
        with self.scratch(room=False) as scratch:
            try:
                (self.folder / name).rename(scratch / "removed")
            except FileNotFoundError:
                return False
            _sync(self.folder)
        return True

    def names(self) -> list[str]:
        """What is on the shelf, sorted."""
        if not self.folder.is_dir():
            return []
        return sorted(entry.name for entry in self.folder.iterdir() if not entry.name.startswith("."))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = _lock(self.folder / _LOCK)
        try:
            yield
        finally:
            os.close(lock)

    def _clear_left_over(self) -> None:
        """Remove scratch folders whose process does not hold their lock any more."""
        for folder in self.folder.glob(f"{_SCRATCH}*"):
            with suppress(OSError):
                lock = _lock(folder / _LOCK, wait=False)
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _lock(file: Path, *, wait: bool = True) -> int:
    """An open descriptor that holds the lock of `file` until it is closed, also by the process's death."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def _told_of_a_full_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoRoom("The service's disk is full: have room made on it, then upload again.") from None
        raise


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _same(one: Path, other: Path) -> bool:
    """Whether both are the same file, or flat folders of the same files."""
    if one.is_dir() and other.is_dir():
        names = {entry.name for entry in one.iterdir()}
        return names == {entry.name for entry in other.iterdir()} and all(_same(one / n, other / n) for n in names)
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)
