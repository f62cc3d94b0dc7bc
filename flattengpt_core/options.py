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
    ones; all if None. tasks: by lm-eval's name or file, with their first `task_items` items; all if None.

    benchmark: also measure speed, by SLEB's protocol: generating `benchmark_new_tokens` tokens after prompts of
    `benchmark_prompt_tokens` in a batch of `benchmark_batch_size`, and one forward pass over
    `benchmark_prefill_batch_size` prompts of `benchmark_prefill_tokens`. benchmark_repeats: timed ones, in turns.
    """

    perplexity: tuple[str, ...] = ("wikitext2",)
    sequence_length: int = 512
    windows: int | None = None
    benchmark: bool = True
    benchmark_repeats: int = field(default=5)
    tasks: tuple[str, ...] = ()
    task_items: int | None = None
    benchmark_batch_size: int = 1
    benchmark_prompt_tokens: int = 64
    benchmark_new_tokens: int = 32
    benchmark_prefill_batch_size: int = 1
    benchmark_prefill_tokens: int = 512
