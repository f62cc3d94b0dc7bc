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

CROWDING = 0.4
"""How the cost of a run grows with its length, beside what its layers do: all of them share one layer's room."""


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


def merge_costs(states: Tensor, divergence: Tensor) -> Tensor:
    """What each run of layers would cost as one layer, (L, L): an estimate that orders runs, 0 for a single layer.

    The divergences of leaving out each of its n layers are added up, scaled by how the states' way through the run
    compares with the sum of its steps (ways as 1 - cosine), and multiplied by (n - 1)^CROWDING. So layers that go back
    and forth cost less as one than each by itself, and two short runs less than a long one. Chosen by what 25
    partitions of the demo model into 24 to 18 layers cost on validation text (docs/research.md): the cosine alone takes
    layers 1 to 10 for the cheapest.

    Args:
        states: (L + 1, L + 1), mean cosine of the hidden states before, between and after the layers.
        divergence: (L,), of leaving out each layer, see `divergence.divergence`.
    """
    ways = (1 - states.double()).clamp(min=0)
    steps, added = (torch.nn.functional.pad(each.cumsum(0), (1, 0)) for each in (ways.diagonal(1), divergence.double()))
    walked, lost = (sums[None, 1:] - sums[:-1, None] for sums in (steps, added))
    merged_with = torch.arange(len(divergence), dtype=torch.float64)
    crowding = (merged_with[None] - merged_with[:, None]).clamp(min=0) ** CROWDING
    smallest = torch.finfo(torch.float64).tiny
    return (crowding * lost * ways[:-1, 1:] / walked.clamp(min=smallest)).triu(1)


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
