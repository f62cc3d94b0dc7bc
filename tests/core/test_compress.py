"""Compressing small real checkpoints: the result is a stock checkpoint, and what must not change does not."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flattengpt_core.compress import COMPRESSORS, MERGING, compress_layers
from flattengpt_core.compressed import Compressed
from flattengpt_core.errors import InvalidTarget
from flattengpt_core.grouping import Group
from flattengpt_core.methods import METHODS
from flattengpt_core.models import Checkpoint, CheckpointWriter, load_model
from flattengpt_core.progress import Silent
from flattengpt_core.prune import (
    Pruner,
    all_at_once,
    as_folded,
    missed_channels,
    missed_heads,
    one_by_one,
    published_channels,
    published_heads,
    regressed,
)
from flattengpt_core.walk import Size, walk
from tests.tiny_models import tiny_checkpoint

CPU = torch.device("cpu")
FAMILIES = ["llama", "mistral", "qwen2"]


def test_every_method_has_its_code() -> None:
    assert set(COMPRESSORS) == set(METHODS)


def calibration(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (6, 32), generator=generator) for _ in range(2)]


def compress(source: Path, folder: Path, *, layers: int = 4, method: str = "flattengpt") -> tuple[Path, Compressed]:
    checkpoint = Checkpoint(source)
    writer = CheckpointWriter(checkpoint, folder / "work")
    done = compress_layers(checkpoint, calibration(), writer, Silent(), layers=layers, method=method, device=CPU)
    writer.assemble(folder / "out")
    return folder / "out", done


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_result_is_a_stock_checkpoint(tmp_path: Path, family: str, method: str) -> None:
    source = tiny_checkpoint(tmp_path / "dense", family)
    out, done = compress(source, tmp_path, method=method)
    dense, config = (json.loads((folder / "config.json").read_text()) for folder in (source, out))
    assert config.pop("num_hidden_layers") == 4
    assert dense.pop("num_hidden_layers") == 6
    for lists in ("layer_types",):
        assert len(config.pop(lists, [None] * 4)) == 4
        dense.pop(lists, None)
    assert config == dense
    model = load_model(out, device=CPU, dtype=torch.float32)
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2, 3]
    assert len(done.groups) == 4
    assert torch.isfinite(model(torch.randint(0, 256, (1, 16))).logits).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_cache_equals_without(tmp_path: Path, family: str) -> None:
    out, _ = compress(tiny_checkpoint(tmp_path / "dense", family), tmp_path)
    model = load_model(out, device=CPU, dtype=torch.float32)
    prompt = torch.randint(0, 256, (2, 8))
    settings = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(prompt)
    cached = model.generate(prompt, attention_mask=mask, use_cache=True, **settings)
    assert torch.equal(cached, model.generate(prompt, attention_mask=mask, use_cache=False, **settings))


def test_nothing_to_merge_leaves_every_bit(tmp_path: Path) -> None:
    source = Checkpoint(tiny_checkpoint(tmp_path / "dense"))
    writer = CheckpointWriter(source, tmp_path / "work")
    pruner = Pruner(missed_heads, missed_channels, regressed, one_by_one)
    size = Size([(i,) for i in range(6)], writer)
    walk(source, [size], calibration(), pruner, Silent(), device=CPU)
    writer.assemble(tmp_path / "out")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("dense", "out"))
    assert size.merged == []
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_layers_that_merge_with_none_keep_every_bit(tmp_path: Path) -> None:
    out, done = compress(tiny_checkpoint(tmp_path / "dense"), tmp_path)
    before, after = Checkpoint(tmp_path / "dense"), Checkpoint(out)
    singles = [(position, group[0]) for position, group in enumerate(done.groups) if len(group) == 1]
    assert singles
    for position, layer in singles:
        assert all(torch.equal(tensor, after.layer(position)[name]) for name, tensor in before.layer(layer).items())


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    out, _ = compress(tiny_checkpoint(tmp_path / "dense", tie_word_embeddings=True), tmp_path)
    assert "lm_head.weight" not in load_file(out / "model.safetensors")
    model = load_model(out, device=CPU, dtype=torch.float32)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize(
    ("method", "kept"), [("flattengpt", {"q_proj": 2, "k_proj": 1}), ("flattengpt-paper", {"v_proj": 1, "k_proj": 1})]
)
def test_whole_key_value_groups_are_kept(tmp_path: Path, method: str, kept: dict[str, int]) -> None:
    """Each kept query head stands beside the key/value head it belonged to, in Hugging Face's order."""
    out, done = compress(tiny_checkpoint(tmp_path / "dense", "qwen2"), tmp_path, method=method)
    source, result, head_dim = Checkpoint(tmp_path / "dense"), Checkpoint(out), 8
    for merged in done.merged:
        position = done.groups.index(merged.members)
        layer = result.layer(position)
        members = [source.layer(index) for index in merged.members]
        for place, unit in enumerate(merged.kv_groups):
            member, group = members[unit // 2], unit % 2
            for projection, heads in kept.items():
                here = slice(place * heads * head_dim, (place + 1) * heads * head_dim)
                there = slice(group * heads * head_dim, (group + 1) * heads * head_dim)
                name = f"self_attn.{projection}"
                folded = member[f"{name}.weight"][there] * member["input_layernorm.weight"]
                assert torch.allclose(layer[f"{name}.weight"][here], folded)
                assert torch.equal(layer[f"{name}.bias"][here], member[f"{name}.bias"][there])


def test_dtype_is_kept(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "float")
    load_model(source, device=CPU, dtype=torch.bfloat16).save_pretrained(tmp_path / "dense")
    out, _ = compress(tmp_path / "dense", tmp_path)
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_bytes(tmp_path: Path, method: str) -> None:
    source = tiny_checkpoint(tmp_path / "dense")
    first, _ = compress(source, tmp_path / "a", method=method)
    second, _ = compress(source, tmp_path / "b", method=method)
    assert digests(first) == digests(second)


def test_regression_comes_closer_to_the_dense_model_than_the_published_method(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "dense")
    tokens = torch.cat(calibration())
    with torch.no_grad():
        expected = load_model(source, device=CPU, dtype=torch.float32).model(tokens).last_hidden_state
        errors = {}
        for method in ("flattengpt", "flattengpt-paper"):
            out, _ = compress(source, tmp_path / method, method=method)
            actual = load_model(out, device=CPU, dtype=torch.float32).model(tokens).last_hidden_state
            errors[method] = (actual - expected).square().mean().item()
    assert errors["flattengpt"] < 0.8 * errors["flattengpt-paper"]


def test_groups_of_three(tmp_path: Path) -> None:
    out, done = compress(tiny_checkpoint(tmp_path / "dense"), tmp_path, layers=2)
    assert max(len(group) for group in done.groups) >= 3
    assert Checkpoint(out).info.num_layers == 2


def test_layers_of_different_kinds_refuse_a_target_too_low(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention"] * 3
    source = tiny_checkpoint(tmp_path / "dense", "qwen2", layer_types=kinds, use_sliding_window=True, sliding_window=8)
    with pytest.raises(InvalidTarget, match="same kind"):
        compress(source, tmp_path, layers=2)


def test_many_shards_load_as_one(tmp_path: Path) -> None:
    source = Checkpoint(tiny_checkpoint(tmp_path / "dense"))
    writer = CheckpointWriter(source, tmp_path / "work")
    for index in range(6):
        writer.add_layer(source.layer(index), first_member=index)
    writer.assemble(tmp_path / "out", shard_bytes=40_000)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    ids = torch.randint(0, 256, (1, 16))
    models = [load_model(tmp_path / name, device=CPU, dtype=torch.float32) for name in ("dense", "out")]
    with torch.no_grad():
        assert torch.equal(models[0](ids).logits, models[1](ids).logits)


def test_several_sizes_of_one_walk_are_those_of_a_walk_each(tmp_path: Path) -> None:
    """They share the dense stream and what begins alike, and still come out bit for bit as they would alone."""
    source = Checkpoint(tiny_checkpoint(tmp_path / "dense"))
    partitions: list[list[Group]] = [
        [(0,), (1, 2), (3,), (4, 5)],
        [(0,), (1, 2), (3, 4, 5)],
        [(0, 1, 2), (3,), (4,), (5,)],
        [(0,), (1,), (2,), (3,), (4, 5)],
    ]
    pruner = Pruner(missed_heads, missed_channels, regressed, one_by_one)
    together = [Size(groups, CheckpointWriter(source, tmp_path / f"t{i}")) for i, groups in enumerate(partitions)]
    walk(source, together, calibration(), pruner, Silent(), device=CPU)
    for i, size in enumerate(together):
        alone = Size(size.groups, CheckpointWriter(source, tmp_path / f"a{i}"))
        walk(source, [alone], calibration(), pruner, Silent(), device=CPU)
        assert size.merged == alone.merged
        for kept in (size, alone):
            kept.writer.assemble(tmp_path / f"{i}" / ("together" if kept is size else "alone"))
        assert digests(tmp_path / f"{i}" / "together") == digests(tmp_path / f"{i}" / "alone")


class StopAfter(Silent):
    """Stops a walk once so many layers are done; keeps what was merged."""

    def __init__(self, layers: int | None = None) -> None:
        self._layers, self.merged = layers, list[list[int]]()

    def step(self, done: int, total: int) -> None:
        if done == self._layers:
            raise KeyboardInterrupt

    def event(self, kind: str, **data: Any) -> None:
        self.merged.append(data["layers"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("stop", "left"), [(1, [[1, 2], [4, 5]]), (3, [[4, 5]]), (4, [[4, 5]]), (6, [])])
def test_an_interrupted_walk_goes_on_after_the_last_group_to_the_same_bytes(
    tmp_path: Path, dtype: str, stop: int, left: list[list[int]]
) -> None:
    """Also where layers are stored rounded: the groups after them are fitted on what was stored."""
    source = Checkpoint(tiny_checkpoint(tmp_path / "dense", stored=getattr(torch, dtype)))
    pruner = MERGING["flattengpt"][1]
    groups: list[Group] = [(0,), (1, 2), (3,), (4, 5)]

    def attempt(name: str, progress: StopAfter) -> Size:
        size = Size(groups, CheckpointWriter(source, tmp_path / name))
        walk(source, [size], calibration(), pruner, progress, device=CPU)
        size.writer.assemble(tmp_path / f"{name}.out")
        return size

    undisturbed = attempt("undisturbed", StopAfter())
    with pytest.raises(KeyboardInterrupt):
        attempt("interrupted", StopAfter(stop))
    second = StopAfter()
    resumed = attempt("interrupted", second)
    assert second.merged == left
    assert resumed.merged == undisturbed.merged
    assert digests(tmp_path / "interrupted.out") == digests(tmp_path / "undisturbed.out")


def test_a_layer_that_is_half_written_or_of_other_groups_is_made_anew(tmp_path: Path) -> None:
    source = Checkpoint(tiny_checkpoint(tmp_path / "dense"))
    pruner = MERGING["flattengpt"][1]
    for groups in ([(0, 1), (2,), (3,), (4,), (5,)], [(0, 1, 2), (3,), (4,), (5,)]):
        told = StopAfter()
        (tmp_path / "work" / "layers").mkdir(parents=True, exist_ok=True)
        (tmp_path / "work" / "layers" / "00000.partial").write_bytes(b"half")
        size = Size(groups, CheckpointWriter(source, tmp_path / "work"))
        walk(source, [size], calibration(), pruner, told, device=CPU)
        assert told.merged == [list(groups[0])]


def test_members_that_enter_one_by_one_keep_what_all_at_once_would_where_scores_stand_alone(tmp_path: Path) -> None:
    """The published head score looks at one head at a time, so the order in which heads compete cannot matter."""
    source = Checkpoint(tiny_checkpoint(tmp_path / "dense"))
    groups: list[Group] = [(0, 1, 2, 3), (4,), (5,)]
    kept = []
    for rounds in (all_at_once, one_by_one):
        size = Size(groups, CheckpointWriter(source, tmp_path / rounds.__name__))
        pruner = Pruner(published_heads, published_channels, as_folded, rounds)
        walk(source, [size], calibration(), pruner, Silent(), device=CPU)
        kept.append(size.merged[0].kv_groups)
    assert kept[0] == kept[1]
