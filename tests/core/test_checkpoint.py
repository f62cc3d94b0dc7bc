"""What a checkpoint is found to be, and what is refused before any weight is read."""

import json
from pathlib import Path
from typing import Any

import pytest

from flattengpt_core.checkpoint import HubModel, LocalModel, inspect, resolve
from flattengpt_core.errors import ModelNotFound, UnsupportedModel
from flattengpt_core.models import Checkpoint
from tests.tiny_models import tiny_checkpoint


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    tiny_checkpoint(tmp_path / "models" / "tiny")
    return tmp_path / "models"


def edited(folder: Path, **entries: Any) -> Path:
    """The checkpoint with other entries in its config."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))
    return folder


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_a_supported_family(tmp_path: Path, family: str) -> None:
    info = inspect(tiny_checkpoint(tmp_path, family))
    assert (info.family.model_type, info.format, info.num_layers) == (family, "safetensors", 6)


def test_tied_embeddings_count_once(tmp_path: Path) -> None:
    tied = inspect(tiny_checkpoint(tmp_path / "tied", tie_word_embeddings=True)).parameters
    assert inspect(tiny_checkpoint(tmp_path / "apart", tie_word_embeddings=False)).parameters == tied + 256 * 32


def test_where_a_name_leads(models_dir: Path) -> None:
    assert resolve("local:tiny", models_dir) == LocalModel(models_dir / "tiny")
    assert resolve("org/name", models_dir) == HubModel("org/name")
    with pytest.raises(ModelNotFound, match="names no model"):
        resolve(str(models_dir / "tiny"), models_dir)
    assert resolve(str(models_dir / "tiny"), models_dir, allow_paths=True) == LocalModel(models_dir / "tiny")


@pytest.mark.parametrize("name", ["", "..", ".", "a/b", "../models/tiny", "/etc", "tiny\0", "~", "circle", "absent"])
def test_no_local_name_leads_out(models_dir: Path, name: str) -> None:
    (models_dir / "circle").symlink_to(models_dir / "circle")
    with pytest.raises(ModelNotFound) as refused:
        resolve(f"local:{name}", models_dir)
    assert refused.value.field == "model"


@pytest.mark.parametrize(
    "entries",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": "fast"}},
        {"hidden_act": 3},
        {"rope_parameters": {"rope_type": "magic"}},
        {"vocab_size": {}},
    ],
)
def test_a_config_that_the_library_refuses_is_named(models_dir: Path, entries: dict[str, Any]) -> None:
    folder = edited(models_dir / "tiny", **entries)
    with pytest.raises(UnsupportedModel, match=r"config\.json of 'tiny'"):
        Checkpoint(folder).config  # noqa: B018


def test_keys_that_could_lead_to_code_are_left_out(models_dir: Path) -> None:
    folder = edited(models_dir / "tiny", _attn_implementation_internal="evil/kernel", attn_implementation="evil/kernel")
    config = Checkpoint(folder).config
    assert "evil" not in json.dumps(config.to_dict(), default=str)
    assert "evil" not in str(config._attn_implementation)
