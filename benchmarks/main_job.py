"""The main job's claims on the demo model, 30 -> 24 layers without training: quality, time to compress, speed.

`make benchmark DATA=FOLDER` (see `texts` for the files); about 20 minutes on two cores.

Writes `main_job.json` and `main_job.svg` beside this file. All methods get the same calibration windows and are
reported on text that nothing was chosen on; timings are ratios of what was timed in turns in this process.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from benchmarks.claims import Claim
from benchmarks.texts import CALIBRATION_LENGTH, REPORTED_LENGTH, REPORTED_WINDOWS, Texts
from cli.demo_model import NAME, ensure_demo_model
from flattengpt_core.compress import compress_layers
from flattengpt_core.decoder import CHUNK_TOKENS
from flattengpt_core.evaluate import compare_speed, perplexity
from flattengpt_core.models import Checkpoint, CheckpointWriter, load_model
from flattengpt_core.options import Evaluation
from flattengpt_core.progress import Silent
from jobs.settings import Settings

LAYERS = 24
SEED = 0
SHARES = {"wikitext2": 64, "alpaca": 32}
"""Calibration windows by text; of four mixes with the same total this was the choice on the validation split."""
TIMED_WINDOWS = 64
TIMING_REPEATS, SPEED_REPEATS = 3, 11
METHODS = ("shortgpt", "flattengpt-paper", "flattengpt")
CPU = torch.device("cpu")
HERE = Path(__file__).parent


def main() -> None:
    """Measure everything, write the JSON and the picture, and fail if a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the texts")
    parser.add_argument("--split", choices=["validation", "test"], default="test", help="what is reported")
    parser.add_argument("--out", type=Path, default=HERE / "main_job.json")
    arguments = parser.parse_args()
    disable_progress_bar()
    source = Checkpoint(ensure_demo_model(Settings().data_dir.absolute()))
    texts = Texts(arguments.data, source.tokenizer())
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(source, texts, texts.reported(arguments.split), Path(scratch))
    found["split"] = arguments.split
    arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    draw(found, arguments.out.with_suffix(".svg"))
    print(json.dumps(found["claims"], indent=2))  # noqa: T201
    if not all(claim["holds"] for claim in found["claims"]):
        raise SystemExit("a claim does not hold")


def measure(source: Checkpoint, texts: Texts, reported: dict[str, Tensor], scratch: Path) -> dict[str, Any]:
    """Everything that the JSON holds."""
    folds = texts.calibration(SHARES, seed=SEED)
    models = {"dense": load_model(source.folder, device=CPU, dtype=torch.float32)}
    for method in METHODS:
        folder = compress(source, folds, method, scratch / method)
        models[method] = load_model(folder, device=CPU, dtype=torch.float32)
    quality = {
        name: {text: perplexity(model, windows) for text, windows in reported.items()} for name, model in models.items()
    }
    speeds = compare_speed([models["dense"], models["flattengpt"]], Evaluation(benchmark_repeats=SPEED_REPEATS))
    forward_passes = [fold[: TIMED_WINDOWS // len(folds)] for fold in folds]
    time_ratios = compression_times(source, models["dense"], forward_passes, scratch / "timed")
    rows = [
        {
            "method": name,
            "layers": model.config.num_hidden_layers,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "perplexity": quality[name],
        }
        for name, model in models.items()
    ]
    speed_ratio = speeds[1].tokens_per_second / speeds[0].tokens_per_second
    return {
        "model": NAME,
        "seed": SEED,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "calibration": {"windows": SHARES, "sequence_length": CALIBRATION_LENGTH},
        "evaluation": {
            "windows": REPORTED_WINDOWS,
            "sequence_length": REPORTED_LENGTH,
            "tokens": REPORTED_WINDOWS * REPORTED_LENGTH,
        },
        "rows": rows,
        "tokens_per_second_ratio": speed_ratio,
        "latency_ratio": speeds[1].latency_ms / speeds[0].latency_ms,
        "compress_time_in_forward_passes": {"median": statistics.median(time_ratios), "repeats": time_ratios},
        "claims": [vars(claim) for claim in claims(quality, speed_ratio, statistics.median(time_ratios))],
    }


def compress(source: Checkpoint, folds: Sequence[Tensor], method: str, scratch: Path) -> Path:
    """The folder of the compressed checkpoint."""
    writer = CheckpointWriter(source, scratch / "work")
    compress_layers(source, folds, writer, Silent(), layers=LAYERS, method=method, device=CPU)
    writer.assemble(scratch / "model")
    return scratch / "model"


def compression_times(
    source: Checkpoint, dense: PreTrainedModel, folds: Sequence[Tensor], scratch: Path
) -> list[float]:
    """How long `flattengpt` takes, in dense forward passes without the output head over the same tokens.

    The similarity pass and writing the layers are included. One value a repeat, the two timed in turns.
    """
    tokens = torch.cat(list(folds))

    @torch.inference_mode()
    def forward() -> None:
        for batch in tokens.split(CHUNK_TOKENS // tokens.shape[1]):
            dense.model(input_ids=batch, use_cache=False)

    def compressing(repeat: int) -> None:
        writer = CheckpointWriter(source, scratch / str(repeat))
        compress_layers(source, folds, writer, Silent(), layers=LAYERS, method="flattengpt", device=CPU)

    forward()
    return [seconds(partial(compressing, repeat)) / seconds(forward) for repeat in range(TIMING_REPEATS)]


def seconds(work: Callable[[], object]) -> float:
    """The wall-clock time of `work`."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def claims(quality: dict[str, dict[str, float]], speed_ratio: float, time_ratio: float) -> list[Claim]:
    """What the main job must reach."""
    ours, paper, shortgpt = (quality[name] for name in ("flattengpt", "flattengpt-paper", "shortgpt"))

    def at_most(what: str, value: float, bound: float) -> Claim:
        return Claim(what, value, f"<= {bound}", value <= bound)

    return [
        at_most("WikiText-2 perplexity / flattengpt-paper's", ours["WikiText-2"] / paper["WikiText-2"], 0.65),
        at_most("WikiText-2 perplexity / dense", ours["WikiText-2"] / quality["dense"]["WikiText-2"], 1.80),
        at_most("C4 perplexity / flattengpt-paper's", ours["C4"] / paper["C4"], 1.0),
        at_most("C4 perplexity / ShortGPT's", ours["C4"] / shortgpt["C4"], 1.0),
        at_most("compressing, in dense forward passes", time_ratio, 4.0),
        Claim("tokens/s / dense", speed_ratio, ">= 1.12", speed_ratio >= 1.12),
    ]


def draw(found: dict[str, Any], file: Path) -> None:
    """Perplexity by method and text."""
    texts = list(found["rows"][0]["perplexity"])
    figure, axes = pyplot.subplots(figsize=(7, 3.5))
    width = 0.8 / len(texts)
    for position, text in enumerate(texts):
        heights = [row["perplexity"][text] for row in found["rows"]]
        places = [index + position * width for index in range(len(heights))]
        axes.bar_label(axes.bar(places, heights, width, label=text), fmt="%.1f")
    axes.set_xticks([i + width / 2 for i in range(len(found["rows"]))], [row["method"] for row in found["rows"]])
    axes.set_ylabel("perplexity")
    axes.set_title(f"{found['model']}, 30 -> {LAYERS} layers, no training")
    axes.legend()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
