"""The losses of recovery, as pure functions: each is a sum over the tokens that count.

`counted` says where a model's output is judged: at each token whose successor is known and no padding. Logits are
taken in chunks whose intermediate results are computed anew in the backward pass, so that none but the logits
themselves, (tokens, vocabulary), is ever held whole.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

IGNORED = -100
"""The label that no loss counts."""

CHUNK_TOKENS = 64
"""Tokens whose log-probabilities are held at once: 12 MiB for a vocabulary of 49 k, which the allocator uses again.

With 256 tokens each array was fresh pages, and a step of distillation on two cores took 1.4 times as long.
"""


def successors(labels: Tensor) -> tuple[Tensor, Tensor]:
    """What follows each token and whether it counts, both (windows, length), of labels (windows, length)."""
    following = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    return following, following != IGNORED


def next_token_loss(logits: Tensor, following: Tensor, counted: Tensor) -> Tensor:
    """The negative log-likelihood in nats of `following` (windows, length) by logits (windows, length, vocabulary)."""

    def loss(part: Tensor, wanted: Tensor, counts: Tensor) -> Tensor:
        lost = functional.cross_entropy(part.float(), wanted, ignore_index=IGNORED, reduction="none")
        return lost.masked_fill(~counts, 0).sum()

    return _in_chunks(loss, logits, following, counted)


def divergence(student: Tensor, teacher: Tensor, counted: Tensor, *, temperature: float) -> Tensor:
    """T² KL(teacher ‖ student) in nats between the distributions of logits / T (Hinton et al., arXiv 1503.02531).

    Args:
        student, teacher: logits (windows, length, vocabulary). counted: (windows, length) bool.
    """

    def loss(part: Tensor, target: Tensor, counts: Tensor) -> Tensor:
        found, wanted = (functional.log_softmax(each.float() / temperature, -1) for each in (part, target))
        lost = functional.kl_div(found, wanted, reduction="none", log_target=True).sum(-1)
        return temperature**2 * lost.masked_fill(~counts, 0).sum()

    return _in_chunks(loss, student, teacher, counted)


def hidden_error(student: Tensor, teacher: Tensor, counted: Tensor) -> Tensor:
    """‖student − teacher‖² / ‖teacher‖² of hidden states (windows, length, width), each token by its own norm.

    A few tokens carry massive activations; normalised together they would be all that counts.
    """
    error = (student.float() - teacher.float()).square().sum(-1)
    scale = teacher.float().square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
    return (error / scale).masked_fill(~counted, 0).sum()


def _in_chunks(loss: Callable[[Tensor, Tensor, Tensor], Tensor], *windows: Tensor) -> Tensor:
    """`loss` summed over chunks of tokens of `windows`, each (windows, length, ...)."""
    parts = zip(*(each.flatten(0, 1).split(CHUNK_TOKENS) for each in windows), strict=True)
    return torch.stack([checkpoint(loss, *part, use_reentrant=False) for part in parts]).sum()
