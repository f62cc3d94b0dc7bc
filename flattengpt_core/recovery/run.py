"""Recovery of a compressed checkpoint in its folder: train, judge by held-out text, say which weights are better."""

import os
from collections.abc import Mapping
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from flattengpt_core.models import load_model
from flattengpt_core.options import Recovery
from flattengpt_core.progress import Progress
from flattengpt_core.recovery.folder import Recovered, RecoveryFolder, Task
from flattengpt_core.recovery.losses import IGNORED
from flattengpt_core.recovery.objectives import Distillation, Objective, next_token
from flattengpt_core.recovery.training import Example, Training, arguments, batches, finite, predicted_tokens

HELD_OUT_SHARE, HELD_OUT_TOKENS = 0.1, 32_768
"""The last windows decide whether training helped: a tenth of them, or as many as hold so many tokens."""


def recover(folder: RecoveryFolder, progress: Progress) -> Recovered:
    """Do the folder's task, from its last checkpoint on if there is one; a task that is done is not done again.

    Every process of a launcher calls it; the first one writes.

    Raises:
        CheckpointNotWritten: the disk is full.
        Exception: whatever `progress` raises to stop; the last checkpoint stays.
    """
    done = folder.result()
    if done is not None:
        return done
    task = folder.task()
    options = task.options
    train, held_out = split(*folder.windows())
    settings = arguments(
        options,
        batches(options, examples=len(train), length=len(train[0]["labels"]), devices=processes()),
        folder.checkpoints,
        seed=task.seed,
        save_strategy="steps" if task.resumable else "no",
        use_cpu=task.device == "cpu",
    )
    settings._n_gpu = min(1, settings.n_gpu)  # many devices are a launcher's to use, not DataParallel's
    torch.manual_seed(task.seed)
    model = load_model(task.student, device=settings.device, dtype=torch.float32)
    settings.use_cache = model.config.use_cache  # the trainer writes it into the model's config
    training = Training(
        trainable(model, options), settings, _objective(task, settings.device), train, held_out, folder, progress
    )
    last = folder.last_checkpoint()
    training.train(resume_from_checkpoint=None if last is None else str(last))
    before, after = training.loss_before, training.held_out_loss()
    kept = after < before
    if kept:
        training.save_model(str(folder.trained))
    result = Recovered(
        method=options.method,
        steps=training.state.global_step,
        loss_before=finite(before),
        loss_after=finite(after),
        kept=kept,
        held_out_tokens=predicted_tokens(held_out),
        curve=training.curve,
    )
    if training.is_world_process_zero():
        folder.finish(result)
    progress.event("recovered", **{name: value for name, value in result.as_dict().items() if name != "curve"})
    return result


def split(windows: Tensor, seen: Tensor) -> tuple[list[Example], list[Example]]:
    """Windows (n, length) as examples to train on and examples to judge by; padding is neither seen nor predicted.

    Args:
        seen: False where a token is padding.
    """
    labels = windows.masked_fill(~seen, IGNORED)
    examples = [
        {"input_ids": ids, "attention_mask": mask, "labels": wanted}
        for ids, mask, wanted in zip(windows, seen.long(), labels, strict=True)
    ]
    held_out = min(int(len(windows) * HELD_OUT_SHARE), HELD_OUT_TOKENS // windows.shape[1])
    held_out = max(1, held_out)
    return examples[:-held_out], examples[-held_out:]


def trainable(model: PreTrainedModel, options: Recovery) -> PreTrainedModel:
    """The model with what is to be trained, and the rest frozen: LoRA matrices, or all but embeddings and head."""
    if not full(options):
        lora = LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha or 2 * options.rank,
            lora_dropout=0.0,
            target_modules=list(options.targets),
            task_type="CAUSAL_LM",
        )
        return cast("PreTrainedModel", get_peft_model(model, lora))
    for ends in (model.get_input_embeddings(), model.get_output_embeddings()):
        ends.requires_grad_(False)
    return model


def trained_weights(folder: RecoveryFolder) -> Mapping[str, Tensor]:
    """The trained model's weights, in float32 and under the checkpoint's names, LoRA merged into them."""
    task = folder.task()
    cpu = torch.device("cpu")
    if full(task.options):
        return load_model(folder.trained, device=cpu, dtype=torch.float32).state_dict()
    model = load_model(task.student, device=cpu, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, str(folder.trained)).merge_and_unload()
    return cast("PreTrainedModel", merged).state_dict()


def processes() -> int:
    """How many processes a launcher has started for this run, by the variable that torch's launchers set."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is."""
    return int(os.environ.get("RANK", "0"))


def full(options: Recovery) -> bool:
    """Whether all of the layers' weights are trained, not LoRA matrices."""
    return options.method == "distill" and options.train == "full"


def _objective(task: Task, device: torch.device) -> Objective:
    if task.options.method == "lora":
        return next_token
    teacher = load_model(task.teacher, device=device, dtype=torch.float32).requires_grad_(False)
    return Distillation(teacher, task.groups, task.options)
