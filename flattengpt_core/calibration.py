"""Text to token windows. Knows nothing of models beyond a tokenizer's ids."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flattengpt_core.errors import CalibrationNotFound
from flattengpt_core.options import Calibration, Evaluation
from flattengpt_core.texts import load_text

FOLDS = 2
"""Sets the calibration windows are dealt into, to choose each ridge on tokens held out of the fit.

Four sets chose alike on the demo model (WikiText-2 valid 37.3 against 37.1 for the best fixed ridge) and cost a
third more time."""


def cut_windows(ids: Tensor, length: int) -> Tensor:
    """The token stream (tokens,) in non-overlapping windows (n, length), the rest dropped: GPTQ's convention."""
    count = len(ids) // length
    return ids[: count * length].view(count, length)


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """The text's token ids (tokens,), int64, without special tokens."""
    return torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.long)


def evaluation_windows(
    tokenizer: PreTrainedTokenizerBase, evaluation: Evaluation, texts_dir: Path | None = None
) -> dict[str, Tensor]:
    """The windows (n, length) of the held-out part of each text that `evaluation` names.

    Args:
        texts_dir: as for `texts.load_text`.

    Raises:
        CalibrationNotFound: a text is missing or holds less than one window.
    """
    length = evaluation.sequence_length
    windows = {}
    for name in evaluation.perplexity:
        windows[name] = cut_windows(token_ids(tokenizer, load_text(name, "evaluation", texts_dir)), length)
        if not len(windows[name]):
            raise CalibrationNotFound(
                f"The text {name!r} is shorter than one window of {length} tokens: use a longer text or a shorter "
                "sequence_length.",
                field="evaluation.sequence_length",
            )
    return windows


def deal(texts: Sequence[Tensor]) -> list[Tensor]:
    """The windows of each text (n, length) dealt into FOLDS disjoint sets, so that each set holds all texts alike."""
    return [torch.cat([windows[fold::FOLDS] for windows in texts]) for fold in range(FOLDS)]


def subsample(folds: Sequence[Tensor], tokens: int) -> Tensor:
    """About so many tokens in whole windows (n, length), as many of each fold and at least one.

    Spread over each fold, since it holds its texts one after the other.
    """
    share = max(1, tokens // folds[0].shape[1] // len(folds))
    return torch.cat([fold[torch.linspace(0, len(fold) - 1, min(share, len(fold))).round().long()] for fold in folds])


class TextWindows:
    """The calibration parts of the texts that `calibration` names, in shuffled windows of its length.

    Args:
        texts_dir: as for `texts.load_text`.

    Raises:
        CalibrationNotFound: a text is missing.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, calibration: Calibration, texts_dir: Path | None = None
    ) -> None:
        self._calibration = calibration
        self._generator = torch.Generator().manual_seed(calibration.seed)
        self._windows = {
            name: self._shuffled(
                cut_windows(
                    token_ids(tokenizer, load_text(name, "calibration", texts_dir)), calibration.sequence_length
                )
            )
            for name in calibration.dataset.split("+")
        }

    def folds(self) -> list[Tensor]:
        """The samples, distinct and shared evenly among the texts, in FOLDS disjoint sets that each hold them all.

        Raises:
            CalibrationNotFound: a text is too short for its share.
        """
        chosen = []
        for index, (name, windows) in enumerate(self._windows.items()):
            share = self._share(index)
            if len(windows) < share:
                raise CalibrationNotFound(
                    f"The text {name!r} has {len(windows)} windows of that length, but {share} are asked for: use "
                    "fewer samples or a shorter sequence_length.",
                    field="calibration.samples",
                )
            chosen.append(windows[:share])
        return deal(chosen)

    def held_out(self, tokens: int) -> dict[str, Tensor]:
        """By text, windows (n, length) that the folds do not hold, about so many tokens in all.

        Raises:
            CalibrationNotFound: a text has no window left.
        """
        count = max(1, tokens // self._calibration.sequence_length // len(self._windows))
        left = {}
        for index, (name, windows) in enumerate(self._windows.items()):
            left[name] = windows[self._share(index) :][:count]
            if not len(left[name]):
                raise CalibrationNotFound(
                    f"The text {name!r} has no window left to judge the quality on: use fewer samples, a shorter "
                    "sequence_length, or a longer text.",
                    field="calibration.samples",
                )
        return left

    def all(self) -> Tensor:
        """Every window of every text, shuffled, (n, length) int64."""
        return self._shuffled(torch.cat(list(self._windows.values())))

    def _share(self, index: int) -> int:
        """How many windows the text at `index` gives to the samples; each fold needs one."""
        samples = self._calibration.samples
        share = samples // len(self._windows) + (index < samples % len(self._windows))
        return max(FOLDS, share)

    def _shuffled(self, windows: Tensor) -> Tensor:
        return windows[torch.randperm(len(windows), generator=self._generator)]
