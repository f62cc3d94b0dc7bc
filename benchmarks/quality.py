"""How much of the demo model each method keeps at 24 and at 20 layers, without training and after it.

`make quality DATA=FOLDER` (see `texts` for the files, and `zero_shot/*.jsonl` beside them for the tasks). The whole
takes hours on two cores, so every cell is written to `quality.json` as soon as it is measured, and the same command
goes on with what is missing; a cell is measured anew when the code or the settings behind it have changed. All
methods but SLEB get the same calibration windows. Settings were chosen on the validation split; the test split is
reported.
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from benchmarks.cells import CORE, MERGING_SOURCES, SHARED_SOURCES, Cells, core_files, digest
from benchmarks.texts import CALIBRATION_LENGTH, REPORTED_LENGTH, Texts
from cli.demo_model import NAME, ensure_demo_model
from flattengpt_core.compress import MERGING, compress_layers, groups_to_merge
from flattengpt_core.compressed import Compressed
from flattengpt_core.evaluate import perplexity
from flattengpt_core.manifest import write_json
from flattengpt_core.methods import UNPRUNED
from flattengpt_core.models import Checkpoint, CheckpointWriter, load_model, replace_weights
from flattengpt_core.options import Recovery
from flattengpt_core.progress import Silent
from flattengpt_core.recovery.folder import RecoveryFolder, Task
from flattengpt_core.recovery.precision import refuse_emulated
from flattengpt_core.recovery.run import recover, trained_weights
from flattengpt_core.retention import Answers, accuracies, retention
from flattengpt_core.tasks import load_tasks
from flattengpt_core.unpruned import unpruned_model
from flattengpt_core.zero_shot import ask
from jobs.settings import Settings

SEED = 0
SHARES = {"wikitext2": 256, "alpaca": 128}
"""Calibration windows by text. Twice as many came to 34.3 / 62.6 (WikiText-2 / C4, validation) instead of 34.6 / 63.0,
a quarter as many to 36.2 / 65.2."""
SLEB_SHARES = {"wikitext2": 10, "alpaca": 6}
"""SLEB runs the model on its windows once for each layer that it might remove, at each step: with all of the others'
windows it would take a day."""
TASKS = ("piqa", "winogrande", "hellaswag_val_first1000", "arc_easy_test", "arc_challenge_test")
TASK_ITEMS = 300
PEERS = ("shortgpt", "sleb", "laco", "replaceme", "come", "fcm")
RECOVERED = "flattengpt + distill"
RECOVERY = Recovery(method="distill", steps=550, learning_rate=5e-4, rank=32, batch_tokens=1024, precision="float32")
RECOVERY_SHARES = {"wikitext2": 800, "alpaca": 1200}
CPU = torch.device("cpu")
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Row:
    """A line of the result. tasks: whether zero-shot tasks are asked, which takes a quarter of an hour."""

    method: str
    layers: int
    tasks: bool

    @property
    def key(self) -> str:
        """The row's name in the JSON."""
        return f"{self.layers} {self.method}"


ROWS = (
    Row("dense", 30, tasks=True),
    Row("flattengpt", 24, tasks=True),
    *(
        Row(method, 24, tasks=False)
        for method in ("replaceme", "shortgpt", "flattengpt-paper", UNPRUNED, "come", "fcm")
    ),
    Row("flattengpt", 20, tasks=False),
    *(Row(method, 20, tasks=False) for method in ("shortgpt", "replaceme", "flattengpt-paper", "come", "fcm")),
    Row(RECOVERED, 24, tasks=True),
    *(Row("laco", layers, tasks=False) for layers in (24, 20)),
    *(Row("sleb", layers, tasks=False) for layers in (24, 20)),
)
"""In the order in which they are measured: what is claimed first, what takes longest last."""


class Bench:
    """Makes the models and measures them; finished cells are taken as they are."""

    def __init__(self, source: Checkpoint, data: Path, split: str, work: Path, cells: Cells) -> None:
        self.source, self.data, self.work, self.cells = source, data, work, cells
        self.texts = Texts(data, source.tokenizer())
        self.reported = self.texts.long_reported("test" if split == "test" else "validation")
        self.tasks = load_tasks([str(data / "zero_shot" / f"{task}.jsonl") for task in TASKS])

    def measure(self, row: Row) -> None:
        """Fill in the row's missing cells."""
        missing = list(self._missing(row))
        if not missing:
            return
        model = self._model(row)
        for key, measured_on in missing:
            kind = key.rsplit("/", 1)[1]
            if kind in self.reported:
                value: Any = perplexity(model, self.reported[kind])
            else:
                task = self.tasks[TASKS.index(kind)]
                scores = ask(model, self.source.tokenizer(), [task], limit=TASK_ITEMS)
                value = asdict(scores.choices[task.name])
            self.cells.put(key, measured_on, value)
            print(key, value if isinstance(value, float) else "asked", flush=True)  # noqa: T201

    def _missing(self, row: Row) -> Iterator[tuple[str, str]]:
        measured_on = digest_of(row, self.reported)
        kinds = [*self.reported, *(TASKS if row.tasks else ())]
        for key in (f"{row.key}/{kind}" for kind in kinds):
            if self.cells.get(key, measured_on) is None:
                yield key, measured_on

    def _model(self, row: Row) -> PreTrainedModel:
        """The row's model."""
        if row.method == "dense":
            return load_model(self.source.folder, device=CPU, dtype=torch.float32)
        folds = self.texts.calibration(shares_of(row.method), seed=SEED)
        if row.method == UNPRUNED:
            groups = groups_to_merge(self.source, folds, layers=row.layers, device=CPU)
            return unpruned_model(self.source, groups, device=CPU)
        method = "flattengpt" if row.method == RECOVERED else row.method
        if row.method == RECOVERED:
            refuse_emulated(RECOVERY, CPU)
        folder, done = self._compressed(method, row.layers, folds)
        if row.method == RECOVERED:
            folder = self._recovered(folder, done)
        return load_model(folder, device=CPU, dtype=torch.float32)

    def _compressed(self, method: str, layers: int, folds: Sequence[Tensor]) -> tuple[Path, Compressed]:
        folder = self.work / f"{method}-{layers}"
        parts = self.work / f"{method}-{layers}.parts"
        for old in (folder, parts):
            shutil.rmtree(old, ignore_errors=True)
        writer = CheckpointWriter(self.source, parts)
        done = compress_layers(self.source, folds, writer, Silent(), layers=layers, method=method, device=CPU)
        writer.assemble(folder)
        shutil.rmtree(parts)
        return folder, done

    def _recovered(self, folder: Path, done: Compressed) -> Path:
        """The checkpoint trained towards the dense model; an interrupted training goes on at its last state."""
        windows = torch.cat(self.texts.calibration(RECOVERY_SHARES, seed=SEED))
        state = RecoveryFolder(self.work / "recovery")
        state.prepare(
            Task(folder.absolute(), self.source.folder.absolute(), done.groups, RECOVERY, SEED, "cpu"), windows
        )
        recover(state, Silent())
        trained = self.work / "recovered"
        shutil.rmtree(trained, ignore_errors=True)
        shutil.copytree(folder, trained)
        replace_weights(Checkpoint(trained), trained_weights(state))
        return trained


def shares_of(method: str) -> dict[str, int]:
    """The method's calibration windows by text."""
    return SLEB_SHARES if method == "sleb" else SHARES


def digest_of(row: Row, reported: dict[str, Tensor]) -> str:
    """What the row's figures depend on: the method's code, the settings and the reported tokens."""
    files = core_files(SHARED_SOURCES)
    if row.method in (*MERGING, UNPRUNED, RECOVERED):
        files += core_files(MERGING_SOURCES)
    elif row.method in PEERS:
        files.append(CORE / "baselines" / f"{row.method}.py")
    settings = [str(shares_of(row.method)), str(SEED), str(TASK_ITEMS)]
    if row.method == RECOVERED:
        files += sorted((CORE / "recovery").glob("*.py"))
        settings += [str(RECOVERY), str(RECOVERY_SHARES)]
    return digest(settings, files if row.method != "dense" else [], reported)


def summary(cells: Cells, reported: dict[str, Tensor]) -> dict[str, Any]:
    """What the tables are made of: the rows that are measured, and the claims that they decide."""
    rows = []
    answers: dict[str, dict[str, Answers]] = {}
    for row in ROWS:
        measured_on = digest_of(row, reported)
        found = {kind: cells.get(f"{row.key}/{kind}", measured_on) for kind in (*reported, *TASKS)}
        if any(found[text] is None for text in reported):
            continue
        asked = {task: Answers(**found[task]) for task in TASKS if found[task] is not None}
        answers[row.key] = asked if len(asked) == len(TASKS) else {}
        rows.append(
            {
                "method": row.method,
                "layers": row.layers,
                "perplexity": {text: found[text] for text in reported},
                **accuracies(answers[row.key]),
                "retention": retention(answers[row.key], answers["30 dense"]) if answers.get("30 dense") else {},
            }
        )
    return {
        "model": NAME,
        "seed": SEED,
        "calibration": {"windows": SHARES, "sleb_windows": SLEB_SHARES, "sequence_length": CALIBRATION_LENGTH},
        "evaluation": {
            "sequence_length": REPORTED_LENGTH,
            "tokens": {text: windows.numel() for text, windows in reported.items()},
            "task_items": TASK_ITEMS,
        },
        "recovery": asdict(RECOVERY) | {"windows": RECOVERY_SHARES},
        "rows": rows,
        "claims": claims(rows),
    }


def claims(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is to be reached, as far as the rows are there to tell."""
    by_name = {(row["method"], row["layers"]): row for row in rows}
    dense, ours, trained = (by_name.get(key) for key in (("dense", 30), ("flattengpt", 24), (RECOVERED, 24)))
    found: list[tuple[str, float, float, bool]] = []  # what, value, bound, whether it is an upper one

    def best(layers: int, text: str) -> float | None:
        values = [by_name[peer, layers]["perplexity"][text] for peer in PEERS if (peer, layers) in by_name]
        return min(values, default=None)

    if dense and ours:
        for text, bound, of_peer in (("WikiText-2", 1.45, 0.75), ("C4", 2.2, 0.9)):
            value = ours["perplexity"][text]
            found.append((f"{text} perplexity / dense, no training", value / dense["perplexity"][text], bound, True))
            if (peer := best(24, text)) is not None:
                found.append((f"{text} perplexity / best peer's, no training", value / peer, of_peer, True))
        if (small := by_name.get(("flattengpt", 20))) and (peer := best(20, "WikiText-2")):
            value = small["perplexity"]["WikiText-2"] / peer
            found.append(("WikiText-2 perplexity / best peer's at 20 layers", value, 0.7, True))
    if dense and trained:
        for text, bound in (("WikiText-2", 1.25), ("C4", 1.4)):
            value = trained["perplexity"][text] / dense["perplexity"][text]
            found.append((f"{text} perplexity / dense, after recovery", value, bound, True))
    for row, what, bound in ((ours, "no training", 0.92), (trained, "after recovery", 0.96)):
        if row and row["retention"]:
            found.append((f"accuracy kept, {what}", row["retention"]["mean"]["raw"], bound, False))
    return [
        {
            "what": what,
            "value": value,
            "bound": f"{'<=' if upper else '>='} {bound}",
            "holds": value <= bound if upper else value >= bound,
        }
        for what, value, bound, upper in found
    ]


def draw(found: dict[str, Any], file: Path) -> None:
    """Perplexity as a multiple of the dense model's, by method and text, one panel a size."""
    texts = list(found["rows"][0]["perplexity"])
    dense = found["rows"][0]["perplexity"]
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
    for axes, layers in zip(panels, (24, 20), strict=True):
        rows = sorted(
            (row for row in found["rows"] if row["layers"] == layers), key=lambda row: row["perplexity"]["C4"]
        )
        for offset, text in enumerate(texts):
            places = [index + 0.4 * offset for index in range(len(rows))]
            heights = [row["perplexity"][text] / dense[text] for row in rows]
            axes.bar_label(axes.bar(places, heights, 0.4, label=text), fmt="%.2f", fontsize=7)
        axes.set_xticks([i + 0.2 for i in range(len(rows))], [row["method"] for row in rows], rotation=30, ha="right")
        axes.set(title=f"{found['model']}, 30 -> {layers} layers", ylabel="perplexity / dense")
        axes.spines[["top", "right"]].set_visible(False)
        if rows:
            axes.set(yscale="log")
            axes.legend()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    """Measure what is missing, write the JSON and the picture, and say which claims hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the texts and tasks")
    parser.add_argument("--split", choices=["validation", "test"], default="test", help="what is reported")
    parser.add_argument("--out", type=Path, default=HERE / "quality.json")
    parser.add_argument("--work", type=Path, help="where checkpoints and training states are kept")
    parser.add_argument("--rows", nargs="*", help="only these, e.g. '24 flattengpt'; all if not given")
    arguments = parser.parse_args()
    disable_progress_bar()
    data_dir = Settings().data_dir.absolute()
    source = Checkpoint(ensure_demo_model(data_dir))
    cells = Cells(arguments.out.with_suffix(".cells.json"))
    bench = Bench(source, arguments.data, arguments.split, arguments.work or data_dir / "quality", cells)
    for row in ROWS:
        if arguments.rows is None or row.key in arguments.rows:
            bench.measure(row)
            found = summary(cells, bench.reported) | {"split": arguments.split}
            write_json(arguments.out, found)
            if found["rows"]:
                draw(found, arguments.out.with_suffix(".svg"))
    print(json.dumps(found["claims"], indent=2))  # noqa: T201


if __name__ == "__main__":
    main()
