"""How much of a dense model's accuracy another keeps, with standard errors. Pure arithmetic on answers; no torch.

The two models answer the same items, so the errors are paired: with x and y the scores of an item, the ratio
R = mean(x) / mean(y) has the standard error of the mean of (x - R y), divided by mean(y) (the delta method).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answers:
    """What a model answered to the items of a task, in their order.

    metric: by which a choice was made: acc, or acc_norm (by log-likelihood a character). right: 1 or 0 an item.
    chances: of guessing each item, 1 by its number of choices.
    """

    metric: str
    right: tuple[float, ...]
    chances: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        return mean(self.right)

    @property
    def stderr(self) -> float | None:
        return stderr(self.right)

    @property
    def chance(self) -> float:
        return mean(self.chances)

    @property
    def above_chance(self) -> tuple[float, ...]:
        """Each item's score, less what guessing gives."""
        return tuple(right - chance for right, chance in zip(self.right, self.chances, strict=True))


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def stderr(values: Sequence[float]) -> float | None:
    """The standard error of the values' mean; None of a single one."""
    if len(values) < 2:
        return None
    center = mean(values)
    return math.sqrt(math.fsum((value - center) ** 2 for value in values) / (len(values) - 1) / len(values))


def accuracies(answers: Mapping[str, Answers]) -> dict[str, Any]:
    """Accuracy and its standard error by task and of their plain `mean`, and what each task was; empty without any."""
    errors = {task: given.stderr for task, given in answers.items()}
    overall = {"mean": mean([given.accuracy for given in answers.values()])} if answers else {}
    return {
        "accuracy": {task: given.accuracy for task, given in answers.items()} | overall,
        "accuracy_stderr": errors | ({"mean": _of_mean(errors.values())} if answers else {}),
        "tasks": {
            task: {"metric": given.metric, "items": len(given.right), "chance": given.chance}
            for task, given in answers.items()
        },
    }


def retention(answers: Mapping[str, Answers], dense: Mapping[str, Answers]) -> dict[str, Any]:
    """What is kept of the dense model's answers to the same items, by task and of the `mean` of the accuracies.

    Returns:
        Each with `raw` (accuracy by accuracy), `above_chance` ((accuracy - chance) by (accuracy - chance)) and their
        `..._stderr`; None where the dense model is no better than 0 or than chance.
    """
    if not answers:
        return {}
    pairs = {
        "raw": {task: (given.right, dense[task].right) for task, given in answers.items()},
        "above_chance": {task: (given.above_chance, dense[task].above_chance) for task, given in answers.items()},
    }
    found: dict[str, Any] = {task: {} for task in (*answers, "mean")}
    for kind, by_task in pairs.items():
        groups = {task: [pair] for task, pair in by_task.items()} | {"mean": list(by_task.values())}
        for task, group in groups.items():
            found[task][kind], found[task][f"{kind}_stderr"] = _ratio(group)
    return found


def share_kept(kept: Mapping[str, Any], kind: str) -> str:
    """`raw` or `above_chance` of an entry of `retention` in percent, rounded down, so that no loss reads as 100."""
    share, error = kept[kind], kept[f"{kind}_stderr"]
    if share is None:
        return "not defined"
    shown = f"{math.floor(share * 1000) / 10:.1f} %"
    return shown if error is None else f"{shown} ± {error * 100:.1f}"


def _ratio(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> tuple[float | None, float | None]:
    """The mean over tasks of one model's means by that of the other's, and its standard error."""
    above, below = (mean([mean(pair[side]) for pair in pairs]) for side in (0, 1))
    if below <= 0:
        return None, None
    ratio = above / below
    left = [stderr([x - ratio * y for x, y in zip(own, dense, strict=True)]) for own, dense in pairs]
    error = _of_mean(left)
    return ratio, None if error is None else error / below


def _of_mean(errors: Iterable[float | None]) -> float | None:
    """The standard error of a mean of independent figures from those of each; None if one is not known."""
    known = list(errors)
    if any(error is None for error in known):
        return None
    return math.sqrt(math.fsum(error**2 for error in known if error is not None)) / len(known)
