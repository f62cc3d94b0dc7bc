"""Open a checked checkpoint tensor by tensor, and write one shard by shard.

Weights stay on disk until a layer is asked for, so a checkpoint larger than memory can be read and written.
Knows nothing of how layers are compressed.
"""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from flattengpt_core import families
from flattengpt_core.checkpoint import inspect, read_config, weight_files
from flattengpt_core.errors import UnsupportedModel

SHARD_BYTES = 2 * 1024**3
"""A shard is closed before it would pass this size, in bytes; assembling one is the writer's peak memory."""

_CARRIED_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
    "chat_template*", "generation_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip


class Checkpoint:
    """A supported checkpoint folder, read lazily.

    Raises:
        ModelNotFound, UnsupportedModel: as `checkpoint.inspect`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info = inspect(folder)
        self.raw_config = families.allowed_config(self.info.config)
        self.config = _checked_config(self.info.family, self.raw_config, folder.name)

    @property
    def kinds(self) -> list[str] | None:
        """What attention each layer uses, where the config says so; layers of different kinds cannot merge."""
        return getattr(self.config, "layer_types", None)

    @cached_property
    def _file_of(self) -> dict[str, Path]:
        located = {}
        for file in weight_files(self.folder):
            with safe_open(file, framework="pt") as tensors:
                located.update(dict.fromkeys(tensors.keys(), file))
        return located

    def tensor(self, name: str) -> Tensor:
        """One tensor in its stored dtype, on the CPU."""
        with safe_open(self._file_of[name], framework="pt") as tensors:
            return tensors.get_tensor(name)

    def layer(self, index: int) -> dict[str, Tensor]:
        """The tensors of decoder layer `index`, by their name within the layer."""
        prefix = f"{families.LAYER_PREFIX}{index}."
        with ExitStack() as stack:
            files = {
                file: stack.enter_context(safe_open(file, framework="pt"))
                for file in {f for name, f in self._file_of.items() if name.startswith(prefix)}
            }
            return {
                name.removeprefix(prefix): files[file].get_tensor(name)
                for name, file in self._file_of.items()
                if name.startswith(prefix) and not name.endswith("rotary_emb.inv_freq")
            }

    def outside_layers(self) -> list[str]:
        """The names of the tensors that belong to no layer: embeddings, final norm, output head."""
        return sorted(name for name in self._file_of if not name.startswith(families.LAYER_PREFIX))

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's tokenizer, from its files alone."""
        return AutoTokenizer.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)


def load_model(folder: Path, *, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The whole model in evaluation mode, its config reduced to the allowed keys and no code of its own run."""
    checkpoint = Checkpoint(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        config=checkpoint.config,
        dtype=dtype,
        attn_implementation="sdpa",
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
    return model.to(device).eval()  # type: ignore[arg-type]  # wrapped without torch's overloads


def _checked_config(family: families.Family, entries: dict[str, Any], name: str) -> PreTrainedConfig:
    """The config, after a model of one layer without memory was made of it; raises UnsupportedModel."""
    try:
        config = CONFIG_MAPPING[family.model_type].from_dict(entries)
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(CONFIG_MAPPING[family.model_type].from_dict(_one_layer(entries)))
    except Exception as error:  # the library raises what it likes
        raise UnsupportedModel(
            f"config.json of {name!r} is no valid {family.model_type} config ({type(error).__name__}: {error}).",
            field="model",
        ) from None
    return config


def _one_layer(entries: dict[str, Any]) -> dict[str, Any]:
    cut = {key: entries[key][:1] for key in families.PER_LAYER_LISTS if isinstance(entries.get(key), list)}
    return entries | {"num_hidden_layers": 1} | cut


class CheckpointWriter:
    """Collects finished layers on disk and assembles them into a stock checkpoint with fewer layers.

    Each layer goes to a file of its own at once, so memory never holds more than one; `assemble` packs the files
    into shards. `folder` is the caller's scratch space and must not be the final place. If it holds layers of an
    interrupted run of the same request, they are found again.
    """

    def __init__(self, source: Checkpoint, folder: Path) -> None:
        self._source = source
        self._layers = folder / "layers"
        self._layers.mkdir(parents=True, exist_ok=True)
        self._kinds: list[int] = []

    def add_layer(
        self, weights: Mapping[str, Tensor], *, first_member: int, record: Mapping[str, str] | None = None
    ) -> None:
        """Append a layer, durably; `first_member` is the source layer whose entry in per-layer config lists it takes.

        Tensors are stored in the dtype of the source's tensor of the same name.

        Args:
            record: what tells the layer from others, kept beside it.
        """
        file = self._layer_file(len(self._kinds))
        self._kinds.append(first_member)
        if record is not None and _record(file) == record:
            return
        stored = {
            name: tensor.detach().to("cpu", self._source.tensor(_member_name(first_member, name)).dtype).contiguous()
            for name, tensor in weights.items()
        }
        aside = file.with_suffix(".partial")
        save_file(stored, aside, metadata=dict(record or {}))
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(aside, file)

    def record(self, position: int) -> dict[str, str]:
        """The record of the layer that an interrupted run has finished at this place; empty if there is none."""
        return _record(self._layer_file(position))

    def layer(self, position: int) -> dict[str, Tensor]:
        """The finished layer at this place, as stored."""
        return load_file(self._layer_file(position))

    def assemble(self, out: Path, *, dtype: torch.dtype | None = None, shard_bytes: int = SHARD_BYTES) -> None:
        """Write the checkpoint to the new folder `out`: config, shards, tokenizer and what else came with it.

        Args:
            dtype: what all tensors are saved as; each as it was stored in the source if None.
        """
        out.mkdir(parents=True)
        names: dict[str, Path | None] = dict.fromkeys(self._source.outside_layers())
        for index in range(len(self._kinds)):
            with safe_open(self._layer_file(index), framework="pt") as tensors:
                names.update({_member_name(index, name): self._layer_file(index) for name in tensors.keys()})  # noqa: SIM118
        shard: dict[str, Tensor] = {}
        shards: list[list[str]] = []
        size = total = 0
        for name, file in names.items():
            tensor = self._read(name, file)
            tensor = tensor if dtype is None else tensor.to(dtype)
            if shard and size + tensor.nbytes > shard_bytes:
                shards.append(_save_shard(shard, out, len(shards)))
                shard, size = {}, 0
            shard[name] = tensor
            size += tensor.nbytes
            total += tensor.nbytes
        shards.append(_save_shard(shard, out, len(shards)))
        _name_shards(out, shards, total)
        self._write_config(out, dtype)
        for pattern in _CARRIED_FILES:
            for file in self._source.folder.glob(pattern):
                shutil.copyfile(file, out / file.name)

    def _layer_file(self, index: int) -> Path:
        return self._layers / f"{index:05d}.safetensors"

    def _read(self, name: str, file: Path | None) -> Tensor:
        if file is None:
            return self._source.tensor(name)
        with safe_open(file, framework="pt") as tensors:
            return tensors.get_tensor(name.removeprefix(families.LAYER_PREFIX).split(".", 1)[1])

    def _write_config(self, out: Path, dtype: torch.dtype | None) -> None:
        """The source's config with another number of layers; entries the source lacked stay out."""
        config = families.allowed_config(read_config(self._source.folder))
        config["num_hidden_layers"] = len(self._kinds)
        for key in families.PER_LAYER_LISTS:
            if config.get(key) is not None:
                config[key] = [config[key][member] for member in self._kinds]
        if dtype is not None:
            config["torch_dtype" if "torch_dtype" in config else "dtype"] = str(dtype).removeprefix("torch.")
        (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def replace_weights(checkpoint: Checkpoint, state: Mapping[str, Tensor]) -> None:
    """Give the checkpoint's tensors the values in `state`, file by file, each in its stored dtype."""
    for file in weight_files(checkpoint.folder):
        with safe_open(file, framework="pt") as tensors:
            dtypes = {name: tensors.get_tensor(name).dtype for name in tensors.keys()}  # noqa: SIM118
        replaced = {name: state[name].detach().to("cpu", dtype).contiguous() for name, dtype in dtypes.items()}
        aside = file.with_name(file.name + ".partial")
        save_file(replaced, aside, metadata={"format": "pt"})
        os.replace(aside, file)


def _record(file: Path) -> dict[str, str]:
    """The metadata of a layer's file; empty if there is none, or no file."""
    if not file.exists():
        return {}
    with safe_open(file, framework="pt") as tensors:
        return tensors.metadata() or {}


def _member_name(layer: int, name: str) -> str:
    return f"{families.LAYER_PREFIX}{layer}.{name}"


def _save_shard(tensors: dict[str, Tensor], out: Path, index: int) -> list[str]:
    save_file(tensors, out / f"shard-{index}.safetensors", metadata={"format": "pt"})
    return list(tensors)


def _name_shards(out: Path, shards: list[list[str]], total_size: int) -> None:
    """Give the shards the Hub's names, and an index if there is more than one."""
    if len(shards) == 1:
        os.rename(out / "shard-0.safetensors", out / "model.safetensors")
        return
    weight_map: dict[str, Any] = {}
    for index, names in enumerate(shards):
        file = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        os.rename(out / f"shard-{index}.safetensors", out / file)
        weight_map.update(dict.fromkeys(names, file))
    index_json = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    (out / "model.safetensors.index.json").write_text(json.dumps(index_json, indent=2) + "\n", encoding="utf-8")
