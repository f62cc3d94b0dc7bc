"""Recovery of tiny random models, from task to weights."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flattengpt_core.errors import CalibrationNotFound, CheckpointNotWritten
from flattengpt_core.models import Checkpoint, load_model, replace_weights
from flattengpt_core.options import Recovery
from flattengpt_core.recovery.folder import RecoveryFolder
from flattengpt_core.recovery.losses import IGNORED
from flattengpt_core.recovery.run import recover, split, trained_weights
from flattengpt_core.recovery.training import Training, batches, mean_loss
from tests.core.recovery.recorder import (
    DISTILL,
    FULL,
    LORA,
    Recorder,
    Stopped,
    counting_windows,
    models,
    prepared,
)

CPU = torch.device("cpu")
METHODS = pytest.mark.parametrize("options", [LORA, DISTILL, FULL], ids=["lora", "distill", "full"])


def trained(folder: RecoveryFolder) -> dict[str, Tensor]:
    """The weights after training."""
    assert recover(folder, Recorder()).kept
    return dict(trained_weights(folder))


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def changed(tmp_path: Path, weights: dict[str, Tensor]) -> set[str]:
    """The names of the modules whose weights are not the untrained model's."""
    before = load_model(models(tmp_path)[0], device=CPU, dtype=torch.float32).state_dict()
    assert {name: tensor.shape for name, tensor in weights.items()} == {name: t.shape for name, t in before.items()}
    return {name.rsplit(".", 2)[-2] for name in before if not torch.equal(before[name], weights[name])}


PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
NORMS = {"input_layernorm", "post_attention_layernorm", "norm"}


@METHODS
def test_the_held_out_loss_falls_and_the_result_says_so(tmp_path: Path, options: Recovery) -> None:
    told = Recorder()
    folder = prepared(tmp_path, options)
    result = recover(folder, told)
    assert result.kept
    assert result.loss_before is not None
    assert result.loss_after is not None
    assert result.loss_after < result.loss_before - 0.2
    assert (result.method, result.steps, result.held_out_tokens) == (options.method, 6, 4 * 31)
    assert folder.result() == result
    assert told.steps == [(done, 6) for done in range(1, 7)]
    losses = [data for type, data in told.events if type == "loss"]
    assert [(data["step"], data["loss"]) for data in losses] == result.curve
    assert len(result.curve) == 6
    assert losses[-1]["loss"] < losses[0]["loss"]
    assert all(data["learning_rate"] >= 0 for data in losses)
    assert told.events[-1] == ("recovered", {k: v for k, v in result.as_dict().items() if k != "curve"})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (LORA, PROJECTIONS),
        (DISTILL, PROJECTIONS),
        (dataclasses.replace(LORA, targets=("o_proj", "down_proj")), {"o_proj", "down_proj"}),
        (FULL, PROJECTIONS | NORMS),
    ],
)
def test_only_what_shall_be_trained_changes(tmp_path: Path, options: Recovery, expected: set[str]) -> None:
    assert changed(tmp_path, trained(prepared(tmp_path, options))) == expected


def test_the_judgement_is_that_of_the_weights_that_are_handed_over(tmp_path: Path) -> None:
    folder = prepared(tmp_path, LORA)
    weights = trained(folder)
    result = folder.result()
    student = models(tmp_path)[0]
    _, held_out = split(*folder.windows())
    for loss in (result.loss_before, result.loss_after):
        assert mean_loss(load_model(student, device=CPU, dtype=torch.float32), held_out, device=CPU) == pytest.approx(
            loss, rel=1e-5
        )
        replace_weights(Checkpoint(student), weights)


def test_each_update_has_the_rank_and_the_scale(tmp_path: Path) -> None:
    name = "model.layers.2.mlp.up_proj.weight"
    before = load_model(models(tmp_path)[0], device=CPU, dtype=torch.float32).state_dict()[name]
    update = trained(prepared(tmp_path, LORA))[name] - before
    assert torch.linalg.matrix_rank(update, atol=1e-4) == 4
    default = dataclasses.replace(LORA, steps=1, learning_rate=1e-4, warmup=0.0)
    once, twice = (
        trained(prepared(tmp_path, dataclasses.replace(default, alpha=alpha), name=str(alpha)))[name] - before
        for alpha in (None, 16)
    )
    assert torch.allclose(twice, 2 * once, rtol=0.05, atol=1e-7)  # alpha is twice the rank if not given


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first = trained(prepared(tmp_path, LORA, seed=3, name="first"))
    torch.rand(7)  # what was drawn before does not matter
    assert same(first, trained(prepared(tmp_path, LORA, seed=3, name="again")))
    assert not same(first, trained(prepared(tmp_path, LORA, seed=4, name="other")))


@METHODS
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(tmp_path: Path, options: Recovery) -> None:
    options = dataclasses.replace(options, steps=12, batch_tokens=192)  # 36 windows to train on: two epochs
    whole, broken = prepared(tmp_path, options, name="whole"), prepared(tmp_path, options, name="broken")
    expected = trained(whole)
    for stop in (4, 9):
        with pytest.raises(Stopped):
            recover(broken, Recorder(stop_at=stop))
    told = Recorder()
    assert recover(broken, told) == whole.result()
    assert told.steps[0] == (9, 12)  # the step it was stopped in had not been saved
    assert same(dict(trained_weights(broken)), expected)
    silent = Recorder()
    assert recover(broken, silent) == whole.result()
    assert silent.steps == []


def test_a_checkpoint_that_is_not_whole_is_not_used(tmp_path: Path) -> None:
    whole, broken = prepared(tmp_path, LORA, name="whole"), prepared(tmp_path, LORA, name="broken")
    expected = trained(whole)
    with pytest.raises(Stopped):
        recover(broken, Recorder(stop_at=4))
    newest = broken.checkpoints / "checkpoint-4"
    newest.mkdir()
    (newest / "adapter_model.safetensors").write_bytes(b"half of")
    assert same(trained(broken), expected)


def test_a_full_disk_is_said_and_the_run_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepared(tmp_path, LORA)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_save_rng_state", full)
        with pytest.raises(CheckpointNotWritten, match="make room"):
            recover(folder, Recorder())
    assert recover(folder, Recorder()).kept


def test_a_result_that_is_worse_is_not_kept(tmp_path: Path) -> None:
    windows = counting_windows()
    windows[-4:] += 128  # judged by tokens that it unlearns
    folder = prepared(tmp_path, dataclasses.replace(LORA, steps=30), windows=windows)
    result = recover(folder, Recorder())
    assert not result.kept
    assert result.loss_before is not None
    assert result.loss_after is not None
    assert result.loss_after > result.loss_before
    assert not folder.trained.exists()


@METHODS
def test_a_run_that_diverges_ends_and_is_told_in_json(tmp_path: Path, options: Recovery) -> None:
    told = Recorder()
    folder = prepared(tmp_path, dataclasses.replace(options, steps=40, learning_rate=1e30))
    result = recover(folder, told)
    assert not result.kept
    assert result.loss_after is None
    assert result.curve[-1][1] is None
    assert result.steps < 40
    json.dumps([told.events, result.as_dict()], allow_nan=False)


@METHODS
def test_padding_changes_no_loss(tmp_path: Path, options: Recovery) -> None:
    few = counting_windows()[:16]  # one batch, with padding or without
    filler = torch.randint(0, 256, (len(few), 8), generator=torch.Generator().manual_seed(2))
    padding = torch.cat([torch.zeros_like(few), torch.ones_like(filler)], dim=1).bool()
    plain, padded = Recorder(), Recorder()
    options = dataclasses.replace(options, hidden_weight=1.0, token_weight=0.5)
    info = recover(prepared(tmp_path, options, windows=few, name="plain"), plain)
    long = torch.cat([few, filler], dim=1)
    padded_info = recover(prepared(tmp_path, options, windows=long, padding=padding, name="padded"), padded)
    assert padded_info.held_out_tokens == info.held_out_tokens
    assert padded_info.loss_before == pytest.approx(info.loss_before, rel=1e-5)
    assert padded_info.loss_after == pytest.approx(info.loss_after, rel=1e-3)
    assert padded.losses() == pytest.approx(plain.losses(), rel=1e-3)


def test_mean_loss_weighs_tokens_not_windows(tmp_path: Path) -> None:
    model = load_model(models(tmp_path)[0], device=CPU, dtype=torch.float32)
    windows = counting_windows()[:2]
    labels = windows.clone()
    labels[1, 5:] = IGNORED
    examples = [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": wanted}
        for ids, wanted in zip(windows, labels, strict=True)
    ]
    with torch.inference_mode():
        log_probabilities = model(windows).logits[:, :-1].log_softmax(-1)
    chosen = -log_probabilities.gather(-1, windows[:, 1:, None])[..., 0]
    expected = (chosen[0].sum() + chosen[1, :4].sum()) / (31 + 4)
    assert mean_loss(model, examples, device=CPU) == pytest.approx(float(expected), rel=1e-5)


def test_a_batch_gathered_over_passes_is_the_same_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = dataclasses.replace(DISTILL, batch_tokens=8 * 32)
    at_once = recover(prepared(tmp_path, options, name="at_once"), Recorder())
    monkeypatch.setattr("flattengpt_core.recovery.training.PASS_TOKENS", 64)
    gathered = recover(prepared(tmp_path, options, name="gathered"), Recorder())
    assert [loss for _, loss in gathered.curve] == pytest.approx([loss for _, loss in at_once.curve], rel=1e-4)
    assert gathered.loss_after == pytest.approx(at_once.loss_after, rel=1e-4)


def test_batches_share_the_tokens_among_devices() -> None:
    options = Recovery("lora", steps=7, batch_tokens=16384)
    assert dataclasses.astuple(batches(options, examples=99, length=256, devices=1)) == (16, 4, 7)
    assert dataclasses.astuple(batches(options, examples=99, length=256, devices=8)) == (8, 1, 7)
    assert dataclasses.astuple(batches(options, examples=99, length=32768, devices=8)) == (1, 1, 7)


@METHODS
def test_bfloat16_products_train_float32_weights_to_about_the_same(tmp_path: Path, options: Recovery) -> None:
    plain, rounded = Recorder(), Recorder()
    exact = recover(prepared(tmp_path, options, name="float32"), plain)
    folder = prepared(tmp_path, dataclasses.replace(options, precision="bfloat16"), name="bfloat16")
    found = recover(folder, rounded)
    assert found.loss_before == pytest.approx(exact.loss_before, rel=1e-2)
    assert found.loss_after != exact.loss_after
    assert found.loss_after == pytest.approx(exact.loss_after, rel=0.05)
    assert rounded.losses() == pytest.approx(plain.losses(), rel=0.05)
    assert {tensor.dtype for tensor in trained_weights(folder).values()} == {torch.float32}


def test_epochs_decide_instead_of_steps(tmp_path: Path) -> None:
    options = dataclasses.replace(LORA, steps=100, epochs=2, batch_tokens=10 * 32)
    assert recover(prepared(tmp_path, options), Recorder()).steps == 2 * math.ceil(36 / 10)


def test_one_window_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(CalibrationNotFound, match="two windows"):
        prepared(tmp_path, LORA, windows=counting_windows()[:1])


def test_held_out_windows_are_few_of_a_long_text() -> None:
    windows = torch.zeros(2000, 512, dtype=torch.long)
    train, held_out = split(windows, torch.ones_like(windows, dtype=torch.bool))
    assert (len(train), len(held_out)) == (2000 - 64, 64)
