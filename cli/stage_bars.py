"""A run on this machine as a person sees it: one bar a stage on standard error."""

from typing import Any

from rich.progress import Progress as Bar
from rich.progress import TaskID

from cli.screen import err


class StageBars:
    """A `flattengpt_core.progress.Progress` with one bar a stage."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._task: TaskID | None = None

    def stage(self, name: str) -> None:
        self._finish()
        self._task = self._bar.add_task(name, total=None)
        if not err.is_terminal:
            err.print(name)

    def step(self, done: int, total: int) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=done, total=total)

    def event(self, type: str, **data: Any) -> None:
        if type == "resumed":
            err.print(f"going on after {data['rows']} rows of an interrupted run")

    def _finish(self) -> None:
        if self._task is not None:
            total = self._bar.tasks[-1].total or 1
            self._bar.update(self._task, total=total, completed=total)
