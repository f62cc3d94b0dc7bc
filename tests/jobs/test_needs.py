"""What a job is said to need is less than it takes, by the sizes of real files and the memory of a real run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from flattengpt_core import calibration, divergence, evaluate, similarity
from flattengpt_core.baselines import laco, sleb
from flattengpt_core.checkpoint import inspect
from flattengpt_core.recovery import training
from jobs import needs
from jobs.needs import Shape, disk_bytes, memory_bytes, shape_of
from jobs.spec import JobSpec
from tests.tiny_models import tiny_checkpoint

MIB = 2**20
LLAMA_7B = Shape(
    layers=32,
    parameters=6_738_415_616,
    layer_parameters=202_375_168,
    stored_bytes=2.0,
    hidden=4096,
    channels=11008,
    attended=4096,
    key_values=4096,
    vocabulary=32000,
    gguf=False,
)


def spec(**changes: Any) -> JobSpec:
    """A request for 24 layers on the built-in text."""
    return JobSpec.model_validate({"model": "local:tiny", "layers": 24} | changes)


def test_the_constants_are_the_cores() -> None:
    assert needs.FOLDS == calibration.FOLDS
    assert {similarity.SIMILARITY_TOKENS, sleb.LOSS_TOKENS} == {needs.MEASURED_TOKENS}
    assert laco.COMPARED_TOKENS == needs.LACO_TOKENS
    assert training.PASS_TOKENS == needs.PASS_TOKENS
    assert evaluate.BATCH_TOKENS == needs.EVALUATED_TOKENS
    assert divergence.JUDGED_WINDOWS * divergence.WINDOW_TOKENS < needs.MEASURED_TOKENS


@pytest.mark.parametrize(("stored", "width"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_the_shape_of_a_checkpoint(tmp_path: Path, stored: torch.dtype, width: int) -> None:
    shape = shape_of(inspect(tiny_checkpoint(tmp_path / "tiny", stored=stored)))
    assert (shape.layers, shape.hidden, shape.channels, shape.attended, shape.key_values) == (6, 32, 48, 32, 16)
    assert shape.layer_parameters == 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48
    assert shape.parameters == 6 * (shape.layer_parameters + 2 * 32) + 2 * 256 * 32 + 32
    assert shape.stored_bytes == pytest.approx(width, rel=0.1)  # with the headers


def test_disk_for_layers_checkpoint_and_copy() -> None:
    result = LLAMA_7B.parameters * 24 // 32 * 2
    layers = LLAMA_7B.layer_parameters * 24 * 2
    assert disk_bytes(LLAMA_7B, spec(), stored_here=False) == layers + result
    assert disk_bytes(LLAMA_7B, spec(), stored_here=True) == 2 * result
    assert disk_bytes(LLAMA_7B, spec(dtype="float32"), stored_here=True) == 4 * result
    half = disk_bytes(LLAMA_7B, spec(layers=None, target={"max_perplexity_ratio": 2}), stored_here=False)
    assert half == disk_bytes(LLAMA_7B, spec(layers=16), stored_here=False)


def test_disk_for_what_training_saves() -> None:
    result = LLAMA_7B.parameters * 24 // 32 * 2
    lora = disk_bytes(LLAMA_7B, spec(recovery={"method": "lora"}), stored_here=True)
    full = disk_bytes(LLAMA_7B, spec(recovery={"method": "distill", "train": "full"}), stored_here=True)
    assert 3 * result < lora < 3.2 * result
    assert full > 3 * result + 2 * 3 * LLAMA_7B.layer_parameters * 24 * 4


def test_memory_that_a_7b_model_takes_on_a_cpu_and_beside_a_gpu() -> None:
    """In bfloat16: four bytes a parameter where it is used, for both models at once."""
    stages = memory_bytes(LLAMA_7B, spec(), gpu=False)
    assert stages["evaluating"] > 1.75 * 4 * LLAMA_7B.parameters
    assert stages["recovering"] == stages["loading"] == needs.PYTHON_BYTES
    assert 30 * 2**30 < stages["compressing"] < 60 * 2**30
    assert memory_bytes(LLAMA_7B, spec(), gpu=True) == {"loading": needs.PYTHON_BYTES + 4 * LLAMA_7B.parameters}


def test_no_model_is_too_odd_to_estimate() -> None:
    unknown = Shape(32, 7_000_000_000, 0, 4.0, 0, 0, 0, 0, 0, gguf=True)
    assert memory_bytes(unknown, spec(), gpu=False)["loading"] == needs.PYTHON_BYTES + 8 * unknown.parameters
    assert disk_bytes(unknown, spec(), stored_here=False) == 7 * 10**9 * 4 + 7 * 10**9 // 4 * 3 * 4


RUN = """
import json, sys
from pathlib import Path
from flattengpt_core.options import Calibration, Evaluation, Recovery
from flattengpt_core.pipeline import compress
from jobs.spec import JobSpec

peaks, stages = {}, ["start"]

class Watched:
    def stage(self, name):
        status = Path("/proc/self/status").read_text()
        peaks[stages[-1]] = 1024 * int(status.split("VmHWM:")[1].split()[0])
        stages.append(name)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew

    def step(self, done, total): pass
    def event(self, type, **data): pass

spec = JobSpec.model_validate_json(sys.argv[2])
progress = Watched()
compress(
    Path(sys.argv[1]), Path(sys.argv[1] + "-result"), goal=spec.layers, method=spec.method,
    calibration=Calibration(**spec.calibration.model_dump()), recovery=Recovery(**spec.recovery.model_dump()),
    evaluation=Evaluation(**spec.evaluation.model_dump()), device="cpu", dtype="auto", progress=progress,
    request=spec.as_request(), base_model="tiny",
)
progress.stage("end")
print(json.dumps(peaks))
"""


@pytest.mark.slow
def test_memory_of_a_real_run(tmp_path: Path) -> None:
    """Wide in channels and vocabulary, so that both stages take much more than torch itself."""
    model = tiny_checkpoint(
        tmp_path / "wide", stored=torch.bfloat16, intermediate_size=1280, vocab_size=30_000, num_hidden_layers=2
    )
    asked = spec(
        layers=1,
        method="flattengpt-paper",
        calibration={"dataset": "python-docs", "samples": 4, "sequence_length": 64},
        evaluation={"perplexity": ["python-docs"], "sequence_length": 64, "windows": 16, "benchmark": False},
    )
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(model), asked.model_dump_json()], capture_output=True, text=True, check=True
    )
    measured = json.loads(done.stdout)
    estimated = memory_bytes(shape_of(inspect(model)), asked, gpu=False)
    for stage in ("compressing", "evaluating"):
        assert estimated[stage] > needs.PYTHON_BYTES + 300 * MIB, stage
        assert 0.4 * measured[stage] < estimated[stage] < measured[stage], (stage, estimated, measured)
