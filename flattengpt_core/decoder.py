"""Run single decoder layers of an architecture on hidden states, with the model library's own layer classes.

A layer is built to fit its weights, so a flattened layer, n times as wide, runs through the same code as a stock
one. Knows nothing of compression.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig
from transformers.masking_utils import create_masks_for_generate

from flattengpt_core.families import GATE, KEY, QUERY
from flattengpt_core.flatten import LayerWeights

DecoderLayer = Any
"""A decoder layer of transformers; the families' classes share no base that names their sublayers."""

CHUNK_TOKENS = 4096
"""Tokens that run through a layer at once: enough to fill the cores, small beside a layer's weights."""


class Decoder:
    """The layers of one architecture in float32 on `device`, for windows of one length.

    Args:
        config: the model's config.
        window_length: tokens in each window; attention is causal within a window.
    """

    def __init__(self, config: PreTrainedConfig, *, window_length: int, device: torch.device) -> None:
        self.device = device
        self.config = copy.deepcopy(config)
        self.config._attn_implementation = "sdpa"
        self.head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        small = copy.deepcopy(self.config)
        small.num_hidden_layers = 1
        with torch.device("meta"):
            self._layer_class = type(AutoModel.from_config(small).layers[0])
        small.vocab_size, small.pad_token_id = 1, None
        skeleton = AutoModel.from_config(small)
        positions = torch.arange(window_length, device=device)[None]
        probe = torch.zeros(1, window_length, config.hidden_size, device=device)
        self._position_embeddings = skeleton.rotary_emb.to(device)(probe, positions)
        self._masks = create_masks_for_generate(
            config=self.config, inputs_embeds=probe, attention_mask=None, cache=None, position_ids=positions
        )
        self.windows_per_chunk = max(1, CHUNK_TOKENS // window_length)

    def kind(self, index: int) -> str:
        """What attention layer `index` of the model uses; layers of different kinds cannot merge."""
        kinds = getattr(self.config, "layer_types", None)
        return kinds[index] if kinds else "attention"

    def layer(self, weights: LayerWeights, index: int) -> DecoderLayer:
        """A layer with these weights, as many heads and channels as they hold, in place of layer `index`."""
        config = copy.deepcopy(self.config)
        config.head_dim = self.head_dim
        config.num_attention_heads = weights[f"{QUERY}.weight"].shape[0] // self.head_dim
        config.num_key_value_heads = weights[f"{KEY}.weight"].shape[0] // self.head_dim
        config.intermediate_size = weights[f"{GATE}.weight"].shape[0]
        with torch.device("meta"):
            layer = self._layer_class(config, index)
        layer.load_state_dict({k: v.to(self.device, torch.float32) for k, v in weights.items()}, assign=True)
        return layer.eval().requires_grad_(False)

    def chunks(self, hidden: Tensor) -> Iterator[slice]:
        """Slices over the windows of `hidden` (windows, length, width) that hold about CHUNK_TOKENS tokens."""
        for start in range(0, len(hidden), self.windows_per_chunk):
            yield slice(start, start + self.windows_per_chunk)

    def attend(self, layer: DecoderLayer, hidden: Tensor) -> Tensor:
        """The attention sublayer's output for the residual stream `hidden` (chunk, length, width)."""
        output, _ = layer.self_attn(
            hidden_states=layer.input_layernorm(hidden),
            position_embeddings=self._position_embeddings,
            attention_mask=self._mask(layer),
        )
        return output

    def transform(self, layer: DecoderLayer, hidden: Tensor) -> Tensor:
        """The MLP sublayer's output for the residual stream `hidden` (chunk, length, width)."""
        return layer.mlp(layer.post_attention_layernorm(hidden))

    def run(self, weights: LayerWeights, index: int, stream: Tensor) -> Tensor:
        """The residual stream (windows, length, width) after layer `index` with these weights."""
        return self.run_layer(self.layer(weights, index), stream)

    def run_layer(self, layer: DecoderLayer, stream: Tensor) -> Tensor:
        """The residual stream (windows, length, width) after `layer`."""
        after = torch.empty_like(stream)
        for chunk in self.chunks(stream):
            after[chunk] = self.block(layer, stream[chunk])
        return after

    def block(self, layer: DecoderLayer, hidden: Tensor) -> Tensor:
        """The residual stream (chunk, length, width) after both sublayers of `layer`, all windows at once."""
        between = hidden + self.attend(layer, hidden)
        return between + self.transform(layer, between)

    def _mask(self, layer: DecoderLayer) -> Tensor | None:
        if isinstance(self._masks, dict):
            return self._masks[self.kind(layer.self_attn.layer_idx)]
        return self._masks


def without_outputs(layer: DecoderLayer) -> DecoderLayer:
    """Let the layer's sublayers return what enters o_proj and down_proj instead of what leaves them.

    Then `Decoder.attend` gives the heads' concatenated outputs and `Decoder.transform` the MLP's channels.
    """
    layer.self_attn.o_proj, layer.mlp.down_proj = nn.Identity(), nn.Identity()
    return layer
