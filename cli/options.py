"""The options that several commands share, and the request they make."""

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import TypeAdapter, ValidationError

from cli.errors import BadUsage
from flattengpt_core.methods import METHODS
from jobs.queues import QueueName

MODEL_HELP = "A Hub id (org/name), local:NAME"
Sparsity = Annotated[float | None, typer.Option(help="Share of the layers to remove, between 0 and 1.")]
Layers = Annotated[int | None, typer.Option(help="Number of layers to keep.")]
MaxPerplexityRatio = Annotated[
    float | None,
    typer.Option(help="In place of a size: the fewest layers within so many times the dense perplexity."),
]
Method = Annotated[str | None, typer.Option(help=f"One of: {', '.join(METHODS)}.", show_default="flattengpt")]
Samples = Annotated[int | None, typer.Option(help="Windows of text to calibrate on.", show_default="128")]
SequenceLength = Annotated[int | None, typer.Option(help="Tokens a calibration window.", show_default="2048")]
RecoveryMethod = Annotated[
    str | None, typer.Option(help="Training after it: none, lora or distill.", show_default="none")
]
RecoverySteps = Annotated[int | None, typer.Option(help="Optimiser steps of the training.", show_default="500")]
RecoveryTrain = Annotated[
    str | None, typer.Option(help="What distill trains: lora, or full (all of the layers).", show_default="lora")
]
Rank = Annotated[int | None, typer.Option(help="Rank of the LoRA matrices.", show_default="8")]
LearningRate = Annotated[float | None, typer.Option(help="The training's peak rate.", show_default="0.0001")]
Seed = Annotated[int | None, typer.Option(help="Which windows are chosen.", show_default="0")]
Tasks = Annotated[
    list[str] | None,
    typer.Option(help="A task by lm-eval's name (its data is the Hub's) or a .jsonl file; may be repeated."),
]
TaskNames = Annotated[list[str] | None, typer.Option(help="A task by lm-eval's name; may be repeated.")]
TaskItems = Annotated[
    int | None, typer.Option(min=1, help="At most so many items a task, the first ones.", show_default="all")
]
BenchmarkBatch = Annotated[int, typer.Option(min=1, max=1024, help="Prompts that generate at once.")]
BenchmarkPrompt = Annotated[int, typer.Option(min=1, max=32768, help="Tokens of each of them.")]
BenchmarkNew = Annotated[int, typer.Option(min=1, max=4096, help="Tokens generated after each.")]
BenchmarkPrefillBatch = Annotated[int, typer.Option(min=1, max=1024, help="Prompts of the latency's pass.")]
BenchmarkPrefill = Annotated[int, typer.Option(min=1, max=32768, help="Tokens of each of them.")]
Dtype = Annotated[
    str | None, typer.Option(help="What is saved: auto, float32, bfloat16 or float16.", show_default="auto")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub model.", show_default="main")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Url = Annotated[str, typer.Option(envvar="FLATTENGPT_URL", help="The service's address.")]
DEFAULT_URL = "http://127.0.0.1:8000"

_SPEC_SUFFIXES = (".yaml", ".yml", ".json")


def read_request(model: str, given: dict[str, Any]) -> dict[str, Any]:
    """The request for `model`, or the one in the file of that name, with the options that were given on top.

    Args:
        given: request fields by dotted name; None means that the option was not given.

    Raises:
        BadUsage: the file cannot be read as a request.
    """
    request: dict[str, Any] = _read_spec(Path(model)) if model.endswith(_SPEC_SUFFIXES) else {"model": model}
    if any(given.get(name) is not None for name in ("layers", "sparsity", "target.max_perplexity_ratio")):
        for name in ("layers", "sparsity", "target"):
            request.pop(name, None)
    for name, value in given.items():
        part, _, field = name.rpartition(".")
        if value is not None:
            if part and request.get(part) is None:
                request[part] = {}
            target: dict[str, Any] = request[part] if part else request
            target[field] = value
    return request


def queue_names(queues: str) -> list[str]:
    """The queues of a comma-separated option. Raises BadUsage."""
    try:
        return list(TypeAdapter(list[QueueName]).validate_python([name.strip() for name in queues.split(",")]))
    except ValidationError as error:
        wrong = error.errors()[0]["input"]
        raise BadUsage(f"{wrong!r} is no queue: give names of a-z, 0-9, - and _.", field="--queues") from None


def parse_labels(labels: list[str]) -> dict[str, str] | None:
    """`key=value` options as a request's labels; None if there are none."""
    pairs = [label.partition("=") for label in labels]
    wrong = [label for label, (key, equals, _) in zip(labels, pairs, strict=True) if not (key and equals)]
    if wrong:
        raise BadUsage(f"{wrong[0]!r} is no label; write key=value.", field="--label")
    return {key: value for key, _, value in pairs} or None


def _read_spec(file: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadUsage(f"{file} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadUsage(f"{file} is not valid YAML: {error}") from None
    if not isinstance(loaded, dict):
        raise BadUsage(f"{file} holds no request: it must be a mapping with at least `model`.")
    for name, value in loaded.items():
        if (
            name in ("calibration", "recovery", "evaluation", "publish")
            and value is not None
            and not isinstance(value, dict)
        ):
            raise BadUsage(f"it must be a mapping in {file}.", field=str(name))
    return loaded
