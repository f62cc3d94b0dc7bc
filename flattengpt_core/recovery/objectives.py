"""What recovery minimises: the next token's loss, or the distance to the dense model. Knows no trainer."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from flattengpt_core.grouping import Group
from flattengpt_core.options import Recovery
from flattengpt_core.recovery.losses import divergence, hidden_error, next_token_loss, successors


class Objective(Protocol):
    """A loss that a model is trained on."""

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss summed over the tokens that count.

        Args:
            batch: input_ids, attention_mask and labels (windows, length); a label of IGNORED is not counted.
        """


def next_token(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The negative log-likelihood in nats of the text itself."""
    following, counted = successors(batch["labels"])
    logits, _ = _forward(model, batch, [])
    return next_token_loss(logits, following, counted)


class Distillation:
    """KL(dense ‖ compressed) of the next token + weights times the error of hidden states and the text's own loss."""

    def __init__(self, teacher: PreTrainedModel, groups: Sequence[Group], options: Recovery) -> None:
        """
        Args:
            teacher: the dense model, on the device that the student trains on.
            groups: the dense layers behind each of the student's.
        """
        self._teacher, self._options = teacher, options
        pairs = matched_states(groups, teacher.config.num_hidden_layers) if options.hidden_weight else []
        self._student_states = [student for student, _ in pairs]
        self._teacher_states = [dense for _, dense in pairs]

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        following, counted = successors(batch["labels"])
        with torch.no_grad():
            wanted, dense_states = _forward(self._teacher, batch, self._teacher_states)
        logits, states = _forward(model, batch, self._student_states)
        loss = divergence(logits, wanted, counted, temperature=self._options.temperature)
        if states:
            errors = [hidden_error(*pair, counted) for pair in zip(states, dense_states, strict=True)]
            loss = loss + self._options.hidden_weight * torch.stack(errors).mean()
        if self._options.token_weight:
            loss = loss + self._options.token_weight * next_token_loss(logits, following, counted)
        return loss


def matched_states(groups: Sequence[Group], num_layers: int) -> list[tuple[int, int]]:
    """After how many compressed and how many dense layers the hidden states should be alike.

    After each compressed layer that stands for several dense ones, a removed layer counting to the kept one before it.

    Args:
        groups: the dense layers behind each compressed one, ascending. num_layers: of the dense model.
    """
    following = [*(group[0] for group in groups[1:]), num_layers]
    return [
        (position + 1, end)
        for position, (group, end) in enumerate(zip(groups, following, strict=True))
        if end - group[0] > 1
    ]


def _forward(model: nn.Module, batch: Mapping[str, Tensor], states: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """The model's logits, and the hidden states after so many layers each; after the last one, what the head reads."""
    out: CausalLMOutputWithPast = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        output_hidden_states=list(states) or False,
        use_cache=False,
    )
    hidden = out.hidden_states or ()
    assert out.logits is not None
    return out.logits, [hidden[layers] for layers in states]
