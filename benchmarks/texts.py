"""The texts that the benchmarks measure on, from files of the public data sets, each in parts that never overlap.

The files are not part of the project. Expected in one folder:

- `wikitext2/wiki.train.first1MB.raw.txt`, `wiki.valid.raw`, `wiki.test.raw`: raw WikiText-2, a line a row;
- `calibration/c4_clips.jsonl`: clips of C4, the text in `gold_completion`;
- `calibration/alpaca_5000.jsonl`: Alpaca, `instruction`, `input` and `output`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flattengpt_core.calibration import cut_windows, deal, token_ids
from flattengpt_core.texts import join_rows

REPORTED_WINDOWS = 32
REPORTED_LENGTH = 512
CALIBRATION_LENGTH = 256
LONG_REPORTED_TOKENS = 50_000

Split = Literal["validation", "test"]


@dataclass(frozen=True)
class Texts:
    """The data folder, and the tokenizer that cuts it into windows."""

    folder: Path
    tokenizer: PreTrainedTokenizerBase

    def reported(self, split: Split) -> dict[str, Tensor]:
        """Windows (32, 512) by text: to choose settings on (`validation`) or to report once (`test`).

        WikiText-2 has its own splits. Of the C4 clips the first 32 windows are the test part, the next 32 the
        validation part, and calibration takes what follows.
        """
        wikitext = {"validation": "wiki.valid.raw", "test": "wiki.test.raw"}[split]
        first = {"test": 0, "validation": REPORTED_WINDOWS}[split]
        return {
            "WikiText-2": self._wikitext(wikitext, REPORTED_LENGTH)[:REPORTED_WINDOWS],
            "C4": self._c4(REPORTED_LENGTH)[first : first + REPORTED_WINDOWS],
        }

    def long_reported(self, split: Split) -> dict[str, Tensor]:
        """As `reported`, but of WikiText-2 the windows of the first 50,000 tokens."""
        wikitext = {"validation": "wiki.valid.raw", "test": "wiki.test.raw"}[split]
        windows = self._wikitext(wikitext, REPORTED_LENGTH)[: LONG_REPORTED_TOKENS // REPORTED_LENGTH]
        return self.reported(split) | {"WikiText-2": windows}

    def calibration(self, shares: dict[str, int], *, seed: int) -> list[Tensor]:
        """So many windows of 256 tokens of each text (`wikitext2`, `c4`, `alpaca`), dealt into folds."""
        after_reported = 2 * REPORTED_WINDOWS * REPORTED_LENGTH // CALIBRATION_LENGTH
        sources = {
            "wikitext2": lambda: self._wikitext("wiki.train.first1MB.raw.txt", CALIBRATION_LENGTH),
            "c4": lambda: self._c4(CALIBRATION_LENGTH)[after_reported:],
            "alpaca": lambda: self._alpaca(CALIBRATION_LENGTH),
        }
        generator = torch.Generator().manual_seed(seed)
        chosen = []
        for name, count in shares.items():
            windows = sources[name]()
            chosen.append(windows[torch.randperm(len(windows), generator=generator)[:count]])
        return deal(chosen)

    def _wikitext(self, file: str, length: int) -> Tensor:
        # As Hugging Face's rows: a line keeps its end, a blank line is an empty row.
        lines = (self.folder / "wikitext2" / file).read_text(encoding="utf-8").split("\n")[:-1]
        return self._windows([f"{line}\n" if line.strip() else "" for line in lines], length)

    def _c4(self, length: int) -> Tensor:
        return self._windows([clip["gold_completion"] for clip in self._json("c4_clips.jsonl")], length)

    def _alpaca(self, length: int) -> Tensor:
        fields = ("instruction", "input", "output")
        rows = [
            "\n".join(entry[field] for field in fields if entry[field]) for entry in self._json("alpaca_5000.jsonl")
        ]
        return self._windows(rows, length)

    def _json(self, file: str) -> list[dict[str, str]]:
        with (self.folder / "calibration" / file).open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def _windows(self, rows: list[str], length: int) -> Tensor:
        return cut_windows(token_ids(self.tokenizer, join_rows(rows)), length)
