"""Recovery in processes that accelerate starts: on CPUs, that talk by gloo."""

import dataclasses
import socket
from pathlib import Path

import pytest
import torch

from flattengpt_core.errors import RecoveryFailed
from flattengpt_core.models import load_model
from flattengpt_core.options import Recovery
from flattengpt_core.recovery.launch import recover_launched
from flattengpt_core.recovery.run import recover, split, trained_weights
from flattengpt_core.recovery.training import mean_loss
from tests.core.recovery.recorder import DISTILL, FULL, LORA, Recorder, Stopped, models, prepared

CPU = torch.device("cpu")


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def two_processes(tmp_path: Path) -> Path:
    """accelerate's config for two processes on this machine's CPU."""
    config = tmp_path / "accelerate.yaml"
    config.write_text(
        "distributed_type: MULTI_CPU\nnum_processes: 2\nnum_machines: 1\nmachine_rank: 0\n"
        "use_cpu: true\nmixed_precision: 'no'\n"
        f"main_process_ip: 127.0.0.1\nmain_process_port: {free_port()}\nrdzv_backend: static\n"
    )
    return config


@pytest.mark.slow
@pytest.mark.parametrize("options", [LORA, DISTILL, FULL], ids=["lora", "distill", "full"])
def test_two_processes_train_as_one(tmp_path: Path, options: Recovery) -> None:
    options = dataclasses.replace(options, batch_tokens=8 * 32)
    alone = recover(prepared(tmp_path, options, name="alone"), Recorder())
    told = Recorder()
    folder = prepared(tmp_path, options, name="together")
    together = recover_launched(folder, told, two_processes(tmp_path))
    assert told.steps == [(done, 6) for done in range(1, 7)]
    assert told.losses() == [loss for _, loss in together.curve]
    assert told.events[-1][0] == "recovered"
    assert together.loss_before == pytest.approx(alone.loss_before, rel=1e-5)
    assert together.curve[0][1] == pytest.approx(alone.curve[0][1], rel=0.1)  # of other windows
    assert together.loss_after == pytest.approx(alone.loss_after, rel=0.1)
    model = load_model(models(tmp_path)[0], device=CPU, dtype=torch.float32)
    model.load_state_dict(trained_weights(folder))
    _, held_out = split(*folder.windows())
    assert mean_loss(model, held_out, device=CPU) == pytest.approx(together.loss_after, rel=1e-5)


@pytest.mark.slow
def test_processes_go_on_after_a_stop(tmp_path: Path) -> None:
    whole, broken = prepared(tmp_path, DISTILL, name="whole"), prepared(tmp_path, DISTILL, name="broken")
    expected = recover_launched(whole, Recorder(), two_processes(tmp_path))
    with pytest.raises(Stopped):
        recover_launched(broken, Recorder(stop_at=4), two_processes(tmp_path))
    told = Recorder()
    result = recover_launched(broken, told, two_processes(tmp_path))
    assert told.steps[0][0] > 1
    assert [loss for _, loss in result.curve] == pytest.approx([loss for _, loss in expected.curve], rel=1e-5)
    for name, tensor in trained_weights(whole).items():
        assert torch.allclose(tensor, trained_weights(broken)[name], atol=1e-6)


@pytest.mark.slow
def test_processes_that_fail_are_said(tmp_path: Path) -> None:
    folder = prepared(tmp_path, LORA)
    (folder.path / "windows.safetensors").unlink()
    with pytest.raises(RecoveryFailed, match="without a result"):
        recover_launched(folder, Recorder(), two_processes(tmp_path))
