"""The layer grouping against an example worked by hand and against its rule."""

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flattengpt_core.grouping import CROWDING, cheapest_partition, group_layers, merge_costs
from flattengpt_core.similarity import layer_similarity


def symmetric(rows: list[list[float]]) -> torch.Tensor:
    upper = torch.tensor(rows)
    return torch.triu(upper, 1) + torch.triu(upper, 1).T + torch.eye(len(rows))


# By hand: 1-2 (0.99) merge first. Then {1,2}-3 is judged by S[1,3] = 0.80, not by S[2,3] = 0.98, and {0}-{1,2} by
# S[0,2] = 0.85; 3-4 (0.90) is the most similar, then 0-{1,2} (0.85) against {1,2}-{3,4} by S[1,4] = 0.70.
BY_HAND = symmetric(
    [
        [1.0, 0.95, 0.85, 0.60, 0.50],
        [0.0, 1.00, 0.99, 0.80, 0.70],
        [0.0, 0.00, 1.00, 0.98, 0.75],
        [0.0, 0.00, 0.00, 1.00, 0.90],
        [0.0, 0.00, 0.00, 0.00, 1.00],
    ]
)


@pytest.mark.parametrize(
    ("target", "groups"),
    [
        (5, [(0,), (1,), (2,), (3,), (4,)]),
        (4, [(0,), (1, 2), (3,), (4,)]),
        (3, [(0,), (1, 2), (3, 4)]),
        (2, [(0, 1, 2), (3, 4)]),
        (1, [(0, 1, 2, 3, 4)]),
    ],
)
def test_five_layers_by_hand(target: int, groups: list[tuple[int, ...]]) -> None:
    assert group_layers(BY_HAND, target) == groups


@given(st.integers(2, 9), st.integers(0, 2**31))
def test_each_merge_is_the_best_by_first_and_last(num_layers: int, seed: int) -> None:
    values = torch.rand(num_layers, num_layers, generator=torch.Generator().manual_seed(seed))
    similarity = symmetric(values.tolist())
    for target in range(1, num_layers):
        before, after = group_layers(similarity, target + 1), group_layers(similarity, target)
        merged = next(i for i, group in enumerate(after) if group != before[i])
        assert after[merged] == before[merged] + before[merged + 1]
        best = max(similarity[before[i][0], before[i + 1][-1]] for i in range(target))
        assert similarity[after[merged][0], after[merged][-1]] == best
        assert [layer for group in after for layer in group] == list(range(num_layers))


def test_layers_of_different_kinds_never_merge() -> None:
    kinds = ["full", "sliding", "sliding", "full", "full"]
    assert group_layers(BY_HAND, 3, kinds) == [(0,), (1, 2), (3, 4)]
    with pytest.raises(ValueError, match="same kind"):
        group_layers(BY_HAND, 2, kinds)


@pytest.mark.parametrize("choose", [group_layers, cheapest_partition])
@pytest.mark.parametrize("target", [0, 6])
def test_refuses_a_target_out_of_range(choose: Callable[[Tensor, int], object], target: int) -> None:
    with pytest.raises(ValueError, match="5 layers"):
        choose(BY_HAND, target)


@given(st.integers(1, 8), st.data())
def test_the_cheapest_partition_is_the_cheapest_of_all(num_layers: int, data: st.DataObject) -> None:
    target = data.draw(st.integers(1, num_layers))
    kinds = data.draw(st.lists(st.sampled_from(["full", "sliding"]), min_size=num_layers, max_size=num_layers))
    costs = torch.rand(num_layers, num_layers, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    every = [
        [tuple(range(*bounds)) for bounds in itertools.pairwise((0, *cuts, num_layers))]
        for cuts in itertools.combinations(range(1, num_layers), target - 1)
    ]
    possible = [groups for groups in every if all(len({kinds[layer] for layer in group}) == 1 for group in groups)]
    if not possible:
        with pytest.raises(ValueError, match="same kind"):
            cheapest_partition(costs, target, kinds)
        return
    total = {tuple(groups): sum(costs[group[0], group[-1]].item() for group in groups) for groups in possible}
    assert total[tuple(cheapest_partition(costs, target, kinds))] == pytest.approx(min(total.values()))


def test_costs_add_up_divergences_and_grow_with_the_way_and_the_length() -> None:
    states = symmetric([[1, 0.9, 0.7, 0.8], [0, 1, 0.6, 0.5], [0, 0, 1, 0.9], [0, 0, 0, 1]])
    costs = merge_costs(states, torch.tensor([8.0, 1.0, 2.0]))
    assert costs[0, 1] == pytest.approx((8 + 1) * 0.3 / (0.1 + 0.4))
    assert costs[1, 2] == pytest.approx((1 + 2) * 0.5 / (0.4 + 0.1))
    assert costs[0, 2] == pytest.approx((8 + 1 + 2) * 0.2 / (0.1 + 0.4 + 0.1) * 2**CROWDING)
    assert torch.equal(costs, costs.triu(1)), "a layer alone costs nothing"


def test_states_that_never_move_cost_nothing() -> None:
    assert merge_costs(torch.ones(4, 4), torch.ones(3)).tolist() == [[0] * 3] * 3


def test_similarity_is_the_mean_cosine() -> None:
    states = [torch.nn.functional.normalize(torch.randn(7, 4), dim=-1) for _ in range(3)]
    similarity = layer_similarity(states)
    expected = sum(float(states[0][t] @ states[2][t]) for t in range(7)) / 7
    assert similarity[0, 2] == pytest.approx(expected, abs=1e-6)
    assert torch.equal(similarity, similarity.T)
    assert torch.equal(similarity.diagonal(), torch.ones(3))
