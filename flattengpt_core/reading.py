"""A diagnosis in words, each sentence a consequence of a measured number."""

from collections.abc import Sequence

from torch import Tensor

from flattengpt_core.diagnostics import ALIKE, MASSIVE_GROWTH, Diagnosis
from flattengpt_core.grouping import Group

NAMED_LAYERS = 3
"""Layers named for the highest influence, and for the highest Jacobian distance."""


def reading(found: Diagnosis, groups: Sequence[Group], fewest_alike: int) -> str:
    """How far the model can go, and which layers not to touch, in one paragraph.

    Args:
        groups: what the layers would be merged into.
        fewest_alike: the number of layers to which all groups stay alike, see `diagnostics.fewest_alike`.
    """
    return " ".join(
        [
            _neighbours(found.similarity),
            _reach(len(found.similarity), fewest_alike),
            _loosest(found.similarity, groups),
            _growth(found),
            *_leave_alone(found, groups),
            *_massive(found),
        ]
    )


def _neighbours(similarity: Tensor) -> str:
    cosines = similarity.diagonal(1)
    alike, pairs = int((cosines > ALIKE).sum()), len(cosines)
    return (
        f"Of {pairs} neighbouring pairs of layers, {alike} ({alike / pairs:.0%}) have inputs with a mean cosine above "
        f"{ALIKE}, which is where the paper finds them."
    )


def _reach(num_layers: int, fewest_alike: int) -> str:
    if fewest_alike == num_layers:
        return f"No two neighbours that can merge are above {ALIKE}."
    share = (num_layers - fewest_alike) / num_layers
    return (
        f"Merging the most similar first, every group's first and last layer stay above {ALIKE} down to {fewest_alike} "
        f"of {num_layers} layers ({share:.0%} removed)."
    )


def _loosest(similarity: Tensor, groups: Sequence[Group]) -> str:
    merged = [group for group in groups if len(group) > 1]
    loosest = min(merged, key=lambda group: similarity[group[0], group[-1]].item())
    cosine = similarity[loosest[0], loosest[-1]].item()
    verdict = f"every merge stays above {ALIKE}" if cosine > ALIKE else f"the target goes past {ALIKE}"
    return (
        f"At {len(groups)} layers the loosest group is {loosest[0]} to {loosest[-1]} (counted from 0), with a cosine "
        f"of {cosine:.3f}: {verdict}."
    )


def _growth(found: Diagnosis) -> str:
    exponent, r_squared = found.growth.exponent, found.growth.r_squared
    fit = f"(R² {r_squared:.2f}; the paper derives 2)"
    if exponent <= 0:
        text = f"The hidden states' variance does not grow with depth: the fitted power of the depth is {exponent:.2f}"
    else:
        text = f"The hidden states' variance grows like the depth to the power of {exponent:.2f}"
    poor = ", but this explains less than half of how it varies" if r_squared < 0.5 else ""
    return f"{text} {fit}{poor}."


def _leave_alone(found: Diagnosis, groups: Sequence[Group]) -> list[str]:
    influential, steep = _highest(found.block_influence), _highest(found.jacobian_distance)
    merged = {layer for group in groups if len(group) > 1 for layer in group}
    touched = sorted(merged & {*influential, *steep})
    median = found.jacobian_distance.median().item()
    return [
        f"Leave alone first the layers that turn their input most, {_listed(influential)} (block influence "
        f"{_values(found.block_influence, influential)}), and those whose Jacobian is farthest from the identity, "
        f"{_listed(steep)} (distance {_values(found.jacobian_distance, steep)}; the median layer's is {median:.2f}).",
        f"Of these, {_listed(touched)} would be merged at {len(groups)} layers."
        if touched
        else f"None of these would be merged at {len(groups)} layers.",
    ]


def _massive(found: Diagnosis) -> list[str]:
    return [
        f"Layer {layer} makes massive activations (a token grows {found.token_growth[layer].item():.0f} times as much "
        "in it as the median token), which later layers depend on."
        for layer in (found.token_growth > MASSIVE_GROWTH).nonzero().flatten().tolist()
    ]


def _highest(values: Tensor) -> list[int]:
    return values.argsort(descending=True, stable=True)[:NAMED_LAYERS].tolist()


def _listed(items: Sequence[object]) -> str:
    *others, last = map(str, items)
    return f"{', '.join(others)} and {last}" if others else last


def _values(values: Tensor, layers: Sequence[int]) -> str:
    return _listed([f"{values[layer].item():.2f}" for layer in layers])
