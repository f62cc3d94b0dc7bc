"""What a run can be asked for, as plain values. Imports no torch; bounds are checked where requests come in."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Calibration:
    """Text to calibrate on.

    dataset: a text's name or file; several joined by '+' share the samples evenly. samples: windows in all.
    sequence_length: tokens a window. seed: which windows.
    """

    dataset: str = "wikitext2"
    samples: int = 128
    sequence_length: int = 2048
    seed: int = 0


@dataclass(frozen=True)
class Recovery:
    """Training after compression. steps: optimiser steps. rank: of the LoRA matrices."""

    method: Literal["none", "lora"] = "none"
    steps: int = 500
    rank: int = 8
    learning_rate: float = 1e-4


@dataclass(frozen=True)
class Evaluation:
    """What to measure on both models.

    perplexity: texts by name or file. sequence_length: window, tokens. windows: at most so many a text, the first
    ones; all if None. benchmark: also measure speed.
    """

    perplexity: tuple[str, ...] = ("wikitext2",)
    sequence_length: int = 512
    windows: int | None = None
    benchmark: bool = True
    benchmark_repeats: int = field(default=5)
