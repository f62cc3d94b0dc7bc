"""What each choice inside `flattengpt` is worth: the method with one thing changed, on the validation split.

`make ablations DATA=FOLDER` (see `texts` for the files) writes `ablations.json` and `ablations.svg` beside this file,
a figure as soon as it is measured; the same command goes on with what is missing. All have the same texts, seed and
number of layers as the method that they are compared with. The test split is not touched.
"""

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from benchmarks.cells import MERGING_SOURCES, SHARED_SOURCES, Cells, core_files, digest
from benchmarks.texts import CALIBRATION_LENGTH, Texts
from cli.demo_model import NAME, ensure_demo_model
from flattengpt_core.compress import MERGING, Grouping, least_loss, merge_neighbours, most_alike, run_costs
from flattengpt_core.compressed import Compressed
from flattengpt_core.evaluate import perplexity
from flattengpt_core.grouping import Group
from flattengpt_core.manifest import write_json
from flattengpt_core.models import Checkpoint, CheckpointWriter, load_model
from flattengpt_core.progress import Silent
from flattengpt_core.prune import Fit, Pruner, Refit, as_folded, published_channels, published_heads
from flattengpt_core.regression import Moments, mean_energy, pooled, ridge_to_prior
from jobs.settings import Settings

SEED = 0
WINDOWS = 16
"""Reported of each text, of 512 tokens each."""
SHARES = {"wikitext2": 64, "alpaca": 32}
DRAWN = 3.2
"""Up to which multiple of the dense model's perplexity a bar is drawn."""
DEFAULT = MERGING["flattengpt"][1]
AS_IT_IS = "as it is"
CPU = torch.device("cpu")
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Variant:
    """`flattengpt` with one thing changed.

    question: the same for all that are to be compared. name: what is changed; another change needs another name.
    calibration: windows by text.
    """

    question: str
    name: str
    layers: int = 24
    choose: Grouping = least_loss
    pruner: Pruner = DEFAULT
    calibration: dict[str, int] = field(default_factory=lambda: SHARES)

    @property
    def key(self) -> str:
        """The variant's name in the JSON. What answers two questions is measured once."""
        return f"{self.layers} {self.name}"


def merging(*runs: tuple[int, int]) -> Grouping:
    """The runs from a first to a last layer become one layer each, the others stay."""

    def choose(
        source: Checkpoint, folds: Sequence[Tensor], sizes: Sequence[int], device: torch.device
    ) -> list[list[Group]]:
        firsts = {first: tuple(range(first, last + 1)) for first, last in runs}
        inside = {layer for run in firsts.values() for layer in run[1:]}
        groups = [
            firsts.get(layer, (layer,)) for layer in range(source.config.num_hidden_layers) if layer not in inside
        ]
        return [groups for _ in sizes]

    return choose


def fixed_ridge(ridge: float) -> Refit:
    """The regression with the same ridge everywhere, in units of the mean eigenvalue."""

    def refit(folds: Sequence[Moments], folded: Tensor) -> Fit:
        total = pooled(folds)
        return Fit(ridge_to_prior(total, folded, ridge * mean_energy(total.gram)), ridge)

    return refit


def in_single_precision(folds: Sequence[Moments], folded: Tensor) -> Fit:
    """The default's regression in float32: the same moments, rounded."""
    single = [
        replace(fold, gram=fold.gram.float(), cross=fold.cross.float(), energy=fold.energy.float()) for fold in folds
    ]
    fit = DEFAULT.refit(single, folded.float())
    return Fit(fit.weight.double(), fit.ridge)


def times_as_many(times: float) -> dict[str, int]:
    """Calibration windows by text."""
    return {text: int(times * windows) for text, windows in SHARES.items()}


VARIANTS = (
    Variant("selection", AS_IT_IS),
    Variant("selection", "heads by the paper's importance", pruner=replace(DEFAULT, heads=published_heads)),
    Variant("selection", "channels by leverage", pruner=replace(DEFAULT, channels=published_channels)),
    Variant("selection", "both of these", pruner=replace(DEFAULT, heads=published_heads, channels=published_channels)),
    Variant("regression", AS_IT_IS),
    *(
        Variant("regression", f"ridge {ridge:g} everywhere", pruner=replace(DEFAULT, refit=fixed_ridge(ridge)))
        for ridge in (0.003, 0.1, 3.0)
    ),
    Variant("regression", "solved in float32", pruner=replace(DEFAULT, refit=in_single_precision)),
    Variant("regression", "v_proj and up_proj as they were", pruner=replace(DEFAULT, alternations=0)),
    Variant("regression", "v_proj and up_proj fitted twice", pruner=replace(DEFAULT, alternations=2)),
    Variant(
        "regression",
        "none: what is lost is folded in, by Nystrom",
        pruner=replace(DEFAULT, refit=as_folded, alternations=0),
    ),
    Variant("calibration", AS_IT_IS),
    *(Variant("calibration", f"{times:g} times the tokens", calibration=times_as_many(times)) for times in (0.25, 0.5)),
    Variant("groups", AS_IT_IS),
    Variant("groups", "the most similar first (the paper)", choose=most_alike),
    Variant("groups", "two of four", choose=merging((12, 15), (16, 19))),
    Variant("groups", "one of six, with layer 11, and a pair", choose=merging((11, 16), (17, 18))),
    Variant("groups", "three of three", choose=merging((12, 14), (15, 17), (18, 20))),
    Variant("groups", "six pairs in the middle", choose=merging(*((first, first + 1) for first in range(12, 24, 2)))),
    Variant("groups", "one of seven, with layers 10 and 11", choose=merging((10, 16))),
    Variant("groups", "one of seven, late", choose=merging((20, 26))),
    Variant("groups", AS_IT_IS, layers=22),
    Variant("groups", "one of nine", layers=22, choose=merging((12, 20))),
    Variant("groups", "one of nine, with layer 11", layers=22, choose=merging((11, 19))),
    Variant("groups", AS_IT_IS, layers=20),
    Variant("groups", "the most similar first (the paper)", layers=20, choose=most_alike),
    Variant("groups", "early, middle and late", layers=20, choose=merging((6, 7), (12, 18), (19, 21), (25, 26))),
    Variant("groups", "early and middle", layers=20, choose=merging((2, 6), (12, 18))),
    Variant("groups", "less early, more in the middle", layers=20, choose=merging((4, 7), (12, 19))),
    Variant("groups", "a bit early, more in the middle", layers=20, choose=merging((5, 7), (12, 20))),
    Variant("groups", "one of ten and a late pair", layers=20, choose=merging((12, 21), (25, 26))),
    Variant("groups", "middle and late", layers=20, choose=merging((12, 20), (24, 26))),
    Variant("groups", "two of six, with layer 11", layers=20, choose=merging((11, 16), (17, 22))),
    Variant("groups", "one of eleven", layers=20, choose=merging((12, 22))),
    Variant("groups", "one of eleven, with layer 11", layers=20, choose=merging((11, 21))),
    Variant("groups", AS_IT_IS, layers=18),
    Variant("groups", "early and middle", layers=18, choose=merging((3, 7), (12, 20))),
    Variant("groups", "middle, with layer 11, and late", layers=18, choose=merging((11, 21), (24, 26))),
)


class Ablations:
    """Makes the variants and measures them; finished ones are taken as they are."""

    def __init__(self, source: Checkpoint, texts: Texts, work: Path, cells: Cells) -> None:
        self.source, self.texts, self.work, self.cells = source, texts, work, cells
        self.reported = {text: windows[:WINDOWS] for text, windows in texts.reported("validation").items()}

    def found(self, variant: Variant) -> dict[str, Any] | None:
        """What was measured of the variant, None if nothing was."""
        value: dict[str, Any] | None = self.cells.get(variant.key, digest_of(variant, self.reported))
        return value

    def measure(self, variant: Variant) -> None:
        """Compress by the variant, and keep its perplexities and how each merged layer came out."""
        if self.found(variant) is not None:
            return
        folder, done = self._compressed(variant)
        model = load_model(folder, device=CPU, dtype=torch.float32)
        value = {
            "perplexity": {text: perplexity(model, windows) for text, windows in self.reported.items()},
            "merged": [
                {
                    "members": list(group.members),
                    "attention": {"ridge": group.attention_ridge, "error": group.attention_error},
                    "mlp": {"ridge": group.mlp_ridge, "error": group.mlp_error},
                }
                for group in done.merged
            ],
        }
        self.cells.put(variant.key, digest_of(variant, self.reported), value)
        print(variant.key, value["perplexity"], flush=True)  # noqa: T201

    def dense(self) -> dict[str, float]:
        """The dense model's perplexities, measured once."""

        def measure() -> dict[str, float]:
            model = load_model(self.source.folder, device=CPU, dtype=torch.float32)
            return {text: perplexity(model, windows) for text, windows in self.reported.items()}

        found: dict[str, float] = self.cells.made("dense", digest([], [], self.reported), measure)
        return found

    def costs(self) -> list[list[float]]:
        """What the default expects each run of layers to cost as one, measured once."""

        def measure() -> Any:
            return run_costs(self.source, self.texts.calibration(SHARES, seed=SEED), device=CPU).tolist()

        measured_on = digest([str(SHARES), str(SEED)], core_files((*SHARED_SOURCES, *MERGING_SOURCES)), {})
        found: list[list[float]] = self.cells.made("costs", measured_on, measure)
        return found

    def _compressed(self, variant: Variant) -> tuple[Path, Compressed]:
        shutil.rmtree(self.work, ignore_errors=True)
        folds = self.texts.calibration(variant.calibration, seed=SEED)
        writer = CheckpointWriter(self.source, self.work / "parts")
        done = merge_neighbours(
            variant.choose, variant.pruner, self.source, folds, writer, Silent(), layers=variant.layers, device=CPU
        )
        writer.assemble(self.work / "compressed")
        return self.work / "compressed", done


def digest_of(variant: Variant, reported: dict[str, Tensor]) -> str:
    """What the variant's figures depend on."""
    settings = [variant.name, str(variant.layers), str(variant.calibration), str(SEED)]
    return digest(settings, core_files((*SHARED_SOURCES, *MERGING_SOURCES)), reported)


def _named(row: dict[str, Any]) -> str:
    """A bar's name, with its figures: what is too long to be drawn is told all the same."""
    return f"{row['layers']}: {row['name']}  {' / '.join(f'{value:.1f}' for value in row['perplexity'].values())}"


def draw(found: dict[str, Any], file: Path) -> None:
    """Perplexity as a multiple of the dense model's, a panel a question."""
    questions = list(dict.fromkeys(row["question"] for row in found["rows"]))
    texts = list(found["dense"])
    figure, panels = pyplot.subplots(
        len(questions),
        1,
        figsize=(8, 0.5 * len(found["rows"]) + len(questions)),
        height_ratios=[sum(row["question"] == question for row in found["rows"]) for question in questions],
        layout="constrained",
        squeeze=False,
    )
    for axes, question in zip(panels[:, 0], questions, strict=True):
        rows = [row for row in found["rows"] if row["question"] == question]
        for offset, text in enumerate(texts):
            places = [index + 0.4 * offset for index in range(len(rows))]
            axes.barh(places, [row["perplexity"][text] / found["dense"][text] for row in rows], 0.4, label=text)
        axes.set_yticks([index + 0.2 for index in range(len(rows))], [_named(row) for row in rows])
        axes.invert_yaxis()
        axes.set(title=question, xlabel="perplexity / dense", xlim=(1, DRAWN))
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(y=0.02)
    panels[0, 0].legend(loc="lower right")
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    """Measure what is missing, write the JSON and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the texts")
    parser.add_argument("--out", type=Path, default=HERE / "ablations.json")
    parser.add_argument("--work", type=Path, help="scratch space")
    arguments = parser.parse_args()
    disable_progress_bar()
    data_dir = Settings().data_dir.absolute()
    source = Checkpoint(ensure_demo_model(data_dir))
    texts = Texts(arguments.data, source.tokenizer())
    cells = Cells(arguments.out.with_suffix(".cells.json"))
    bench = Ablations(source, texts, arguments.work or data_dir / "ablations", cells)
    found = {
        "model": NAME,
        "split": "validation",
        "seed": SEED,
        "calibration": {"windows": SHARES, "sequence_length": CALIBRATION_LENGTH},
        "evaluation": {text: list(windows.shape) for text, windows in bench.reported.items()},
        "dense": bench.dense(),
    }
    costs = bench.costs()
    for variant in VARIANTS:
        bench.measure(variant)
        measured = ((each, bench.found(each)) for each in VARIANTS)
        rows = [
            {"question": each.question, "name": each.name, "layers": each.layers, **value}
            | {"expected": sum(costs[group["members"][0]][group["members"][-1]] for group in value["merged"])}
            for each, value in measured
            if value is not None
        ]
        write_json(arguments.out, found | {"rows": rows})
        draw(found | {"rows": rows}, arguments.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
