"""What a run can be asked for, as plain values. Imports no torch; bounds are checked where requests come in."""

from dataclasses import dataclass, field
from typing import Literal, get_args


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


Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGETS: tuple[Target, ...] = get_args(Target)
"""The projections of a layer, which LoRA can train."""


@dataclass(frozen=True)
class Budget:
    """A quality to hold with as few layers as can be, in place of a size.

    max_perplexity_ratio: compressed to dense, on each calibration text's windows that the fit has not seen, before
    recovery.
    """

    max_perplexity_ratio: float


@dataclass(frozen=True)
class Recovery:
    """Training after compression: `lora` on the text itself, `distill` towards the dense model.

    steps: optimiser steps. epochs: passes over the text; if given, it decides instead of steps.
    rank, alpha, targets: of the LoRA matrices, scaled by alpha / rank; alpha is twice the rank if None.
    train: what `distill` trains; `full` is all but the embeddings and the output head.
    learning_rate: the peak, after `warmup` (a share of the steps), then falling by `schedule`.
    batch_tokens: tokens an optimiser step, over all devices.
    precision: of matrix products in training; bfloat16 is about twice as fast where the hardware has it.
    temperature, hidden_weight, token_weight: of distillation; see `recovery.objectives`.
    """

    method: Literal["none", "lora", "distill"] = "none"
    steps: int = 500
    rank: int = 8
    learning_rate: float = 1e-4
    epochs: int | None = None
    alpha: int | None = None
    targets: tuple[Target, ...] = TARGETS
    train: Literal["lora", "full"] = "lora"
    batch_tokens: int = 1024
    warmup: float = 0.05
    schedule: Literal["linear", "cosine"] = "linear"
    precision: Literal["float32", "bfloat16"] = "float32"
    temperature: float = 1.0
    hidden_weight: float = 1.0
    token_weight: float = 0.0


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
