"""CoMe's merge of a pair worked out the long way on the dense model, and its pair after pair."""

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from flattengpt_core.baselines.come import compress as merge_pairs
from flattengpt_core.baselines.come import share_of_first
from flattengpt_core.errors import InvalidTarget
from flattengpt_core.models import Checkpoint, CheckpointWriter, load_model
from tests.core.baselines.dense import Steps, angle, influences, quieten, record, same_layers
from tests.core.test_compress import CPU, calibration, compress
from tests.tiny_models import tiny_checkpoint

LAYERS, GROUPS, HEADS, HEAD_DIM, CHANNELS = 6, 4, 8, 4, 48
SIZES = {"num_attention_heads": HEADS, "num_key_value_heads": GROUPS}
HEADS_PER_GROUP = HEADS // GROUPS
KINDS = ["full_attention"] * 2 + ["sliding_attention"] * 4


@pytest.mark.parametrize(
    ("units", "first", "second", "expected"),
    [
        (10, 0.3, 0.1, 8),  # 7.5, to the even
        (10, 0.1, 0.3, 2),
        (48, 1.0, 2.0, 16),
        (4, 1.0, 0.001, 3),  # the second keeps one all the same
        (4, 0.001, 1.0, 1),
        (8, 0.0, 0.0, 4),
        (8, -1e-8, 0.2, 1),  # rounding below zero counts as none
        (2, 0.9, 0.1, 1),
        (1, 0.9, 0.1, 1),  # a single unit: the more influential layer's
        (1, 0.1, 0.9, 0),
    ],
)
def test_shares_follow_the_influences(units: int, first: float, second: float, expected: int) -> None:
    assert share_of_first(units, first, second) == expected


def pair_by_hand(states: list[numpy.ndarray]) -> int:
    distance = [angle(states[at], states[at + 2]) for at in range(len(states) - 2)]
    return distance.index(min(distance))


def best(scores: list[float], keep: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda index: -scores[index])[:keep])


def feature_scores(features: numpy.ndarray, output: torch.Tensor) -> list[float]:
    """E|z| times the norm of the feature's part of the output projection (d, features)."""
    return [
        float(numpy.abs(features[:, index]).mean() * numpy.linalg.norm(output[:, index].double().numpy()))
        for index in range(features.shape[1])
    ]


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {}),
        ("llama", {"mlp_bias": True, "attention_bias": True}),
        ("mistral", {}),
        ("qwen2", {}),
        ("qwen2", {"layer_types": KINDS, "use_sliding_window": True, "sliding_window": 1}),
    ],
    ids=["llama", "llama with biases", "mistral", "qwen2", "qwen2 with a sliding window"],
)
def test_merged_pair_is_what_the_definition_says(tmp_path: Path, family: str, overrides: dict[str, Any]) -> None:
    source = quieten(tiny_checkpoint(tmp_path / "dense", family, **SIZES, **overrides), (2, 3))
    out, done = compress(source, tmp_path, layers=LAYERS - 1, method="come")
    dense = record(source, torch.cat(calibration()), "self_attn.o_proj", "mlp.down_proj")
    at = pair_by_hand(dense.states)
    assert at == 2
    assert done.groups == [*((i,) for i in range(at)), (at, at + 1), *((i,) for i in range(at + 2, LAYERS))]
    assert done.merged == []

    influence = influences(dense.states)[at : at + 2]
    part = influence[0] / sum(influence)
    groups, channels = min(max(round(GROUPS * part), 1), GROUPS - 1), min(max(round(CHANNELS * part), 1), CHANNELS - 1)
    members = [Checkpoint(source).layer(index) for index in (at, at + 1)]
    expected: dict[str, list[torch.Tensor]] = {}

    def put(name: str, rows: torch.Tensor) -> None:
        expected.setdefault(name, []).append(rows)

    for place, layer, keep_groups, keep_channels in zip(
        (at, at + 1), members, (groups, GROUPS - groups), (channels, CHANNELS - channels), strict=True
    ):
        output = layer["self_attn.o_proj.weight"]
        scores = feature_scores(dense.inputs["self_attn.o_proj"][place], output)
        size = HEADS_PER_GROUP * HEAD_DIM
        for group in best([sum(scores[g * size : (g + 1) * size]) for g in range(GROUPS)], keep_groups):
            for head in range(group * HEADS_PER_GROUP, (group + 1) * HEADS_PER_GROUP):
                here = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
                put("self_attn.q_proj.weight", layer["self_attn.q_proj.weight"][here])
                put("self_attn.o_proj.weight", output[:, here].T)
                if "self_attn.q_proj.bias" in layer:
                    put("self_attn.q_proj.bias", layer["self_attn.q_proj.bias"][here])
            here = slice(group * HEAD_DIM, (group + 1) * HEAD_DIM)
            for name in ("k_proj.weight", "v_proj.weight", "k_proj.bias", "v_proj.bias"):
                if f"self_attn.{name}" in layer:
                    put(f"self_attn.{name}", layer[f"self_attn.{name}"][here])
        output = layer["mlp.down_proj.weight"]
        for channel in best(feature_scores(dense.inputs["mlp.down_proj"][place], output), keep_channels):
            put("mlp.down_proj.weight", output[:, channel][None])
            for name in ("gate_proj.weight", "up_proj.weight", "gate_proj.bias", "up_proj.bias"):
                if f"mlp.{name}" in layer:
                    put(f"mlp.{name}", layer[f"mlp.{name}"][channel][None])

    merged = Checkpoint(out).layer(at)
    assert merged.keys() == members[0].keys()
    averaged = {name for name in merged if name not in expected}
    assert averaged <= {
        "input_layernorm.weight", "post_attention_layernorm.weight", "self_attn.o_proj.bias", "mlp.down_proj.bias",
    }  # fmt: skip
    for name in averaged:
        assert torch.allclose(merged[name], (members[0][name] + members[1][name]) / 2)
    for name, pieces in expected.items():
        rows = torch.cat(pieces)
        assert torch.equal(
            merged[name].T if name in ("self_attn.o_proj.weight", "mlp.down_proj.weight") else merged[name], rows
        )
    assert same_layers(source, out, {i: i for i in range(at)} | {i: i + 1 for i in range(at + 1, LAYERS - 1)})


def test_two_merges_are_one_merge_done_twice(tmp_path: Path) -> None:
    """So everything is measured anew on the merged layers, a merged layer's among them."""
    source = tiny_checkpoint(tmp_path / "dense", "qwen2", **SIZES)
    at_once, done = compress(source, tmp_path / "at-once", layers=1, method="come")
    assert done.groups == [tuple(range(LAYERS))]
    folder, groups = source, [(index,) for index in range(LAYERS)]
    for layers in range(LAYERS - 1, 0, -1):
        folder, step = compress(folder, tmp_path / str(layers), layers=layers, method="come")
        groups = [sum((groups[member] for member in merged), ()) for merged in step.groups]
        assert compress(source, tmp_path / f"to-{layers}", layers=layers, method="come")[1].groups == groups
    assert same_layers(at_once, folder, {0: 0})


def test_layers_of_different_kinds_stay_apart(tmp_path: Path) -> None:
    kinds = ["full_attention"] * 3 + ["sliding_attention"] * 3
    source = tiny_checkpoint(tmp_path / "dense", "qwen2", layer_types=kinds, use_sliding_window=True, sliding_window=8)
    out, done = compress(source, tmp_path / "two", layers=2, method="come")
    assert done.groups == [(0, 1, 2), (3, 4, 5)]
    assert load_model(out, device=CPU, dtype=torch.float32).config.layer_types == [kinds[0], kinds[-1]]
    with pytest.raises(InvalidTarget, match="same kind") as refused:
        compress(source, tmp_path / "one", layers=1, method="come")
    assert refused.value.field == "layers"


def test_a_single_key_value_group_stays_whole(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "dense", num_key_value_heads=1)
    out, done = compress(source, tmp_path, layers=LAYERS - 1, method="come")
    at = next(place for place, group in enumerate(done.groups) if len(group) == 2)
    influence = influences(record(source, torch.cat(calibration())).states)[at : at + 2]
    winner = Checkpoint(source).layer(at + influence.index(max(influence)))
    merged = Checkpoint(out).layer(at)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        assert torch.equal(merged[f"self_attn.{name}.weight"], winner[f"self_attn.{name}.weight"])


def test_steps_rise_to_the_end_and_stop_the_run(tmp_path: Path) -> None:
    source = Checkpoint(tiny_checkpoint(tmp_path / "dense"))
    steps = Steps()
    merge_pairs(source, calibration(), CheckpointWriter(source, tmp_path / "a"), steps, layers=4, device=CPU)
    assert steps.seen == [(done, LAYERS) for done in range(1, LAYERS + 1)]
    steps = Steps(stop_after=2)
    with pytest.raises(Steps.Stopped):
        merge_pairs(source, calibration(), CheckpointWriter(source, tmp_path / "b"), steps, layers=4, device=CPU)
    assert len(steps.seen) == 2


@pytest.mark.parametrize("layers", [0, 6, 7])
def test_impossible_targets_are_refused(tmp_path: Path, layers: int) -> None:
    with pytest.raises(InvalidTarget) as refused:
        compress(tiny_checkpoint(tmp_path / "dense"), tmp_path, layers=layers, method="come")
    assert refused.value.field == "layers"
