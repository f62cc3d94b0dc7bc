"""Measure a model: perplexity, and speed against another model in the same process.

Timings mean something only as a ratio of models measured side by side, so models are timed in turns.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

BATCH_TOKENS = 4096
PROMPT_TOKENS, NEW_TOKENS, PREFILL_TOKENS = 64, 32, 512


@dataclass(frozen=True)
class Speed:
    """tokens_per_second: generated with the KV cache, batch 1. latency_ms: one forward pass over a prompt.

    Medians over interleaved repeats.
    """

    tokens_per_second: float
    latency_ms: float


@torch.inference_mode()
def perplexity(
    model: PreTrainedModel, windows: Tensor, on_batch: Callable[[int, int], None] = lambda done, total: None
) -> float:
    """exp of the mean negative log-likelihood of each window's tokens but its first (GPTQ/SLEB convention).

    Args:
        windows: token ids (n, length) int64.
        on_batch: called with the windows done and in all; may raise to stop.
    """
    size = max(1, BATCH_TOKENS // windows.shape[1])
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(windows), size):
        batch = windows[start : start + size].to(model.device)
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), batch[:, 1:].flatten(), reduction="sum"
        )
        total += loss.double().cpu()
        on_batch(min(start + size, len(windows)), len(windows))
    return math.exp(total.item() / windows[:, 1:].numel())


@torch.inference_mode()
def compare_speed(
    models: Sequence[PreTrainedModel], *, repeats: int, on_repeat: Callable[[int, int], None] = lambda d, t: None
) -> list[Speed]:
    """Time the models in turns, one warm-up each, and give each one's medians, in the models' order."""
    vocabulary = min(model.config.vocab_size for model in models)
    ids = torch.arange(PREFILL_TOKENS).remainder(vocabulary)[None].to(models[0].device)
    generation: list[list[float]] = [[] for _ in models]
    prefill: list[list[float]] = [[] for _ in models]
    for repeat in range(repeats + 1):
        for index, model in enumerate(models):
            generation[index].append(_seconds(lambda model=model: _generate(model, ids[:, :PROMPT_TOKENS]), model))
            prefill[index].append(_seconds(lambda model=model: model(input_ids=ids, use_cache=False), model))
        on_repeat(repeat, repeats)
    return [
        Speed(NEW_TOKENS / statistics.median(new[1:]), 1000 * statistics.median(prompt[1:]))
        for new, prompt in zip(generation, prefill, strict=True)
    ]


def _generate(model: PreTrainedModel, prompt: Tensor) -> Tensor:
    return model.generate(
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
