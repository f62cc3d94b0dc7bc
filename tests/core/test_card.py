"""The model card: metadata that the Hub understands, and numbers that are the measured ones."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from flattengpt_core.card import card
from flattengpt_core.errors import InvalidRequest
from flattengpt_core.licence import Licence, licence_of, refuse_name
from jobs.spec import JobSpec

EVALUATION: dict[str, Any] = {
    "sequence_length": 512,
    "tokens": {"wikitext2": 16_384, "python-docs": 4_096},
    "split": {"wikitext2": "test split", "python-docs": "last fifth"},
    "task_items": None,
    "benchmark": {
        "repeats": 5,
        "batch_size": 64,
        "prompt_tokens": 64,
        "new_tokens": 128,
        "prefill_batch_size": 1,
        "prefill_tokens": 2048,
    },
}
NOTHING_ASKED: dict[str, Any] = {
    "accuracy": {}, "accuracy_stderr": {}, "tasks": {}, "generative": {}, "retention": {}, "evaluation": EVALUATION,
}  # fmt: skip
METRICS: dict[str, Any] = {
    "dense": {
        "layers": 6,
        "parameters": 134_515_008,
        "perplexity": {"wikitext2": 20.0, "python-docs": 10.0},
        **NOTHING_ASKED,
        "tokens_per_second": 100.0,
        "latency_ms": 12.5,
    },
    "compressed": {
        "layers": 4,
        "parameters": 113_274_432,
        "perplexity": {"wikitext2": 30.0, "python-docs": 12.0},
        **NOTHING_ASKED,
        "tokens_per_second": 120.0,
        "latency_ms": 10.0,
    },
    "compress_seconds": 1.5,
    "peak_memory_bytes": 1_000_000,
    "groups": [[0], [1, 2], [3, 4], [5]],
}


def made(
    base_model: str = "org/base", metrics: dict[str, Any] = METRICS, licence: Licence | None = None, **request: Any
) -> ModelCard:
    spec = JobSpec.model_validate({"model": "org/base", "layers": 4, **request})
    return ModelCard(card(metrics, spec.as_request(), base_model, licence))


def test_the_metadata() -> None:
    data = made(publish={"repo_id": "acme/base-flat4"}).data
    assert data.base_model == "org/base"
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert "flattengpt" in data.tags
    assert data.model_name == "acme/base-flat4"
    results = {result.dataset_type: (result.metric_type, result.metric_value) for result in data.eval_results}
    assert results == {"wikitext2": ("perplexity", 30.0), "python-docs": ("perplexity", 12.0)}


def test_the_table_holds_both_models() -> None:
    text = made().text
    for row in (
        "| layers | 6 | 4 | 0.67 |",
        "| parameters | 134,515,008 | 113,274,432 | 0.84 |",
        "| perplexity, wikitext2 | 20.00 | 30.00 | 1.50 |",
        "| tokens/s | 100.0 | 120.0 | 1.20 |",
        "| latency, ms | 12.5 | 10.0 | 0.80 |",
    ):
        assert row in text


def test_what_the_figures_are_on() -> None:
    text = made().text
    assert "windows of 512 tokens: 16,384 tokens of wikitext2 (test split)" in text
    assert "5 repeats of generating 128 tokens after 64 × 64 tokens, and of one pass over 1 × 2048 tokens" in text


@pytest.mark.parametrize(
    ("licence", "name", "said"),
    [
        (Licence("llama3.2"), "Llama-base-flat4", "Built with Llama."),
        (Licence("llama3"), "Llama-3-base-flat4", "Built with Meta Llama 3."),
        (Licence("other", "llama3.1", "LICENSE"), "Llama-base-flat4", "[`llama3.1`](LICENSE)"),
        (Licence("apache-2.0"), "base-flat4", "That of org/base: `apache-2.0`.\n"),
    ],
)
def test_the_base_models_licence_and_what_it_asks_for(licence: Licence, name: str, said: str) -> None:
    found = made(publish={"repo_id": "acme/base-flat4"}, licence=licence)
    assert (found.data.license, found.data.license_name, found.data.license_link) == (
        licence.id, licence.name, licence.link,
    )  # fmt: skip
    assert (found.data.base_model, found.data.base_model_relation) == ("org/base", "finetune")
    assert found.data.model_name == f"acme/{name}"
    assert f"# {name}\n" in found.text
    assert said in found.text
    assert 'from_pretrained("acme/base-flat4")' in found.text


def test_a_name_that_the_licence_wants_is_left_alone() -> None:
    kept = made(publish={"repo_id": "acme/llama_3.2-flat4"}, licence=Licence("llama3.2")).data.model_name
    assert kept == "acme/llama_3.2-flat4"
    refuse_name(Licence("llama3"), "llama-3-8b-flat24")
    for licence, name in [(Licence("llama3.1"), "my-llama"), (Licence("llama3"), "Llama-flat24")]:
        with pytest.raises(InvalidRequest, match="wants the name of a public model"):
            refuse_name(licence, name)


def test_a_card_is_read_for_its_licence_and_never_trusted(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    for head, found in [
        ("license: mit", Licence("mit")),
        ("license: [mit]", Licence("mit")),
        ("license: [mit, apache-2.0]", None),
        ("license: 'mit](https://evil.example)'", None),
        ("license: other\nlicense_name: '**x**'\nlicense_link: 'javascript:alert(1)'", Licence("other")),
        ("license: other\nlicense_link: ../../secret", Licence("other")),
        ("license: {", None),
        ("- list", None),
        ("license: 2024-99-99", None),
    ]:
        card.write_text(f"---\n{head}\n---\n# tiny\n")
        assert licence_of(tmp_path) == found, head
    card.write_bytes(b"\xff\xfe\x00")
    assert licence_of(tmp_path) is None
    assert licence_of(tmp_path / "none") is None
    assert Licence("other", None, "LICENSE").without_missing_file(tmp_path).link is None
    assert Licence("other", None, "README.md").without_missing_file(tmp_path).link == "README.md"


def test_tasks() -> None:
    kept = {"raw": 0.9996, "raw_stderr": 0.012, "above_chance": None, "above_chance_stderr": None}
    asked = {
        "accuracy": {"piqa": 0.6, "mean": 0.6},
        "accuracy_stderr": {"piqa": 0.05, "mean": 0.05},
        "tasks": {"piqa": {"metric": "acc_norm", "items": 100, "chance": 0.5}},
        "generative": {"gsm8k": {"exact_match,strict-match": 0.25, "items": 8}},
        "retention": {"piqa": kept, "mean": kept},
    }
    found = made(metrics=METRICS | {side: METRICS[side] | asked for side in ("dense", "compressed")})
    row = "| piqa, acc_norm | 100 | 0.500 | 0.6000 ± 0.0500 | 0.6000 ± 0.0500 | 99.9 % ± 1.2 | not defined |"
    assert row in found.text
    assert "| gsm8k, exact_match,strict-match | 0.25 | 0.25 |" in found.text
    results = {result.dataset_type: (result.metric_type, result.metric_value) for result in found.data.eval_results}
    assert results["piqa"] == ("acc_norm", 0.6)


def test_how_it_was_made_and_how_to_load_it() -> None:
    text = made(publish={"repo_id": "acme/base-flat4"}, recovery={"method": "lora"}).text
    assert "0, 1+2, 3+4, 5" in text
    assert "recovery: lora" in text
    assert 'AutoModelForCausalLM.from_pretrained("acme/base-flat4")' in text
    assert "# base-flat4\n" in text


def test_a_local_model_is_no_base_model_on_the_hub() -> None:
    assert made("smollm2").data.base_model is None
    assert "smollm2 with 4 of its 6 decoder layers" in made("smollm2").text


@pytest.mark.parametrize("missing", ["tokens_per_second", "latency_ms"])
def test_what_was_not_measured_has_no_row(missing: str) -> None:
    sides = {side: METRICS[side] | {missing: None} for side in ("dense", "compressed")}
    word = {"tokens_per_second": "tokens/s", "latency_ms": "latency, ms"}[missing]
    assert f"| {word} |" not in made(metrics=METRICS | sides).text


def test_without_perplexities_there_are_no_results() -> None:
    sides = {side: METRICS[side] | {"perplexity": {}} for side in ("dense", "compressed")}
    assert not made(metrics=METRICS | sides).data.eval_results


@pytest.mark.parametrize(
    ("after", "kept", "said"),
    [
        (2.75, True, "from 3.500 to 2.750 nats a token, so the trained weights were kept."),
        (4.0, False, "from 3.500 to 4.000 nats a token, so training did not help and the weights from before it"),
        (None, False, "from 3.500 to no number nats a token, so training did not help"),
    ],
)
def test_what_training_did_is_said(after: float | None, kept: bool, said: str) -> None:
    recovery = {
        "method": "distill",
        "steps": 700,
        "loss_before": 3.5,
        "loss_after": after,
        "kept": kept,
        "held_out_tokens": 32704,
        "curve": [[7, 0.9], [14, 0.5]],
    }
    text = made(metrics=METRICS | {"recovery": recovery}).text
    assert "Trained for 700 steps (distill); the loss on 32,704 held-out tokens went " in text
    assert said in text
    assert "![training loss by step](recovery.svg)" in text
    assert "recovery.svg" not in made().text
