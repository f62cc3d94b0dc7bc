"""Uploaded models, `local:NAME` in a request: unpacked and checked aside, and only then under their name."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from itertools import chain
from pathlib import Path

from flattengpt_core.checkpoint import CheckpointInfo, LocalModel, inspect, resolve
from flattengpt_core.errors import FlattenGPTError, ModelNotFound
from flattengpt_core.local_names import LOCAL, local_name
from jobs import model_files
from jobs.archive import unpack
from jobs.errors import NotStored, UploadRefused
from jobs.settings import Settings
from jobs.shelf import Shelf

GGUF = ".gguf"
_GGUF_START, _GZIP_START = b"GGUF", b"\x1f\x8b"


class Package(StrEnum):
    """What a model is uploaded as."""

    TAR = "tar"
    TAR_GZ = "tar.gz"
    GGUF = "gguf"
    ANY = "any"
    """One of the others, as its name and its first bytes tell."""


@dataclass(frozen=True)
class StoredModel:
    """A model that jobs can name. size: bytes of its files. problem: why it cannot be used; then `info` is None."""

    name: str
    size: int
    created_at: datetime
    info: CheckpointInfo | None
    problem: str | None


class ModelStore:
    """The models of one data folder, also those that somebody else has put there."""

    def __init__(self, settings: Settings) -> None:
        self._shelf = Shelf(settings.models_dir, min_free_bytes=settings.min_free_disk_bytes)
        self._max_bytes = settings.max_model_bytes

    def put(self, name: str, package: Package, blocks: Iterable[bytes]) -> tuple[StoredModel, bool]:
        """Store a new model; with it, whether it is new, or the same as what is there already.

        Raises:
            UploadRefused, UnsupportedModel, ModelNotFound: what came cannot be used, and why.
            UploadTooLarge: it comes to more than `max_model_bytes`.
            NameTaken, NoRoom: as `Shelf`.
        """
        if package is Package.ANY:
            package, blocks = _told(name, blocks)
        _check_name(name, package)
        with self._shelf.scratch() as scratch:
            model = scratch / name
            if package is Package.GGUF:
                self._shelf.write(model, blocks)
            else:
                model.mkdir()
                unpack(
                    blocks,
                    model,
                    gzipped=package is Package.TAR_GZ,
                    max_bytes=self._max_bytes,
                    largest=model_files.largest,
                    write=self._shelf.write,
                )
                model_files.check(model)
            inspect(model)
            is_new = self._shelf.place(model)
        return self.get(name), is_new

    def all(self) -> list[StoredModel]:
        """Every model, by name."""
        return list(_each(filter(_is_name, self._shelf.names()), self.get))

    def get(self, name: str) -> StoredModel:
        """One model; raises NotStored."""
        path = self._path(name)
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        info, problem = None, None
        try:
            info = inspect(path)
        except FlattenGPTError as error:
            problem = error.message
        created = datetime.fromtimestamp(round(path.stat().st_mtime), UTC)
        return StoredModel(name, sum(file.stat().st_size for file in files), created, info, problem)

    def remove(self, name: str) -> None:
        """Remove a model; raises NotStored."""
        self._path(name)
        if not self._shelf.remove(name):
            raise _not_stored(name)

    def _path(self, name: str) -> Path:
        try:
            located = resolve(f"{LOCAL}{name}", self._shelf.folder)
        except ModelNotFound:
            raise _not_stored(name) from None
        assert isinstance(located, LocalModel)  # by its name
        return located.path


def _each(names: Iterable[str], get: Callable[[str], StoredModel]) -> Iterator[StoredModel]:
    for name in names:
        with suppress(NotStored, FileNotFoundError):  # it was removed just now, or is a link that leads out
            yield get(name)


def _is_name(name: str) -> bool:
    return local_name(f"{LOCAL}{name}") is not None


def _not_stored(name: str) -> NotStored:
    return NotStored(f"There is no model {name!r}; GET /models lists those there are.")


def _told(name: str, blocks: Iterable[bytes]) -> tuple[Package, Iterable[bytes]]:
    """What the blocks are, and all of them."""
    rest, start = iter(blocks), b""
    while len(start) < len(_GGUF_START) and (block := next(rest, b"")):
        start += block
    if name.endswith(GGUF) or start.startswith(_GGUF_START):
        package = Package.GGUF
    else:
        package = Package.TAR_GZ if start.startswith(_GZIP_START) else Package.TAR
    return package, chain([start], rest)


def _check_name(name: str, package: Package) -> None:
    """A file is told from a folder by its name, here as everywhere."""
    if name.endswith(GGUF) and package is not Package.GGUF:
        raise UploadRefused("A name that ends in .gguf is a GGUF file's: send that, or choose another.", field="name")
    if package is Package.GGUF and not name.endswith(GGUF):
        raise UploadRefused("A GGUF file's name must end in .gguf.", field="name")
