"""The fewest layers within a quality budget: what is tried, what is kept, what is refused."""

import shutil
from pathlib import Path

import pytest
import torch

from flattengpt_core.budget import fewest_within
from flattengpt_core.compress import compress_layers
from flattengpt_core.compressed import Compressed
from flattengpt_core.errors import InvalidTarget
from flattengpt_core.evaluate import perplexity
from flattengpt_core.models import Checkpoint, CheckpointWriter, load_model
from flattengpt_core.options import Budget
from flattengpt_core.progress import Progress, Silent
from tests.tiny_models import tiny_checkpoint

CPU = torch.device("cpu")
HELD_OUT = {
    name: torch.randint(0, 256, (4, 32), generator=torch.Generator().manual_seed(seed))
    for seed, name in enumerate("ab")
}


class Trials:
    """Compresses by ShortGPT and remembers what was asked for; numbers below `reach` cannot be reached."""

    def __init__(self, source: Checkpoint, scratch: Path, reach: int = 1) -> None:
        self._source, self._scratch, self._reach = source, scratch, reach
        self.layers: list[int] = []

    def compress_to(self, layers: int, out: Path, progress: Progress) -> Compressed:
        self.layers.append(layers)
        if layers < self._reach:
            raise InvalidTarget("too few", field="layers")
        writer = CheckpointWriter(self._source, self._scratch / f"parts-{len(self.layers)}")
        folds = [HELD_OUT["a"][:2], HELD_OUT["b"][:2]]
        done = compress_layers(self._source, folds, writer, progress, layers=layers, method="shortgpt", device=CPU)
        writer.assemble(out)
        return done


def worst_ratio(source: Path, out: Path) -> float:
    models = [load_model(folder, device=CPU, dtype=torch.float32) for folder in (source, out)]
    return max(perplexity(models[1], windows) / perplexity(models[0], windows) for windows in HELD_OUT.values())


def search(tmp_path: Path, ratio: float, *, reach: int = 1, trials: Trials | None = None) -> tuple[Trials, Compressed]:
    source = Checkpoint(tiny_checkpoint(tmp_path / "dense"))
    trials = trials or Trials(source, tmp_path, reach)
    done = fewest_within(
        Budget(ratio),
        source,
        HELD_OUT,
        trials.compress_to,
        tmp_path / "out",
        tmp_path / "trials",
        Silent(),
        device=CPU,
    )
    return trials, done


def test_sizes_are_halved_in_and_the_smallest_that_holds_is_kept(tmp_path: Path) -> None:
    trials, done = search(tmp_path, 100.0)
    assert trials.layers == [3, 2, 1]
    assert Checkpoint(tmp_path / "out").info.num_layers == len(done.groups) == 1
    assert worst_ratio(tmp_path / "dense", tmp_path / "out") <= 100.0


def test_a_size_that_cannot_be_reached_does_not_hold(tmp_path: Path) -> None:
    _, done = search(tmp_path, 100.0, reach=4)
    assert len(done.groups) == 4


def test_a_budget_that_nothing_holds_is_refused_with_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(InvalidTarget, match=r"5 of 6 come to \d\.\d+ times") as caught:
        search(tmp_path, 0.5)
    assert caught.value.field == "target"
    assert not (tmp_path / "out").exists()


class Interrupted(Trials):
    """Stops at the trial of that number."""

    def __init__(self, source: Checkpoint, scratch: Path, at: int) -> None:
        super().__init__(source, scratch)
        self._at = at

    def compress_to(self, layers: int, out: Path, progress: Progress) -> Compressed:
        if len(self.layers) == self._at:
            out.mkdir()
            (out / "half").touch()
            raise KeyboardInterrupt
        return super().compress_to(layers, out, progress)


def test_an_interrupted_search_goes_on_with_what_it_has_found(tmp_path: Path) -> None:
    source = Checkpoint(tiny_checkpoint(tmp_path / "dense"))
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, 100.0, trials=Interrupted(source, tmp_path, at=2))
    assert sorted(path.name for path in (tmp_path / "trials").iterdir()) == ["1", "2", "tried.json"]
    trials, done = search(tmp_path, 100.0)
    assert trials.layers == [1]
    assert Checkpoint(tmp_path / "out").info.num_layers == len(done.groups) == 1


def test_a_search_whose_end_was_lost_makes_its_checkpoint_anew(tmp_path: Path) -> None:
    search(tmp_path, 100.0)
    shutil.rmtree(tmp_path / "out")
    trials, done = search(tmp_path, 100.0)
    assert trials.layers == [1]
    assert Checkpoint(tmp_path / "out").info.num_layers == len(done.groups) == 1
