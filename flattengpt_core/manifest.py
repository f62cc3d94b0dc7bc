"""`flattengpt.json`, the record of how a result was made, and files and folders that appear whole.

Imports no torch, for who publishes results.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flattengpt_core.compressed import Compressed

MANIFEST = "flattengpt.json"
_VERSIONED = ("flattengpt", "torch", "transformers", "safetensors", "tokenizers", "peft", "lm-eval")


def write_manifest(folder: Path, request: Mapping[str, Any], metrics: Mapping[str, Any], done: "Compressed") -> None:
    """Write the request, versions, groups, kept heads and channels, metrics and the sha256 of each other file."""
    manifest = {
        "request": dict(request),
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONED}
        | {"python": platform.python_version()},
        "groups": [list(group) for group in done.groups],
        "merged": [asdict(group) for group in done.merged],
        "metrics": dict(metrics),
        "sha256": {file.name: sha256(file) for file in sorted(folder.iterdir()) if file.is_file()},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def sha256(file: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """A new folder on the disk of `out` for what is not finished yet; it goes at the end, however that comes."""
    aside = out.with_name(f"{out.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
    aside.mkdir(parents=True)
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def flush(folder: Path) -> None:
    """Make the folder's files durable."""
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


def move_into_place(folder: Path, out: Path) -> None:
    """Make all of `folder` durable, then give it its final name; `out` must not exist or be empty."""
    flush(folder)
    if out.exists():
        out.rmdir()
    os.rename(folder, out)
    parent = os.open(out.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def write_json(file: Path, entries: Mapping[str, Any]) -> None:
    """Write the JSON file `file` whole or not at all."""
    write_atomically(file, json.dumps(entries, indent=2, allow_nan=False) + "\n")


def write_atomically(file: Path, text: str) -> None:
    """Write the text file `file` whole or not at all, durably."""
    aside = file.with_name(f"{file.name}.partial")
    with aside.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(aside, file)
