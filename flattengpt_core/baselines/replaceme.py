"""ReplaceMe (Shopkhoev et al., arXiv 2505.02819): a linear map in place of a run of layers, and no training.

The n neighbouring layers whose input and output are closest in angle go. With M (tokens, d) the MLP output of the
layer before the cut, Y its residual stream before M is added and H the hidden states after the cut, the map is

    T = argmin ‖Y + M T − H‖² + α ‖T‖² = (MᵀM + α I)⁻¹ Mᵀ (H − Y)

and is folded into that layer's down projection, `M T = Z (W_down T)`, so the checkpoint stays stock. This is the
paper's closed form; its variant that descends a cosine loss is left out. The cut is chosen on the subsample of
`similarity.dense_pass`, the map is fitted on all calibration tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from flattengpt_core.compressed import Compressed
from flattengpt_core.decoder import Decoder
from flattengpt_core.depth import layers_to_keep
from flattengpt_core.families import DOWN
from flattengpt_core.flatten import LayerWeights
from flattengpt_core.language_head import embed
from flattengpt_core.models import Checkpoint, CheckpointWriter
from flattengpt_core.progress import Progress
from flattengpt_core.regression import Moments, mean_energy, solve
from flattengpt_core.similarity import angular_distance, unit_hidden_states

ALPHA = 1e-6
"""The ridge α in units of MᵀM's mean eigenvalue: the authors' default is none, this keeps few tokens solvable."""


def cut_start(states: Sequence[Tensor], removed: int) -> int:
    """The first of the `removed` neighbouring layers of least angular distance; never 0, for T needs a layer before.

    Args:
        states: the L + 1 hidden states before, between and after the layers, each (tokens, width) of unit length.
    """
    starts = range(1, len(states) - removed)
    return min(starts, key=lambda start: angular_distance(states[start], states[start + removed]))


def linear_map(moments: Moments) -> Tensor:
    """T (d, d) float64, from the moments of M against H − Y."""
    return solve(moments.gram, moments.cross, ALPHA * mean_energy(moments.gram))


def followed_by(weights: LayerWeights, linear: Tensor) -> dict[str, Tensor]:
    """The layer with T (d, d) float64 applied to what its MLP adds to the residual stream; float64 where it changes."""
    replaced = dict(weights)
    for part in ("weight", "bias"):  # (d, channels) and, if the family has it, (d,)
        name = f"{DOWN}.{part}"
        if name in weights:
            replaced[name] = linear.T @ weights[name].to(linear.device, torch.float64)
    return replaced


@torch.inference_mode()
def compress(
    source: Checkpoint,
    folds: Sequence[Tensor],
    writer: CheckpointWriter,
    progress: Progress,
    *,
    layers: int,
    device: torch.device,
) -> Compressed:
    """Replace L - `layers` neighbouring layers by a linear map; see `compress.Compressor`.

    Raises:
        InvalidTarget: `layers` is not 1 to L - 1.
    """
    num_layers = source.info.num_layers
    removed = num_layers - layers_to_keep(num_layers, layers=layers)
    start = cut_start(unit_hidden_states(source, folds, device=device), removed)
    last, after_cut = start - 1, start + removed

    tokens = torch.cat(list(folds))
    decoder = Decoder(source.config, window_length=tokens.shape[1], device=device)
    stream = embed(source, tokens, device=device)
    for index in range(last):
        weights = source.layer(index)
        stream = decoder.run(weights, index, stream)
        writer.add_layer(weights, first_member=index)
        progress.step(index + 1, num_layers)

    weights = source.layer(last)
    layer = decoder.layer(weights, last)
    added = torch.empty_like(stream)  # M
    for chunk in decoder.chunks(stream):
        stream[chunk] += decoder.attend(layer, stream[chunk])
        added[chunk] = decoder.transform(layer, stream[chunk])
    target = stream + added
    for index in range(start, after_cut):
        target = decoder.run(source.layer(index), index, target)
        progress.step(index, num_layers)

    moments = Moments.zeros(added.shape[-1], added.shape[-1], device)
    for chunk in decoder.chunks(added):
        # In float64, or rounding in M's few loud directions would drown the quiet ones that so small a ridge keeps.
        missing = target[chunk].double() - stream[chunk]
        moments = moments.including(added[chunk].double().flatten(0, 1), missing.flatten(0, 1))
    writer.add_layer(followed_by(weights, linear_map(moments)), first_member=last)
    progress.step(after_cut, num_layers)
    for index in range(after_cut, num_layers):
        writer.add_layer(source.layer(index), first_member=index)
        progress.step(index + 1, num_layers)
    return Compressed([(index,) for index in range(num_layers) if not start <= index < after_cut], [])
