"""What the dense model library's own forward pass says of each layer, to check the methods against."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from flattengpt_core.models import Checkpoint, load_model
from flattengpt_core.progress import Silent

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Recorded:
    """Hidden states (L + 1) before, between and after the layers; per layer what enters and leaves modules.

    All float64, (tokens, width); `inputs` and `outputs` are keyed by the module's name within its layer.
    """

    states: list[numpy.ndarray]
    inputs: dict[str, list[numpy.ndarray]] = field(default_factory=lambda: defaultdict(list))
    outputs: dict[str, list[numpy.ndarray]] = field(default_factory=lambda: defaultdict(list))


def rows(tensor: torch.Tensor) -> numpy.ndarray:
    return tensor.flatten(0, 1).double().numpy()


@torch.no_grad()
def record(folder: Path, tokens: torch.Tensor, *modules: str) -> Recorded:
    """Run the checkpoint on `tokens` (windows, length), recording the named modules of each layer."""
    model = load_model(folder, device=CPU, dtype=torch.float32)
    recorded = Recorded([])

    def listen(module: nn.Module, name: str) -> None:
        def keep(_: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            recorded.inputs[name].append(rows(arguments[0]))
            recorded.outputs[name].append(rows(output))

        module.register_forward_hook(keep)

    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda _, arguments: recorded.states.append(rows(arguments[0])))
        for name in modules:
            listen(layer.get_submodule(name), name)
    model.model.norm.register_forward_pre_hook(lambda _, arguments: recorded.states.append(rows(arguments[0])))
    model.model(tokens)
    return recorded


def quieten(folder: Path, layers: Sequence[int]) -> Path:
    """Let the layers add a tenth of what they did to the residual stream, so that they are the ones to go."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for layer in layers:
        for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
            tensors[f"model.layers.{layer}.{name}"] *= 0.1
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def cosine(before: numpy.ndarray, after: numpy.ndarray) -> numpy.ndarray:
    return (before * after).sum(1) / numpy.linalg.norm(before, axis=1) / numpy.linalg.norm(after, axis=1)


def angle(before: numpy.ndarray, after: numpy.ndarray) -> float:
    return float(numpy.arccos(cosine(before, after)).mean() / numpy.pi)


def influences(states: list[numpy.ndarray]) -> list[float]:
    return [1 - cosine(before, after).mean() for before, after in itertools.pairwise(states)]


def same_layers(before: Path, after: Path, kept: dict[int, int]) -> bool:
    """Whether each layer of `after` in `kept` (new place -> old place) equals the old one bit for bit."""
    source, result = Checkpoint(before), Checkpoint(after)
    for new, old in kept.items():
        expected, actual = source.layer(old), result.layer(new)
        if expected.keys() != actual.keys() or not all(torch.equal(expected[k], actual[k]) for k in expected):
            return False
    return True


class Steps(Silent):
    """Notes each step, and raises once `stop_after` are done."""

    class Stopped(Exception):
        pass

    def __init__(self, stop_after: int | None = None) -> None:
        self.seen: list[tuple[int, int]] = []
        self.stop_after = stop_after

    def step(self, done: int, total: int) -> None:
        self.seen.append((done, total))
        if done == self.stop_after:
            raise self.Stopped
