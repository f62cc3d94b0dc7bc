"""A recovery's folder: what is to be trained and how, how far it is, and what came of it. Trains nothing itself.

`task.json` and `windows.safetensors` say what to do, `checkpoints/` holds the trainer's state and `checkpoints/last`
names the newest one that is whole, `trained/` and `result.json` are the end.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flattengpt_core.errors import CalibrationNotFound
from flattengpt_core.grouping import Group
from flattengpt_core.manifest import write_atomically, write_json
from flattengpt_core.options import Recovery


@dataclass(frozen=True)
class Task:
    """What to train. student, teacher: checkpoint folders, of the compressed and of the dense model.

    groups: the dense layers behind each of the student's. seed: of the LoRA matrices and of the order of the text.
    device: of a run in one process, `cpu` or `cuda`; a launcher gives each process its own.
    resumable: whether to save the state on the way.
    """

    student: Path
    teacher: Path
    groups: list[Group]
    options: Recovery
    seed: int
    device: str
    resumable: bool = True


@dataclass(frozen=True)
class Recovered:
    """What training did: mean losses in nats a held-out token, and whether the trained weights are the better ones.

    curve: step and training loss; a loss is None where it is no number. For `distill` it is the distance to the dense
    model, the held-out losses are those of the text with either method.
    """

    method: str
    steps: int
    loss_before: float | None
    loss_after: float | None
    kept: bool
    held_out_tokens: int
    curve: list[tuple[int, float | None]]

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON."""
        return asdict(self) | {"curve": [list(point) for point in self.curve]}


class RecoveryFolder:
    """Reads and writes the folder's files; each appears whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.trained = path / "trained"

    def prepare(self, task: Task, windows: Tensor, padding: Tensor | None = None) -> None:
        """Write down what to do; a run that was begun goes on with it.

        Args:
            windows: token ids (n, length) int64; two or more.
            padding: True where a token is padding, (n, length) bool.

        Raises:
            CalibrationNotFound: there are fewer than two windows.
        """
        if len(windows) < 2:
            raise CalibrationNotFound(
                "Recovery needs two windows of text, one to train on and one to judge by: use a longer text or a "
                "shorter sequence_length.",
                field="calibration.sequence_length",
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self._drop_unfinished()
        seen = torch.ones_like(windows, dtype=torch.bool) if padding is None else ~padding
        save_file({"windows": windows.contiguous(), "seen": seen.contiguous()}, self.path / "windows.safetensors")
        write_json(self.path / "task.json", asdict(task) | {"student": str(task.student), "teacher": str(task.teacher)})

    def task(self) -> Task:
        """What to do."""
        entries = json.loads((self.path / "task.json").read_text(encoding="utf-8"))
        options = entries["options"] | {"targets": tuple(entries["options"]["targets"])}
        return Task(
            student=Path(entries["student"]),
            teacher=Path(entries["teacher"]),
            groups=[tuple(group) for group in entries["groups"]],
            options=Recovery(**options),
            seed=entries["seed"],
            device=entries["device"],
            resumable=entries["resumable"],
        )

    def windows(self) -> tuple[Tensor, Tensor]:
        """Token ids (n, length) int64, and True where a token is no padding."""
        tensors = load_file(self.path / "windows.safetensors")
        return tensors["windows"], tensors["seen"]

    def mark(self, checkpoint: str) -> None:
        """Note that the checkpoint of that name is whole."""
        write_atomically(self.checkpoints / "last", checkpoint)

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that is whole, if there is one."""
        marker = self.checkpoints / "last"
        return self.checkpoints / marker.read_text(encoding="utf-8") if marker.exists() else None

    def finish(self, result: Recovered) -> None:
        """Write down the end."""
        write_json(self.path / "result.json", result.as_dict())

    def _drop_unfinished(self) -> None:
        """Remove what an interrupted run has not finished, so that nothing is written over it."""
        last = self.last_checkpoint()
        for checkpoint in self.checkpoints.glob("checkpoint-*"):
            if checkpoint != last:
                shutil.rmtree(checkpoint, ignore_errors=True)
        if not (self.path / "result.json").exists():
            shutil.rmtree(self.trained, ignore_errors=True)

    def result(self) -> Recovered | None:
        """The end, if it has come."""
        file = self.path / "result.json"
        if not file.exists():
            return None
        entries = json.loads(file.read_text(encoding="utf-8"))
        return Recovered(**entries | {"curve": [(step, loss) for step, loss in entries["curve"]]})
