"""What the files of an uploaded model may be, beyond what the core checks of every model. Reads JSON, runs nothing."""

import json
import re
from pathlib import Path
from typing import Any

from jobs.errors import UploadRefused

INDEX = "model.safetensors.index.json"
_READ_HERE = frozenset(
    ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
     "chat_template.json", "flattengpt.json", INDEX)
)  # fmt: skip
_OTHERS = frozenset(
    ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "README.md",
     "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.md", "NOTICE.txt", "USE_POLICY.md")
)  # fmt: skip
_WEIGHTS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\.safetensors")
_READ_HERE_BYTES, _OTHERS_BYTES = 16_000_000, 128_000_000

# A list of what is allowed, since other names can be more than data: an adapter_config.json makes transformers load
# another model, a pytorch_model.bin is a program.


def largest(name: str) -> int | None:
    """The most bytes that the file may have; None for weights, which have no limit of their own.

    Raises:
        UploadRefused: a model has no such file.
    """
    if _WEIGHTS.fullmatch(name):
        return None
    if name in _READ_HERE:
        return _READ_HERE_BYTES
    if name in _OTHERS:
        return _OTHERS_BYTES
    raise UploadRefused(f"{name!r} is not taken: {_reason(name)}", field=name)


def check(folder: Path) -> None:
    """Make sure that the JSON files are, name no code, and that the weights are where transformers looks for them.

    Raises:
        UploadRefused: with the file's name.
    """
    entries = {name: _object(folder / name) for name in sorted(_READ_HERE) if (folder / name).exists()}
    for name, found in entries.items():
        if found.get("auto_map"):
            raise UploadRefused(f"{name} asks for code of its own (auto_map), which is never run.", field=name)
    weights = {file.name for file in folder.glob("*.safetensors")}
    if INDEX in entries:
        _check_index(entries[INDEX], weights)
    elif weights and "model.safetensors" not in weights:
        raise UploadRefused(
            f"The weights must be in model.safetensors, or {INDEX} must say where each is.", field=min(weights)
        )


def _check_index(index: dict[str, Any], weights: set[str]) -> None:
    places = index.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise UploadRefused(f"{INDEX} has no weight_map from tensors to files.", field=INDEX)
    missing = sorted(set(places.values()) - weights)
    if missing:
        raise UploadRefused(f"{INDEX} names {missing[0]!r}, which is not in the archive.", field=INDEX)


def _object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UploadRefused(f"{file.name} is not valid JSON: {error}.", field=file.name) from None
    if not isinstance(found, dict):
        raise UploadRefused(f"{file.name} is not a JSON object.", field=file.name)
    return found


def _reason(name: str) -> str:
    if "/" in name or "\\" in name:
        return "a model is a flat folder; pack its files without the folder's name, e.g. with `tar -cf - *` in it."
    if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npz", ".h5", ".msgpack")):
        return "only .safetensors holds weights that cannot run anything; convert them first."
    if name.endswith(".gguf"):
        return "send a .gguf file as the body itself, as application/octet-stream, under a name that ends in .gguf."
    return f"a model may have *.safetensors, {', '.join(sorted(_READ_HERE | _OTHERS))}."
