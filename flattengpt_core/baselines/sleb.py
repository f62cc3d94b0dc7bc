"""SLEB (Song et al., arXiv 2402.09025): remove the layer that the loss misses least, measure again, and so on.

With M the layers still there, each step removes `argmin_{j in M} -1/N sum_t log p_{M \\ j}(x_t | x_<t)`, the mean
negative log-likelihood of the calibration's next tokens without layer j. First and last layer stay.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flattengpt_core.baselines.removal import keep_layers
from flattengpt_core.calibration import subsample
from flattengpt_core.compressed import Compressed
from flattengpt_core.decoder import Decoder
from flattengpt_core.errors import InvalidTarget
from flattengpt_core.language_head import LanguageHead, embed
from flattengpt_core.models import Checkpoint, CheckpointWriter
from flattengpt_core.progress import Progress, Silent

LOSS_TOKENS = 4096
"""Tokens each loss is measured on; the paper takes 128 windows of 2048, 64 times the cost."""


def evaluations(num_layers: int, layers: int) -> int:
    """How often a layer or the head is run on the tokens, to come from `num_layers` to `layers`.

    With n layers left there are n - 2 candidates. What is before a candidate is shared by all, n - 2 layers; the
    layers after it are its own, `(n - 1)(n - 2) / 2` for all, and so is one head each: `(n - 2)(n + 3) / 2` a step.
    """
    return sum((left - 2) * (left + 3) // 2 for left in range(layers + 1, num_layers + 1))


def losses_without(
    source: Checkpoint,
    kept: Sequence[int],
    tokens: Tensor,
    decoder: Decoder,
    head: LanguageHead,
    on_evaluation: Callable[[], object] = lambda: None,
) -> dict[int, float]:
    """By each layer of `kept` but the first and the last, the loss of `kept` without it, in nats a token.

    One walk serves all candidates: each layer is read from disk once and run on the stream that still has all
    layers and on one stream for each candidate passed. So a step reads n layers, not n² / 2, and memory holds one
    layer and n - 1 streams.

    Args:
        kept: source layers, ascending, three or more.
        tokens: token ids (windows, length).
        on_evaluation: called after each run of a layer or the head; may raise to stop.
    """
    candidates = kept[1:-1]
    complete = embed(source, tokens, device=decoder.device)
    without: dict[int, Tensor] = {}
    for index in kept:
        layer = decoder.layer(source.layer(index), index)
        for candidate, stream in without.items():
            without[candidate] = decoder.run_layer(layer, stream)
            on_evaluation()
        if index in candidates:
            without[index] = complete
        if index < candidates[-1]:
            complete = decoder.run_layer(layer, complete)
            on_evaluation()
    losses = {}
    for candidate, stream in without.items():
        losses[candidate] = head.loss(stream, tokens)
        on_evaluation()
    return losses


def least_missed(losses: dict[int, float]) -> int:
    """The layer with the least loss without it; of equal ones the first. A loss that is no number is the greatest."""
    return min(losses, key=lambda index: math.inf if math.isnan(losses[index]) else losses[index])


@torch.inference_mode()
def compress(
    source: Checkpoint,
    folds: Sequence[Tensor],
    writer: CheckpointWriter,
    progress: Progress,
    *,
    layers: int,
    device: torch.device,
) -> Compressed:
    """Remove one layer at a time until `layers` are left; see `compress.Compressor`.

    Raises:
        InvalidTarget: fewer than the two layers that always stay.
    """
    kept = list(range(source.info.num_layers))
    if not 2 <= layers <= len(kept):
        raise InvalidTarget(
            f"{layers} layers cannot be reached: SLEB keeps the first and the last of the model's {len(kept)} layers.",
            field="layers",
        )
    tokens = subsample(folds, LOSS_TOKENS).to(device)
    decoder = Decoder(source.config, window_length=tokens.shape[1], device=device)
    head = LanguageHead(source, device=device)
    done, total = 0, evaluations(len(kept), layers)

    def advance() -> None:
        nonlocal done
        done += 1
        progress.step(done, total)

    while len(kept) > layers:
        kept.remove(least_missed(losses_without(source, kept, tokens, decoder, head, advance)))
    return keep_layers(source, kept, writer, Silent())  # every step is told already
