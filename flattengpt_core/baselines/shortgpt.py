"""ShortGPT (Men et al., arXiv 2403.03853): remove the layers that change their input least, in one shot."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


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
