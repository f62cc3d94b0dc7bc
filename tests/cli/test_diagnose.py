"""`flattengpt diagnose` as a user meets it: the folder, both outputs, readable refusals."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.cli.test_commands import run

OPTIONS = ["--calibration", "python-docs", "--samples", "8", "--sequence-length", "64"]
FIGURES = ["influence.svg", "jacobian.svg", "similarity.svg", "variance.svg"]


def test_diagnose_shows_the_groups_that_compress_merges(data_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "diagnosis"
    target = ["--layers", "4", *OPTIONS, "--json"]
    done = run("diagnose", "local:tiny", "--out", str(folder), *target, data_dir=data_dir)
    assert done.exit_code == 0, done.stderr
    assert sorted(file.name for file in folder.iterdir()) == ["diagnose.json", *FIGURES]
    assert [file.name for file in folder.parent.iterdir()] == ["diagnosis"]
    for figure in FIGURES:
        assert ElementTree.parse(folder / figure).getroot().tag.endswith("svg")

    found = json.loads(done.stdout)
    assert found == json.loads((folder / "diagnose.json").read_text())
    assert (found["model"], found["layers"], found["calibration"]["samples"]) == ("local:tiny", 6, 8)
    lengths = {"similarity": 6, "variance": 7, "jacobian_distance": 6, "block_influence": 6}
    assert {name: len(found[name]) for name in lengths} == lengths
    assert found["variance_growth"].keys() == {"exponent", "r_squared"}
    assert "diagnosing" in done.stderr

    text = tmp_path / "corpus.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 50)
    quick = ["--text", str(text), "--no-benchmark"]
    out = str(tmp_path / "compressed")
    compressed = run("compress", "local:tiny", "--out", out, *target, *quick, data_dir=data_dir)
    assert compressed.exit_code == 0, compressed.stderr
    assert found["groups"] == json.loads(compressed.stdout)["groups"]


def test_diagnose_prints_the_reading_and_the_same_again(data_dir: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        done = run("diagnose", "local:tiny", "--out", str(folder), *OPTIONS, data_dir=data_dir)
        assert done.exit_code == 0, done.stderr
        said = json.loads((folder / "diagnose.json").read_text())["reading"]
        assert " ".join(done.stdout.split()) == f"{said} {folder}"
        assert "At 5 layers" in said  # a fifth of six layers is one
    for name in ("diagnose.json", *FIGURES):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("local:tiny", ["--out", "{tmp}"], "--out: {tmp} exists already"),
        ("local:tiny", ["--out", "{tmp}/out", "--layers", "6"], "layers: layers is 6, but the model has 6"),
        ("local:tiny", ["--out", "{tmp}/out", "--layers", "3", "--sparsity", "0.5"], "sparsity and layers are given"),
        ("local:tiny", ["--out", "{tmp}/out", "--sparsity", "0.01"], "sparsity: sparsity 0.01 leaves 6"),
        ("local:tiny", ["--out", "{tmp}/out", "--samples", "0"], "calibration.samples"),
        ("local:tiny", ["--out", "{tmp}/out", "--calibration", "no-such-text"], "'no-such-text' is no text"),
        ("local:absent", ["--out", "{tmp}/out"], "model: "),
    ],
)
def test_diagnose_refuses_in_one_line(
    data_dir: Path, tmp_path: Path, model: str, arguments: list[str], message: str
) -> None:
    filled = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    done = run("diagnose", model, *filled, data_dir=data_dir)
    assert done.exit_code == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert message.replace("{tmp}", str(tmp_path)) in last
    assert "Traceback" not in done.output
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []
