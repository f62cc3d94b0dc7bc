"""What a file or folder is uploaded as, and its bytes."""

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cli.errors import BadUsage

Kind = Literal["models", "datasets"]

_BLOCK_BYTES = 1024**2
_TEXTS = {".txt": "text/plain", ".jsonl": "application/jsonl"}


@dataclass(frozen=True)
class Upload:
    """One upload. kind: where it belongs. name: the NAME of `local:NAME`. packed: whether its body is a tar archive."""

    kind: Kind
    name: str
    media_type: str
    files: tuple[Path, ...]
    packed: bool

    @property
    def path(self) -> str:
        """The path of the request."""
        return f"/{self.kind}/{self.name}"

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.stat().st_size for file in self.files)

    def blocks(self, on_bytes: Callable[[int], object] = lambda _: None) -> Iterator[bytes]:
        """The body of the request; `on_bytes` is told of each block of a file."""
        for file in self.files:
            if self.packed:
                yield _header(file)
            with file.open("rb") as stream:
                while block := stream.read(_BLOCK_BYTES):
                    yield block
                    on_bytes(len(block))
            if self.packed:
                yield bytes(-file.stat().st_size % tarfile.BLOCKSIZE)
        if self.packed:
            yield bytes(2 * tarfile.BLOCKSIZE)


def upload_of(path: Path, name: str | None = None) -> Upload:
    """What `path` is uploaded as: a folder or .gguf file as a model, a .txt or .jsonl file as a text.

    Args:
        name: by default the path's own; a text's without its ending.

    Raises:
        BadUsage: it is nothing of that kind.
    """
    if path.is_dir():
        files = tuple(sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")))
        if not files:
            raise BadUsage(f"{path} holds no files.")
        return Upload("models", name or path.resolve().name, "application/x-tar", files, packed=True)
    if not path.is_file():
        raise BadUsage(f"{path} does not exist.")
    if path.suffix == ".gguf":
        return Upload("models", name or path.name, "application/octet-stream", (path,), packed=False)
    if path.suffix in _TEXTS:
        return Upload("datasets", name or path.stem, _TEXTS[path.suffix], (path,), packed=False)
    raise BadUsage(f"{path} is neither a checkpoint folder, a .gguf file, nor a .txt or .jsonl text.")


def _header(file: Path) -> bytes:
    entry = tarfile.TarInfo(file.name)
    entry.size = file.stat().st_size
    return entry.tobuf(tarfile.USTAR_FORMAT)
