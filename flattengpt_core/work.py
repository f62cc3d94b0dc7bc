"""The intermediate state of a run in a folder: finished layers, the compressed checkpoint, how far recovery is.

A folder belongs to one request; the same request goes on where it stopped, another is refused.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from flattengpt_core.compressed import Compressed
from flattengpt_core.errors import InvalidRequest
from flattengpt_core.manifest import write_json
from flattengpt_core.options import Evaluation
from flattengpt_core.recovery.folder import RecoveryFolder
from flattengpt_core.unfinished import Unfinished

_BLOCK_BYTES = 1024**2
_SAMPLES = 64


class WorkFolder:
    """The state of the request `asked` under `path`.

    compressed: the checkpoint before recovery. parts: the layers that are finished of the one in work, by its size.
    trials: the sizes that a budget's search has tried.

    Raises:
        InvalidRequest: the folder holds another request's state, or something else.
    """

    def __init__(self, path: Path, asked: Mapping[str, Any]) -> None:
        self.path = path
        self.compressed = path / "compressed"
        self.parts = path / "parts"
        self.trials = path / "trials"
        self.recovery = RecoveryFolder(path / "recovery")
        self._record = path / "compressed.json"
        _claim(path, json.loads(json.dumps(asked)))
        for half in path.rglob("*.partial"):
            half.unlink()  # another process that still writes to it writes to nothing

    def layers_done(self) -> tuple[Compressed, float] | None:
        """How the compressed checkpoint came out and the seconds it took; None if it is not whole."""
        if not self._record.exists():
            shutil.rmtree(self.compressed, ignore_errors=True)
            return None
        record = json.loads(self._record.read_text(encoding="utf-8"))
        return Compressed.from_json(record), record["compress_seconds"]

    def finish_layers(self, done: Compressed, seconds: float) -> None:
        """Note that the compressed checkpoint is whole."""
        write_json(self._record, asdict(done) | {"compress_seconds": seconds})

    def evaluation(self, evaluation: Evaluation, texts: Iterable[Tensor]) -> Unfinished:
        """What has been measured of this evaluation; what was of another, or of other texts or tasks, is dropped."""
        files = [Path(task) for task in evaluation.tasks if Path(task).is_file()]
        return Unfinished(
            self.path / "evaluation",
            asdict(evaluation) | {"text_sha256": _digest(texts), "task_files": _fingerprints(files)},
        )


def identity(model: Path, texts: Iterable[Tensor]) -> dict[str, Any]:
    """What says that a model and token windows are still the same, on this machine or on another."""
    files = sorted(file for file in model.iterdir() if file.is_file()) if model.is_dir() else [model]
    return {"model": _fingerprints(files), "text": _digest(texts)}


def _digest(texts: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for windows in texts:
        digest.update(windows.numpy().tobytes())
    return digest.hexdigest()


def _fingerprints(files: Iterable[Path]) -> list[list[Any]]:
    return [[file.name, file.stat().st_size, _sampled(file)] for file in files]


def _sampled(file: Path) -> str:
    """SHA-256 of the file, or of `_SAMPLES` blocks spread over a large one, its first and last among them.

    Training changes nearly every tensor, and to read all of a large model would take longer than some of its layers.
    """
    digest, last = hashlib.sha256(), max(0, file.stat().st_size - _BLOCK_BYTES)
    starts: Sequence[int] = range(0, last + _BLOCK_BYTES, _BLOCK_BYTES)
    if len(starts) > _SAMPLES:
        starts = [last * sample // (_SAMPLES - 1) for sample in range(_SAMPLES)]
    with file.open("rb") as stream:
        for start in starts:
            stream.seek(start)
            digest.update(stream.read(_BLOCK_BYTES))
    return digest.hexdigest()


def _claim(path: Path, asked: dict[str, Any]) -> None:
    """Make the folder the request's own, or make sure that it is."""
    file = path / "request.json"
    if not file.exists():
        if path.exists() and any(path.iterdir()):
            raise InvalidRequest(f"{path} is no work folder and not empty: choose another.", field="work")
        path.mkdir(parents=True, exist_ok=True)
        write_json(file, asked)
        return
    held = json.loads(file.read_text(encoding="utf-8"))
    different = sorted(key for key in held.keys() | asked.keys() if held.get(key) != asked.get(key))
    if different:
        raise InvalidRequest(
            f"{path} holds the state of another request (other: {', '.join(different)}): choose another folder, or "
            "remove it to start afresh.",
            field="work",
        )
