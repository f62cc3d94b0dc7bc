"""What the pipeline tells its caller while it runs. Knows nothing of jobs or terminals."""

from typing import Any, Protocol

STAGES = ("loading", "calibrating", "compressing", "recovering", "evaluating")
"""The pipeline's stages, in order. A service that publishes the result adds its own after them."""


class Progress(Protocol):
    """The caller's side of a run. Any method may raise, which stops the run between two units of work."""

    def stage(self, name: str) -> None:
        """A stage begins: one of `STAGES`, or of another command."""

    def step(self, done: int, total: int) -> None:
        """`done` of `total` units of the current stage are finished (a unit is a layer, a window, a step)."""

    def event(self, type: str, **data: Any) -> None:
        """Something worth recording happened, e.g. `layer` or `loss`; `data` is JSON."""


class Part:
    """One of `count` equal parts of a stage, as the steps of the whole stage."""

    def __init__(self, whole: Progress, index: int, count: int) -> None:
        self._whole, self._index, self._count = whole, index, count

    def stage(self, name: str) -> None:
        """A part begins no stage."""

    def step(self, done: int, total: int) -> None:
        self._whole.step(self._index * total + done, self._count * total)

    def event(self, type: str, **data: Any) -> None:
        self._whole.event(type, **data)


class Silent:
    """A `Progress` that says nothing."""

    def stage(self, name: str) -> None: ...

    def step(self, done: int, total: int) -> None: ...

    def event(self, type: str, **data: Any) -> None: ...
