"""Options and request files become one request."""

from pathlib import Path

import pytest

from cli.errors import BadUsage
from cli.options import parse_labels, queue_names, read_request
from jobs.spec import JobSpec


def test_only_given_options_are_in_the_request() -> None:
    given = {"layers": 24, "sparsity": None, "calibration.samples": 64, "calibration.seed": None}
    assert read_request("org/name", given) == {"model": "org/name", "layers": 24, "calibration": {"samples": 64}}


def test_a_request_file_is_the_request(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text("model: org/name\nsparsity: 0.2\ncalibration: {dataset: python-docs, samples: 32}\n")
    spec = JobSpec.model_validate(read_request(str(file), {"sparsity": None}))
    assert (spec.model, spec.sparsity, spec.calibration.samples) == ("org/name", 0.2, 32)


def test_options_win_over_the_file_and_replace_its_target(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text("model: org/name\nsparsity: 0.2\ncalibration: {dataset: python-docs, samples: 32}\n")
    request = read_request(str(file), {"layers": 24, "calibration.samples": 8})
    assert request == {"model": "org/name", "layers": 24, "calibration": {"dataset": "python-docs", "samples": 8}}


def test_an_option_fills_a_part_that_the_file_leaves_out(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text("model: org/name\nlayers: 4\npublish: null\n")
    assert read_request(str(file), {"publish.overwrite": True})["publish"] == {"overwrite": True}


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a list\n", "holds no request"), ("a: [\n", "not valid YAML"), ("model: x\nrecovery: lora\n", "mapping")],
)
def test_a_file_that_is_no_request_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(text)
    with pytest.raises(BadUsage, match=message):
        read_request(str(file), {})


def test_a_missing_file_is_named() -> None:
    with pytest.raises(BadUsage, match=r"nowhere\.yaml"):
        read_request("nowhere.yaml", {})


def test_queues() -> None:
    assert queue_names("gpu-large, default") == ["gpu-large", "default"]
    for wrong in ("", "a,,b", "A", "a b"):
        with pytest.raises(BadUsage, match="is no queue"):
            queue_names(wrong)


def test_labels() -> None:
    assert parse_labels(["team=search", "note=a=b"]) == {"team": "search", "note": "a=b"}
    assert parse_labels([]) is None
    with pytest.raises(BadUsage, match="key=value"):
        parse_labels(["team"])
