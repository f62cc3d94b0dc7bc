"""ReplaceMe's cut and linear map against their definitions worked out the long way on the dense model."""

import json
from pathlib import Path

import numpy
import pytest
import torch

from flattengpt_core.baselines.replaceme import ALPHA, cut_start, followed_by
from flattengpt_core.baselines.replaceme import compress as replace
from flattengpt_core.errors import InvalidTarget
from flattengpt_core.families import DOWN
from flattengpt_core.models import Checkpoint, CheckpointWriter, load_model
from flattengpt_core.similarity import angular_distance
from tests.core.baselines.dense import Steps, angle, quieten, record, same_layers
from tests.core.test_compress import CPU, FAMILIES, calibration, compress
from tests.tiny_models import tiny_checkpoint

LAYERS, KEEP = 6, 4
REMOVED = LAYERS - KEEP


def unit_rows(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(LAYERS + 1, 50, 8, generator=generator, dtype=torch.float64)
    steps[1:] *= torch.rand(LAYERS, 1, 1, generator=generator, dtype=torch.float64) * steps[0].std()
    return list(torch.nn.functional.normalize(steps.cumsum(0), dim=-1))


def cut_by_hand(states: list[numpy.ndarray], removed: int) -> int:
    """The least angular distance over `removed` layers, the first layer always left in place."""
    distance = {s: angle(states[s], states[s + removed]) for s in range(1, LAYERS - removed + 1)}
    return min(distance, key=lambda start: distance[start])


def test_angular_distance_of_known_angles() -> None:
    east, north, west = (torch.tensor([pair]) for pair in ([1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]))
    assert angular_distance(east, east) == 0
    assert angular_distance(east, north) == pytest.approx(0.5)
    assert angular_distance(east, west) == pytest.approx(1)
    assert angular_distance(torch.cat([east, east]), torch.cat([north, west])) == pytest.approx(0.75)


@pytest.mark.parametrize("removed", range(1, LAYERS))
def test_cut_is_the_least_angular_distance(removed: int) -> None:
    starts = set()
    for seed in range(8):
        states = unit_rows(seed)
        start = cut_start(states, removed)
        assert start == cut_by_hand([state.numpy() for state in states], removed)
        starts.add(start)
    assert removed == LAYERS - 1 or len(starts) > 1  # the states leave something to find


def test_cut_never_starts_at_the_first_layer() -> None:
    states = unit_rows(0)
    states[2] = states[0]  # the first two layers do nothing, yet they stay
    assert cut_start(states, 2) > 0


@pytest.mark.parametrize(
    ("family", "overrides"),
    [("llama", {}), ("llama", {"mlp_bias": True}), ("mistral", {}), ("qwen2", {})],
    ids=["llama", "llama with biases", "mistral", "qwen2"],
)
def test_map_is_least_squares_on_the_augmented_system(tmp_path: Path, family: str, overrides: dict[str, bool]) -> None:
    source = quieten(tiny_checkpoint(tmp_path / "dense", family, **overrides), (2, 3))
    out, done = compress(source, tmp_path, layers=KEEP, method="replaceme")
    dense = record(source, torch.cat(calibration()), "mlp", "post_attention_layernorm")
    start = cut_by_hand(dense.states, REMOVED)
    assert start == 2
    kept = [*range(start), *range(start + REMOVED, LAYERS)]
    assert done.groups == [(layer,) for layer in kept]
    assert done.merged == []

    m, y = dense.outputs["mlp"][start - 1], dense.inputs["post_attention_layernorm"][start - 1]
    missing = dense.states[start + REMOVED] - y
    ridge = ALPHA * numpy.square(m).sum() / m.shape[1]
    augmented = numpy.vstack([m, numpy.sqrt(ridge) * numpy.eye(m.shape[1])])
    linear = numpy.linalg.lstsq(augmented, numpy.vstack([missing, numpy.zeros_like(m[:32])]), rcond=None)[0]
    before, after = Checkpoint(source).layer(start - 1), Checkpoint(out).layer(start - 1)
    assert before.keys() == after.keys()
    for name in before:
        if name.startswith(DOWN):
            expected = linear.T @ before[name].double().numpy()
            assert numpy.allclose(after[name], expected, rtol=1e-3, atol=1e-4)
            assert not torch.allclose(after[name], before[name], rtol=0.1)
        else:
            assert torch.equal(after[name], before[name])
    assert (f"{DOWN}.bias" in before) == bool(overrides)
    assert same_layers(source, out, {new: old for new, old in enumerate(kept) if old != start - 1})


def test_map_follows_the_mlp() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {f"{DOWN}.weight": torch.randn(3, 5, generator=generator), f"{DOWN}.bias": torch.randn(3)}
    linear = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    features = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    added = features @ weights[f"{DOWN}.weight"].double().T + weights[f"{DOWN}.bias"].double()
    replaced = followed_by(weights, linear)
    assert torch.allclose(features @ replaced[f"{DOWN}.weight"].T + replaced[f"{DOWN}.bias"], added @ linear)


@pytest.mark.parametrize("family", FAMILIES)
def test_replaced_model_is_closer_to_the_dense_one_than_plain_removal(tmp_path: Path, family: str) -> None:
    source = quieten(tiny_checkpoint(tmp_path / "dense", family), (2, 3))
    out, done = compress(source, tmp_path, layers=KEEP, method="replaceme")
    kept = [layer for (layer,) in done.groups]
    start = next(place for place, layer in enumerate(kept) if place != layer)
    checkpoint = Checkpoint(source)
    writer = CheckpointWriter(checkpoint, tmp_path / "removed-work")
    for layer in kept:
        writer.add_layer(checkpoint.layer(layer), first_member=layer)
    writer.assemble(tmp_path / "removed")

    tokens = torch.cat(calibration())
    target, replaced, shortened = (record(folder, tokens).states for folder in (source, out, tmp_path / "removed"))
    for place, dense_place in ((start, start + REMOVED), (-1, -1)):  # where the cut was, and what enters the head
        error, plain = (numpy.square(states[place] - target[dense_place]).mean() for states in (replaced, shortened))
        assert error < 0.9 * plain


def test_layers_take_their_kind_along(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention"] * 3
    source = tiny_checkpoint(tmp_path / "dense", "qwen2", layer_types=kinds, use_sliding_window=True, sliding_window=8)
    out, done = compress(source, tmp_path, layers=3, method="replaceme")
    assert json.loads((out / "config.json").read_text())["layer_types"] == [kinds[layer] for (layer,) in done.groups]


def test_one_layer_is_left_at_least(tmp_path: Path) -> None:
    out, done = compress(tiny_checkpoint(tmp_path / "dense"), tmp_path, layers=1, method="replaceme")
    assert done.groups == [(0,)]
    logits = load_model(out, device=CPU, dtype=torch.float32)(torch.randint(0, 256, (1, 16))).logits
    assert torch.isfinite(logits).all()


def test_steps_rise_to_the_end_and_stop_the_run(tmp_path: Path) -> None:
    source = Checkpoint(tiny_checkpoint(tmp_path / "dense"))
    steps = Steps()
    replace(source, calibration(), CheckpointWriter(source, tmp_path / "a"), steps, layers=KEEP, device=CPU)
    assert steps.seen == [(done, LAYERS) for done in range(1, LAYERS + 1)]
    steps = Steps(stop_after=3)
    with pytest.raises(Steps.Stopped):
        replace(source, calibration(), CheckpointWriter(source, tmp_path / "b"), steps, layers=KEEP, device=CPU)
    assert len(steps.seen) == 3


@pytest.mark.parametrize("layers", [0, 6, 7])
def test_impossible_targets_are_refused(tmp_path: Path, layers: int) -> None:
    with pytest.raises(InvalidTarget) as refused:
        compress(tiny_checkpoint(tmp_path / "dense"), tmp_path, layers=layers, method="replaceme")
    assert refused.value.field == "layers"
