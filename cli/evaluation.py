"""`flattengpt evaluate`: one model measured on this machine."""

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import TaskID

from cli.fetch import fetch
from cli.screen import progress_bar
from flattengpt_core.checkpoint import inspect
from flattengpt_core.texts import load_text
from jobs.settings import Settings

SPEED_REPEATS = 5


def evaluate_here(
    model: str,
    *,
    texts: Sequence[str],
    limit: int | None,
    sequence_length: int,
    benchmark: bool,
    revision: str,
    device: str,
    settings: Settings,
) -> dict[str, Any]:
    """The model's layers, parameters, perplexity by text, tokens_per_second and latency_ms.

    Raises FlattenGPTError if the model or a text cannot be used.
    """
    path = fetch(model, revision=revision, settings=settings)
    info = inspect(path)

    import torch  # takes seconds, so only once the model is known to be there

    from flattengpt_core import gguf
    from flattengpt_core.calibration import cut_windows, token_ids
    from flattengpt_core.evaluate import compare_speed, perplexity
    from flattengpt_core.models import Checkpoint, load_model
    from flattengpt_core.pipeline import pick_device

    with tempfile.TemporaryDirectory() as scratch, progress_bar() as bar:
        folder = path
        if info.format == "gguf":
            folder = Path(scratch) / "model"
            gguf.convert(path, folder)
        tokenizer = Checkpoint(folder).tokenizer()
        loaded = load_model(folder, device=pick_device(device), dtype=torch.float32)
        found: dict[str, float] = {}

        def show(task: TaskID, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        for text in texts:
            task = bar.add_task(Path(text).name, total=None)
            windows = cut_windows(token_ids(tokenizer, load_text(text, "evaluation")), sequence_length)[:limit]
            found[text] = perplexity(loaded, windows, functools.partial(show, task))
        speed = None
        if benchmark:
            task = bar.add_task("speed", total=SPEED_REPEATS)
            [speed] = compare_speed([loaded], repeats=SPEED_REPEATS, on_repeat=functools.partial(show, task))
    return {
        "model": model,
        "layers": info.num_layers,
        "parameters": info.parameters,
        "perplexity": found,
        "accuracy": {},
        "tokens_per_second": speed.tokens_per_second if speed else None,
        "latency_ms": speed.latency_ms if speed else None,
    }
