"""From a dense checkpoint and calibration windows to fewer layers, by any of the methods.

Knows nothing of texts, evaluation or where the result goes.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from flattengpt_core.baselines import come, fcm, laco, replaceme, shortgpt, sleb
from flattengpt_core.compressed import Compressed
from flattengpt_core.divergence import divergence
from flattengpt_core.errors import InvalidTarget
from flattengpt_core.grouping import Group, cheapest_partition, group_layers, merge_costs
from flattengpt_core.models import Checkpoint, CheckpointWriter
from flattengpt_core.progress import Part, Progress
from flattengpt_core.prune import (
    Pruner,
    all_at_once,
    as_folded,
    missed_channels,
    missed_heads,
    one_by_one,
    published_channels,
    published_heads,
    regressed,
)
from flattengpt_core.similarity import layer_similarity, unit_hidden_states
from flattengpt_core.walk import Size, walk


class Compressor(Protocol):
    """A method: hands `layers` layers to `writer` and says where each comes from."""

    def __call__(
        self,
        source: Checkpoint,
        folds: Sequence[Tensor],
        writer: CheckpointWriter,
        progress: Progress,
        *,
        layers: int,
        device: torch.device,
    ) -> Compressed:
        """folds: calibration windows (windows, length) of token ids, in disjoint sets."""


Grouping = Callable[[Checkpoint, Sequence[Tensor], Sequence[int], torch.device], list[list[Group]]]
"""From a model and calibration windows to the groups for each number of layers. Raises InvalidTarget."""


def compress_layers(
    source: Checkpoint,
    folds: Sequence[Tensor],
    writer: CheckpointWriter,
    progress: Progress,
    *,
    layers: int,
    method: str,
    device: torch.device,
) -> Compressed:
    """Hand `layers` layers to `writer`.

    Args:
        folds: calibration windows (windows, length) of token ids, in disjoint sets.
        method: a key of `methods.METHODS`.

    Raises:
        InvalidTarget: the method cannot reach so few layers.
    """
    return COMPRESSORS[method](source, folds, writer, progress, layers=layers, device=device)


def compress_sizes(
    source: Checkpoint,
    folds: Sequence[Tensor],
    writers: Mapping[int, CheckpointWriter],
    progress: Progress,
    *,
    method: str,
    device: torch.device,
) -> dict[int, Compressed]:
    """As `compress_layers` for several numbers of layers, each with its writer; in one pass where the method can.

    Raises:
        InvalidTarget: the method cannot reach one of them.
    """
    if method in MERGING:
        return merge_sizes(*MERGING[method], source, folds, writers, progress, device=device)
    return {
        layers: compress_layers(
            source, folds, writer, Part(progress, index, len(writers)), layers=layers, method=method, device=device
        )
        for index, (layers, writer) in enumerate(writers.items())
    }


def merge_neighbours(
    choose: Grouping,
    pruner: Pruner,
    source: Checkpoint,
    folds: Sequence[Tensor],
    writer: CheckpointWriter,
    progress: Progress,
    *,
    layers: int,
    device: torch.device,
) -> Compressed:
    """FlattenGPT: a pass over a subsample says which layers `choose` groups, one walk merges and prunes them."""
    sizes = {layers: writer}
    return merge_sizes(choose, pruner, source, folds, sizes, progress, device=device)[layers]


def merge_sizes(
    choose: Grouping,
    pruner: Pruner,
    source: Checkpoint,
    folds: Sequence[Tensor],
    writers: Mapping[int, CheckpointWriter],
    progress: Progress,
    *,
    device: torch.device,
) -> dict[int, Compressed]:
    """As `merge_neighbours`, for several numbers of layers from the same two passes; each has its writer."""
    partitions = choose(source, folds, list(writers), device)
    sizes = {layers: Size(groups, writers[layers]) for layers, groups in zip(writers, partitions, strict=True)}
    walk(source, list(sizes.values()), folds, pruner, progress, device=device)
    return {layers: Compressed(list(size.groups), size.merged) for layers, size in sizes.items()}


def groups_to_merge(source: Checkpoint, folds: Sequence[Tensor], *, layers: int, device: torch.device) -> list[Group]:
    """The `layers` groups that `flattengpt` merges after these calibration windows. Raises InvalidTarget."""
    return least_loss(source, folds, [layers], device)[0]


def most_alike(
    source: Checkpoint, folds: Sequence[Tensor], sizes: Sequence[int], device: torch.device
) -> list[list[Group]]:
    """As published: the neighbours whose inputs are most alike merge first."""
    similarity = layer_similarity(unit_hidden_states(source, folds, device=device)[:-1])
    return [_reached(group_layers, similarity, layers, source.kinds) for layers in sizes]


def least_loss(
    source: Checkpoint, folds: Sequence[Tensor], sizes: Sequence[int], device: torch.device
) -> list[list[Group]]:
    """The groups that are estimated to cost the predictions least, over all groups of neighbours."""
    costs = run_costs(source, folds, device=device)
    return [cheapest_groups(costs, layers, source.kinds) for layers in sizes]


def run_costs(source: Checkpoint, folds: Sequence[Tensor], *, device: torch.device) -> Tensor:
    """What each run of layers would cost as one, (L, L), from calibration windows; see `grouping.merge_costs`."""
    states = layer_similarity(unit_hidden_states(source, folds, device=device))
    return merge_costs(states, divergence(source, folds, device=device))


def cheapest_groups(costs: Tensor, layers: int, kinds: Sequence[str] | None) -> list[Group]:
    """As `cheapest_partition`, but a target that cannot be reached raises InvalidTarget."""
    return _reached(cheapest_partition, costs, layers, kinds)


def _reached(
    choose: Callable[[Tensor, int, Sequence[str] | None], list[Group]],
    measured: Tensor,
    layers: int,
    kinds: Sequence[str] | None,
) -> list[Group]:
    try:
        return choose(measured, layers, kinds)
    except ValueError as error:
        raise InvalidTarget(f"{layers} layers cannot be reached: {error}.", field="layers") from None


MERGING: dict[str, tuple[Grouping, Pruner]] = {
    "flattengpt": (least_loss, Pruner(missed_heads, missed_channels, regressed, one_by_one, alternations=1)),
    "flattengpt-paper": (most_alike, Pruner(published_heads, published_channels, as_folded, all_at_once)),
}
COMPRESSORS: dict[str, Compressor] = {
    **{method: partial(merge_neighbours, *how) for method, how in MERGING.items()},
    "shortgpt": shortgpt.compress,
    "sleb": sleb.compress,
    "laco": laco.compress,
    "replaceme": replaceme.compress,
    "come": come.compress,
    "fcm": fcm.compress,
}
