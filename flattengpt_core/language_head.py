"""The two ends of a model, around its layers: token ids in; final norm, output head and next-token loss out.

Everything in float32. Knows nothing of layers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from flattengpt_core.families import EMBEDDING, FINAL_NORM, HEAD
from flattengpt_core.models import Checkpoint

LOGIT_TOKENS = 512
"""Tokens whose logits are held at once: 256 MiB for a vocabulary of 128 k."""


def embed(source: Checkpoint, tokens: Tensor, *, device: torch.device) -> Tensor:
    """The hidden states (windows, length, width) before the first layer, for token ids (windows, length)."""
    table = source.tensor(EMBEDDING).to(device, torch.float32)
    return torch.nn.functional.embedding(tokens.to(device), table)


class FinalNorm:
    """The RMSNorm between the last layer and the output head."""

    def __init__(self, source: Checkpoint, *, device: torch.device) -> None:
        self._gain = source.tensor(FINAL_NORM).to(device, torch.float32)
        self._epsilon: float = source.config.rms_norm_eps

    def __call__(self, hidden: Tensor) -> Tensor:
        """What the head reads, (..., width), of the residual stream after the last layer, (..., width)."""
        return torch.nn.functional.rms_norm(hidden, self._gain.shape, self._gain, self._epsilon)


class LanguageHead:
    """Final norm and output head, which may be the embedding table itself."""

    def __init__(self, source: Checkpoint, *, device: torch.device) -> None:
        tied = source.config.tie_word_embeddings or HEAD not in source.outside_layers()
        self._norm = FinalNorm(source, device=device)
        self._weight = source.tensor(EMBEDDING if tied else HEAD).to(device, torch.float32)  # (vocabulary, width)

    def divergences(self, hidden: Tensor, others: Sequence[Tensor]) -> list[float]:
        """Mean KL divergence, in nats a token, of the next-token distributions after each of `others` from `hidden`'s.

        Args:
            hidden, others: residual streams after the last layer, all of the same shape (tokens, width).
        """
        totals = [torch.zeros((), dtype=torch.float64, device=hidden.device) for _ in others]
        for start in range(0, len(hidden), LOGIT_TOKENS):
            part = slice(start, start + LOGIT_TOKENS)
            expected = (self._norm(hidden[part]) @ self._weight.T).log_softmax(-1)
            for total, other in zip(totals, others, strict=True):
                found = (self._norm(other[part]) @ self._weight.T).log_softmax(-1)
                total += torch.nn.functional.kl_div(found, expected, log_target=True, reduction="sum")
        return [total.item() / len(hidden) for total in totals]

    def loss(self, hidden: Tensor, tokens: Tensor) -> float:
        """Mean negative log-likelihood, in nats, of each window's tokens but its first.

        Args:
            hidden: the residual stream after the last layer, (windows, length, width).
            tokens: the windows' token ids, (windows, length), on the same device.
        """
        before, following = hidden[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for part, wanted in zip(before.split(LOGIT_TOKENS), following.split(LOGIT_TOKENS), strict=True):
            logits = self._norm(part) @ self._weight.T  # (part, vocabulary)
            total += torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
        return total.item() / len(following)
