"""Ask a model the tasks, through lm-eval's own evaluation around the model that is already loaded.

Knows nothing of files, other models or reports.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flattengpt_core.errors import InvalidRequest
from flattengpt_core.retention import Answers, accuracies, mean, stderr
from flattengpt_core.tasks import FIELD, Task

LOGITS_BYTES_CPU, LOGITS_BYTES_GPU = 2**27, 2**31
"""About how much memory the logits of a batch of sequences of SEQUENCE_TOKENS tokens take.

On a CPU larger batches were no faster: 0.46 s an item of PIQA at 4 sequences, 0.49 s at 8 (SmolLM2-135M, one core).
"""
SEQUENCE_TOKENS = 128
MOST_SEQUENCES = 64


@dataclass(frozen=True)
class Scores:
    """One model's. choices: by task, for tasks that choose. generative: figures by task, for all others."""

    choices: dict[str, Answers] = field(default_factory=dict)
    generative: dict[str, dict[str, Any]] = field(default_factory=dict)

    def as_metrics(self) -> dict[str, Any]:
        """`accuracy`, `accuracy_stderr` and `tasks` as `retention.accuracies` gives them, and `generative`."""
        return accuracies(self.choices) | {"generative": self.generative}

    def including(self, other: "Scores") -> "Scores":
        """The scores of both's tasks."""
        return Scores(self.choices | other.choices, self.generative | other.generative)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Scores":
        """The scores whose fields JSON has kept."""
        choices = {
            task: Answers(given["metric"], tuple(given["right"]), tuple(given["chances"]))
            for task, given in entry["choices"].items()
        }
        return cls(choices, dict(entry["generative"]))


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    *,
    limit: int | None,
    on_items: Callable[[int], object] = lambda count: None,
) -> Scores:
    """Put each task's first `limit` items (all if None) to the model as it is: its weights, device and precision.

    Args:
        on_items: told of items that are done, how many; may raise to stop.

    Raises:
        InvalidRequest: an answer is longer than the model's context.
    """
    scores = Scores()
    for task in tasks:
        counter = _Counter(task.items(limit), on_items)
        lm = _wrapped(model, tokenizer, counter)
        samples, results = _evaluate(lm, task, limit)
        counter.finish()
        if task.answers:
            scores.generative[task.name] = _answers(samples, lm.answer_lengths)
        elif (metric := _choice_metric(task, samples)) is not None:
            chances = tuple(1 / len(task.source.doc_to_choice(sample["doc"])) for sample in samples)
            scores.choices[task.name] = Answers(metric, tuple(float(sample[metric]) for sample in samples), chances)
        else:
            scores.generative[task.name] = _figures(samples, results) | {"items": counter.items, "shots": task.shots}
    return scores


class _Counter:
    """Turns requests that are done into items that are done."""

    def __init__(self, items: int, on_items: Callable[[int], object]) -> None:
        self.items, self._on_items = items, on_items
        self._requests = self._answered = self._told = 0

    def begin(self, requests: int) -> None:
        self._requests, self._answered = requests, 0

    def answered(self, requests: int) -> None:
        self._answered = min(self._answered + requests, self._requests)
        self._tell(self.items * self._answered // max(self._requests, 1))

    def finish(self) -> None:
        self._tell(self.items)

    def _tell(self, done: int) -> None:
        if done > self._told:
            new, self._told = done - self._told, done
            self._on_items(new)


def _wrapped(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, counter: _Counter) -> Any:
    """lm-eval's model around ours. `answer_lengths` holds the tokens of each (context, continuation) asked."""
    from lm_eval.models.huggingface import HFLM

    class Loaded(HFLM):  # type: ignore[misc]  # lm-eval ships no types
        answer_lengths: dict[tuple[str, str], int]

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
            counter.begin(len(requests))
            return super().loglikelihood(requests, disable_tqdm=True)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
            counter.begin(len(requests))
            return super().generate_until(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests: list[Any], **options: Any) -> Any:
            self.answer_lengths = {pair: len(answer) for pair, _, answer in requests}
            longest = max(self.answer_lengths.values(), default=0)
            if longest > self.max_length:
                raise InvalidRequest(
                    f"an answer has {longest} tokens, more than the model's {self.max_length}.", field=FIELD
                )
            return super()._loglikelihood_tokens(requests, **options)

        def _model_call(self, inps: Tensor, *args: Any, **options: Any) -> Tensor:
            logits: Tensor = super()._model_call(inps, *args, **options)
            counter.answered(len(inps))
            return logits

        def _model_generate(self, context: Tensor, *args: Any, **options: Any) -> Any:
            generated = super()._model_generate(context, *args, **options)
            counter.answered(len(context))
            return generated

    named = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    room = LOGITS_BYTES_CPU if model.device.type == "cpu" else LOGITS_BYTES_GPU
    size = room // (4 * SEQUENCE_TOKENS * model.config.vocab_size)
    return Loaded(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=min(MOST_SEQUENCES, max(1, size)),
        prefix_token_id=0 if named is None else None,
    )


def _evaluate(lm: Any, task: Task, limit: int | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What lm-eval logs of each item, in order, one entry an item and filter, and its figures by 'metric,filter'."""
    from lm_eval.evaluator import evaluate

    with _without_bars():
        found = evaluate(lm, {"tasks": {task.name: task.source}}, limit=limit, bootstrap_iters=0, log_samples=True)
    return found["samples"][task.name], found["results"][task.name]


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep lm-eval's bar for building requests, which has no switch, from the caller's screen."""
    import lm_eval.api.task as module

    shown = module.tqdm
    module.tqdm = partial(shown, disable=True)
    try:
        yield
    finally:
        module.tqdm = shown


def _choice_metric(task: Task, samples: Sequence[dict[str, Any]]) -> str | None:
    """acc_norm where the task has it, else acc; None if it is no choice or has neither."""
    if task.source.OUTPUT_TYPE != "multiple_choice":
        return None
    return next((metric for metric in ("acc_norm", "acc") if metric in samples[0]["metrics"]), None)


def _answers(samples: Sequence[dict[str, Any]], lengths: dict[tuple[str, str], int]) -> dict[str, Any]:
    """How likely the reference answers are, a token, and how many are exactly what greedy decoding writes.

    The standard error is that of a ratio of sums, since answers differ in length.
    """
    logs = [float(sample["perplexity"]) for sample in samples]
    tokens = [lengths[sample["arguments"][0][0], sample["arguments"][0][1]] for sample in samples]
    exact = [float(sample["acc"]) for sample in samples]
    nats = -math.fsum(logs) / sum(tokens)
    left = stderr([-log - nats * count for log, count in zip(logs, tokens, strict=True)])
    return {
        "nats_per_token": nats,
        "nats_per_token_stderr": None if left is None else left / mean(tokens),
        "perplexity": math.exp(nats),
        "exact_match": mean(exact),
        "exact_match_stderr": stderr(exact),
        "items": len(samples),
        "tokens": sum(tokens),
    }


def _figures(samples: Sequence[dict[str, Any]], results: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's own figures by 'metric,filter', and the standard error of those that are an item's mean."""
    found: dict[str, Any] = {}
    for key, value in results.items():
        metric, comma, chosen = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        found[key] = float(value)
        values = [sample[metric] for sample in samples if sample["filter"] == chosen and metric in sample]
        if all(isinstance(each, int | float) for each in values) and math.isclose(mean(values), value):
            found[f"{key}_stderr"] = stderr(values)
    return found
