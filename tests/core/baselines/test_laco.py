"""LaCo's collapsed weights are the paper's formula, and its choices those of stock models."""

import copy
import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flattengpt_core.baselines import laco
from flattengpt_core.baselines.laco import Model, Run
from flattengpt_core.compressed import Compressed
from flattengpt_core.errors import InvalidTarget
from flattengpt_core.models import Checkpoint, CheckpointWriter, load_model
from flattengpt_core.progress import Silent
from tests.core.baselines.stock import CPU, mixed_kinds, random_folds
from tests.tiny_models import tiny_checkpoint

FOLDS = random_folds()
TOKENS = torch.cat(FOLDS)
Layers = list[tuple[int, dict[str, Tensor]]]


class Counted(Silent):
    """Keeps the steps, and stops the run after `limit` of them."""

    def __init__(self, limit: int | None = None) -> None:
        self.steps: list[tuple[int, int]] = []
        self.limit = limit

    def step(self, done: int, total: int) -> None:
        self.steps.append((done, total))
        if len(self.steps) == self.limit:
            raise InterruptedError


def compress(source: Checkpoint, folder: Path, layers: int, progress: Silent | None = None) -> Compressed:
    writer = CheckpointWriter(source, folder / "work")
    done = laco.compress(source, FOLDS, writer, progress or Silent(), layers=layers, device=CPU)
    writer.assemble(folder / "out")
    return done


def merged(layers: Layers) -> dict[str, Tensor]:
    """The formula as it is printed, on tensors: theta_l + sum_k (theta_{l+k} - theta_l); norms stay theta_l's."""
    (_, lowest), *above = layers
    return {
        name: tensor
        if "norm" in name
        else tensor + sum((weights[name] - tensor for _, weights in above), torch.zeros(()))
        for name, tensor in lowest.items()
    }


def final_hidden(model: PreTrainedModel, layers: Layers) -> Tensor:
    """The stock model's last hidden states with these layers, all of one kind, in place of its own."""
    own = model.model.layers
    stack = nn.ModuleList([copy.deepcopy(own[index]) for index, _ in layers])
    for layer, (_, weights) in zip(stack, layers, strict=True):
        layer.load_state_dict(weights)
    model.model.layers = stack
    with torch.no_grad():
        hidden = model.model(TOKENS, use_cache=False).last_hidden_state
    model.model.layers = own
    return hidden


def by_brute_force(source: Checkpoint, layers: int) -> tuple[Layers, float]:
    """LaCo on whole stock models, every candidate built anew, without kinds; the layers and the threshold."""
    dense: Layers = [(index, source.layer(index)) for index in range(source.info.num_layers)]
    stock = load_model(source.folder, device=CPU, dtype=torch.float32)
    reference = final_hidden(stock, dense)
    for percent, size in itertools.product(range(95, -1, -5), (4, 3, 2)):
        model, at = dense, len(dense) - size
        while at >= 0 and len(model) > layers:
            count = min(size, len(model) - at, len(model) - layers + 1)
            candidate = [*model[:at], (model[at][0], merged(model[at : at + count])), *model[at + count :]]
            cosine = torch.cosine_similarity(final_hidden(stock, candidate), reference, dim=-1).mean()
            if cosine > percent / 100:
                model, at = candidate, min(at - 2, max(0, len(candidate) - size))
            else:
                at -= 1
        if len(model) == layers:
            return model, percent / 100
    raise AssertionError("no threshold reaches the target")


def test_three_layers_collapse_by_the_formula_and_not_telescoped(tmp_path: Path) -> None:
    source = Checkpoint(tiny_checkpoint(tmp_path / "dense", "qwen2"))
    done = compress(source, tmp_path, 3)
    position, (lowest, middle, highest) = next((at, group) for at, group in enumerate(done.groups) if len(group) == 3)
    result = Checkpoint(tmp_path / "out").layer(position)
    one, two, three = source.layer(lowest), source.layer(middle), source.layer(highest)
    assert result.keys() == one.keys()
    for name, tensor in result.items():
        if "norm" in name:
            assert torch.equal(tensor, one[name])
            continue
        torch.testing.assert_close(tensor, one[name] + (two[name] - one[name]) + (three[name] - one[name]))
        assert not torch.allclose(tensor, three[name], atol=1e-2)


@pytest.mark.parametrize(("family", "seed", "layers"), [("llama", 0, 5), ("llama", 1, 3), ("mistral", 2, 4)])
def test_result_is_that_of_brute_force(tmp_path: Path, family: str, seed: int, layers: int) -> None:
    source = Checkpoint(tiny_checkpoint(tmp_path / "dense", family, seed=seed, num_hidden_layers=7))
    expected, threshold = by_brute_force(source, layers)
    assert threshold < 0.95  # or the search would not be tested
    done = compress(source, tmp_path, layers)
    result = Checkpoint(tmp_path / "out")
    assert [group[0] for group in done.groups] == [index for index, _ in expected]
    for position, (_, weights) in enumerate(expected):
        torch.testing.assert_close(result.layer(position), weights)


def test_a_collapsed_layer_collapses_again_by_the_formula(tmp_path: Path) -> None:
    source = Checkpoint(tiny_checkpoint(tmp_path / "dense"))
    layers: Layers = [(index, source.layer(index)) for index in range(6)]
    inner = laco.collapsed([Run(index, (1,)) for index in (2, 3, 4)])
    outer = laco.collapsed([Run(0, (1,)), Run(1, (1,)), inner, Run(5, (1,))])
    assert outer.members == (0, 1, 2, 3, 4, 5)
    by_hand = merged([layers[0], layers[1], (2, merged(layers[2:5])), layers[5]])
    torch.testing.assert_close(laco.weights(source, outer), by_hand)


def test_one_layer_above_replaces_the_layer_bit_for_bit(tmp_path: Path) -> None:
    source = Checkpoint(tiny_checkpoint(tmp_path / "float"))
    load_model(source.folder, device=CPU, dtype=torch.bfloat16).save_pretrained(tmp_path / "dense")
    source = Checkpoint(tmp_path / "dense")
    run = laco.collapsed([Run(2, (1,)), Run(3, (1,))])
    assert run.members == (2, 3)
    weights = laco.weights(source, run)
    above, lowest = source.layer(3), source.layer(2)
    assert all(torch.equal(tensor, (lowest if "norm" in name else above)[name]) for name, tensor in weights.items())
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def test_layers_that_collapse_with_none_keep_every_bit(tmp_path: Path) -> None:
    source = Checkpoint(tiny_checkpoint(tmp_path / "dense"))
    done = compress(source, tmp_path, 4)
    result = Checkpoint(tmp_path / "out")
    singles = [(position, group[0]) for position, group in enumerate(done.groups) if len(group) == 1]
    assert singles
    for position, index in singles:
        assert all(torch.equal(tensor, result.layer(position)[name]) for name, tensor in source.layer(index).items())
    assert sorted(index for group in done.groups for index in group) == list(range(6))
    model = load_model(tmp_path / "out", device=CPU, dtype=torch.float32)
    assert torch.isfinite(model(TOKENS).logits).all()


def runs(model: Model) -> list[tuple[int, ...]]:
    return [run.members for run in model]


def test_sweep_goes_down_and_stops_at_the_target() -> None:
    """A collapse from layer 6 is refused, one from 5 stands, the next from 3; the last is cut to fit."""
    visited: list[int] = []

    def similarity(model: Model) -> float:
        return 0.0 if (6, 7, 8, 9) in runs(model) else 1.0

    model = laco.sweep(10, 5, 0.5, similarity, combined=4, kind=lambda index: "all", on_pointer=visited.append)
    assert runs(model) == [(0,), (1,), (2,), (3, 4, 5, 6, 7, 8), (9,)]
    assert visited == [6, 5, 3]


def test_sweep_without_a_collapse_similar_enough_leaves_all() -> None:
    visited: list[int] = []
    model = laco.sweep(8, 5, 0.5, lambda model: 0.5, combined=4, kind=lambda index: "all", on_pointer=visited.append)
    assert runs(model) == [(index,) for index in range(8)]
    assert visited == [4, 3, 2, 1, 0]


def test_layers_of_different_kinds_never_collapse(tmp_path: Path) -> None:
    source = Checkpoint(tiny_checkpoint(tmp_path / "dense", "qwen2", num_hidden_layers=8, **mixed_kinds("ffffssss")))
    done = compress(source, tmp_path, 4)
    result = Checkpoint(tmp_path / "out")
    for position, group in enumerate(done.groups):
        assert {source.config.layer_types[index] for index in group} == {result.config.layer_types[position]}


@pytest.mark.parametrize(("kinds", "layers"), [("fsfsfs", 5), ("fffsss", 1), ("ffffff", 0)])
def test_targets_out_of_reach_are_refused(tmp_path: Path, kinds: str, layers: int) -> None:
    source = Checkpoint(tiny_checkpoint(tmp_path / "dense", "qwen2", **mixed_kinds(kinds)))
    with pytest.raises(InvalidTarget, match="cannot be reached") as refused:
        compress(source, tmp_path, layers)
    assert refused.value.field == "layers"


def test_progress_rises_to_its_total(tmp_path: Path) -> None:
    progress = Counted()
    compress(Checkpoint(tiny_checkpoint(tmp_path / "dense")), tmp_path, 3, progress)
    assert progress.steps == sorted(progress.steps)
    assert {total for _, total in progress.steps} == {6 * len(laco.THRESHOLDS) * len(laco.COMBINED)}
    assert progress.steps[-1] == (6 * len(laco.THRESHOLDS) * len(laco.COMBINED),) * 2


@pytest.mark.parametrize("limit", [3, 12])
def test_progress_can_stop_the_run(tmp_path: Path, limit: int) -> None:
    progress = Counted(limit)
    with pytest.raises(InterruptedError):
        compress(Checkpoint(tiny_checkpoint(tmp_path / "dense")), tmp_path, 3, progress)
    assert len(progress.steps) == limit
