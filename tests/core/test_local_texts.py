"""Texts that go by `local:NAME`: files of one folder, and of no other place."""

import json
from pathlib import Path

import pytest

from flattengpt_core.errors import CalibrationNotFound, InvalidRequest
from flattengpt_core.local_names import local_name
from flattengpt_core.texts import load_text, refuse_reported_calibration, text_digest


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "a+b" / "datasets"  # a plus in the path joins nothing
    folder.mkdir(parents=True)
    (folder / "plain.txt").write_text("one")
    (folder / "copy.txt").write_text("one")
    (folder / "rows.jsonl").write_text(json.dumps({"text": "two\u2028\x85\x0b"}, ensure_ascii=False) + "\n")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "out.txt").symlink_to(tmp_path / "secret.txt")
    return folder


def test_a_name_is_a_file_of_the_folder(texts: Path) -> None:
    assert load_text("local:plain", "calibration", texts) == load_text("local:plain", "evaluation", texts) == "one"
    assert load_text("local:rows", "calibration", texts) == "two\u2028\x85\x0b"


@pytest.mark.parametrize(
    "name", ["local:none", "local:out", "local:", "local:../../secret", "local:plain.txt", "local:.x"]
)
def test_no_other_file_goes_by_such_a_name(texts: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (texts / "local:none").write_text("a file of that very name")
    monkeypatch.chdir(texts)
    with pytest.raises(CalibrationNotFound, match="no local text"):
        load_text(name, "calibration", texts)
    with pytest.raises(CalibrationNotFound):
        load_text("local:plain", "calibration")
    assert text_digest(name, texts) is None


def test_what_is_calibrated_on_is_not_reported_on(texts: Path) -> None:
    refuse_reported_calibration("python-docs+local:plain", ["python-docs", "local:rows"], texts)
    for dataset, reported in (("local:plain", "local:plain"), ("wikitext2+local:plain", "local:copy")):
        with pytest.raises(InvalidRequest, match="calibrated on, too"):
            refuse_reported_calibration(dataset, ["python-docs", reported], texts)
    with pytest.raises(InvalidRequest, match="calibrated on, too"):
        refuse_reported_calibration("local:plain", [str(texts / "copy.txt")], texts)


def test_local_names() -> None:
    assert local_name("local:a.b-c_9") == "a.b-c_9"
    for name in (
        "a",
        "local:",
        "local:.a",
        "local:a/b",
        "local:a+b",
        "local:local:a",
        "local:a\n",
        "local:" + "a" * 129,
    ):
        assert local_name(name) is None, name
