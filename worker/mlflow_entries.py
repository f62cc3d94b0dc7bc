"""What MLflow is told of a job, made from the job's row and events. Pure: asks nobody, and knows no client of MLflow.

Only what is named here goes out: a request may hold what is not for everyone, such as a webhook's URL.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jobs.records import EventRecord, JobRecord
from jobs.states import JobStatus

JOB_ID = "flattengpt.job_id"
"""The tag by which a job's run is found again."""

STATUSES = {
    JobStatus.SUCCEEDED: "FINISHED",
    JobStatus.FAILED: "FAILED",
    JobStatus.CANCELLED: "KILLED",
}
"""How a run ends, by how its job did."""

_PARAMETERS = (
    "model", "revision", "method", "sparsity", "layers", "target", "calibration", "recovery", "evaluation", "dtype",
)  # fmt: skip
_LONGEST_PARAMETER = 6000
_LONGEST_TAG = 5000
_NO_NAME = re.compile(r"[^\w\-./ ]")
"""What MLflow refuses in a metric's or a parameter's name."""
_NO_MODEL_NAME = re.compile(r"[/:]+")


@dataclass(frozen=True)
class Point:
    """One value of a metric over steps. time: milliseconds since 1970."""

    name: str
    value: float
    step: int
    time: int


def parameters(job: JobRecord) -> dict[str, str]:
    """What was asked for, with dotted names; what was left out and has no default is left out here, too."""
    asked = {name: job.request[name] for name in _PARAMETERS if job.request.get(name) is not None}
    return {_name(name): str(value)[:_LONGEST_PARAMETER] for name, value in _leaves(asked) if value is not None}


def tags(job: JobRecord) -> dict[str, str]:
    """Whose run it is, and how far its job is."""
    found = {
        JOB_ID: job.id,
        "flattengpt.base_model": base_model(job),
        "flattengpt.commit": job.commit,
        "flattengpt.method": job.request["method"],
        "flattengpt.status": job.status.value,
        "flattengpt.attempt": str(job.attempt),
        "flattengpt.retry_of": job.retry_of,
        "flattengpt.published_url": job.published_url,
        "flattengpt.error": job.error and str(job.error.get("code")),
        **{f"label.{_name(name)}": value for name, value in job.labels.items()},
    }
    return {name: value[:_LONGEST_TAG] for name, value in found.items() if value}


def base_model(job: JobRecord) -> str:
    """What was compressed, as the request names it."""
    return str(job.request["model"]).removeprefix("local:")


def model_name(job: JobRecord) -> str:
    """The registered model whose versions are the compressed forms of this base model."""
    return _NO_MODEL_NAME.sub(".", base_model(job))


def version_tags(job: JobRecord) -> dict[str, str]:
    """The tags of a version of the registered model."""
    compressed = (job.metrics or {}).get("compressed", {})
    return tags(job) | {"flattengpt.layers": str(compressed.get("layers", ""))}


def points(event: EventRecord) -> Iterator[Point]:
    """What an event adds to the metrics over steps."""
    time, data = milliseconds(event.created_at), event.data

    def at(step: int, **values: Any) -> Iterator[Point]:
        return (
            Point(_name(name), float(value), step, time)
            for name, value in values.items()
            if isinstance(value, int | float)  # a loss that diverged is None
        )

    match event.type:
        case "loss":
            found = {f"recovery.{name}": data.get(name) for name in ("loss", "learning_rate")}
            yield from at(data["step"], **found)
        case "progress":
            share = data["done"] / max(data["total"], 1)
            yield from at(data["done"], **{f"progress.{data['stage']}": share})
            yield from at(event.seq, progress=data["progress"])
        case "merged":
            found = {f"merged.{name}": data.get(name) for name in ("attention_error", "mlp_error")}
            yield from at(data["layers"][-1], **found)
        case "tried":
            yield from at(data["layers"], **{"tried.perplexity_ratio": data.get("perplexity_ratio")})


def results(job: JobRecord) -> Iterator[Point]:
    """Every number of the job's metrics, and the perplexities before (step 0) and after (step 1)."""
    metrics, time = job.metrics or {}, milliseconds(job.finished_at or job.created_at)
    for name, value in _leaves(metrics):
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield Point(_name(name), float(value), 0, time)
    for step, part in enumerate(("dense", "compressed")):
        for text, perplexity in metrics.get(part, {}).get("perplexity", {}).items():
            if perplexity is not None:
                yield Point(_name(f"perplexity.{text}"), float(perplexity), step, time)


def milliseconds(moment: datetime) -> int:
    """The time as MLflow has it, since 1970."""
    return int(moment.timestamp() * 1000)


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _name(text: str) -> str:
    return _NO_NAME.sub("_", text)[:250]
