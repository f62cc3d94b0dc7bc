"""A flattened layer computes exactly the sum of its members, sublayer by sublayer, in every family."""

from pathlib import Path

import pytest
import torch

from flattengpt_core.decoder import Decoder
from flattengpt_core.flatten import flatten, fold_norms
from flattengpt_core.models import Checkpoint
from tests.tiny_models import tiny_checkpoint

LENGTH = 24


@pytest.fixture(params=["llama", "mistral", "qwen2"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def opened(folder: Path) -> tuple[Checkpoint, Decoder, torch.Tensor]:
    source = Checkpoint(folder)
    decoder = Decoder(source.config, window_length=LENGTH, device=torch.device("cpu"))
    return source, decoder, torch.randn(3, LENGTH, source.config.hidden_size)


@pytest.mark.parametrize("grouped", [True, False], ids=["gqa", "mha"])
@pytest.mark.parametrize("members", [(1, 2), (2, 3, 4)])
def test_is_the_sum_of_its_members(tmp_path: Path, family: str, grouped: bool, members: tuple[int, ...]) -> None:
    source, decoder, hidden = opened(tiny_checkpoint(tmp_path, family, grouped=grouped))
    layers = [decoder.layer(source.layer(index), index) for index in members]
    between = hidden + sum(decoder.attend(layer, hidden) for layer in layers)
    expected = between + sum(decoder.transform(layer, between) for layer in layers)

    wide = decoder.layer(flatten([source.layer(index) for index in members]), members[0])
    flattened = hidden + decoder.attend(wide, hidden)
    assert torch.allclose(flattened, between, atol=1e-5)
    assert torch.allclose(flattened + decoder.transform(wide, flattened), expected, atol=1e-5)


def test_adds_output_biases(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "llama", attention_bias=True, mlp_bias=True)
    test_source, decoder, hidden = opened(folder)
    layers = [decoder.layer(test_source.layer(index), index) for index in (0, 1)]
    wide = decoder.layer(flatten([test_source.layer(index) for index in (0, 1)]), 0)
    for sublayer in (decoder.attend, decoder.transform):
        expected = sum(sublayer(layer, hidden) for layer in layers)
        assert torch.allclose(sublayer(wide, hidden), expected, atol=1e-5)


def test_sliding_windows_are_kept(tmp_path: Path) -> None:
    """A window shorter than the text must be masked in the flattened layer as in the members."""
    source, decoder, hidden = opened(tiny_checkpoint(tmp_path, "mistral", sliding_window=5))
    full = Decoder(
        Checkpoint(tiny_checkpoint(tmp_path / "full", "mistral", sliding_window=None)).config,
        window_length=LENGTH,
        device=torch.device("cpu"),
    )
    layer, wide = decoder.layer(source.layer(0), 0), decoder.layer(flatten([source.layer(0)]), 0)
    assert torch.allclose(decoder.attend(layer, hidden), decoder.attend(wide, hidden), atol=1e-5)
    assert not torch.allclose(decoder.attend(layer, hidden), full.attend(layer, hidden), atol=1e-3)


def test_folding_norms_changes_no_output(tmp_path: Path, family: str) -> None:
    source, decoder, hidden = opened(tiny_checkpoint(tmp_path, family))
    layer, folded = decoder.layer(source.layer(0), 0), decoder.layer(fold_norms(source.layer(0)), 0)
    assert torch.allclose(decoder.attend(layer, hidden), decoder.attend(folded, hidden), atol=1e-5)
    assert torch.equal(folded.input_layernorm.weight, torch.ones(source.config.hidden_size))


def test_one_decoder_layer_is_the_models(tmp_path: Path, family: str) -> None:
    """Running layer by layer gives the same hidden states as the model library's own forward pass."""
    from flattengpt_core.models import load_model

    source, decoder, _ = opened(tiny_checkpoint(tmp_path, family))
    model = load_model(tmp_path, device=torch.device("cpu"), dtype=torch.float32)
    ids = torch.randint(0, 256, (2, LENGTH))
    with torch.no_grad():
        hidden = model.model.embed_tokens(ids)
        for index in range(source.info.num_layers):
            hidden = decoder.run(source.layer(index), index, hidden)
        assert torch.allclose(model.model.norm(hidden), model.model(ids).last_hidden_state, atol=1e-5)
