"""Small random checkpoints of each family, real in every file: config, safetensors, tokenizer."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

CONFIGS: dict[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
}


def tiny_config(family: str, *, grouped: bool = True, **overrides: Any) -> PreTrainedConfig:
    """Width 32, 4 heads of 8 (2 key/value heads if grouped), 48 channels, 6 layers, byte vocabulary."""
    sizes = {
        "vocab_size": 256,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2 if grouped else 4,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    return CONFIGS[family](**(sizes | overrides))


def tiny_checkpoint(
    folder: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    grouped: bool = True,
    stored: torch.dtype = torch.float32,
    **overrides: Any,
) -> Path:
    """Save a random model with a byte tokenizer; norm gains and biases are random too, so that folding shows."""
    torch.manual_seed(seed)
    config = tiny_config(family, grouped=grouped, **overrides)
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.uniform_(-0.1, 0.1)
            else:
                parameter.normal_(std=0.15)
    model.to(stored).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
