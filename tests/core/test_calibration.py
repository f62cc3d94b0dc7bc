"""Texts and the windows that are cut from them."""

import itertools
from pathlib import Path

import pytest
import torch

from flattengpt_core.calibration import TextWindows, cut_windows, deal, subsample
from flattengpt_core.errors import CalibrationNotFound
from flattengpt_core.options import Calibration
from flattengpt_core.texts import Part, join_rows, load_text
from tests.tiny_models import byte_tokenizer

PARTS: tuple[Part, ...] = ("calibration", "validation", "evaluation")


def distinct(windows: torch.Tensor) -> set[tuple[int, ...]]:
    return {tuple(window) for window in windows.tolist()}


@pytest.fixture
def texts(tmp_path: Path) -> tuple[str, str]:
    """Two texts of other letters."""
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text("".join(chr(ord("a") + n * n % 26) + str(n) for n in range(2000)))
    second.write_text("".join(chr(ord("A") + n * n % 26) + str(n) for n in range(2000)))
    return str(first), str(second)


def test_windows_follow_each_other_and_the_rest_is_dropped() -> None:
    assert cut_windows(torch.arange(11), 3).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_the_parts_of_a_named_text_never_overlap() -> None:
    texts = [load_text("python-docs", part) for part in PARTS]
    assert min(map(len, texts)) > 50_000
    paragraphs = [{" ".join(paragraph.split()) for paragraph in text.split("\n\n")} for text in texts]
    for one, other in itertools.combinations(paragraphs, 2):
        assert one & other == set()


def windows(dataset: str, *, samples: int, seed: int = 0) -> TextWindows:
    return TextWindows(byte_tokenizer(), Calibration(dataset, samples, sequence_length=32, seed=seed))


def test_folds_share_the_texts_evenly_and_no_window(texts: tuple[str, str]) -> None:
    folds = windows("+".join(texts), samples=20).folds()
    assert [len(fold) for fold in folds] == [10, 10]
    assert len(distinct(torch.cat(folds))) == 20
    capitals = [sum(any(65 <= byte <= 90 for byte in bytes_of(window)) for window in fold) for fold in folds]
    assert capitals == [5, 5]


def bytes_of(window: torch.Tensor) -> bytes:
    return str(byte_tokenizer().decode(window)).encode()


def test_the_seed_chooses_the_windows(texts: tuple[str, str]) -> None:
    chosen = [torch.cat(windows(texts[0], samples=8, seed=seed).folds()) for seed in (0, 0, 1)]
    assert torch.equal(chosen[0], chosen[1])
    assert distinct(chosen[0]) != distinct(chosen[2])


def test_deal_gives_each_set_a_part_of_each_text() -> None:
    dealt = deal([torch.tensor([[1], [2], [3]]), torch.tensor([[10], [20]])])
    assert [fold.flatten().tolist() for fold in dealt] == [[1, 3, 10], [2, 20]]


def test_too_many_samples_are_refused_with_what_there_is(texts: tuple[str, str]) -> None:
    with pytest.raises(CalibrationNotFound, match="windows of that length, but 5000 are asked for") as refused:
        windows(texts[0], samples=5000).folds()
    assert refused.value.field == "calibration.samples"


def test_a_jsonl_file_is_its_texts_joined_by_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "one"}\n\n{"text": "two", "id": 2}\n')
    assert load_text(str(file), "evaluation") == join_rows(["one", "two"]) == "one\n\ntwo"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b"{"),
        ("a.jsonl", b'{"txt": "x"}'),
        ("a.jsonl", b"[1]"),
        ("a.jsonl", b'{"text": 3}'),
        ("a.txt", b"\xff"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(CalibrationNotFound, match=name):
        load_text(str(file), "calibration")


def test_an_unknown_text_lists_the_known() -> None:
    with pytest.raises(CalibrationNotFound, match=r"wikitext2, python-docs; else give an existing \.txt or \.jsonl"):
        load_text("moby-dick", "calibration")


def test_a_subsample_is_spread_over_each_fold_alike() -> None:
    folds = [torch.arange(36).view(9, 4), torch.arange(100, 136).view(9, 4)]
    taken = [window[0] // 4 for window in subsample(folds, 24).tolist()]
    assert taken == [0, 4, 8, 25, 29, 33]
    assert [window[0] for window in subsample(folds, 1).tolist()] == [0, 100]
    assert torch.equal(subsample(folds, 10_000), torch.cat(folds))
