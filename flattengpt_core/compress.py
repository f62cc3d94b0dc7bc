"""From a dense checkpoint and calibration windows to fewer layers, by any of the methods.

Knows nothing of texts, evaluation or where the result goes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from flattengpt_core.baselines import come, fcm, laco, replaceme, shortgpt, sleb
from flattengpt_core.compressed import Compressed
from flattengpt_core.errors import InvalidTarget
from flattengpt_core.grouping import Group, cheapest_partition, group_layers
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
from flattengpt_core.similarity import Survey, survey
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


Grouping = Callable[[Survey, int], list[Group]]
"""From what a dense pass says and the number of groups to the groups. Raises ValueError if it cannot be reached."""


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
    found = survey(source, folds, device=device)
    sizes = {}
    for layers, writer in writers.items():
        with reaching(layers):
            sizes[layers] = Size(choose(found, layers), writer)
    walk(source, list(sizes.values()), folds, pruner, progress, device=device)
    return {layers: Compressed(list(size.groups), size.merged) for layers, size in sizes.items()}


def groups_to_merge(source: Checkpoint, folds: Sequence[Tensor], *, layers: int, device: torch.device) -> list[Group]:
    """The `layers` groups that `flattengpt` merges after these calibration windows. Raises InvalidTarget."""
    found = survey(source, folds, device=device)
    with reaching(layers):
        return least_departure(found, layers)


@contextmanager
def reaching(layers: int) -> Iterator[None]:
    """Turn a grouping's ValueError into InvalidTarget."""
    try:
        yield
    except ValueError as error:
        raise InvalidTarget(f"{layers} layers cannot be reached: {error}.", field="layers") from None


def most_alike(found: Survey, layers: int) -> list[Group]:
    """As published: the neighbours whose inputs are most alike merge first."""
    return group_layers(found.inputs, layers, found.kinds)


def least_departure(found: Survey, layers: int) -> list[Group]:
    """The groups whose first layers alone come closest to what their last layers put out, over all groups."""
    return cheapest_partition(found.departure, layers, found.kinds)


MERGING: dict[str, tuple[Grouping, Pruner]] = {
    "flattengpt": (least_departure, Pruner(missed_heads, missed_channels, regressed, one_by_one)),
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
