"""The inner projection's least squares against dense algebra, on sublayers small enough to write J out."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flattengpt_core.compress import MERGING
from flattengpt_core.decoder import Decoder, DecoderLayer
from flattengpt_core.inner import DAMPING, Curvature, Part, refit_inner
from flattengpt_core.models import Checkpoint, CheckpointWriter
from flattengpt_core.progress import Silent
from flattengpt_core.prune import Pruner, missed_channels, missed_heads, one_by_one, regressed
from flattengpt_core.walk import Size, walk
from tests.tiny_models import tiny_checkpoint

CPU = torch.device("cpu")
SUBLAYERS = {"attention": ("self_attn.v_proj", "self_attn.o_proj"), "mlp": ("mlp.up_proj", "mlp.down_proj")}


def sublayer(folder: Path, family: str, name: str) -> tuple[DecoderLayer, Callable[[Tensor], Tensor]]:
    """A tiny layer, and one of its sublayers as a function of the residual stream."""
    source = Checkpoint(tiny_checkpoint(folder, family))
    decoder = Decoder(source.config, window_length=16, device=CPU)
    layer = decoder.layer(source.layer(2), 2)
    run = decoder.attend if name == "attention" else decoder.transform
    return layer, lambda stream: run(layer, stream)


def streams() -> list[Tensor]:
    return [torch.randn(4, 16, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


@pytest.mark.parametrize("name", SUBLAYERS)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_planted_weight_is_found_again(tmp_path: Path, family: str, name: str) -> None:
    """Where another weight explains the target wholly, the fit goes most of the way, past biases too."""
    layer, run = sublayer(tmp_path, family, name)
    inner, output = (layer.get_submodule(path) for path in SUBLAYERS[name])
    present = inner.weight.detach().clone()
    planted = present + 0.1 * torch.randn(present.shape, generator=torch.Generator().manual_seed(9))
    inner.weight.data = planted
    parts: list[Part] = [(stream, run(stream)) for stream in streams()]
    inner.weight.data = present.clone()
    before = sum(float((missing - run(stream)).square().sum()) for stream, missing in parts)
    biases = [(module, module.bias) for module in (inner, output)]
    found = refit_inner(run, inner, output, parts, steps=40)
    inner.weight.data = found
    for module, bias in biases:
        module.register_parameter("bias", bias)
    after = sum(float((missing - run(stream)).square().sum()) for stream, missing in parts)
    assert after < 0.3 * before
    assert (found - planted).norm() < (present - planted).norm()


def test_many_steps_reach_the_damped_minimum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against (JᵀJ + damping S ⊗ C)⁻¹ Jᵀ residual with J written out, column by column."""
    seen: list[Curvature] = []
    divided = Curvature.divided
    monkeypatch.setattr(Curvature, "divided", lambda self, gradient: seen.append(self) or divided(self, gradient))
    layer, run = sublayer(tmp_path, "llama", "mlp")
    inner, output = (layer.get_submodule(path) for path in SUBLAYERS["mlp"])
    present = inner.weight.detach().clone()
    parts: list[Part] = [(stream, torch.randn(stream.shape)) for stream in streams()]
    stream = torch.cat([part[0] for part in parts])
    residual = (torch.cat([part[1] for part in parts]) - run(stream)).flatten().double()
    columns = []
    for index in range(present.numel()):
        inner.weight.data = torch.zeros_like(present)
        inner.weight.data.view(-1)[index] = 1
        columns.append(run(stream).flatten().double())
    jacobian = torch.stack(columns, 1)
    inner.weight.data = present.clone()
    found = refit_inner(run, inner, output, parts, steps=300)

    curvature = seen[0]
    metric = torch.kron(curvature.sensitivity.diag(), curvature.covariance).double()
    change = torch.linalg.solve(jacobian.T @ jacobian + DAMPING * metric, jacobian.T @ residual)
    assert torch.allclose((found - present).flatten().double(), change, rtol=1e-2, atol=1e-4)


def test_alternation_lowers_what_a_merged_layer_misses(tmp_path: Path) -> None:
    source = Checkpoint(tiny_checkpoint(tmp_path / "dense"))
    folds = [torch.randint(0, 256, (48, 32), generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    errors = []
    for alternations in (0, 1, 3):
        pruner = Pruner(missed_heads, missed_channels, regressed, one_by_one, alternations)
        size = Size([(0,), (1, 2, 3), (4,), (5,)], CheckpointWriter(source, tmp_path / f"{alternations}"))
        walk(source, [size], folds, pruner, Silent(), device=CPU)
        errors.append((size.merged[0].attention_error, size.merged[0].mlp_error))
    assert errors[2] < errors[1] < errors[0]
    assert errors[1][1] < errors[0][1]


def test_the_published_method_fits_no_inner_projection() -> None:
    assert MERGING["flattengpt-paper"][1].alternations == 0
    assert MERGING["flattengpt"][1].alternations > 0
