"""Files under one fsspec URL: a folder that hosts may share, or a bucket. Knows nothing of what they are for."""

import hashlib
import os
import posixpath
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from jobs.errors import MissingExtra

_COPY_BYTES = 4 * 1024**2
_BUCKETS = frozenset(("s3", "s3a"))
"""Stores of objects, where there are no folders, and the top one is the operator's to make."""


class StoredFiles:
    """Files by their names, which are relative paths with slashes.

    Args:
        setting: what the URL comes from, for errors.

    Raises:
        MissingExtra: what reads such URLs is not installed.
    """

    def __init__(self, url: str, *, setting: str) -> None:
        try:
            # What another process puts there is to be seen at once.
            self._system, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            raise MissingExtra(_what_to_install(url.partition(":")[0]), field=setting) from error
        self._is_local = isinstance(self._system, LocalFileSystem)
        self._has_folders = not _BUCKETS.intersection(_protocols(self._system))

    @property
    def folder(self) -> Path | None:
        """Where on this machine the files are; None if they are elsewhere."""
        return Path(self._root) if self._is_local else None

    def put(self, source: Path, name: str) -> str:
        """Store a file of this machine under `name`, durably; its SHA-256 in hexadecimal."""
        with source.open("rb") as reader, self._writer(name) as writer:
            digest = copy(reader, writer)
            self._flush(writer)
        return digest

    def put_bytes(self, content: bytes, name: str) -> None:
        """Store `content` under `name`; whoever reads that finds what was there before, or all of it."""
        aside = f"{name}.partial" if self._has_folders else name  # an object of a bucket appears whole
        with self._writer(aside) as writer:
            writer.write(content)
            self._flush(writer)
        if aside != name:
            self._system.mv(self._path(aside), self._path(name))

    def open(self, name: str) -> IO[bytes]:
        """The file's bytes, seekable. Raises FileNotFoundError."""
        return cast("IO[bytes]", self._system.open(self._path(name), "rb", block_size=_COPY_BYTES))

    def is_file(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return bool(self._system.isfile(self._path(name)))

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name, or any below it."""
        return bool(self._system.exists(self._path(name)))

    def names(self, below: str = "") -> list[str]:
        """The last parts of the names that come directly below `below`; none if nothing does."""
        try:
            found = self._system.ls(self._path(below) if below else self._root, detail=False)
        except FileNotFoundError:
            return []
        return sorted(posixpath.basename(path.rstrip("/")) for path in found)

    def move(self, source: str, target: str, files: Sequence[str]) -> None:
        """Rename what is below `source`, `files`; at once where there are folders, else nothing is left if it fails."""
        if self._has_folders:
            self._system.mv(self._path(source), self._path(target), recursive=True)
            return
        try:
            for file in files:
                self._system.copy(self._path(f"{source}/{file}"), self._path(f"{target}/{file}"))
        except BaseException:
            self.remove(target)
            raise
        self.remove(source)

    def remove(self, name: str) -> None:
        """Remove all files below `name`, as far as the store lets it; nothing if there is none."""
        if self._is_local:
            shutil.rmtree(self._path(name), ignore_errors=True)
        elif self.exists(name):
            self._system.rm(self._path(name), recursive=True)

    def remove_file(self, name: str) -> None:
        """Remove one file; nothing if there is none."""
        with suppress(FileNotFoundError):
            self._system.rm_file(self._path(name))

    def ping(self) -> None:
        """Make sure the store can be written to; raises OSError if not."""
        if self._has_folders:
            self._system.makedirs(self._root, exist_ok=True)
        self._system.pipe_file(self._path(".ready"), b"")
        self._system.rm_file(self._path(".ready"))

    def _writer(self, name: str) -> IO[bytes]:
        path = self._path(name)
        if self._has_folders:
            self._system.makedirs(posixpath.dirname(path), exist_ok=True)
        return cast("IO[bytes]", self._system.open(path, "wb"))

    def _flush(self, writer: IO[bytes]) -> None:
        if self._is_local:
            writer.flush()
            os.fsync(writer.fileno())

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"


def copy(reader: IO[bytes], writer: IO[bytes]) -> str:
    """Write all that there is to read; its SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    while block := reader.read(_COPY_BYTES):
        digest.update(block)
        writer.write(block)
    return digest.hexdigest()


def _protocols(system: Any) -> list[str]:
    """All names that URLs of this file system may begin with."""
    return [system.protocol] if isinstance(system.protocol, str) else list(system.protocol)


def _what_to_install(scheme: str) -> str:
    """In words that hold nothing else of the URL, in which there may be a secret."""
    command = "pip install 'flattengpt[s3]'" if scheme in _BUCKETS else f"fsspec's implementation of {scheme}"
    return f"A store at {scheme}:// needs a library that is not installed: {command}."
