"""The whole journey of a real model over HTTP, on both sets of servers: a request in, a stock checkpoint out."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cli.client import Client
from cli.demo import demo
from cli.demo_model import NAME
from tests.processes import alive, descendants, wait_until

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    "model": f"local:{NAME}",
    "layers": 24,
    "calibration": {"dataset": "python-docs", "samples": 16, "sequence_length": 128},
    "evaluation": {"perplexity": ["python-docs"], "sequence_length": 256, "windows": 8},
}


def test_sqlite_and_the_embedded_queue(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `make demo` runs, with a smaller job."""
    output = tmp_path / "demo-output"
    demo(data_dir, output, SMALL)

    printed = capsys.readouterr().out
    for word in ("layers", "parameters", "perplexity", "tokens/s", "latency", "dense", "compressed", "ratio"):
        assert word in printed
    job = json.loads((output / "job.json").read_text())
    assert (job["status"], job["progress"], job["attempt"], job["stage"]) == ("succeeded", 1.0, 1, None)
    assert job["request"]["layers"] == 24
    check_metrics(job["metrics"])
    check_checkpoint(output / "model", data_dir / "models" / NAME)


def test_postgresql_redis_and_a_celery_worker(
    data_dir: Path, tmp_path: Path, postgres_url: str, redis_url: str
) -> None:
    """As in production: each part a process of its own. The job's process is killed once on the way."""
    env = {
        "FLATTENGPT_AUTH": "none",
        "FLATTENGPT_DATA_DIR": str(data_dir),
        "FLATTENGPT_DATABASE_URL": postgres_url,
        "FLATTENGPT_BROKER_URL": redis_url,
        "FLATTENGPT_SWEEP_SECONDS": "1",
    }
    migrated = subprocess.run([sys.executable, "-m", "cli.main", "migrate"], env=os.environ | env, text=True)
    assert migrated.returncode == 0
    celery = [sys.executable, "-m", "celery", "-A", "worker.app", "worker", "-P", "prefork", "-c", "1"]
    with ExitStack() as stack:
        serve = stack.enter_context(running([sys.executable, "-m", "cli.main", "serve", "--port", "0"], env))
        stack.enter_context(running([sys.executable, "-m", "cli.main", "sweep"], env))
        worker = stack.enter_context(running(celery, env))
        assert serve.stdout is not None
        client = stack.enter_context(Client(serve.stdout.readline().strip()))
        wait_until(client.is_ready, what="the service's readiness")

        job = client.submit(SMALL)
        killed = False
        for event in client.events(job.id):
            if event.type == "stage" and event.data["stage"] == "compressing" and not killed:
                killed = kill_the_job(worker.pid)
        job = client.get(job.id)
        assert (job.status, job.attempt, killed) == ("succeeded", 2, True), job.error
        types = [event.type for event in client.events(job.id)]
        assert types.count("started") == 2
        assert types.count("died") == 1
        assert job.metrics is not None
        check_metrics(job.metrics)
        client.download(job, tmp_path / "result")
    check_checkpoint(tmp_path / "result", data_dir / "models" / NAME)


def test_an_interrupted_demo_leaves_no_process_behind(data_dir: Path, tmp_path: Path) -> None:
    env = os.environ | {"FLATTENGPT_DATA_DIR": str(data_dir), "PYTHONPATH": str(Path.cwd())}
    started = subprocess.Popen(
        [sys.executable, "-m", "cli.demo"], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True
    )
    try:
        assert started.stderr is not None
        for line in started.stderr:
            if "compressing" in line:
                break
        processes = descendants(started.pid)
        assert any("worker.run" in line for line in alive(processes))
        started.send_signal(signal.SIGINT)
        rest = started.stderr.read()
        assert started.wait(60) == 130
        assert "interrupted" in rest
        assert "Traceback" not in rest
        wait_until(lambda: not alive(processes), what=f"the end of {alive(processes)}")
    finally:
        started.kill()
        started.wait()
    assert not (tmp_path / "demo-output" / "model").exists()


def check_metrics(metrics: dict[str, Any]) -> None:
    """The numbers are those of this model and of a compression that did not break it."""
    dense, compressed = metrics["dense"], metrics["compressed"]
    assert (dense["layers"], compressed["layers"]) == (30, 24)
    assert dense["parameters"] == 134_515_008
    assert compressed["parameters"] < 0.87 * dense["parameters"]
    assert 1 < dense["perplexity"]["python-docs"] < compressed["perplexity"]["python-docs"] < 60
    assert compressed["tokens_per_second"] > 0
    assert sorted(layer for group in metrics["groups"] for layer in group) == list(range(30))


def check_checkpoint(folder: Path, dense: Path) -> None:
    """Stock transformers loads it, its config differs in depth only, and the KV cache changes nothing."""
    before, after = (json.loads((path / "config.json").read_text()) for path in (dense, folder))
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key) and key[0] != "_"}
    assert "num_hidden_layers" in changed
    assert changed <= {"num_hidden_layers", "layer_types"}
    assert after["num_hidden_layers"] == 24
    assert {path.name for path in folder.iterdir()} >= {"README.md", "flattengpt.json", "model.safetensors"}

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == list(range(24))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    given = tokenizer("Once upon a time", return_tensors="pt")
    texts = [
        model.generate(**given, max_new_tokens=12, do_sample=False, use_cache=cached, pad_token_id=0).tolist()
        for cached in (True, False)
    ]
    assert texts[0] == texts[1]


def kill_the_job(worker: int) -> bool:
    """kill -9 the process of the running job."""
    for pid in descendants(worker):
        if any("worker.run" in line for line in alive({pid: descendants(worker)[pid]})):
            os.kill(pid, signal.SIGKILL)
            return True
    return False


@contextmanager
def running(command: list[str], env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process that is asked to stop at the end, must do so, and must take along what it started."""
    process = subprocess.Popen(
        command, env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield process
        started = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, command
        wait_until(lambda: not alive(started), what=f"the end of {alive(started)}")
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
