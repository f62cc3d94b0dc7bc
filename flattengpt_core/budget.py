"""The fewest layers that hold a quality, found by trying sizes between none and all removed."""

import math
import shutil
from bisect import bisect_left
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from flattengpt_core.compressed import Compressed
from flattengpt_core.errors import InvalidTarget
from flattengpt_core.evaluate import perplexity
from flattengpt_core.models import Checkpoint, load_model
from flattengpt_core.options import Budget
from flattengpt_core.progress import Part, Progress

CompressTo = Callable[[int, Path, Progress], Compressed]
"""Writes the checkpoint of so many layers to a new folder. Raises InvalidTarget if it cannot reach them."""


def fewest_within(
    budget: Budget,
    source: Checkpoint,
    held_out: Mapping[str, Tensor],
    compress_to: CompressTo,
    out: Path,
    scratch: Path,
    progress: Progress,
    *,
    device: torch.device,
) -> Compressed:
    """Write to `out` the smallest checkpoint whose perplexity stays within the budget on every held-out text.

    Sizes are halved in, which takes fewer layers to be worse: about log2 of the layers are tried. A size that the
    method cannot reach does not hold.

    Args:
        held_out: windows (n, length) of token ids by text, none of which `compress_to` has seen.
        scratch: for the checkpoints that are tried.

    Raises:
        InvalidTarget: not even one layer less holds the budget.
    """
    num_layers = source.info.num_layers
    dense = _perplexities(source.folder, held_out, device)
    trials = math.ceil(math.log2(num_layers))
    tried: dict[int, float] = {}
    within: dict[int, Compressed] = {}

    def holds(layers: int) -> bool:
        part = Part(progress, len(tried), trials)
        folder = scratch / str(layers)
        try:
            done = compress_to(layers, folder, part)
        except InvalidTarget:
            tried[layers] = math.inf
            return False
        found = _perplexities(folder, held_out, device)
        tried[layers] = max(found[text] / dense[text] for text in held_out)
        progress.event("tried", layers=layers, perplexity_ratio=tried[layers])
        if tried[layers] <= budget.max_perplexity_ratio:
            within[layers] = done
            return True
        shutil.rmtree(folder)
        return False

    fewest = 1 + bisect_left(range(1, num_layers), True, key=holds)
    if fewest == num_layers:
        raise InvalidTarget(
            f"No fewer layers hold {budget.max_perplexity_ratio} times the perplexity: {num_layers - 1} of "
            f"{num_layers} come to {tried[num_layers - 1]:.3f} times. "
            "Allow more, or ask for a number of layers and recovery.",
            field="target",
        )
    shutil.move(scratch / str(fewest), out)
    return within[fewest]


def _perplexities(folder: Path, texts: Mapping[str, Tensor], device: torch.device) -> dict[str, float]:
    model = load_model(folder, device=device, dtype=torch.float32)
    return {text: perplexity(model, windows) for text, windows in texts.items()}
