"""Flatten n consecutive layers into one n-times wider layer. Exact algebra on weights; knows nothing of data.

The wide layer computes the SUM of its members' attention on one input and then the SUM of their MLPs on the next:
`r = h + sum A_i(norm(h)); out = r + sum M_i(norm(r))` (FlattenGPT, arXiv 2602.08858, layer flattening).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flattengpt_core.families import DOWN, GATE, INPUT_NORM, KEY, MLP_NORM, OUTPUT, QUERY, UP, VALUE

LayerWeights = Mapping[str, Tensor]
"""A decoder layer's tensors by their name within the layer, e.g. `self_attn.q_proj.weight`."""

_READS = {INPUT_NORM: (QUERY, KEY, VALUE), MLP_NORM: (GATE, UP)}
_WRITES = (OUTPUT, DOWN)


def fold_norms(layer: LayerWeights) -> dict[str, Tensor]:
    """Move both RMSNorm gains into the projections that read them and set the gains to one.

    `W (g * x) = (W diag(g)) x`, so the layer computes the same function; products are taken in float32 and
    returned in each weight's dtype.
    """
    folded = dict(layer)
    for norm, projections in _READS.items():
        gain = layer[f"{norm}.weight"]
        for projection in projections:
            weight = layer[f"{projection}.weight"]  # (out, d)
            folded[f"{projection}.weight"] = (weight.float() * gain.float()).to(weight.dtype)
        folded[f"{norm}.weight"] = torch.ones_like(gain)
    return folded


def flatten(members: Sequence[LayerWeights]) -> dict[str, Tensor]:
    """Concatenate the members into one layer with n-times the heads and channels.

    q, k, v, gate and up concatenate along their outputs (with their biases), o and down along their inputs (their
    biases add). Heads stay in Hugging Face's order, key/value group by key/value group, member by member.
    """
    folded = [fold_norms(member) for member in members]
    wide = {f"{norm}.weight": folded[0][f"{norm}.weight"] for norm in _READS}
    for projections in _READS.values():
        for projection in projections:
            for part in ("weight", "bias"):
                name = f"{projection}.{part}"
                if name in folded[0]:
                    wide[name] = torch.cat([layer[name] for layer in folded])
    for projection in _WRITES:
        wide[f"{projection}.weight"] = torch.cat([layer[f"{projection}.weight"] for layer in folded], dim=1)
        if f"{projection}.bias" in folded[0]:
            wide[f"{projection}.bias"] = torch.stack([layer[f"{projection}.bias"] for layer in folded]).sum(0)
    return wide
