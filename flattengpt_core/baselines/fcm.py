"""FCM, fusion via community mining (NeurIPS 2026, repository fcm-layer-fusion): one layer for each community.

Cluster the layers by the cosine similarity `S` of the hidden states they put out into as many communities as layers
shall stay, and keep of each community the layer of greatest block influence. The LoRA training that the authors add
is left to the pipeline's recovery.

One departure: the authors cluster without regard to order, so a community may hold layers far apart. Here communities
are runs of neighbours, and the best such partition is found exactly instead of by their clustering: dynamic
programming maximises `sum over communities C of (1/|C|) sum over i, j in C of S_ij`, the average association, which
for unit vectors is the least within-community scatter (k-means' and Ward's criterion). Without the `1/|C|` one large
community and single layers would always win, because nearly all hidden states of a transformer are alike.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from flattengpt_core.baselines.removal import keep_layers
from flattengpt_core.baselines.shortgpt import block_influence
from flattengpt_core.compressed import Compressed
from flattengpt_core.depth import layers_to_keep
from flattengpt_core.grouping import Group, cheapest_partition
from flattengpt_core.models import Checkpoint, CheckpointWriter
from flattengpt_core.progress import Progress
from flattengpt_core.similarity import layer_similarity, unit_hidden_states


def communities(similarity: Tensor, count: int) -> list[Group]:
    """The partition into `count` runs of neighbours of greatest average association.

    Args:
        similarity: (L, L), symmetric.
        count: 1 to L.
    """
    corner = torch.nn.functional.pad(similarity.double().cumsum(0).cumsum(1), (1, 0, 1, 0))  # sums of S[:i, :j]
    first, end = torch.meshgrid(torch.arange(len(similarity)), torch.arange(1, len(similarity) + 1), indexing="ij")
    inside = corner[end, end] - corner[first, end] - corner[end, first] + corner[first, first]
    return cheapest_partition(-inside / (end - first).clamp(min=1), count)


def representatives(groups: Sequence[Group], influence: Tensor) -> list[int]:
    """The layer of greatest influence of each community; of equal ones the earlier."""
    return [max(group, key=lambda layer: influence[layer].item()) for group in groups]


def compress(
    source: Checkpoint,
    folds: Sequence[Tensor],
    writer: CheckpointWriter,
    progress: Progress,
    *,
    layers: int,
    device: torch.device,
) -> Compressed:
    """Keep one layer of each of `layers` communities as it is; see `compress.Compressor`.

    Raises:
        InvalidTarget: `layers` is not 1 to L - 1.
    """
    layers_to_keep(source.info.num_layers, layers=layers)
    states = unit_hidden_states(source, folds, device=device)
    kept = representatives(communities(layer_similarity(states[1:]), layers), block_influence(states))
    return keep_layers(source, kept, writer, progress)
