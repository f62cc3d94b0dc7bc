"""ShortGPT (Men et al., arXiv 2403.03853): remove the layers that change their input least, in one shot."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from flattengpt_core.baselines.removal import keep_layers
from flattengpt_core.compressed import Compressed
from flattengpt_core.models import Checkpoint, CheckpointWriter
from flattengpt_core.progress import Progress
from flattengpt_core.similarity import unit_hidden_states


def block_influence(states: Sequence[Tensor]) -> Tensor:
    """`BI_i = 1 - E_t[cos(x_i,t, x_{i+1},t)]` of each layer, (L,) float32.

    Args:
        states: the L + 1 hidden states before, between and after the layers, each (tokens, width) of unit length.
    """
    return torch.stack(
        [1 - torch.linalg.vecdot(before.float(), after.float()).mean() for before, after in pairwise(states)]
    )


def layers_kept(influence: Tensor, keep: int) -> list[int]:
    """The `keep` layers of greatest influence, ascending; of equal ones the earlier stays."""
    return sorted(influence.argsort(descending=True, stable=True)[:keep].tolist())


def compress(
    source: Checkpoint,
    folds: Sequence[Tensor],
    writer: CheckpointWriter,
    progress: Progress,
    *,
    layers: int,
    device: torch.device,
) -> Compressed:
    """Keep the `layers` most influential layers as they are; see `compress.Compressor`."""
    kept = layers_kept(block_influence(unit_hidden_states(source, folds, device=device)), layers)
    return keep_layers(source, kept, writer, progress)
