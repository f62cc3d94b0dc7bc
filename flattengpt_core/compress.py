"""From a dense checkpoint and calibration windows to fewer layers, by any of the methods.

Knows nothing of texts, evaluation or where the result goes.
"""

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from flattengpt_core.baselines import come, fcm, laco, replaceme, shortgpt, sleb
from flattengpt_core.compressed import Compressed
from flattengpt_core.errors import InvalidTarget
from flattengpt_core.grouping import Group, group_layers
from flattengpt_core.models import Checkpoint, CheckpointWriter
from flattengpt_core.progress import Progress
from flattengpt_core.prune import published_channels, published_heads, regressed_channels, regressed_heads
from flattengpt_core.similarity import layer_similarity, unit_hidden_states
from flattengpt_core.walk import Pruner, walk


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


def merge_neighbours(
    pruner: Pruner,
    source: Checkpoint,
    folds: Sequence[Tensor],
    writer: CheckpointWriter,
    progress: Progress,
    *,
    layers: int,
    device: torch.device,
) -> Compressed:
    """FlattenGPT: one pass says which layers are alike, one walk merges the groups and prunes them by `pruner`."""
    groups = groups_to_merge(source, folds, layers=layers, device=device)
    return Compressed(groups, walk(source, groups, folds, pruner, writer, progress, device=device))


def groups_to_merge(source: Checkpoint, folds: Sequence[Tensor], *, layers: int, device: torch.device) -> list[Group]:
    """The `layers` groups of neighbours that are most alike on the calibration windows. Raises InvalidTarget."""
    similarity = layer_similarity(unit_hidden_states(source, folds, device=device)[:-1])
    return choose_groups(similarity, layers, source.kinds)


def choose_groups(similarity: Tensor, layers: int, kinds: Sequence[str] | None) -> list[Group]:
    """As `group_layers`, but a target that cannot be reached raises InvalidTarget."""
    try:
        return group_layers(similarity, layers, kinds)
    except ValueError as error:
        raise InvalidTarget(f"{layers} layers cannot be reached: {error}.", field="layers") from None


COMPRESSORS: dict[str, Compressor] = {
    "flattengpt": partial(merge_neighbours, Pruner(regressed_heads, regressed_channels)),
    "flattengpt-paper": partial(merge_neighbours, Pruner(published_heads, published_channels)),
    "shortgpt": shortgpt.compress,
    "sleb": sleb.compress,
    "laco": laco.compress,
    "replaceme": replaceme.compress,
    "come": come.compress,
    "fcm": fcm.compress,
}
