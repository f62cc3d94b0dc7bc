"""Recovery by LoRA (paper: r = 8, lr 1e-4): train low-rank updates on plain text and merge them into the weights.

Knows token windows and a model; nothing of files or texts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from flattengpt_core.families import DOWN, GATE, KEY, OUTPUT, QUERY, UP, VALUE
from flattengpt_core.progress import Progress

IGNORED = -100
"""The label that the loss leaves out."""

BATCH_TOKENS = 1024
HELD_OUT_SHARE = 0.1
TARGETS = [name.rsplit(".", 1)[-1] for name in (QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN)]


@dataclass(frozen=True)
class Recovered:
    """Held-out loss (nats a token) before and after training, and whether the trained weights were kept."""

    loss_before: float
    loss_after: float
    kept: bool


def lora_recover(
    model: PreTrainedModel,
    windows: Tensor,
    *,
    steps: int,
    rank: int,
    learning_rate: float,
    seed: int,
    progress: Progress,
    padding: Tensor | None = None,
) -> tuple[PreTrainedModel, Recovered]:
    """Train LoRA matrices on all projections, merge them, and keep the better of before and after.

    The last tenth of the windows is held out and decides. The result is the plain model with its own keys.

    Args:
        model: in float32, on the device to train on; it is changed.
        windows: token ids (n, length) int64; two or more.
        steps: optimiser steps. rank: of each update. learning_rate: peak, then linear decay.
        padding: True where a token is padding, (n, length) bool; padding never counts in a loss.
    """
    held_out = max(1, int(len(windows) * HELD_OUT_SHARE))
    examples = _examples(windows, padding)
    train, test = examples[:-held_out], examples[-held_out:]
    if not train:
        raise ValueError("recovery needs two windows of text or more")
    before = mean_loss(model, test)
    torch.manual_seed(seed)
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora)
    batch = max(1, BATCH_TOKENS // windows.shape[1])
    with TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            max_steps=steps,
            per_device_train_batch_size=batch,
            learning_rate=learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=steps // 20,
            logging_steps=max(1, steps // 100),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cache=model.config.use_cache,  # the trainer writes it into the model's config
            use_cpu=model.device.type == "cpu",
            seed=seed,
            data_seed=seed,
        )
        trainer = Trainer(
            model=adapted,
            args=arguments,
            train_dataset=train,  # a list serves as a map-style dataset
            callbacks=[_Reporting(progress)],
        )
        trainer.remove_callback(PrinterCallback)  # standard output is for results
        trainer.train()
    adapted.eval()
    after = mean_loss(adapted, test)
    kept = after < before
    plain = cast("PreTrainedModel", adapted.merge_and_unload() if kept else adapted.unload())
    result = Recovered(before, after, kept)
    progress.event("recovered", loss_before=_json(before), loss_after=_json(after), kept=kept)
    return plain, result


@torch.inference_mode()
def mean_loss(model: PreTrainedModel | PeftModel, examples: Sequence[dict[str, Tensor]]) -> float:
    """The mean negative log-likelihood a token, in nats, padding left out."""
    total, tokens = 0.0, 0
    for example in examples:
        batch = {name: tensor[None].to(model.device) for name, tensor in example.items()}
        counted = int((batch["labels"][:, 1:] != IGNORED).sum())
        if counted:
            total += float(model(**batch).loss) * counted
            tokens += counted
    return total / tokens if tokens else math.nan


def _examples(windows: Tensor, padding: Tensor | None) -> list[dict[str, Tensor]]:
    """Inputs, attention masks and labels; a padded token is neither seen nor predicted."""
    mask = torch.ones_like(windows) if padding is None else (~padding).long()
    labels = windows.masked_fill(mask == 0, IGNORED)
    return [
        {"input_ids": ids, "attention_mask": seen, "labels": wanted}
        for ids, seen, wanted in zip(windows, mask, labels, strict=True)
    ]


def _json(loss: float) -> float | None:
    """JSON has no number for a loss that diverged."""
    return loss if math.isfinite(loss) else None


class _Reporting(TrainerCallback):
    """Tells the pipeline of steps and losses; what `progress` raises stops the training."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._progress.step(state.global_step, state.max_steps)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs and "loss" in logs:
            self._progress.event(
                "loss", step=state.global_step, loss=_json(logs["loss"]), learning_rate=logs.get("learning_rate")
            )
