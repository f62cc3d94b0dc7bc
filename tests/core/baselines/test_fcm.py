"""FCM's communities against every partition, and its result on real checkpoints."""

import itertools
import json
from pathlib import Path

import numpy
import pytest
import torch

from flattengpt_core.baselines.fcm import communities, representatives
from flattengpt_core.errors import InvalidTarget
from flattengpt_core.models import load_model
from tests.core.baselines.dense import cosine, influences, record, same_layers
from tests.core.test_compress import CPU, FAMILIES, calibration, compress
from tests.tiny_models import tiny_checkpoint


def partitions(num_layers: int, count: int) -> list[list[tuple[int, ...]]]:
    """All ways to cut the layers into `count` runs."""
    return [
        [tuple(range(start, end)) for start, end in itertools.pairwise((0, *cuts, num_layers))]
        for cuts in itertools.combinations(range(1, num_layers), count - 1)
    ]


def association(similarity: numpy.ndarray, groups: list[tuple[int, ...]]) -> float:
    return sum(sum(similarity[i, j] for i in group for j in group) / len(group) for group in groups)


@pytest.mark.parametrize("seed", range(5))
def test_communities_are_the_best_of_all_partitions(seed: int) -> None:
    vectors = numpy.random.default_rng(seed).normal(size=(7, 4))
    vectors /= numpy.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors @ vectors.T
    for count in range(1, 8):
        expected = max(partitions(7, count), key=lambda groups: association(similarity, groups))
        assert communities(torch.from_numpy(similarity), count) == expected


def test_one_big_community_does_not_always_win() -> None:
    """All layers alike but for two equal halves that are a little more alike within: the halves are found."""
    similarity = torch.full((8, 8), 0.9)
    similarity[:4, :4] = similarity[4:, 4:] = 0.92
    similarity.fill_diagonal_(1.0)
    assert communities(similarity, 2) == [(0, 1, 2, 3), (4, 5, 6, 7)]


def test_the_most_influential_layer_stands_for_its_community() -> None:
    influence = torch.tensor([0.1, 0.4, 0.2, 0.3, 0.3])
    assert representatives([(0, 1, 2), (3, 4)], influence) == [1, 3]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", [1, 2])
def test_result_keeps_the_layers_worked_out_by_hand(tmp_path: Path, family: str, seed: int) -> None:
    source = tiny_checkpoint(tmp_path / "dense", family, seed=seed)
    states = record(source, torch.cat(calibration())).states
    similarity = numpy.array([[cosine(a, b).mean() for b in states[1:]] for a in states[1:]])
    influence = influences(states)
    for layers in (2, 4):
        out, done = compress(source, tmp_path / str(layers), layers=layers, method="fcm")
        groups = max(partitions(6, layers), key=lambda option: association(similarity, option))
        kept = [max(group, key=lambda layer: influence[layer]) for group in groups]
        assert done.groups == [(layer,) for layer in kept]
        assert done.merged == []
        assert same_layers(source, out, dict(enumerate(kept)))
        assert load_model(out, device=CPU, dtype=torch.float32).config.num_hidden_layers == layers


def test_layers_take_their_kind_along(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention"] * 3
    source = tiny_checkpoint(tmp_path / "dense", "qwen2", layer_types=kinds, use_sliding_window=True, sliding_window=8)
    out, done = compress(source, tmp_path, layers=3, method="fcm")
    assert json.loads((out / "config.json").read_text())["layer_types"] == [kinds[layer] for (layer,) in done.groups]


@pytest.mark.parametrize("layers", [0, 6, 7])
def test_impossible_targets_are_refused(tmp_path: Path, layers: int) -> None:
    with pytest.raises(InvalidTarget) as refused:
        compress(tiny_checkpoint(tmp_path / "dense"), tmp_path, layers=layers, method="fcm")
    assert refused.value.field == "layers"
