"""Measure a model: perplexity, tasks, and speed against another model in the same process.

Timings mean something only as a ratio of models measured side by side, so models are timed in turns.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel

from flattengpt_core.models import Checkpoint, load_model
from flattengpt_core.options import Evaluation
from flattengpt_core.progress import Progress
from flattengpt_core.retention import retention
from flattengpt_core.tasks import Task
from flattengpt_core.texts import reported_part
from flattengpt_core.unfinished import Unfinished
from flattengpt_core.zero_shot import Scores, ask

BATCH_TOKENS = 4096
_REPEAT_IN_WINDOWS = 8
"""How many evaluation windows one repeat of the speed test counts for in the progress."""


@dataclass(frozen=True)
class Speed:
    """tokens_per_second: generated with the KV cache, of the whole batch. latency_ms: one forward pass over prompts.

    Medians over interleaved repeats.
    """

    tokens_per_second: float
    latency_ms: float


def measure(
    folders: Mapping[str, Path],
    texts: Mapping[str, Tensor],
    evaluation: Evaluation,
    *,
    tasks: Sequence[Task] = (),
    device: torch.device,
    progress: Progress,
    finished: Unfinished | None = None,
) -> dict[str, dict[str, Any]]:
    """The metrics of checkpoints by name, all measured in one process on the same windows and items.

    Args:
        folders: checkpoint folders by name; what is kept of the first one's accuracy is said of the others.
        texts: token ids (n, length) int64 by the text's name.
        tasks: those that `evaluation` names.
        finished: what an interrupted run of the same measures has found, by text and task; speeds are timed anew.

    Returns:
        By name: layers, parameters, perplexity by text, what `Scores.as_metrics` gives, retention by task,
        tokens_per_second, latency_ms, and the `evaluation` that all of it is from.
    """
    models = {name: load_model(folder, device=device, dtype=torch.float32) for name, folder in folders.items()}
    chosen = {text: windows[: evaluation.windows] for text, windows in texts.items()}
    repeats = evaluation.benchmark_repeats + 1 if evaluation.benchmark else 0
    items = sum(task.items(evaluation.task_items) for task in tasks)
    units = len(models) * (sum(map(len, chosen.values())) + items)
    steps = _Steps(progress, units + repeats * _REPEAT_IN_WINDOWS, finished)
    perplexities: dict[str, dict[str, float]] = {name: {} for name in models}
    for (name, model), (index, (text, windows)) in product(models.items(), enumerate(chosen.items())):
        found = partial(perplexity, model, windows, steps.advance)
        perplexities[name][text] = steps.once(f"{name}-text-{index}", len(windows), found)
    scores = {name: Scores() for name in models}
    for (name, model), (index, task) in product(models.items(), enumerate(tasks)):
        asked = partial(_asked, model, folders[name], task, evaluation.task_items, steps.advance)
        entry = steps.once(f"{name}-task-{index}", task.items(evaluation.task_items), asked)
        scores[name] = scores[name].including(Scores.from_json(entry))
    speeds: list[Speed | None] = [None] * len(models)
    if evaluation.benchmark:
        on_repeat = partial(steps.advance, _REPEAT_IN_WINDOWS)
        speeds = [*compare_speed(list(models.values()), evaluation, on_repeat=on_repeat)]
    first = next(iter(folders))
    return {
        name: {
            "layers": (info := Checkpoint(folder).info).num_layers,
            "parameters": info.parameters,
            "perplexity": perplexities[name],
            **scores[name].as_metrics(),
            "retention": {} if name == first else retention(scores[name].choices, scores[first].choices),
            "tokens_per_second": speed.tokens_per_second if speed else None,
            "latency_ms": speed.latency_ms if speed else None,
            "evaluation": conventions(evaluation, texts),
        }
        for (name, folder), speed in zip(folders.items(), speeds, strict=True)
    }


def conventions(evaluation: Evaluation, texts: Mapping[str, Tensor]) -> dict[str, Any]:
    """What someone else needs to know to come to the same figures.

    Returns:
        `sequence_length` of the windows, their `tokens` and the `split` they are from by text, `task_items` asked at
        most, and the `benchmark`'s sizes, None if there was none.
    """
    sizes = {name: size for name, size in asdict(evaluation).items() if name.startswith("benchmark_")}
    return {
        "sequence_length": evaluation.sequence_length,
        "tokens": {text: windows[: evaluation.windows].numel() for text, windows in texts.items()},
        "split": {text: reported_part(text) for text in texts},
        "task_items": evaluation.task_items,
        "benchmark": {name.removeprefix("benchmark_"): size for name, size in sizes.items()}
        if evaluation.benchmark
        else None,
    }


def _asked(
    model: PreTrainedModel, folder: Path, task: Task, limit: int | None, on_items: Callable[[int], object]
) -> dict[str, Any]:
    """The model's answers to one task, as JSON."""
    return asdict(ask(model, Checkpoint(folder).tokenizer(), [task], limit=limit, on_items=on_items))


class _Steps:
    """Counts units of work up to `total` for a `Progress`, and does none twice that is finished."""

    def __init__(self, progress: Progress, total: int, finished: Unfinished | None) -> None:
        self._progress, self._total, self._done, self._finished = progress, total, 0, finished

    def once(self, key: str, units: int, measure: Callable[[], Any]) -> Any:
        """What `measure`, which advances by so many units, gives as JSON, now or in an interrupted run."""
        if self._finished is None:
            return measure()
        entry = self._finished.get(key)
        if entry is None:
            entry = measure()
            self._finished.put(key, entry)
        else:
            self.advance(units)
        return entry

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
    models: Sequence[PreTrainedModel], evaluation: Evaluation, *, on_repeat: Callable[[], object] = lambda: None
) -> list[Speed]:
    """Time the models in turns, one warm-up each, and give each one's medians, in the models' order.

    Args:
        evaluation: its `benchmark_...` sizes and repeats.
    """
    batch, new_tokens = evaluation.benchmark_batch_size, evaluation.benchmark_new_tokens
    vocabulary = min(model.config.vocab_size for model in models)
    prompts = _token_ids(batch, evaluation.benchmark_prompt_tokens, vocabulary).to(models[0].device)
    prefilled = _token_ids(evaluation.benchmark_prefill_batch_size, evaluation.benchmark_prefill_tokens, vocabulary).to(
        models[0].device
    )
    generation: list[list[float]] = [[] for _ in models]
    prefill: list[list[float]] = [[] for _ in models]
    for _ in range(evaluation.benchmark_repeats + 1):
        for index, model in enumerate(models):
            generation[index].append(_seconds(partial(_generate, model, prompts, new_tokens), model))
            prefill[index].append(_seconds(partial(model, input_ids=prefilled, use_cache=False), model))
        on_repeat()
    return [
        Speed(batch * new_tokens / statistics.median(new[1:]), 1000 * statistics.median(prompt[1:]))
        for new, prompt in zip(generation, prefill, strict=True)
    ]


def _token_ids(batch: int, tokens: int, vocabulary: int) -> Tensor:
    """The same ids in each of the batch's rows, (batch, tokens)."""
    return torch.arange(tokens).remainder(vocabulary).expand(batch, tokens).contiguous()


def _generate(model: PreTrainedModel, prompts: Tensor, new_tokens: int) -> None:
    cast("GenerationMixin", model).generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
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
