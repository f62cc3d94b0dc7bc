"""The flattened model before anything is pruned: as wide as its members together, to see what flattening alone costs.

Not a stock checkpoint, since its layers differ in width; it exists in memory only.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from flattengpt_core.decoder import Decoder
from flattengpt_core.flatten import flatten
from flattengpt_core.grouping import Group
from flattengpt_core.models import Checkpoint, load_model


def unpruned_model(source: Checkpoint, groups: Sequence[Group], *, device: torch.device) -> PreTrainedModel:
    """The model with one n-times wider layer in place of each group of n, in float32; single layers as they are."""
    model = load_model(source.folder, device=device, dtype=torch.float32)
    decoder = Decoder(source.config, window_length=1, device=device)
    layers = []
    for position, group in enumerate(groups):
        layer = model.model.layers[group[0]]
        if len(group) > 1:
            members = [{name: tensor.float() for name, tensor in source.layer(i).items()} for i in group]
            layer = decoder.layer(flatten(members), group[0])
        layer.self_attn.layer_idx = position  # where it keeps its keys and values
        layers.append(layer)
    model.model.layers = nn.ModuleList(layers)
    model.config.num_hidden_layers = len(groups)
    return model
