"""Which neighbouring layers merge: as published, greedily by similarity, or at the least total cost. Pure arithmetic.

Source of `group_layers`: FlattenGPT (arXiv 2602.08858), the layer grouping step, in its equivalent form by
`S[first, last]`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Group = tuple[int, ...]
"""Consecutive layer indices that become one layer."""


def group_layers(similarity: Tensor, target: int, kinds: Sequence[str] | None = None) -> list[Group]:
    """Partition the layers into `target` groups of neighbours, merging the most similar ones first.

    Each step merges the two adjacent groups whose first layer (of the left one) and last layer (of the right one)
    have the most similar inputs, so that no chain of close neighbours joins two layers that are far apart. Of equal
    similarities the earliest pair merges.

    Args:
        similarity: (L, L), mean cosine similarity of the layers' inputs.
        target: the number of groups, 1 to L.
        kinds: what each layer is (e.g. `full_attention`); layers of different kinds never merge. All alike if None.

    Raises:
        ValueError: `target` is out of range or cannot be reached without merging layers of different kinds.
    """
    num_layers = len(similarity)
    if not 1 <= target <= num_layers:
        raise ValueError(f"target is {target}, but there are {num_layers} layers")
    groups: list[Group] = [(layer,) for layer in range(num_layers)]
    while len(groups) > target:
        candidates = [
            position
            for position in range(len(groups) - 1)
            if kinds is None or kinds[groups[position][-1]] == kinds[groups[position + 1][0]]
        ]
        if not candidates:
            raise ValueError(f"{len(groups)} groups are left, and no two neighbours are of the same kind")
        best = max(candidates, key=lambda at: similarity[groups[at][0], groups[at + 1][-1]].item())
        groups[best : best + 2] = [groups[best] + groups[best + 1]]
    return groups


def merge_costs(outputs: Tensor, divergence: Tensor) -> Tensor:
    """What each run of layers would cost as one layer, (L, L): an estimate of the divergence in nats a token.

    The divergences of leaving out each layer but the first are added up, and scaled by how the states' way from the
    first layer to the last compares with the sum of its steps (ways as 1 - cosine): layers that go back and forth cost
    less as one than each by itself. On the demo model it finds the groups for 24 layers that measuring every run would
    find; the cosine alone takes layers 1 to 10 for the cheapest at 20 (see docs/research.md).

    Args:
        outputs: (L, L), mean cosine of the hidden states after each pair of layers.
        divergence: (L,), of leaving out each layer, see `divergence.divergence`; the first is not read.
    """
    ways = (1 - outputs.double()).clamp(min=0)
    steps = torch.nn.functional.pad(ways.diagonal(1).cumsum(0), (1, 0))
    added = torch.nn.functional.pad(divergence[1:].double().cumsum(0), (1, 0))
    walked, lost = steps[None] - steps[:, None], added[None] - added[:, None]
    return (lost * ways / walked.clamp(min=torch.finfo(torch.float64).tiny)).triu(1)


def cheapest_partition(costs: Tensor, target: int, kinds: Sequence[str] | None = None) -> list[Group]:
    """Partition the layers into the `target` groups of neighbours of least total cost, by dynamic programming.

    Of partitions that cost the same, the one whose last groups start earliest is taken.

    Args:
        costs: (L, L), costs[first, last] of the group from `first` to `last`, infinite if it must not be; the rest is
            not read.
        target, kinds: as for `group_layers`.

    Raises:
        ValueError: as for `group_layers`.
    """
    num_layers = len(costs)
    if not 1 <= target <= num_layers:
        raise ValueError(f"target is {target}, but there are {num_layers} layers")
    table = costs.tolist()

    def cost(start: int, end: int) -> float:
        mixed = kinds is not None and len(set(kinds[start:end])) > 1
        return math.inf if mixed else table[start][end - 1]

    best = {end: (cost(0, end), [0]) for end in range(1, num_layers + 1)}  # end -> cost so far, where groups start
    for groups in range(2, target + 1):
        best = {
            end: min(
                ((best[start][0] + cost(start, end), [*best[start][1], start]) for start in range(groups - 1, end)),
                key=lambda option: option[0],
            )
            for end in range(groups, num_layers + 1)
        }
    total, starts = best[num_layers]
    if math.isinf(total):
        raise ValueError(f"no {target} groups of neighbours can be made of layers of the same kind")
    return [tuple(range(*bounds)) for bounds in zip(starts, [*starts[1:], num_layers], strict=True)]
