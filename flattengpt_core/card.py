"""The model card of a result: what it is, what it cost in quality, how to load it. Pure text from numbers."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from flattengpt_core.licence import Licence
from flattengpt_core.recovery.curve import FIGURE, in_words
from flattengpt_core.retention import share_kept

_BODY = """
# {name}

{base} with {after} of its {before} decoder layers, compressed by [FlattenGPT](https://arxiv.org/abs/2602.08858)
(method `{method}`). A stock checkpoint: it loads with no extra code.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{where}")
tokenizer = AutoTokenizer.from_pretrained("{where}")
```

## What it cost

| | dense | compressed | ratio |
| --- | --- | --- | --- |
{rows}

{conventions}
{tasks}
## How it was made

Calibrated on {samples} windows of {length} tokens of {text} (seed {seed}); recovery: {recovery}. Layers of the base
model behind each layer: {groups}. `flattengpt.json` holds the whole request, the versions, the kept heads and
channels, and the checksum of each file.
{training}{licence}"""


def card(
    metrics: Mapping[str, Any], request: Mapping[str, Any], base_model: str, licence: Licence | None = None
) -> str:
    """The card's text with its metadata.

    Args:
        metrics: as `pipeline.compress` returns them.
        request: a job's request.
        base_model: the dense model's name; a Hub id is linked as the base model.
        licence: the dense model's, which the result keeps.
    """
    dense, compressed = metrics["dense"], metrics["compressed"]
    where = (request.get("publish") or {}).get("repo_id") or f"{base_model}-flat{compressed['layers']}"
    owner, slash, bare = where.rpartition("/")
    name = _name(bare, licence)
    calibration = request["calibration"]
    body = _BODY.format(
        name=name,
        base=base_model,
        where=where,
        before=dense["layers"],
        after=compressed["layers"],
        method=request["method"],
        rows="\n".join(_rows(dense, compressed)),
        conventions=_conventions(compressed["evaluation"]),
        tasks=_tasks(dense, compressed),
        samples=calibration["samples"],
        length=calibration["sequence_length"],
        text=calibration["dataset"],
        seed=calibration["seed"],
        recovery=request["recovery"]["method"],
        groups=", ".join("+".join(str(layer) for layer in group) for group in metrics["groups"]),
        training=_training(metrics.get("recovery")),
        licence=_licence(licence, base_model),
    )
    on_hub = "/" in base_model
    data = ModelCardData(
        base_model=base_model if on_hub else None,
        base_model_relation="finetune" if on_hub else None,  # of the Hub's four, what fits changed weights
        license=licence.id if licence else None,
        license_name=licence.name if licence else None,
        license_link=licence.link if licence else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["flattengpt", "layer-pruning", "compressed"],
        model_name=f"{owner}{slash}{name}",
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=text,
                dataset_name=text,
                metric_type="perplexity",
                metric_value=value,
            )
            for text, value in compressed["perplexity"].items()
        ]
        + [
            EvalResult(
                task_type="text-generation",
                dataset_type=task,
                dataset_name=task,
                metric_type=told["metric"],
                metric_value=compressed["accuracy"][task],
            )
            for task, told in compressed["tasks"].items()
        ]
        or None,
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n{body}"))


def _name(name: str, licence: Licence | None) -> str:
    """The name as the licence wants it."""
    naming = licence.naming if licence else None
    return name if naming is None or naming.is_kept_by(name) else f"{naming.prefix}-{name}"


def _licence(licence: Licence | None, base_model: str) -> str:
    """What the licence is, and the words that it asks for; empty if the base model's card names none."""
    if licence is None:
        return ""
    called = f"`{licence.name or licence.id}`"
    named = f"[{called}]({licence.link})" if licence.link else called
    asked = ""
    if licence.naming is not None:
        asked = (
            f" **{licence.naming.credit}.** It wants the name of a model made from this one, where it is passed on, to "
            f"begin with `{licence.naming.prefix}`."
        )
    return f"\n## Licence\n\nThat of {base_model}: {named}.{asked}\n"


def _conventions(evaluation: Mapping[str, Any]) -> str:
    """How perplexity and speed were measured, as far as they were."""
    said = []
    if evaluation["tokens"]:
        texts = ", ".join(
            f"{tokens:,} tokens of {text} ({evaluation['split'][text]})"
            for text, tokens in evaluation["tokens"].items()
        )
        said.append(f"Perplexity is over non-overlapping windows of {evaluation['sequence_length']} tokens: {texts}.")
    if (sizes := evaluation["benchmark"]) is not None:
        said.append(
            "Speeds were measured side by side in one process and mean something only as ratios: medians of "
            f"{sizes['repeats']} repeats of generating {sizes['new_tokens']} tokens after {sizes['batch_size']} × "
            f"{sizes['prompt_tokens']} tokens, and of one pass over {sizes['prefill_batch_size']} × "
            f"{sizes['prefill_tokens']} tokens (latency)."
        )
    return "\n".join(said) + "\n"


def _tasks(dense: Mapping[str, Any], compressed: Mapping[str, Any]) -> str:
    """A table of the tasks that choose and one of those that write; empty without any."""
    parts = []
    if compressed["accuracy"]:
        parts.append(
            "| task (lm-eval) | items | chance | dense | compressed | kept | kept above chance |\n"
            "| --- | --- | --- | --- | --- | --- | --- |\n"
            + "\n".join(_task_row(task, dense, compressed) for task in compressed["accuracy"])
            + "\n\n± is a standard error; what is kept is rounded down.\n"
        )
    if compressed["generative"]:
        figures = [
            f"| {task}, {figure} | {before:.6g} | {compressed['generative'][task][figure]:.6g} |"
            for task, found in dense["generative"].items()
            for figure, before in found.items()
            if not figure.endswith("_stderr")
        ]
        parts.append("| written answers | dense | compressed |\n| --- | --- | --- |\n" + "\n".join(figures) + "\n")
    return "".join(f"\n{part}" for part in parts)


def _task_row(task: str, dense: Mapping[str, Any], compressed: Mapping[str, Any]) -> str:
    told = compressed["tasks"].get(task)
    accuracies = [
        f"{model['accuracy'][task]:.4f}"
        + ("" if (error := model["accuracy_stderr"][task]) is None else f" ± {error:.4f}")
        for model in (dense, compressed)
    ]
    kept = [share_kept(compressed["retention"][task], kind) for kind in ("raw", "above_chance")]
    name, items, chance = (
        (f"{task}, {told['metric']}", told["items"], f"{told['chance']:.3f}") if told else (task, "", "")
    )
    return f"| {name} | {items} | {chance} | {' | '.join((*accuracies, *kept))} |"


def _training(recovery: Mapping[str, Any] | None) -> str:
    """What recovery did, and its loss curve; empty if there was none."""
    if recovery is None:
        return ""
    return f"\n{in_words(recovery)}\n\n![training loss by step]({FIGURE})\n"


def _rows(dense: Mapping[str, Any], compressed: Mapping[str, Any]) -> list[str]:
    pairs = [
        ("layers", dense["layers"], compressed["layers"], "d"),
        ("parameters", dense["parameters"], compressed["parameters"], ",d"),
        *(
            (f"perplexity, {text}", dense["perplexity"][text], value, ".2f")
            for text, value in compressed["perplexity"].items()
        ),
        ("tokens/s", dense["tokens_per_second"], compressed["tokens_per_second"], ".1f"),
        ("latency, ms", dense["latency_ms"], compressed["latency_ms"], ".1f"),
    ]
    return [
        f"| {name} | {before:{style}} | {after:{style}} | {after / before:.2f} |"
        for name, before, after, style in pairs
        if before is not None and after is not None
    ]
