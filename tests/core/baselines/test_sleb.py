"""SLEB removes what brute force with stock models removes."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flattengpt_core.baselines import sleb
from flattengpt_core.compressed import Compressed
from flattengpt_core.decoder import Decoder
from flattengpt_core.errors import InvalidTarget
from flattengpt_core.language_head import LanguageHead
from flattengpt_core.models import Checkpoint, CheckpointWriter, load_model
from flattengpt_core.progress import Silent
from tests.core.baselines.stock import CPU, mixed_kinds, random_folds, stock_model
from tests.tiny_models import tiny_checkpoint

FOLDS = random_folds()
TOKENS = torch.cat(FOLDS)
MODELS = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": 8}),
    "qwen2": ("qwen2", mixed_kinds("fssfsf")),
}


class Counted(Silent):
    """Keeps the steps, and stops the run after `limit` of them."""

    def __init__(self, limit: int | None = None) -> None:
        self.steps: list[tuple[int, int]] = []
        self.limit = limit

    def step(self, done: int, total: int) -> None:
        self.steps.append((done, total))
        if done == self.limit:
            raise InterruptedError


def compress(source: Checkpoint, folder: Path, layers: int, progress: Silent) -> Compressed:
    writer = CheckpointWriter(source, folder / "work")
    done = sleb.compress(source, FOLDS, writer, progress, layers=layers, device=CPU)
    writer.assemble(folder / "out")
    return done


def stock_losses(source: Checkpoint, kept: list[int], candidates: list[int]) -> dict[int, float]:
    """The stock model's loss without each candidate."""
    losses = {}
    for candidate in candidates:
        model = stock_model(source, [(index, source.layer(index)) for index in kept if index != candidate])
        with torch.no_grad():
            losses[candidate] = float(model(TOKENS, labels=TOKENS).loss)
    return losses


@pytest.mark.parametrize("name", MODELS)
def test_each_step_removes_what_brute_force_removes(tmp_path: Path, name: str) -> None:
    family, overrides = MODELS[name]
    source = Checkpoint(tiny_checkpoint(tmp_path / "dense", family, **overrides))
    decoder = Decoder(source.config, window_length=TOKENS.shape[1], device=CPU)
    head = LanguageHead(source, device=CPU)
    kept = list(range(6))
    for layers in (5, 4, 3):
        expected = stock_losses(source, kept, kept[1:-1])
        with torch.inference_mode():
            actual = sleb.losses_without(source, kept, TOKENS, decoder, head)
        assert actual == pytest.approx(expected, rel=1e-5)
        kept.remove(min(expected, key=lambda index: expected[index]))
        assert compress(source, tmp_path / str(layers), layers, Silent()).groups == [(index,) for index in kept]


def test_re_measuring_matters(tmp_path: Path) -> None:
    """This model's second removal is not the runner-up of the first step."""
    source = Checkpoint(tiny_checkpoint(tmp_path / "dense", seed=1))
    first = stock_losses(source, list(range(6)), [1, 2, 3, 4])
    assert sorted(first, key=lambda index: first[index])[:2] == [2, 1]
    assert compress(source, tmp_path, 4, Silent()).groups == [(0,), (1,), (4,), (5,)]


@pytest.mark.parametrize(("barred", "seed"), [(0, 5), (5, 31)])
def test_first_and_last_layer_stay_even_where_they_are_missed_least(tmp_path: Path, barred: int, seed: int) -> None:
    source = Checkpoint(tiny_checkpoint(tmp_path / "dense", seed=seed))
    losses = stock_losses(source, list(range(6)), list(range(6)))
    assert min(losses, key=lambda index: losses[index]) == barred
    assert compress(source, tmp_path, 2, Silent()).groups == [(0,), (5,)]


def test_kept_layers_keep_every_bit(tmp_path: Path) -> None:
    source = Checkpoint(tiny_checkpoint(tmp_path / "dense", "qwen2", **mixed_kinds("fssfsf")))
    done = compress(source, tmp_path, 4, Silent())
    result = Checkpoint(tmp_path / "out")
    assert len(done.groups) == result.info.num_layers == 4
    for position, (index,) in enumerate(done.groups):
        before, after = source.layer(index), result.layer(position)
        assert before.keys() == after.keys()
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
        assert result.config.layer_types[position] == source.config.layer_types[index]
    logits: Tensor = load_model(tmp_path / "out", device=CPU, dtype=torch.float32)(TOKENS).logits
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("layers", [0, 1, 7])
def test_impossible_targets_are_refused(tmp_path: Path, layers: int) -> None:
    source = Checkpoint(tiny_checkpoint(tmp_path / "dense"))
    with pytest.raises(InvalidTarget, match="first and the last") as refused:
        compress(source, tmp_path, layers, Silent())
    assert refused.value.field == "layers"


def test_progress_counts_the_stated_evaluations(tmp_path: Path) -> None:
    progress = Counted()
    compress(Checkpoint(tiny_checkpoint(tmp_path / "dense")), tmp_path, 3, progress)
    total = 4 * 9 // 2 + 3 * 8 // 2 + 2 * 7 // 2
    assert progress.steps == [(done, total) for done in range(1, total + 1)]


def test_progress_can_stop_the_run(tmp_path: Path) -> None:
    progress = Counted(limit=5)
    with pytest.raises(InterruptedError):
        compress(Checkpoint(tiny_checkpoint(tmp_path / "dense")), tmp_path, 3, progress)
    assert len(progress.steps) == 5


def test_a_loss_that_is_no_number_is_never_the_least() -> None:
    assert sleb.least_missed({1: math.nan, 2: 9.0, 3: math.inf}) == 2
    assert sleb.least_missed({1: 9.0, 2: math.nan, 3: 9.0}) == 1
