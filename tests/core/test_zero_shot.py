"""Accuracies and likelihoods through lm-eval, against log-likelihoods computed here without it."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flattengpt_core.errors import InvalidRequest
from flattengpt_core.models import load_model
from flattengpt_core.tasks import Task, load_tasks
from flattengpt_core.zero_shot import ask
from tests.task_files import ANSWERS, CHOICES, CONTEXTS, INSTRUCTIONS, task_file
from tests.tiny_models import byte_tokenizer, tiny_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("source") / "tiny", seed=3)
    return load_model(folder, device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return byte_tokenizer()


def log_likelihood(model: PreTrainedModel, context: str, continuation: str) -> float:
    """Of the continuation's bytes, which are its tokens."""
    before, after = list(context.encode()), list(continuation.encode())
    ids = byte_tokenizer()(context + continuation, return_tensors="pt")["input_ids"]
    assert ids.shape[1] == len(before) + len(after)
    with torch.inference_mode():
        logs = model(ids).logits[0].log_softmax(dim=-1)
    return float(sum(logs[place - 1, ids[0, place]] for place in range(len(before), ids.shape[1])))


def best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def test_choices_by_likelihood_a_character(
    tmp_path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    name = task_file(tmp_path / "choices.jsonl", CHOICES)
    told: list[int] = []
    found = ask(model, tokenizer, load_tasks([name]), limit=None, on_items=told.append).choices[name]
    expected = []
    for row in CHOICES:
        logs = [log_likelihood(model, row["query"], f" {choice}") / len(choice) for choice in row["choices"]]
        expected.append(float(best(logs) == row["gold"]))
    assert found.right == tuple(expected)
    assert (found.metric, sum(told)) == ("acc_norm", len(CHOICES))
    assert found.chance == pytest.approx((1 / 2 + 1 / 3 + 1 / 5 + 1 / 4) / 4)


def test_contexts_by_the_likelihood_of_what_follows(
    tmp_path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    name = task_file(tmp_path / "contexts.jsonl", CONTEXTS)
    found = ask(model, tokenizer, load_tasks([name]), limit=None).choices[name]
    expected = []
    for row in CONTEXTS:
        logs = [log_likelihood(model, context, f" {row['continuation']}") for context in row["context_options"]]
        expected.append(float(best(logs) == row["gold"]))
    assert found.right == tuple(expected)
    assert (found.metric, found.chances) == ("acc", (1 / 2, 1 / 2, 1 / 3))


def test_a_limit_takes_the_first_items(
    tmp_path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    name = task_file(tmp_path / "choices.jsonl", CHOICES)
    tasks = load_tasks([name])
    whole, first = (ask(model, tokenizer, tasks, limit=limit).choices[name] for limit in (None, 3))
    assert (first.right, first.chances) == (whole.right[:3], whole.chances[:3])


def test_answers_by_likelihood_a_token(
    tmp_path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    answers = task_file(tmp_path / "answers.jsonl", ANSWERS)
    instructions = task_file(tmp_path / "instructions.jsonl", INSTRUCTIONS)
    found = ask(model, tokenizer, load_tasks([answers, instructions]), limit=None).generative
    pairs = {
        answers: [(f"Question: {row['question']}\nAnswer:", f" {row['answer']}") for row in ANSWERS],
        instructions: [
            ("### Instruction:\nSay yes.\n\n### Response:", "\nyes"),
            ("### Instruction:\nCount the letters.\n\n### Input:\nabc\n\n### Response:", "\nThere are 3 letters."),
            ("### Instruction:\nSay nothing.\n\n### Response:", "\n"),
        ],
    }
    for name, asked in pairs.items():
        tokens = sum(len(continuation) for _, continuation in asked)
        nats = -sum(log_likelihood(model, *pair) for pair in asked) / tokens
        assert found[name]["nats_per_token"] == pytest.approx(nats, rel=1e-5)
        assert found[name]["perplexity"] == pytest.approx(math.exp(nats), rel=1e-4)
        assert (found[name]["tokens"], found[name]["items"]) == (tokens, len(asked))
        assert found[name]["nats_per_token_stderr"] > 0


def test_an_answer_is_exact_if_greedy_decoding_writes_it(
    tmp_path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """A model of random weights writes bytes that are no text, so its answer is taken where it is."""
    letters = [index for text in "abcdefghijklmnopqrstuvwxyz" for index in tokenizer(text)["input_ids"]]
    bias = torch.full((model.config.vocab_size,), -100.0)
    bias[letters] = 0
    space = tokenizer(" ")["input_ids"][0]
    plain = model.lm_head.forward

    def only_letters(hidden: torch.Tensor) -> torch.Tensor:
        logits = plain(hidden) + bias
        logits[..., space] = torch.where(torch.arange(logits.shape[-2]) == prompt_length - 1, 100.0, -100.0)
        return logits

    question = "What?"
    prompt = tokenizer(f"Question: {question}\nAnswer:", return_tensors="pt")["input_ids"]
    prompt_length = prompt.shape[1]
    model.lm_head.forward = only_letters  # type: ignore[method-assign]
    try:
        ids = prompt
        for _ in range(4):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(dim=-1)], dim=1)
        written = tokenizer.decode(ids[0, prompt_length:])
        rows = [{"question": question, "answer": written[1:]}, {"question": question, "answer": written[1:] + "!"}]
        name = task_file(tmp_path / "answers.jsonl", rows)
        found = ask(model, tokenizer, load_tasks([name]), limit=None).generative[name]
    finally:
        del model.lm_head.forward
    assert written.startswith(" ")
    assert found["exact_match"] == 0.5


def test_an_answer_longer_than_the_context_is_refused(
    tmp_path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    name = task_file(tmp_path / "answers.jsonl", [{"question": "Why?", "answer": "because " * 100}])
    with pytest.raises(InvalidRequest, match="more than the model's 512"):
        ask(model, tokenizer, load_tasks([name]), limit=None)


def test_a_task_that_generates_keeps_lm_evals_figures(model: PreTrainedModel) -> None:
    """As gsm8k does: greedy decoding, a filter, exact match."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    rows = {"test": Dataset.from_list([{"question": f"{n}?", "answer": "no"} for n in range(3)])}
    config = {
        "task": "written",
        "custom_dataset": lambda **_: rows,
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "question",
        "doc_to_target": "answer",
        "num_fewshot": 0,
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = "Ā"
    told: list[int] = []
    task = Task("written", ConfigurableTask(config=config), answers=False)
    found = ask(model, tokenizer, [task], limit=2, on_items=told.append)
    assert found.choices == {}
    assert found.generative["written"] == {
        "exact_match,none": 0.0,
        "exact_match,none_stderr": 0.0,
        "items": 2,
        "shots": 0,
    }
    assert sum(told) == 2
