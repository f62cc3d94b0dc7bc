"""Figures that take minutes each, kept in a JSON file as they are measured, so that the same command goes on."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

import flattengpt_core
from flattengpt_core.manifest import write_json

CORE = Path(flattengpt_core.__file__).parent
SHARED_SOURCES = ("calibration", "decoder", "language_head", "regression", "similarity")
"""The core's modules that every method rests on."""
MERGING_SOURCES = ("divergence", "flatten", "grouping", "inner", "merge", "prune", "walk")
"""Those of the methods that merge."""


def core_files(modules: Iterable[str]) -> list[Path]:
    """The files of these modules of the core."""
    return [CORE / f"{module}.py" for module in modules]


class Cells:
    """The measured cells in the JSON file, each with the digest of what it depends on."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._cells: dict[str, Any] = json.loads(file.read_text())["cells"] if file.exists() else {}

    def get(self, key: str, digest: str) -> Any:
        """The cell's value, or None if it is missing or was measured on something else."""
        cell = self._cells.get(key)
        return cell["value"] if cell and cell["digest"] == digest else None

    def made(self, key: str, digest: str, measure: Callable[[], Any]) -> Any:
        """The cell's value, measured now and kept if it is not there."""
        if (value := self.get(key, digest)) is None:
            value = measure()
            self.put(key, digest, value)
        return value

    def put(self, key: str, digest: str, value: Any) -> None:
        """Keep the cell; the file is whole at any time."""
        self._cells[key] = {"digest": digest, "value": value}
        write_json(self._file, {"cells": self._cells})


def digest(settings: Sequence[str], files: Iterable[Path], reported: dict[str, Tensor]) -> str:
    """What a figure depends on: settings, code, and the tokens that it is measured on."""
    found = hashlib.sha256(" ".join(settings).encode())
    for file in files:
        found.update(file.read_bytes())
    for windows in reported.values():
        found.update(windows.numpy().tobytes())
    return found.hexdigest()[:16]
