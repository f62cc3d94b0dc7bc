"""The request: what is refused, by which field, and what comes back out."""

from typing import Any

import pytest
from pydantic import ValidationError

from flattengpt_core.methods import METHODS
from flattengpt_core.options import Evaluation
from jobs.spec import JobSpec

FULL: dict[str, Any] = {
    "model": "org/name",
    "revision": "v1.0",
    "method": "flattengpt",
    "sparsity": 0.2,
    "layers": None,
    "target": None,
    "calibration": {"dataset": "wikitext2", "samples": 128, "sequence_length": 2048, "seed": 0},
    "recovery": {
        "method": "none",
        "steps": 500,
        "rank": 8,
        "learning_rate": 1e-4,
        "epochs": None,
        "alpha": None,
        "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "train": "lora",
        "batch_tokens": 1024,
        "warmup": 0.05,
        "schedule": "linear",
        "precision": "float32",
        "temperature": 1.0,
        "hidden_weight": 1.0,
        "token_weight": 0.0,
    },
    "evaluation": {
        "perplexity": ["wikitext2"],
        "tasks": [],
        "task_items": None,
        "sequence_length": 512,
        "windows": None,
        "benchmark": True,
        "benchmark_batch_size": 1,
        "benchmark_prompt_tokens": 64,
        "benchmark_new_tokens": 32,
        "benchmark_prefill_batch_size": 1,
        "benchmark_prefill_tokens": 512,
    },
    "publish": {"repo_id": "org/name-flat24", "url": None, "private": True, "overwrite": False},
    "webhook": {"url": "https://example.org/hook?token=t", "events": ["succeeded", "failed", "cancelled"]},
    "dtype": "auto",
    "labels": {"team": "search"},
    "queue": "default",
    "min_gpu_memory_gib": 0,
    "priority": 5,
}


def refused_fields(**changes: Any) -> list[str]:
    """The dotted names of the fields that a request is refused for."""
    with pytest.raises(ValidationError) as refusal:
        JobSpec.model_validate({"model": "org/name", "layers": 4} | changes)
    return [".".join(str(part) for part in error["loc"]) for error in refusal.value.errors()]


def test_a_full_request_comes_back_unchanged() -> None:
    assert JobSpec.model_validate(FULL).as_request() == FULL


def test_whoever_gets_the_result_is_not_told_of_the_webhook() -> None:
    assert JobSpec.model_validate(FULL).as_published() == FULL | {"webhook": None}


def test_defaults_are_filled_in() -> None:
    request = JobSpec(model="org/name", sparsity=0.2).as_request()
    assert request == FULL | {"revision": "main", "publish": None, "webhook": None, "labels": {}}
    assert JobSpec.model_validate(request).as_request() == request


def test_cannot_be_changed(spec: JobSpec) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        spec.layers = 5  # type: ignore[misc]


@pytest.mark.parametrize("method", METHODS)
def test_knows_every_method(method: str) -> None:
    assert JobSpec(model="org/name", layers=4, method=method).method == method


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValidationError, match="flattengpt-paper"):
        JobSpec(model="org/name", layers=4, method="magic")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ({}, "none is given"),
        ({"sparsity": 0.2, "layers": 4}, "sparsity and layers are given"),
        ({"layers": 4, "target": {"max_perplexity_ratio": 1.2}}, "layers and target are given"),
    ],
)
def test_exactly_one_target(target: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=f"exactly one of sparsity, layers and target: {said}"):
        JobSpec.model_validate({"model": "org/name", **target})


def test_the_defaults_are_the_cores() -> None:
    assert Evaluation(**JobSpec(model="org/name", layers=4).evaluation.model_dump()) == Evaluation()


@pytest.mark.parametrize("sparsity", [0, 1, -0.1, 1.5, float("nan"), float("inf"), "much"])
def test_sparsity_is_a_share(sparsity: Any) -> None:
    assert refused_fields(layers=None, sparsity=sparsity) == ["sparsity"]


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("model", {"model": ""}),
        ("model", {"model": "org/" + "n" * 300}),
        ("model", {"model": "local:a\0b"}),
        ("revision", {"revision": "-rf"}),
        ("revision", {"revision": "a b"}),
        ("method", {"method": 3}),
        ("layers", {"layers": 0}),
        ("layers", {"layers": 2.5}),
        ("calibration.samples", {"calibration": {"samples": 0}}),
        ("calibration.samples", {"calibration": {"samples": 4097}}),
        ("calibration.sequence_length", {"calibration": {"sequence_length": 15}}),
        ("calibration.seed", {"calibration": {"seed": -1}}),
        ("calibration.dataset", {"calibration": {"dataset": "../etc/passwd"}}),
        ("recovery.method", {"recovery": {"method": "distil"}}),
        ("recovery.epochs", {"recovery": {"epochs": 0}}),
        ("recovery.alpha", {"recovery": {"alpha": 0}}),
        ("recovery.targets", {"recovery": {"targets": []}}),
        ("recovery.targets.1", {"recovery": {"targets": ["q_proj", "lm_head"]}}),
        ("recovery.targets", {"recovery": {"targets": ["q_proj", "q_proj"]}}),
        ("recovery.train", {"recovery": {"method": "distill", "train": "all"}}),
        ("recovery", {"recovery": {"method": "lora", "train": "full"}}),
        ("recovery.batch_tokens", {"recovery": {"batch_tokens": 1}}),
        ("recovery.warmup", {"recovery": {"warmup": 1.1}}),
        ("recovery.schedule", {"recovery": {"schedule": "constant"}}),
        ("recovery.precision", {"recovery": {"precision": "int8"}}),
        ("recovery.temperature", {"recovery": {"temperature": 0}}),
        ("recovery.hidden_weight", {"recovery": {"hidden_weight": -1}}),
        ("recovery.token_weight", {"recovery": {"token_weight": -1}}),
        ("recovery.gamma", {"recovery": {"gamma": 1}}),
        ("recovery.steps", {"recovery": {"steps": 0}}),
        ("recovery.rank", {"recovery": {"rank": 0}}),
        ("recovery.learning_rate", {"recovery": {"learning_rate": 0}}),
        ("evaluation.perplexity", {"evaluation": {"perplexity": ["wikitext2"] * 9}}),
        ("evaluation.perplexity.0", {"evaluation": {"perplexity": ["/etc/passwd"]}}),
        ("evaluation.tasks", {"evaluation": {"tasks": ["piqa"] * 33}}),
        ("evaluation.tasks.1", {"evaluation": {"tasks": ["piqa", "mine.jsonl"]}}),
        ("evaluation.tasks.0", {"evaluation": {"tasks": ["../piqa"]}}),
        ("evaluation.task_items", {"evaluation": {"task_items": 0}}),
        ("evaluation.benchmark_batch_size", {"evaluation": {"benchmark_batch_size": 0}}),
        ("evaluation.windows", {"evaluation": {"windows": 0}}),
        ("publish.repo_id", {"publish": {"repo_id": "no-organisation"}}),
        ("publish.repo_id", {"publish": {"repo_id": "org/naïve"}}),
        ("publish", {"publish": {}}),
        ("publish", {"publish": {"repo_id": "org/name", "url": "s3://models/name"}}),
        ("publish", {"publish": {"url": "s3://models/name", "private": False}}),
        ("publish.url", {"publish": {"url": "s3://models"}}),
        ("publish.url", {"publish": {"url": "s3://models/a/../b"}}),
        ("publish.url", {"publish": {"url": "s3://key:secret@models/name"}}),
        ("publish.url", {"publish": {"url": "s3://models/a%2e%2e/b"}}),
        ("publish.url", {"publish": {"url": "file://etc/passwd"}}),
        ("publish.url", {"publish": {"url": "/etc/passwd"}}),
        ("publish.url", {"publish": {"url": "zip://a::s3://models/name"}}),
        ("publish.url", {"publish": {"url": "https://example.org/models"}}),
        ("dtype", {"dtype": "int8"}),
        ("labels", {"labels": {f"k{n}": "" for n in range(17)}}),
        ("labels.a b.[key]", {"labels": {"a b": "x"}}),
        ("labels.a", {"labels": {"a": "x\0"}}),
        ("labels.a", {"labels": {"a": "x" * 513}}),
        ("labels.a", {"labels": {"a": {"nested": True}}}),
        ("webhook.url", {"webhook": {}}),
        ("webhook.url", {"webhook": {"url": "ftp://example.org"}}),
        ("webhook.url", {"webhook": {"url": "https://user:password@example.org"}}),
        ("webhook.events", {"webhook": {"url": "https://example.org", "events": []}}),
        ("webhook.events.1", {"webhook": {"url": "https://example.org", "events": ["failed", "progress"]}}),
        ("webhook.secret", {"webhook": {"url": "https://example.org", "secret": "whsec_mine"}}),
        ("calibration.sample", {"calibration": {"sample": 3}}),
        ("publish.token", {"publish": {"repo_id": "org/name", "token": "hf_secret"}}),
    ],
)
def test_refusals_name_the_field(field: str, changes: dict[str, Any]) -> None:
    assert refused_fields(**changes) == [field]


def test_the_examples_of_the_schema_are_valid() -> None:
    examples = JobSpec.model_json_schema()["examples"]
    assert len(examples) >= 2
    for example in examples:
        JobSpec.model_validate(example)
