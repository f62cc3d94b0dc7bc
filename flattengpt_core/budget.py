"""The fewest layers that hold a quality, found by trying sizes between none and all removed."""

import json
import math
import shutil
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from flattengpt_core.compressed import Compressed
from flattengpt_core.errors import InvalidTarget
from flattengpt_core.evaluate import perplexity
from flattengpt_core.manifest import write_json
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
        scratch: for the checkpoints that are tried; what an interrupted search has found there is not tried anew.

    Raises:
        InvalidTarget: not even one layer less holds the budget.
    """
    num_layers = source.info.num_layers
    dense = _perplexities(source.folder, held_out, device)
    tried = _Tried(scratch)
    trials = math.ceil(math.log2(num_layers))

    def holds(layers: int) -> bool:
        if layers not in tried.ratios:
            folder = tried.begin(layers)
            try:
                done = compress_to(layers, folder, Part(progress, len(tried.ratios), trials))
            except InvalidTarget:
                tried.end(layers, math.inf, None)
                return False
            found = _perplexities(folder, held_out, device)
            tried.end(layers, max(found[text] / dense[text] for text in held_out), done)
            progress.event("tried", layers=layers, perplexity_ratio=tried.ratios[layers])
        within = tried.ratios[layers] <= budget.max_perplexity_ratio
        tried.keep_if(within, layers)
        return within

    fewest = 1 + bisect_left(range(1, num_layers), True, key=holds)
    if fewest == num_layers:
        raise InvalidTarget(
            f"No fewer layers hold {budget.max_perplexity_ratio} times the perplexity: {num_layers - 1} of "
            f"{num_layers} come to {tried.ratios[num_layers - 1]:.3f} times. "
            "Allow more, or ask for a number of layers and recovery.",
            field="target",
        )
    if not tried.checkpoint(fewest).exists():  # interrupted after the search
        compress_to(fewest, tried.begin(fewest), progress)
    shutil.move(tried.checkpoint(fewest), out)
    return tried.outcome(fewest)


class _Tried:
    """The sizes that were tried, in a folder, so that an interrupted search goes on; one checkpoint that holds."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, folder / "tried.json"
        self.ratios: dict[int, float] = {}
        self._done: dict[int, Compressed | None] = {}
        if self._file.exists():
            for layers, entry in json.loads(self._file.read_text(encoding="utf-8")).items():
                done = entry["done"]
                self.ratios[int(layers)] = math.inf if entry["ratio"] is None else entry["ratio"]
                self._done[int(layers)] = None if done is None else Compressed.from_json(done)

    def begin(self, layers: int) -> Path:
        """Where the checkpoint of so many layers is to be written."""
        shutil.rmtree(self.checkpoint(layers), ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        return self.checkpoint(layers)

    def end(self, layers: int, ratio: float, done: Compressed | None) -> None:
        """Note what the size came to; infinity, if it cannot be reached."""
        self.ratios[layers], self._done[layers] = ratio, done
        write_json(
            self._file,
            {
                str(size): {
                    "ratio": found if math.isfinite(found) else None,
                    "done": None if (made := self._done[size]) is None else asdict(made),
                }
                for size, found in self.ratios.items()
            },
        )

    def keep_if(self, within: bool, layers: int) -> None:
        """Remove the checkpoints that are worth nothing any more: this one, or else the larger ones."""
        for size in self.ratios:
            if size > layers if within else size == layers:
                shutil.rmtree(self.checkpoint(size), ignore_errors=True)

    def outcome(self, layers: int) -> Compressed:
        """What a size that could be reached is made of."""
        done = self._done[layers]
        assert done is not None
        return done

    def checkpoint(self, layers: int) -> Path:
        """Where the size's checkpoint is, or was."""
        return self._folder / str(layers)


def _perplexities(folder: Path, texts: Mapping[str, Tensor], device: torch.device) -> dict[str, float]:
    model = load_model(folder, device=device, dtype=torch.float32)
    return {text: perplexity(model, windows) for text, windows in texts.items()}
