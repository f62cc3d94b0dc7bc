"""The commands that work on this machine, without a service: compress, compare, evaluate and diagnose."""

from pathlib import Path
from typing import Annotated

import typer

from cli import options
from cli.errors import BadUsage
from cli.options import Json
from cli.screen import comparison_table, err, ladder_table, metrics_table, out, print_evaluation, print_json
from flattengpt_core.methods import METHODS, UNPRUNED
from flattengpt_core.options import Calibration, Evaluation
from flattengpt_core.recovery.curve import in_words
from flattengpt_core.texts import PYTHON_DOCS, TEXTS, WIKITEXT2
from jobs.settings import Settings

app = typer.Typer()

Device = Annotated[str, typer.Option(help="auto takes a GPU if there is one; else cpu, cuda, cuda:1 ...")]
CalibrationText = Annotated[
    str | None,
    typer.Option(help=f"{', '.join(TEXTS)}, a .txt or .jsonl file, or several joined by '+'.", show_default=WIKITEXT2),
]
CalibrationWindows = Annotated[int, typer.Option(min=2, max=4096, help="Windows of text to calibrate on.")]
CalibrationLength = Annotated[int, typer.Option(min=16, max=32768, help="Tokens a calibration window.")]
WindowSeed = Annotated[int, typer.Option(min=0, help="Which windows are chosen.")]
Reported = Annotated[
    list[str] | None,
    typer.Option(help="Name or file to report on; may be repeated.", show_default="the calibration's names"),
]
Window = Annotated[int, typer.Option(min=16, max=32768, help="Tokens a reported window.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many windows a text.", show_default="all")]
Benchmark = Annotated[bool, typer.Option(help="Also measure tokens/s and latency.")]
Revision = Annotated[str, typer.Option(help="Branch, tag or commit of a Hub model.")]
_MODEL_HELP = f"{options.MODEL_HELP}, a checkpoint folder, a .gguf file"


@app.command()
def compress(
    model: Annotated[str, typer.Argument(metavar="MODEL|SPEC.yaml", help=f"{_MODEL_HELP}, or a request file.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder to create for the result.")],
    sparsity: options.Sparsity = None,
    layers: options.Layers = None,
    max_perplexity_ratio: options.MaxPerplexityRatio = None,
    method: options.Method = None,
    calibration: CalibrationText = None,
    samples: options.Samples = None,
    sequence_length: options.SequenceLength = None,
    seed: options.Seed = None,
    recovery: options.RecoveryMethod = None,
    recovery_steps: options.RecoverySteps = None,
    recovery_train: options.RecoveryTrain = None,
    rank: options.Rank = None,
    learning_rate: options.LearningRate = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="Name or file to report perplexity on; may be repeated.",
            show_default="the calibration's, if it is a name",
        ),
    ] = None,
    tasks: options.Tasks = None,
    task_items: options.TaskItems = None,
    benchmark: Benchmark = True,
    dtype: options.Dtype = None,
    revision: options.Revision = None,
    device: Device = "auto",
    work: Annotated[
        Path | None,
        typer.Option(help="Keep intermediate state in this folder; the same command goes on where it stopped."),
    ] = None,
    accelerate_config: Annotated[
        Path | None,
        typer.Option(help="accelerate's config file: train on the devices it names.", exists=True, dir_okay=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compress a model on this machine. Options given here win over the request file."""
    from cli.compression import compress_here

    given = {
        "sparsity": sparsity,
        "layers": layers,
        "target.max_perplexity_ratio": max_perplexity_ratio,
        "method": method,
        "calibration.samples": samples,
        "calibration.sequence_length": sequence_length,
        "calibration.seed": seed,
        "recovery.method": recovery,
        "evaluation.task_items": task_items,
        "recovery.steps": recovery_steps,
        "recovery.train": recovery_train,
        "recovery.rank": rank,
        "recovery.learning_rate": learning_rate,
        "evaluation.benchmark": None if benchmark else False,
        "dtype": dtype,
        "revision": revision,
    }
    request = options.read_request(model, given)
    if request.pop("publish", None):
        err.print("publish is the service's to do (flattengpt submit); nothing is uploaded from here")
    _refuse_existing(folder)
    metrics = compress_here(
        request,
        folder,
        calibration=calibration,
        texts=text,
        tasks=tasks,
        device=device,
        settings=Settings(),
        work=work,
        accelerate_config=accelerate_config,
    )
    if as_json:
        print_json(metrics)
    else:
        out.print(metrics_table(metrics))
        if metrics["recovery"]:
            out.print(in_words(metrics["recovery"]), markup=False, soft_wrap=True)
        out.print(str(folder), markup=False, soft_wrap=True)


@app.command()
def compare(
    model: Annotated[str, typer.Argument(help=f"{_MODEL_HELP}.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder to create for the report and the checkpoints.")],
    methods: Annotated[str, typer.Option(help=f"Some of {', '.join((*METHODS, UNPRUNED))}, joined by ','.")] = (
        "shortgpt,flattengpt-paper,flattengpt-unpruned,flattengpt"
    ),
    sparsity: options.Sparsity = None,
    layers: options.Layers = None,
    calibration: Annotated[
        str, typer.Option(help="A text or a mix 'a+b'; several joined by ',' are compared with each other.")
    ] = "wikitext2",
    samples: CalibrationWindows = 128,
    sequence_length: CalibrationLength = 2048,
    seed: WindowSeed = 0,
    text: Reported = None,
    window: Window = 512,
    limit: Limit = None,
    tasks: options.Tasks = None,
    task_items: options.TaskItems = None,
    benchmark: Benchmark = True,
    benchmark_batch_size: options.BenchmarkBatch = Evaluation.benchmark_batch_size,
    benchmark_prompt_tokens: options.BenchmarkPrompt = Evaluation.benchmark_prompt_tokens,
    benchmark_new_tokens: options.BenchmarkNew = Evaluation.benchmark_new_tokens,
    benchmark_prefill_batch_size: options.BenchmarkPrefillBatch = Evaluation.benchmark_prefill_batch_size,
    benchmark_prefill_tokens: options.BenchmarkPrefill = Evaluation.benchmark_prefill_tokens,
    revision: Revision = "main",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Compare methods on a model and a text of yours: the same calibration, seed and evaluation for all.

    Writes compare.json, compare.html and each method's checkpoint. A comparison that was interrupted goes on with
    the same command.
    """
    from cli.comparison import compare_here

    _refuse_existing(folder)
    datasets = calibration.split(",")
    texts = text or [name for dataset in datasets for name in dataset.split("+") if name in TEXTS]
    if not texts:
        raise BadUsage("name a text to report on, another than is calibrated on.", field="--text")
    found = compare_here(
        model,
        folder,
        methods=methods.split(","),
        sparsity=sparsity,
        layers=layers,
        datasets=datasets,
        calibration=Calibration(samples=samples, sequence_length=sequence_length, seed=seed),
        evaluation=Evaluation(
            tuple(dict.fromkeys(texts)),
            sequence_length=window,
            windows=limit,
            tasks=tuple(tasks or ()),
            task_items=task_items,
            benchmark=benchmark,
            benchmark_batch_size=benchmark_batch_size,
            benchmark_prompt_tokens=benchmark_prompt_tokens,
            benchmark_new_tokens=benchmark_new_tokens,
            benchmark_prefill_batch_size=benchmark_prefill_batch_size,
            benchmark_prefill_tokens=benchmark_prefill_tokens,
        ),
        revision=revision,
        device=device,
        settings=Settings(),
    )
    if as_json:
        print_json(found)
    else:
        out.print(comparison_table(found["rows"]))
        out.print(str(folder / "compare.html"), markup=False, soft_wrap=True)


@app.command()
def ladder(
    model: Annotated[str, typer.Argument(help=f"{_MODEL_HELP}.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder to create for the report and the checkpoints.")],
    layers: Annotated[str, typer.Option(help="Numbers of layers to keep, joined by ',', e.g. 28,24,20.")],
    method: Annotated[str, typer.Option(help=f"One of: {', '.join(METHODS)}.")] = "flattengpt",
    calibration: Annotated[str, typer.Option(help="A text, or a mix 'a+b'.")] = WIKITEXT2,
    samples: CalibrationWindows = 128,
    sequence_length: CalibrationLength = 2048,
    seed: WindowSeed = 0,
    text: Reported = None,
    window: Window = 512,
    limit: Limit = None,
    tasks: options.Tasks = None,
    task_items: options.TaskItems = None,
    benchmark: Benchmark = True,
    revision: Revision = "main",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Make several sizes of a model from one calibration pass, and show what each costs in quality.

    Writes ladder.json, ladder.svg and the checkpoint of each size.
    """
    from cli.sizes import ladder_here

    _refuse_existing(folder)
    texts = text or [name for name in calibration.split("+") if name in TEXTS]
    if not texts and not tasks:
        raise BadUsage("name a text to report on, another than is calibrated on.", field="--text")
    found = ladder_here(
        model,
        folder,
        method=method,
        sizes=layers,
        calibration=Calibration(calibration, samples=samples, sequence_length=sequence_length, seed=seed),
        evaluation=Evaluation(
            tuple(dict.fromkeys(texts)),
            sequence_length=window,
            windows=limit,
            benchmark=benchmark,
            tasks=tuple(tasks or ()),
            task_items=task_items,
        ),
        revision=revision,
        device=device,
        settings=Settings(),
    )
    if as_json:
        print_json(found)
    else:
        out.print(ladder_table(found["rows"]))
        out.print(str(folder / "ladder.svg"), markup=False, soft_wrap=True)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help=f"{_MODEL_HELP}.")],
    text: Annotated[
        list[str] | None, typer.Option(help="Name or file; may be repeated.", show_default=PYTHON_DOCS)
    ] = None,
    tasks: options.Tasks = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many windows a text and items a task.", show_default="all")
    ] = None,
    sequence_length: Annotated[int, typer.Option(min=16, max=32768, help="Tokens a window.")] = 512,
    benchmark: Benchmark = True,
    benchmark_batch_size: options.BenchmarkBatch = Evaluation.benchmark_batch_size,
    benchmark_prompt_tokens: options.BenchmarkPrompt = Evaluation.benchmark_prompt_tokens,
    benchmark_new_tokens: options.BenchmarkNew = Evaluation.benchmark_new_tokens,
    benchmark_prefill_batch_size: options.BenchmarkPrefillBatch = Evaluation.benchmark_prefill_batch_size,
    benchmark_prefill_tokens: options.BenchmarkPrefill = Evaluation.benchmark_prefill_tokens,
    revision: Revision = "main",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a model on this machine: perplexity, tasks, tokens/s and latency."""
    from cli.evaluation import evaluate_here

    metrics = evaluate_here(
        model,
        Evaluation(
            tuple(text or [PYTHON_DOCS]),
            sequence_length=sequence_length,
            windows=limit,
            tasks=tuple(tasks or ()),
            task_items=limit,
            benchmark=benchmark,
            benchmark_batch_size=benchmark_batch_size,
            benchmark_prompt_tokens=benchmark_prompt_tokens,
            benchmark_new_tokens=benchmark_new_tokens,
            benchmark_prefill_batch_size=benchmark_prefill_batch_size,
            benchmark_prefill_tokens=benchmark_prefill_tokens,
        ),
        revision=revision,
        device=device,
        settings=Settings(),
    )
    if as_json:
        print_json(metrics)
    else:
        print_evaluation(metrics)


@app.command()
def diagnose(
    model: Annotated[str, typer.Argument(metavar="MODEL|SPEC.yaml", help=f"{_MODEL_HELP}, or a request file.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder to create for the figures and the JSON.")],
    sparsity: Annotated[
        float | None, typer.Option(help="Share of the layers to remove, to show groups for.", show_default="0.2")
    ] = None,
    layers: options.Layers = None,
    calibration: CalibrationText = None,
    samples: options.Samples = None,
    sequence_length: options.SequenceLength = None,
    seed: options.Seed = None,
    revision: options.Revision = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Show how well a model's layers can merge: similarity, variance by depth, Jacobians, block influence."""
    from cli.diagnosis import diagnose_here

    given = {
        "sparsity": sparsity,
        "layers": layers,
        "calibration.samples": samples,
        "calibration.sequence_length": sequence_length,
        "calibration.seed": seed,
        "revision": revision,
    }
    request = options.read_request(model, given)
    _refuse_existing(folder)
    report = diagnose_here(request, folder, calibration=calibration, device=device, settings=Settings())
    if as_json:
        print_json(report)
    else:
        out.print(report["reading"], markup=False)
        out.print(str(folder), markup=False, soft_wrap=True)


def _refuse_existing(folder: Path) -> None:
    if folder.exists():
        raise BadUsage(f"{folder} exists already; choose another folder, or remove it first.", field="--out")
