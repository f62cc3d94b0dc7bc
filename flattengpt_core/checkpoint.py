"""Find a checkpoint on disk and say what it is, from its config and tensor headers alone. Imports no torch.

Never reads weights and never runs anything from the checkpoint; `models` opens what this module has checked.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from flattengpt_core import families
from flattengpt_core.errors import ModelNotFound, UnsupportedModel
from flattengpt_core.gguf_header import read_header
from flattengpt_core.local_names import LOCAL, NAME_WORDS, local_name

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_FLOATS = {"F32", "F16", "BF16"}


@dataclass(frozen=True)
class LocalModel:
    """A checkpoint folder, or a .gguf file, on this machine."""

    path: Path


@dataclass(frozen=True)
class HubModel:
    """A repository of the Hugging Face Hub."""

    repo_id: str


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint is. `parameters` counts each stored weight once; `config` is the raw config.json."""

    path: Path
    format: str
    family: families.Family
    num_layers: int
    parameters: int
    config: dict[str, Any]


def resolve(model: str, models_dir: Path, *, allow_paths: bool = False) -> LocalModel | HubModel:
    """Where the model named in a request lives.

    `local:NAME` is `models_dir/NAME`, a folder or a .gguf file. Folders and .gguf paths are understood only with
    `allow_paths`, which the command line sets and the service does not.

    Raises:
        ModelNotFound: the name is malformed, leaves `models_dir` (also by a link), or nothing is there.
    """
    if model.startswith(LOCAL):
        name = local_name(model)
        if name is None:
            raise ModelNotFound(
                f"{model!r} is not a local model's name: after {LOCAL!r} comes {NAME_WORDS}, without folders.",
                field="model",
            )
        try:
            path = (models_dir / name).resolve()
        except RuntimeError:  # links that lead in a circle; an OSError since Python 3.13
            path = models_dir.resolve() / name
        if not path.is_relative_to(models_dir.resolve()):
            raise ModelNotFound(f"{model!r} leads out of the model folder, which is refused.", field="model")
        if not path.exists():
            raise ModelNotFound(f"There is no local model {name!r} in the model folder.", field="model")
        return LocalModel(path)
    if allow_paths and Path(model).exists():
        return LocalModel(Path(model).resolve())
    if _HUB_ID.fullmatch(model) and ".." not in model:
        return HubModel(model)
    raise ModelNotFound(
        f"{model!r} names no model: give a Hub id ('org/name') or a local model ('local:NAME')"
        + (", or an existing folder or .gguf file." if allow_paths else "."),
        field="model",
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json as a dict; raises ModelNotFound or UnsupportedModel with what is wrong."""
    file = folder / "config.json"
    if not file.is_file():
        raise ModelNotFound(f"{folder.name!r} is no checkpoint: it has no config.json.", field="model")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnsupportedModel(f"config.json of {folder.name!r} is not valid JSON: {error}.", field="model") from None
    if not isinstance(config, dict):
        raise UnsupportedModel(f"config.json of {folder.name!r} is not a JSON object.", field="model")
    return config


def inspect(path: Path) -> CheckpointInfo:
    """Say what the checkpoint at `path` is, or why it cannot be compressed.

    Raises:
        ModelNotFound: nothing usable is at `path`.
        UnsupportedModel: unknown family, quantised, or tensors that do not fit the config.
    """
    if path.suffix == ".gguf" and path.is_file():
        return _inspect_gguf(path)
    if not path.is_dir():
        raise ModelNotFound(f"{path.name!r} is neither a checkpoint folder nor a .gguf file.", field="model")
    config = read_config(path)
    family = families.family_of(config)
    shapes, dtypes = _safetensors_headers(path)
    wrong = dtypes - _FLOATS
    if wrong:
        raise UnsupportedModel(
            f"{path.name!r} holds tensors of type {', '.join(sorted(wrong))}. {families.supported()}", field="model"
        )
    num_layers = _check_layers(path.name, config, shapes)
    parameters = sum(math.prod(shape) for shape in shapes.values())
    return CheckpointInfo(path, "safetensors", family, num_layers, parameters, config)


def weight_files(folder: Path) -> list[Path]:
    """The folder's safetensors files, in name order."""
    return sorted(folder.glob("*.safetensors"))


def _safetensors_headers(folder: Path) -> tuple[dict[str, tuple[int, ...]], set[str]]:
    """Shape by tensor name, and the set of dtypes; the library checks header size and offsets."""
    files = weight_files(folder)
    if not files:
        raise UnsupportedModel(
            f"{folder.name!r} has no .safetensors file; pickled weights (.bin, .pt) are never loaded. "
            f"{families.supported()}",
            field="model",
        )
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: set[str] = set()
    for file in files:
        try:
            with safe_open(file, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - safe_open is no dict
                    view = tensors.get_slice(name)
                    shapes[name] = tuple(view.get_shape())
                    dtypes.add(view.get_dtype())
        except (SafetensorError, OSError) as error:
            raise UnsupportedModel(f"{file.name} is not a valid safetensors file: {error}.", field="model") from None
    return shapes, dtypes


def _check_layers(name: str, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> int:
    """The number of layers, after checking that each has the projections its config promises."""
    sizes = {}
    for key in ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads"):
        sizes[key] = _size(name, config, key, None)
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    head_dim = _size(name, config, "head_dim", hidden // heads)
    kv_heads = _size(name, config, "num_key_value_heads", heads)
    expected = {
        families.QUERY: (heads * head_dim, hidden),
        families.KEY: (kv_heads * head_dim, hidden),
        families.VALUE: (kv_heads * head_dim, hidden),
        families.OUTPUT: (hidden, heads * head_dim),
        families.GATE: (sizes["intermediate_size"], hidden),
        families.UP: (sizes["intermediate_size"], hidden),
        families.DOWN: (hidden, sizes["intermediate_size"]),
    }
    for layer in range(sizes["num_hidden_layers"]):
        for projection, shape in expected.items():
            tensor = f"{families.LAYER_PREFIX}{layer}.{projection}.weight"
            if shapes.get(tensor) != shape:
                raise UnsupportedModel(
                    f"{name!r} does not fit its config.json: {tensor} should have shape {shape}, "
                    f"found {shapes.get(tensor)}.",
                    field="model",
                )
    return sizes["num_hidden_layers"]


def _size(name: str, config: dict[str, Any], key: str, default: int | None) -> int:
    """A positive whole number of the config; `default` where the config says nothing, if there is one."""
    value = config.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnsupportedModel(f"config.json of {name!r} has no valid {key} ({value!r}).", field="model")
    return value


def _inspect_gguf(path: Path) -> CheckpointInfo:
    try:
        header = read_header(path)
        architecture = header.entries["general.architecture"]
        blocks = header.entries[f"{architecture}.block_count"]
    except KeyError as error:
        raise UnsupportedModel(f"{path.name!r} does not say its {error.args[0]}.", field="model") from None
    except (ValueError, OSError) as error:
        raise UnsupportedModel(f"{path.name!r} is not a readable GGUF file ({error}).", field="model") from None
    if not isinstance(blocks, int) or blocks < 1:
        raise UnsupportedModel(f"{path.name!r} has no valid block_count ({blocks!r}).", field="model")
    for family in families.FAMILIES.values():
        if family.gguf_architecture == architecture:
            return CheckpointInfo(path, "gguf", family, blocks, header.parameters, {})
    raise UnsupportedModel(
        f"The GGUF architecture {architecture!r} is not supported. {families.supported()}", field="model"
    )
