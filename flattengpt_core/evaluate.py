"""Measure a model: perplexity, and speed against another model in the same process.

Timings mean something only as a ratio of models measured side by side, so models are timed in turns.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel

from flattengpt_core.models import Checkpoint, load_model
from flattengpt_core.options import Evaluation
from flattengpt_core.progress import Progress

BATCH_TOKENS = 4096
PROMPT_TOKENS, NEW_TOKENS, PREFILL_TOKENS = 64, 32, 512
_REPEAT_IN_WINDOWS = 8
"""How many evaluation windows one repeat of the speed test counts for in the progress."""


@dataclass(frozen=True)
class Speed:
    """tokens_per_second: generated with the KV cache, batch 1. latency_ms: one forward pass over a prompt.

    Medians over interleaved repeats.
    """

    tokens_per_second: float
    latency_ms: float


def measure(
    folders: Mapping[str, Path],
    texts: Mapping[str, Tensor],
    evaluation: Evaluation,
    *,
    device: torch.device,
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """The metrics of checkpoints by name, all measured in one process on the same windows.

    Args:
        folders: checkpoint folders by name.
        texts: token ids (n, length) int64 by the text's name.

    Returns:
        By name: layers, parameters, perplexity by text, accuracy by task, tokens_per_second, latency_ms.
    """
    models = {name: load_model(folder, device=device, dtype=torch.float32) for name, folder in folders.items()}
    chosen = {text: windows[: evaluation.windows] for text, windows in texts.items()}
    repeats = evaluation.benchmark_repeats + 1 if evaluation.benchmark else 0
    steps = _Steps(progress, len(models) * sum(map(len, chosen.values())) + repeats * _REPEAT_IN_WINDOWS)
    perplexities: dict[str, dict[str, float]] = {
        name: {text: perplexity(model, windows, steps.advance) for text, windows in chosen.items()}
        for name, model in models.items()
    }
    speeds: list[Speed | None] = [None] * len(models)
    if evaluation.benchmark:
        on_repeat = partial(steps.advance, _REPEAT_IN_WINDOWS)
        speeds = [*compare_speed(list(models.values()), repeats=evaluation.benchmark_repeats, on_repeat=on_repeat)]
    return {
        name: {
            "layers": (info := Checkpoint(folder).info).num_layers,
            "parameters": info.parameters,
            "perplexity": perplexities[name],
            "accuracy": {},
            "tokens_per_second": speed.tokens_per_second if speed else None,
            "latency_ms": speed.latency_ms if speed else None,
        }
        for (name, folder), speed in zip(folders.items(), speeds, strict=True)
    }


class _Steps:
    """Counts units of work up to `total` for a `Progress`."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def advance(self, units: int) -> None:
        self._done += units
        self._progress.step(self._done, self._total)


@torch.inference_mode()
def perplexity(
    model: PreTrainedModel, windows: Tensor, on_windows: Callable[[int], object] = lambda count: None
) -> float:
    """exp of the mean negative log-likelihood of each window's tokens but its first (GPTQ/SLEB convention).

    Args:
        windows: token ids (n, length) int64.
        on_windows: told of each batch, how many windows it held; may raise to stop.
    """
    size = max(1, BATCH_TOKENS // windows.shape[1])
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(windows), size):
        batch = windows[start : start + size].to(model.device)
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten(), reduction="sum")
        total += loss.double().cpu()
        on_windows(len(batch))
    return math.exp(total.item() / windows[:, 1:].numel())


@torch.inference_mode()
def compare_speed(
    models: Sequence[PreTrainedModel], *, repeats: int, on_repeat: Callable[[], object] = lambda: None
) -> list[Speed]:
    """Time the models in turns, one warm-up each, and give each one's medians, in the models' order."""
    vocabulary = min(model.config.vocab_size for model in models)
    ids = torch.arange(PREFILL_TOKENS).remainder(vocabulary)[None].to(models[0].device)
    generation: list[list[float]] = [[] for _ in models]
    prefill: list[list[float]] = [[] for _ in models]
    for _ in range(repeats + 1):
        for index, model in enumerate(models):
            generation[index].append(_seconds(partial(_generate, model, ids[:, :PROMPT_TOKENS]), model))
            prefill[index].append(_seconds(partial(model, input_ids=ids, use_cache=False), model))
        on_repeat()
    return [
        Speed(NEW_TOKENS / statistics.median(new[1:]), 1000 * statistics.median(prompt[1:]))
        for new, prompt in zip(generation, prefill, strict=True)
    ]


def _generate(model: PreTrainedModel, prompt: Tensor) -> None:
    cast("GenerationMixin", model).generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
    )


def _seconds(work: Callable[[], object], model: PreTrainedModel) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
