"""The `flattengpt` command as a user meets it: exit codes, what goes to which stream, readable errors."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from tests.cli.conftest import TINY_JOB
from tests.receiver import Reply, receiving
from tests.task_files import CHOICES, task_file

LOCAL = ["compress", "compare", "ladder", "evaluate", "diagnose"]
SERVICE = ["serve", "worker", "sweep", "migrate", "doctor", "keys", "track"]
REMOTE = ["submit", "watch", "list", "show", "cancel", "download", "upload"]


def run(*arguments: str, url: str | None = None, data_dir: Path | None = None) -> Result:
    env = {"FLATTENGPT_URL": url, "FLATTENGPT_DATA_DIR": str(data_dir) if data_dir else None, "COLUMNS": "200"}
    return CliRunner().invoke(app, arguments, env=env)


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    file = tmp_path / "spec.yaml"
    file.write_text(json.dumps(TINY_JOB))
    return file


@pytest.mark.parametrize("command", LOCAL + SERVICE + REMOTE)
def test_every_command_explains_itself(command: str) -> None:
    done = run(command, "--help")
    assert done.exit_code == 0
    assert "Usage: flattengpt" in done.stdout or "Usage: root" in done.stdout


def test_no_command_is_bad_usage() -> None:
    assert run().exit_code == 2


def test_help_needs_no_torch() -> None:
    code = "import sys; import cli.main; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "{tmp}/out"], "sparsity"),
        (["--out", "{tmp}/out", "--layers", "3", "--sparsity", "0.5"], "sparsity and layers are given"),
        (["--out", "{tmp}/out", "--layers", "6"], "layers is 6, but the model has 6"),
        (["--out", "{tmp}/out", "--sparsity", "1.5"], "sparsity"),
        (["--out", "{tmp}/out", "--layers", "3", "--method", "magic"], "unknown method 'magic'"),
        (["--out", "{tmp}/out", "--layers", "3", "--recovery", "prayer"], "recovery.method"),
        (["--out", "{tmp}/out", "--layers", "3", "--recovery", "lora", "--rank", "0"], "recovery.rank"),
        (["--out", "{tmp}/out", "--layers", "3", "--recovery", "lora", "--recovery-train", "full"], "recovery"),
        (["--out", "{tmp}/out", "--layers", "3", "--accelerate-config", "{tmp}/absent.yaml"], "does not exist"),
        (["--out", "{tmp}/out", "--layers", "3", "--samples", "0"], "calibration.samples"),
        (["--out", "{tmp}/out", "--layers", "3", "--device", "gpu"], "device: The device 'gpu' cannot be used"),
        (["--out", "{tmp}", "--layers", "3"], "exists already"),
        (["--layers", "3"], "--out"),
    ],
)
def test_compress_refuses_bad_usage_at_once(data_dir: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    filled = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    done = run("compress", "local:tiny", *filled, data_dir=data_dir)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model", ["local:absent", "local:../models/tiny", "no-such-folder", "/etc"])
def test_compress_names_a_model_that_cannot_be_used(data_dir: Path, tmp_path: Path, model: str) -> None:
    done = run("compress", model, "--out", str(tmp_path / "out"), "--layers", "3", data_dir=data_dir)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: model: ")


def test_compress_a_folder_with_a_text_file(data_dir: Path, tmp_path: Path) -> None:
    text = tmp_path / "corpus.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    options = ["--layers", "4", "--samples", "8", "--sequence-length", "64", "--no-benchmark", "--json"]
    folder = data_dir / "models" / "tiny"
    done = run("compress", str(folder), "--out", str(tmp_path / "out"), "--calibration", str(text), *options)
    assert done.exit_code == 0, done.stderr
    metrics = json.loads(done.stdout)
    assert (metrics["dense"]["layers"], metrics["compressed"]["layers"]) == (6, 4)
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert "compressing" in done.stderr


def test_compress_trains_and_keeps_its_state_where_it_is_told(data_dir: Path, tmp_path: Path) -> None:
    spec, work = tmp_path / "spec.yaml", tmp_path / "work"
    spec.write_text(json.dumps(TINY_JOB | {"recovery": {"method": "lora", "targets": ["o_proj", "down_proj"]}}))
    options = ["--recovery-steps", "20", "--rank", "4", "--learning-rate", "0.01", "--work", str(work)]
    options = ["compress", str(spec), *options, "--out"]
    done = run(*options, str(tmp_path / "out"), data_dir=data_dir)
    assert done.exit_code == 0, done.stderr
    assert "Trained for 20 steps (lora)" in done.stdout
    again = run(*options, str(tmp_path / "again"), "--json", data_dir=data_dir)
    assert json.loads(again.stdout)["recovery"]["steps"] == 20
    other = run(*options, str(tmp_path / "other"), "--layers", "3", data_dir=data_dir)
    assert other.exit_code == 2
    assert "another request (other: goal)" in other.stderr


def test_evaluate_reports_json(data_dir: Path) -> None:
    options = ["--limit", "2", "--sequence-length", "64", "--no-benchmark", "--json"]
    done = run("evaluate", "local:tiny", *options, data_dir=data_dir)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["layers"] == 6
    assert found["perplexity"]["python-docs"] > 1


def test_evaluate_asks_the_tasks_of_a_file(data_dir: Path, tmp_path: Path) -> None:
    name = task_file(tmp_path / "choices.jsonl", CHOICES)
    options = ["--tasks", name, "--limit", "3", "--sequence-length", "64", "--no-benchmark"]
    shown = run("evaluate", "local:tiny", *options, data_dir=data_dir)
    assert shown.exit_code == 0, shown.stderr
    assert "(last fifth, 192 tokens in windows of 64)" in shown.stdout
    assert "(acc_norm, 3 items, chance 0.344)" in shown.stdout
    assert "3/3" not in shown.stderr  # no bar of lm-eval's
    assert "requests" not in shown.stderr


def test_a_wrong_task_file_is_bad_usage(data_dir: Path, tmp_path: Path) -> None:
    name = task_file(tmp_path / "mine.jsonl", [{"query": "a", "choices": ["b", "c"]}])
    target = ["--out", str(tmp_path / "out"), "--layers", "4", "--samples", "8", "--sequence-length", "64"]
    calibrated = [*target, "--calibration", "python-docs"]
    for command in (
        ["evaluate", "local:tiny"],
        ["compress", "local:tiny", *calibrated],
        ["compare", "local:tiny", *calibrated],
    ):
        done = run(*command, "--tasks", name, data_dir=data_dir)
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.splitlines()[-1] == (
            f"error: evaluation.tasks: line 1 of the task file {name}: gold: Field required."
        )
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jsonl"]


def test_compress_asks_the_tasks_of_a_file(data_dir: Path, tmp_path: Path) -> None:
    name = task_file(tmp_path / "choices.jsonl", CHOICES)
    target = ["--out", str(tmp_path / "out"), "--layers", "4", "--samples", "8", "--sequence-length", "64"]
    options = ["--calibration", "python-docs", "--tasks", name, "--task-items", "2", "--no-benchmark"]
    done = run("compress", "local:tiny", *target, *options, data_dir=data_dir)
    assert done.exit_code == 0, done.stderr
    assert "accuracy (choices.jsonl)" in done.stdout


def test_submit_knows_no_task_files(url: str) -> None:
    done = run("submit", "local:tiny", "--layers", "4", "--tasks", "mine.jsonl", url=url)
    assert (done.exit_code, "evaluation.tasks.0" in done.stderr) == (2, True)


@pytest.mark.slow
def test_compare_writes_a_page_and_its_numbers(data_dir: Path, tmp_path: Path) -> None:
    options = ["--layers", "4", "--samples", "8", "--sequence-length", "64", "--window", "64", "--limit", "4"]
    out = tmp_path / "report"
    texts = ["--calibration", "python-docs", "--methods", "shortgpt,flattengpt-unpruned,flattengpt", "--no-benchmark"]
    done = run("compare", "local:tiny", "--out", str(out), *options, *texts, "--json", data_dir=data_dir)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((out / "compare.json").read_text())
    assert [row["method"] for row in found["rows"]] == ["dense", "shortgpt", "flattengpt-unpruned", "flattengpt"]
    assert "flattengpt-unpruned" in (out / "compare.html").read_text()
    shown = run("compare", "local:tiny", "--out", str(out), *options, *texts, data_dir=data_dir)
    assert (shown.exit_code, "exists already" in shown.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "4", "--methods", "magic"], "unknown method 'magic'"),
        (["--layers", "4", "--methods", "shortgpt,shortgpt"], "named twice"),
        (["--layers", "6"], "layers is 6, but the model has 6"),
        ([], "exactly one of sparsity"),
        (["--layers", "4", "--calibration", "{text}"], "name a text to report on"),
        (["--layers", "4", "--calibration", "{text}", "--text", "{copy}"], "is what is calibrated on, too"),
    ],
)
def test_compare_refuses_bad_usage(data_dir: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    text, copy = tmp_path / "text.txt", tmp_path / "copy.txt"
    for file in (text, copy):
        file.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    filled = [argument.format(text=text, copy=copy) for argument in arguments]
    done = run("compare", "local:tiny", "--out", str(tmp_path / "out"), *filled, data_dir=data_dir)
    assert done.exit_code == 2
    assert message in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.txt", "text.txt"]


def test_ladder_makes_every_size(data_dir: Path, tmp_path: Path) -> None:
    options = ["--layers", "3,5", "--samples", "8", "--sequence-length", "64", "--window", "64", "--limit", "4"]
    out = tmp_path / "ladder"
    texts = ["--calibration", "python-docs", "--no-benchmark", "--json"]
    done = run("ladder", "local:tiny", "--out", str(out), *options, *texts, data_dir=data_dir)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((out / "ladder.json").read_text())
    assert [row["layers"] for row in found["rows"]] == [6, 5, 3]
    assert [len(row["groups"]) for row in found["rows"][1:]] == [5, 3]
    assert "</svg>" in (out / "ladder.svg").read_text()
    assert (out / "5" / "config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "4,6"], "layers is 6, but the model has 6"),
        (["--layers", "4,4"], "named twice"),
        (["--layers", "few"], "no numbers of layers"),
        (["--layers", "4", "--method", "magic"], "unknown method 'magic'"),
    ],
)
def test_ladder_refuses_bad_usage(data_dir: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    out = ["--out", str(tmp_path / "out"), "--calibration", "python-docs"]
    done = run("ladder", "local:tiny", *out, *arguments, data_dir=data_dir)
    assert (done.exit_code, message in done.stderr) == (2, True)
    assert not list(tmp_path.iterdir())


def test_submit_watch_show_list_and_download(url: str, spec_file: Path, tmp_path: Path) -> None:
    submitted = run("submit", str(spec_file), "--label", "team=search", url=url)
    assert submitted.exit_code == 0, submitted.stderr
    job_id = submitted.stdout.strip()

    watched = run("watch", job_id, "--json", url=url)
    assert watched.exit_code == 0, watched.stderr
    job = json.loads(watched.stdout)
    assert (job["status"], job["progress"], job["metrics"]["compressed"]["layers"]) == ("succeeded", 1.0, 4)
    assert "compressing" in watched.stderr

    assert "succeeded" in run("show", job_id, url=url).stdout
    listed = run("list", "--label", "team=search", "--json", url=url)
    assert job_id in [entry["id"] for entry in json.loads(listed.stdout)["jobs"]]
    narrow = {"FLATTENGPT_URL": url, "COLUMNS": "60"}
    shown = subprocess.run([sys.executable, "-m", "cli.main", "list"], env=os.environ | narrow, capture_output=True)
    assert job_id in shown.stdout.decode()

    folder = tmp_path / "result"
    downloaded = run("download", job_id, "--out", str(folder), url=url)
    assert downloaded.exit_code == 0, downloaded.stderr
    assert sorted(path.name for path in folder.iterdir()) == sorted(entry["path"] for entry in job["artifacts"])
    assert run("download", job_id, "--out", str(folder), url=url).exit_code == 2
    ended = run("cancel", job_id, url=url)
    assert (ended.exit_code, "already succeeded" in ended.stderr) == (1, True)
    refused = run("retry", job_id, url=url)
    assert (refused.exit_code, "only a job that failed" in refused.stderr) == (1, True)
    assert run("delete", job_id, url=url).exit_code == 1, "nobody said yes"
    assert run("delete", job_id, "--yes", url=url).exit_code == 0
    assert "no job" in run("show", job_id, url=url).stderr


def test_submit_with_watch_ends_with_the_jobs_own_error(url: str, spec_file: Path, data_dir: Path) -> None:
    """More windows than the text has is found out by the worker, not at submission."""
    options = ["--sequence-length", "2048", "--samples", "4096", "--watch"]
    done = run("submit", str(spec_file), *options, url=url)
    assert done.exit_code == 1
    assert "python-docs" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.output


def test_the_services_refusal_is_one_readable_line(url: str) -> None:
    done = run("submit", "local:tiny", "--layers", "99", url=url)
    assert done.exit_code == 2
    assert done.stderr == "error: layers: layers is 99, but the model has 6: choose 1 to 5.\n"


@pytest.mark.parametrize(
    ("options", "publish"),
    [
        (
            ["--publish", "acme/x", "--public", "--overwrite"],
            {"repo_id": "acme/x", "private": False, "overwrite": True},
        ),
        (["--publish", "s3://models/x"], {"url": "s3://models/x"}),
    ],
)
def test_submit_says_where_to_publish_and_brings_the_token(
    options: list[str], publish: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As whoever listens at the address is sent it."""
    monkeypatch.setenv("FLATTENGPT_HUB_TOKEN", " hf_mine\n")
    with receiving() as service:
        service.default = Reply(status=422)
        done = run("submit", "acme/tiny", "--layers", "4", *options, url=f"http://127.0.0.1:{service.port}")
    assert "hf_mine" not in done.output
    assert json.loads(service.seen[0].body) == {"model": "acme/tiny", "layers": 4, "publish": publish}
    assert service.seen[0].headers["hub-token"] == "hf_mine"


def test_an_unknown_job_is_one_readable_line(url: str) -> None:
    done = run("show", "01ARZ3NDEKTSV4RRFFQ69G5FAV", url=url)
    assert done.exit_code == 1
    assert done.stderr == "error: There is no job '01ARZ3NDEKTSV4RRFFQ69G5FAV'.\n"


def test_no_service_is_one_readable_line() -> None:
    done = run("list", url="http://127.0.0.1:9")
    assert done.exit_code == 1
    assert "flattengpt serve" in done.stderr
    assert len(done.stderr.splitlines()) == 1
