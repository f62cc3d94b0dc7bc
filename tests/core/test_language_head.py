"""The two ends of a model compute what the stock model computes."""

from pathlib import Path

import pytest
import torch

from flattengpt_core.decoder import Decoder
from flattengpt_core.language_head import LOGIT_TOKENS, FinalNorm, LanguageHead
from flattengpt_core.models import Checkpoint, load_model
from flattengpt_core.similarity import hidden_states, layer_runs
from tests.tiny_models import tiny_checkpoint

CPU = torch.device("cpu")


@pytest.mark.parametrize("tied", [False, True])
def test_loss_and_final_hidden_states_are_the_stock_models(tmp_path: Path, tied: bool) -> None:
    source = Checkpoint(tiny_checkpoint(tmp_path / "dense", "qwen2", tie_word_embeddings=tied, rms_norm_eps=1e-3))
    windows = torch.randint(0, 256, (20, 64), generator=torch.Generator().manual_seed(0))
    assert windows[:, 1:].numel() > 2 * LOGIT_TOKENS  # so that a part is full, one is not, and a window is split
    with torch.inference_mode():
        runs = layer_runs(source, Decoder(source.config, window_length=64, device=CPU), windows)
        *_, last = hidden_states(runs)
        model = load_model(source.folder, device=CPU, dtype=torch.float32)
        stock = model.model(windows).last_hidden_state
        torch.testing.assert_close(FinalNorm(source, device=CPU)(last), stock)
        expected = float(model(windows, labels=windows).loss)
    assert LanguageHead(source, device=CPU).loss(last, windows) == pytest.approx(expected, rel=1e-6)
