"""Turn a GGUF file into a plain checkpoint folder. Knows nothing of compression.

Transformers loads GGUF by dequantising, but refuses to save such a model; the weights are carried into a plain
model of the same config without the quantisation entry.
"""

import os
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from flattengpt_core.checkpoint import inspect
from flattengpt_core.errors import UnsupportedModel


def convert(gguf: Path, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write the model and tokenizer of `gguf` to the new checkpoint folder `folder`, under its final name at once.

    Raises:
        UnsupportedModel: the file is not a readable GGUF of a supported architecture.
    """
    info = inspect(gguf)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=dtype)
    if loaded.config.model_type != info.family.model_type:
        raise UnsupportedModel(f"{gguf.name} holds a {loaded.config.model_type} model.", field="model")
    entries = {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    plain = type(loaded)(type(loaded.config).from_dict(entries)).to(dtype)  # type: ignore[arg-type]  # wrapped without torch's overloads
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    plain.save_pretrained(aside)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(aside)
    os.replace(aside, folder)
