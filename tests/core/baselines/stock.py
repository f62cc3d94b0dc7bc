"""What the model library itself makes of some layers of a checkpoint, to hold the methods' own passes against."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from transformers import PreTrainedModel

from flattengpt_core.models import Checkpoint, CheckpointWriter, load_model

CPU = torch.device("cpu")


def stock_model(source: Checkpoint, layers: Sequence[tuple[int, Mapping[str, Tensor]]]) -> PreTrainedModel:
    """The stock model of these layers, each with the source layer whose place it takes."""
    with TemporaryDirectory() as scratch:
        writer = CheckpointWriter(source, Path(scratch) / "work")
        for index, weights in layers:
            writer.add_layer(weights, first_member=index)
        writer.assemble(Path(scratch) / "out")
        return load_model(Path(scratch) / "out", device=CPU, dtype=torch.float32)


def random_folds(windows: int = 3, length: int = 24) -> list[Tensor]:
    """Two folds of random token ids, (windows, length) each."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (windows, length), generator=generator) for _ in range(2)]


def mixed_kinds(kinds: str) -> dict[str, object]:
    """Qwen2 overrides that make layers full ('f') or sliding ('s') attention with a window that the texts exceed."""
    names = {"f": "full_attention", "s": "sliding_attention"}
    return {"layer_types": [names[kind] for kind in kinds], "use_sliding_window": True, "sliding_window": 8}
