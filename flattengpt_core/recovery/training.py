"""One run of transformers' trainer, which goes through accelerate: the same on a CPU, a GPU, or many of them.

Knows a model, its examples and an objective; nothing of what the objective is made of.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from flattengpt_core.errors import CheckpointNotWritten
from flattengpt_core.options import Recovery
from flattengpt_core.progress import Progress
from flattengpt_core.recovery.folder import RecoveryFolder
from flattengpt_core.recovery.losses import IGNORED
from flattengpt_core.recovery.objectives import Objective, next_token

Example = dict[str, Tensor]
"""input_ids, attention_mask and labels of one window, each (length,)."""

PASS_TOKENS = 4096
"""Tokens a forward pass on one device; a larger batch is gathered over several passes."""

POINTS, CHECKPOINTS = 100, 20
"""How often a run tells its loss, and how often it saves its state."""

_BEFORE = "held_out_loss_before"


@dataclass(frozen=True)
class Batches:
    """How a batch is made. windows: a pass, on one device. passes: an optimiser step. steps: in all."""

    windows: int
    passes: int
    steps: int


def batches(options: Recovery, *, examples: int, length: int, devices: int) -> Batches:
    """How batches of about `options.batch_tokens` tokens are made of `examples` windows on `devices` devices."""
    share = max(1, options.batch_tokens // (length * devices))  # windows a device and step
    windows = min(share, max(1, PASS_TOKENS // length))
    passes = -(-share // windows)
    if options.epochs is None:
        return Batches(windows, passes, options.steps)
    return Batches(windows, passes, options.epochs * -(-examples // (windows * passes * devices)))


def arguments(options: Recovery, batch: Batches, checkpoints: Path, *, seed: int, **more: Any) -> TrainingArguments:
    """The trainer's settings; losses and checkpoints come at steps that a resumed run meets again."""
    told = max(1, batch.steps // POINTS)
    return TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=batch.steps,
        per_device_train_batch_size=batch.windows,
        gradient_accumulation_steps=batch.passes,
        learning_rate=options.learning_rate,
        lr_scheduler_type=options.schedule,
        warmup_steps=int(batch.steps * options.warmup),
        logging_steps=told,
        logging_nan_inf_filter=False,
        save_steps=told * max(1, round(batch.steps / CHECKPOINTS / told)),
        bf16=options.precision == "bfloat16",
        save_total_limit=2,  # the newest may not be whole yet
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=seed,
        data_seed=seed,
        **more,
    )


class Training(Trainer):
    """Minimises an objective, and judges the model by the held-out text before the first and after the last step."""

    loss_is_scaled_for_ga = True  # by the tokens of the whole batch

    def __init__(
        self,
        model: PreTrainedModel,
        settings: TrainingArguments,
        objective: Objective,
        train: Sequence[Example],
        held_out: Sequence[Example],
        folder: RecoveryFolder,
        progress: Progress,
    ) -> None:
        """
        Args:
            train, held_out: windows to train on and to judge by; lists serve as map-style datasets.
            progress: told of steps and losses by the first process; what it raises stops the training.
        """
        super().__init__(model=model, args=settings, train_dataset=train)
        self.model_accepts_loss_kwargs = True  # so that the tokens of a batch are counted over all passes and devices
        self._objective, self._held_out, self._folder = objective, held_out, folder
        self.remove_callback(PrinterCallback)  # standard output is for results
        self.add_callback(_Judging(self))
        if self.is_world_process_zero():
            self.add_callback(_Reporting(progress, folder))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The objective a token, over all tokens of the batch that count; the devices' gradients are averaged."""
        tokens = torch.as_tensor(num_items_in_batch, device=inputs["labels"].device).clamp_min(1)
        with self.accelerator.autocast():  # for the teacher, too, which the trainer does not know
            return self._objective(model, inputs) * self.accelerator.num_processes / tokens

    def held_out_loss(self) -> float:
        """The mean loss in nats a held-out token; each process goes through all of them, as a sharded model needs."""
        return mean_loss(self.model_wrapped, self._held_out, device=self.args.device)

    @property
    def loss_before(self) -> float:
        """The held-out loss before the first step, also of a run that was resumed."""
        return next(entry[_BEFORE] for entry in self.state.log_history if _BEFORE in entry)

    @property
    def curve(self) -> list[tuple[int, float | None]]:
        """Step and training loss."""
        return [(int(entry["step"]), finite(entry["loss"])) for entry in self.state.log_history if "loss" in entry]

    def _save_checkpoint(self, *given: Any, **named: Any) -> None:
        try:
            super()._save_checkpoint(*given, **named)
        except (OSError, RuntimeError, SafetensorError) as error:  # what the libraries make of a full disk
            raise CheckpointNotWritten(
                f"The training's state could not be saved after step {self.state.global_step} ({error}): make room on "
                "the disk, then start it again."
            ) from error


class _Judging(TrainerCallback):
    """Measures the held-out loss before the first step, and ends a run whose loss is no number any more."""

    def __init__(self, training: Training) -> None:
        self._training = training

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not any(_BEFORE in entry for entry in state.log_history):
            state.log_history.append({"step": 0, _BEFORE: self._training.held_out_loss()})

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_save = False  # the trainer would take one more step from such a checkpoint

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs and not math.isfinite(logs.get("loss", 0.0)):
            control.should_training_stop, control.should_save = True, False


class _Reporting(TrainerCallback):
    """Tells the pipeline of steps and losses, and the folder of checkpoints that are whole."""

    def __init__(self, progress: Progress, folder: RecoveryFolder) -> None:
        self._progress, self._folder = progress, folder

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._progress.step(state.global_step, state.max_steps)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._folder.mark(f"checkpoint-{state.global_step}")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs and "loss" in logs:
            self._progress.event(
                "loss", step=state.global_step, loss=finite(logs["loss"]), learning_rate=logs.get("learning_rate")
            )


@torch.no_grad()
def mean_loss(model: nn.Module, examples: Sequence[Example], *, device: torch.device) -> float:
    """The mean negative log-likelihood a token, in nats, padding left out; NaN if no token counts."""
    training = model.training
    model.eval()
    size = max(1, PASS_TOKENS // len(examples[0]["labels"]))
    total, tokens = 0.0, predicted_tokens(examples)
    for start in range(0, len(examples), size):
        windows = examples[start : start + size]
        batch = {name: torch.stack([window[name] for window in windows]).to(device) for name in windows[0]}
        total += float(next_token(model, batch))
    model.train(training)
    return total / tokens if tokens else math.nan


def predicted_tokens(examples: Sequence[Example]) -> int:
    """How many tokens of the examples count in a loss."""
    return sum(int((example["labels"][1:] != IGNORED).sum()) for example in examples)


def finite(loss: float) -> float | None:
    """JSON has no number for a loss that diverged."""
    return loss if math.isfinite(loss) else None
