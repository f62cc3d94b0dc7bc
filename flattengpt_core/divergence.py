"""What the model's predictions lose without each of its layers, measured: all layers in one pass over a few tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flattengpt_core.decoder import Decoder
from flattengpt_core.language_head import LanguageHead, embed
from flattengpt_core.models import Checkpoint
from flattengpt_core.regression import mean_energy, solve

WINDOW_TOKENS = 128
FITTED_WINDOWS, JUDGED_WINDOWS = 24, 4
"""Windows that each linear map is fitted on, and others that the predictions are compared on."""

JUDGED_STEP = 4
"""Every how manieth token's prediction is compared: the head costs as much as 16 layers of the demo model."""

RIDGE = 0.1
"""Of the linear maps, in units of the mean eigenvalue."""


@torch.inference_mode()
def divergence(source: Checkpoint, folds: Sequence[Tensor], *, device: torch.device) -> Tensor:
    """How far the next-token distributions move when a layer is replaced by a linear map, in nats a token; (L,).

    The map reads what the layer before put out (attention and MLP), or for the first layer the embeddings. It stands in
    for the layer's own outputs, so each entry is `KL(dense || without the layer)` with the rest of the model run on.
    Geometry alone does not tell this: see docs/research.md.

    Args:
        folds: calibration windows (windows, length) of token ids, in disjoint sets.
    """
    tokens = _first_tokens(folds)
    judged = torch.zeros(len(tokens), dtype=torch.bool)
    judged[torch.linspace(0, len(tokens) - 1, min(JUDGED_WINDOWS, len(tokens) // 2)).round().long()] = True
    decoder = Decoder(source.config, window_length=tokens.shape[1], device=device)
    hidden = embed(source, tokens, device=device)
    without = hidden[:0]  # one stream of the judged windows a layer left out, side by side
    features = hidden
    for index in range(source.info.num_layers):
        layer = decoder.layer(source.layer(index), index)
        attention, mlp = torch.empty_like(hidden), torch.empty_like(hidden)
        for chunk in decoder.chunks(hidden):
            attention[chunk] = decoder.attend(layer, hidden[chunk])
            mlp[chunk] = decoder.transform(layer, hidden[chunk] + attention[chunk])
        without = decoder.run_layer(layer, without)
        mapped = _stand_in(features, attention + mlp, hidden, judged)
        without = torch.cat([without, hidden[judged] + mapped])
        features = torch.cat([attention, mlp], dim=-1)
        hidden = hidden + attention + mlp
    streams = [stream.flatten(0, 1)[::JUDGED_STEP] for stream in (hidden[judged], *without.split(int(judged.sum())))]
    return torch.tensor(LanguageHead(source, device=device).divergences(streams[0], streams[1:]))


def _first_tokens(folds: Sequence[Tensor]) -> Tensor:
    """The first tokens of some windows of all folds, evenly spread over them."""
    windows = torch.cat(list(folds))
    count = min(len(windows), FITTED_WINDOWS + JUDGED_WINDOWS)
    return windows[torch.linspace(0, len(windows) - 1, count).round().long(), :WINDOW_TOKENS]


def _stand_in(features: Tensor, target: Tensor, hidden: Tensor, judged: Tensor) -> Tensor:
    """The target (judged windows, length, width) as a linear map of the features, fitted on the other windows.

    Each token counts by one over its hidden state's length, or the few massive ones would decide alone.
    """
    weight = 1 / hidden[~judged].flatten(0, 1).norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    read, wanted = (features[~judged].flatten(0, 1) * weight, target[~judged].flatten(0, 1) * weight)
    gram = (read.T @ read).double()
    linear = solve(gram, (read.T @ wanted).double(), RIDGE * mean_energy(gram))
    return features[judged] @ linear.float()
