"""Unpacks a tar archive while it comes in. Nothing of it is trusted: no name, no size, no kind of entry.

tarfile reads the headers, with how much it may read of each; it writes nothing, so that no entry chooses where it goes.
"""

import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self, cast

from jobs.errors import UploadRefused, UploadTooLarge

MAX_ENTRIES = 2000
_HEADER_BYTES = 1024**2
"""What an entry's headers may take, with what tarfile reads ahead: it holds them in memory, whatever size they tell."""
_BLOCK_BYTES = 1024**2

Write = Callable[[Path, Iterable[bytes]], None]


def unpack(
    blocks: Iterable[bytes],
    folder: Path,
    *,
    gzipped: bool,
    max_bytes: int,
    largest: Callable[[str], int | None],
    write: Write,
) -> None:
    """Write the archive's files into the flat folder `folder`.

    Args:
        max_bytes: what the archive may come to, unpacked.
        largest: the most bytes that a file of that name may have, None for no limit of its own. Raises UploadRefused
            for a file that is not wanted.
        write: writes a new file.

    Raises:
        UploadRefused: the archive is damaged or cut off, or holds something else than wanted files, each once.
        UploadTooLarge: it comes to more than `max_bytes`.
    """
    stream = _Measured(_gunzipped(blocks) if gzipped else iter(blocks), max_bytes)
    try:
        stream.allow(_HEADER_BYTES)
        readable = cast("Any", stream)  # nothing but read() is called
        with tarfile.open(fileobj=readable, mode="r|", tarinfo=_StrictEntry, encoding="utf-8") as archive:
            for count, entry in enumerate(archive, 1):
                if count > MAX_ENTRIES:
                    raise UploadRefused(f"The archive has more than {MAX_ENTRIES} entries.", field="body")
                if not _is_the_folder_itself(entry):
                    name = _wanted(entry, folder, largest)
                    stream.allow(entry.size + _HEADER_BYTES)
                    stream.expect(entry.size)
                    write(folder / name, _content(archive, entry))
                stream.allow(_HEADER_BYTES)
        stream.drain()
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise UploadRefused(f"The archive is damaged: {error}.", field="body") from None


class _StrictEntry(tarfile.TarInfo):
    """An entry whose header must be right: tarfile else takes a wrong one for the archive's end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # the mark at the archive's end
        except tarfile.HeaderError as error:
            what = "it is cut off" if str(error) in ("empty header", "truncated header") else str(error)
            raise UploadRefused(f"The archive is damaged: {what}.", field="body") from None


class _Measured:
    """A stream that ends the reading when more is read than may be."""

    def __init__(self, blocks: Iterator[bytes], max_bytes: int) -> None:
        self._blocks, self._rest = blocks, b""
        self._max_bytes, self._total, self._allowed = max_bytes, 0, 0

    def allow(self, count: int) -> None:
        """Let so many bytes more be read, in place of what was allowed before."""
        self._allowed = count

    def expect(self, count: int) -> None:
        """Refuse at once what cannot fit."""
        if self._total + count > self._max_bytes + _HEADER_BYTES:  # some of it may have been read ahead
            raise self._too_large()

    def read(self, count: int) -> bytes:
        if not self._rest:
            self._rest = next(self._blocks, b"")
        block, self._rest = self._rest[:count], self._rest[count:]
        self._total += len(block)
        self._allowed -= len(block)
        if self._total > self._max_bytes:
            raise self._too_large()
        if self._allowed < 0:
            raise UploadRefused("The archive has a header that is too long.", field="body")
        return block

    def drain(self) -> None:
        """Read what comes after the archive's end."""
        self.allow(self._max_bytes)
        while self.read(_BLOCK_BYTES):
            pass

    def _too_large(self) -> UploadTooLarge:
        return UploadTooLarge(
            f"The archive comes to more than {self._max_bytes} bytes, unpacked: the most that this service takes "
            "(FLATTENGPT_MAX_MODEL_BYTES)."
        )


def _gunzipped(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """What is packed in a gzip file of one member, in blocks that fit into memory however well it is packed."""
    inflate = zlib.decompressobj(wbits=31)
    try:
        for block in blocks:
            if inflate.eof and block.strip(b"\0"):
                raise UploadRefused("Something follows the gzip file.", field="body")
            packed = block
            while unpacked := inflate.decompress(packed, _BLOCK_BYTES):
                yield unpacked
                packed = inflate.unconsumed_tail
            if inflate.unused_data.strip(b"\0"):
                raise UploadRefused("Something follows the gzip file.", field="body")
    except zlib.error as error:
        raise UploadRefused(f"The gzip file is damaged: {error}.", field="body") from None
    if not inflate.eof:
        raise UploadRefused("The gzip file is cut off.", field="body")


def _is_the_folder_itself(entry: tarfile.TarInfo) -> bool:
    """Whether it is what `tar -C FOLDER .` begins with."""
    return entry.isdir() and entry.name in (".", "./")


def _wanted(entry: tarfile.TarInfo, folder: Path, largest: Callable[[str], int | None]) -> str:
    """The file's name. Raises UploadRefused."""
    name = entry.name.removeprefix("./")
    if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or entry.sparse is not None or entry.size < 0:
        raise UploadRefused(
            f"{name!r} is {_kind(entry)}: send the files alone, e.g. with `tar -cf - *` in their folder.", field=name
        )
    most = largest(name)
    if most is not None and entry.size > most:
        raise UploadRefused(f"{name!r} has {entry.size} bytes; a file of that name may have {most}.", field=name)
    if (folder / name).exists():
        raise UploadRefused(f"{name!r} is in the archive twice.", field=name)
    return name


def _kind(entry: tarfile.TarInfo) -> str:
    if entry.isdir():
        return "a folder"
    if entry.issym() or entry.islnk():
        return "a link"
    return "a file with holes" if entry.sparse is not None else "no file"


def _content(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> Iterator[bytes]:
    """The bytes of a file. tarfile raises ReadError where the archive ends before them."""
    reader = archive.extractfile(entry)
    assert reader is not None  # it is a regular file
    while block := reader.read(_BLOCK_BYTES):
        yield block
