"""What tests of recovery share: a listener, text that can be learnt, and a compressed model beside its dense one."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flattengpt_core.options import Recovery
from flattengpt_core.progress import Silent
from flattengpt_core.recovery.folder import RecoveryFolder, Task
from tests.tiny_models import tiny_checkpoint

GROUPS = [(0, 1, 2), (3,), (4,), (5,)]
LORA = Recovery("lora", steps=6, rank=4, learning_rate=3e-2)
DISTILL = Recovery("distill", steps=6, rank=4, learning_rate=3e-2)
FULL = Recovery("distill", steps=6, train="full", learning_rate=3e-3, schedule="cosine", token_weight=0.5)


class Stopped(Exception):
    """What a caller raises to stop a run."""


class Recorder(Silent):
    """Keeps what it is told, and stops at a step if told to."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.steps: list[tuple[int, int]] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._stop_at = stop_at

    def step(self, done: int, total: int) -> None:
        self.steps.append((done, total))
        if done == self._stop_at:
            raise Stopped

    def event(self, type: str, **data: Any) -> None:
        self.events.append((type, data))

    def losses(self) -> list[float]:
        return [data["loss"] for type, data in self.events if type == "loss"]


def counting_windows() -> Tensor:
    """Text that can be learnt: each of 40 windows of 32 tokens counts up from somewhere."""
    starts = torch.randint(0, 64, (40, 1), generator=torch.Generator().manual_seed(1))
    return (starts + torch.arange(32)) % 64


def models(tmp_path: Path) -> tuple[Path, Path]:
    """A model of 4 layers and its dense one of 6."""
    student, dense = tmp_path / "student", tmp_path / "dense"
    if not student.exists():
        tiny_checkpoint(student, seed=1, tie_word_embeddings=True, num_hidden_layers=len(GROUPS))
        tiny_checkpoint(dense, tie_word_embeddings=True)
    return student, dense


def prepared(
    tmp_path: Path,
    options: Recovery,
    *,
    name: str = "recovery",
    windows: Tensor | None = None,
    padding: Tensor | None = None,
    seed: int = 0,
) -> RecoveryFolder:
    """A recovery folder of that name whose task is to train the model of 4 layers."""
    student, dense = models(tmp_path)
    folder = RecoveryFolder(tmp_path / name)
    task = Task(student, dense, GROUPS, options, seed, "cpu")
    folder.prepare(task, counting_windows() if windows is None else windows, padding)
    return folder
