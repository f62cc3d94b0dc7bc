"""Recovery by LoRA on tiny random models."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from flattengpt_core.models import load_model
from flattengpt_core.progress import Silent
from flattengpt_core.recover import IGNORED, Recovered, lora_recover, mean_loss
from tests.tiny_models import tiny_checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def model(tmp_path: Path) -> PreTrainedModel:
    return load_model(tiny_checkpoint(tmp_path / "tiny", tie_word_embeddings=True), device=CPU, dtype=torch.float32)


@pytest.fixture
def windows() -> Tensor:
    """Text that can be learnt: each window counts up from somewhere."""
    starts = torch.randint(0, 64, (40, 1), generator=torch.Generator().manual_seed(1))
    return (starts + torch.arange(32)) % 64


class Recorder(Silent):
    """Keeps what it is told."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.steps: list[tuple[int, int]] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._stop_at = stop_at

    def step(self, done: int, total: int) -> None:
        self.steps.append((done, total))
        if done == self._stop_at:
            raise KeyboardInterrupt

    def event(self, type: str, **data: Any) -> None:
        self.events.append((type, data))

    def losses(self) -> list[float]:
        return [data["loss"] for type, data in self.events if type == "loss"]


def recover(
    model: PreTrainedModel,
    windows: Tensor,
    *,
    steps: int = 6,
    learning_rate: float = 3e-2,
    seed: int = 0,
    progress: Recorder | None = None,
    padding: Tensor | None = None,
) -> tuple[PreTrainedModel, Recovered]:
    return lora_recover(
        model,
        windows,
        steps=steps,
        rank=4,
        learning_rate=learning_rate,
        seed=seed,
        progress=progress or Recorder(),
        padding=padding,
    )


def state(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_the_held_out_loss_falls(model: PreTrainedModel, windows: Tensor) -> None:
    _, info = recover(model, windows)
    assert info.kept
    assert info.loss_after < info.loss_before - 0.5


def test_the_result_is_the_plain_model(model: PreTrainedModel, windows: Tensor) -> None:
    before, kind, config = state(model), type(model), model.config.to_dict()
    result, _ = recover(model, windows)
    after = state(result)
    assert type(result) is kind
    assert result.config.to_dict() == config
    assert {name: tensor.shape for name, tensor in after.items()} == {name: t.shape for name, t in before.items()}
    assert result.get_output_embeddings().weight is result.get_input_embeddings().weight
    assert not result.training
    assert all(parameter.dtype == torch.float32 for parameter in result.parameters())
    changed = {name.rsplit(".", 2)[-2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_each_update_has_the_rank(model: PreTrainedModel, windows: Tensor) -> None:
    name = "model.layers.2.mlp.up_proj.weight"
    before = state(model)[name]
    result, _ = recover(model, windows)
    assert torch.linalg.matrix_rank(result.state_dict()[name] - before, atol=1e-4) == 4


def test_a_result_that_is_worse_is_not_kept(model: PreTrainedModel, windows: Tensor) -> None:
    before = state(model)
    result, info = recover(model, windows, steps=3, learning_rate=1.0)
    assert not info.kept
    assert info.loss_after > info.loss_before
    assert same(state(result), before)


def test_a_run_that_diverges_is_undone_and_told_in_json(model: PreTrainedModel, windows: Tensor) -> None:
    before, told = state(model), Recorder()
    result, info = recover(model, windows, steps=3, learning_rate=100.0, progress=told)
    assert math.isnan(info.loss_after)
    assert same(state(result), before)
    assert told.events[-1][1]["loss_after"] is None
    json.dumps(told.events, allow_nan=False)


def test_the_same_seed_gives_the_same_bytes(model: PreTrainedModel, windows: Tensor) -> None:
    first, again, other = (copy.deepcopy(model) for _ in range(3))
    results = [state(recover(each, windows, seed=seed)[0]) for each, seed in ((first, 3), (again, 3), (other, 4))]
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_what_was_drawn_before_does_not_matter(model: PreTrainedModel, windows: Tensor) -> None:
    again = copy.deepcopy(model)
    first = state(recover(model, windows)[0])
    torch.rand(7)
    assert same(first, state(recover(again, windows)[0]))


def test_padding_changes_no_loss(model: PreTrainedModel, windows: Tensor) -> None:
    few = windows[:16]  # one batch, with padding or without
    filler = torch.randint(0, 256, (len(few), 8), generator=torch.Generator().manual_seed(2))
    padding = torch.cat([torch.zeros_like(few), torch.ones_like(filler)], dim=1).bool()
    plain, padded = Recorder(), Recorder()
    _, info = recover(copy.deepcopy(model), few, progress=plain)
    _, padded_info = recover(model, torch.cat([few, filler], dim=1), padding=padding, progress=padded)
    assert padded_info.loss_before == pytest.approx(info.loss_before, rel=1e-5)
    assert padded_info.loss_after == pytest.approx(info.loss_after, rel=1e-3)
    assert padded.losses() == pytest.approx(plain.losses(), rel=1e-3)


def test_mean_loss_weighs_tokens_not_windows(model: PreTrainedModel, windows: Tensor) -> None:
    labels = windows[:2].clone()
    labels[1, 5:] = IGNORED
    examples = [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": wanted}
        for ids, wanted in zip(windows, labels, strict=False)
    ]
    with torch.inference_mode():
        log_probabilities = model(windows[:2]).logits[:, :-1].log_softmax(-1)
    chosen = -log_probabilities.gather(-1, windows[:2, 1:, None])[..., 0]
    expected = (chosen[0].sum() + chosen[1, :4].sum()) / (31 + 4)
    assert mean_loss(model, examples) == pytest.approx(float(expected), rel=1e-5)


def test_losses_and_steps_are_told(model: PreTrainedModel, windows: Tensor) -> None:
    told = Recorder()
    _, info = recover(model, windows, steps=6, progress=told)
    assert told.steps == [(done, 6) for done in range(1, 7)]
    losses = [data for type, data in told.events if type == "loss"]
    assert [data["step"] for data in losses] == list(range(1, 7))
    assert all(math.isfinite(data["loss"]) and data["learning_rate"] >= 0 for data in losses)
    assert told.events[-1] == (
        "recovered",
        {"loss_before": info.loss_before, "loss_after": info.loss_after, "kept": info.kept},
    )


def test_progress_can_stop_it(model: PreTrainedModel, windows: Tensor) -> None:
    told = Recorder(stop_at=2)
    with pytest.raises(KeyboardInterrupt):
        recover(model, windows, progress=told)
    assert told.steps[-1][0] == 2


def test_one_window_is_too_few(model: PreTrainedModel, windows: Tensor) -> None:
    with pytest.raises(ValueError, match="two windows"):
        recover(model, windows[:1])
