"""What the core must know of an architecture. Data only: imports no torch and reads no file.

All families here are pre-norm decoders with RMSNorm, rotary positions, (grouped-query) softmax attention and a
gated MLP, whose tensors are named as in Llama. To add one: its layer must be computable as
`r = h + A(norm1(h)); out = r + M(norm2(r))` with `A` a sum over key/value groups and `M` a sum over channels, and
`tests/core/test_flatten.py` must pass for it. Qwen3 is left out because its per-head q/k norms are shared by all
heads of a layer, so heads of two layers cannot stand in one stock layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flattengpt_core.errors import UnsupportedModel

QUERY, KEY, VALUE, OUTPUT = (f"self_attn.{name}_proj" for name in "qkvo")
GATE, UP, DOWN = "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"
INPUT_NORM, MLP_NORM = "input_layernorm", "post_attention_layernorm"
LAYER_PREFIX = "model.layers."
EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"

PER_LAYER_LISTS = ("layer_types",)
"""Config entries that hold one value a layer and shrink with the model."""

_CONFIG_KEYS = frozenset(
    """architectures attention_bias attention_dropout bos_token_id dtype eos_token_id head_dim hidden_act
    hidden_size initializer_range intermediate_size layer_types max_position_embeddings max_window_layers mlp_bias
    model_type num_attention_heads num_hidden_layers num_key_value_heads pad_token_id pretraining_tp rms_norm_eps
    rope_parameters rope_scaling rope_theta sliding_window tie_word_embeddings torch_dtype transformers_version
    unk_token_id use_cache use_sliding_window vocab_size""".split()
)


@dataclass(frozen=True)
class Family:
    """One supported architecture."""

    model_type: str
    architecture: str
    gguf_architecture: str


FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("llama", "LlamaForCausalLM", "llama"),
        Family("mistral", "MistralForCausalLM", "llama"),
        Family("qwen2", "Qwen2ForCausalLM", "qwen2"),
    )
}


def supported() -> str:
    """What can be compressed, as the words of an error message."""
    names = ", ".join(family.architecture for family in FAMILIES.values())
    return f"Supported are {names}, as unquantised safetensors (float32, bfloat16, float16) or as GGUF."


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a `config.json`.

    Raises:
        UnsupportedModel: the architecture is unknown, the checkpoint is quantised (GPTQ, AWQ, bitsandbytes ...) or
            the config asks for code of its own (`auto_map`); the message lists what is supported.
    """
    quantisation = config.get("quantization_config")
    if quantisation:
        method = quantisation.get("quant_method", "unknown") if isinstance(quantisation, Mapping) else "unknown"
        raise UnsupportedModel(
            f"The checkpoint is quantised ({method}): compress the unquantised original. {supported()}", field="model"
        )
    if config.get("auto_map"):
        raise UnsupportedModel(
            f"The checkpoint needs code of its own (auto_map), which is never run. {supported()}", field="model"
        )
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        raise UnsupportedModel(
            f"The model type {config.get('model_type')!r} is not supported. {supported()}", field="model"
        )
    return family


def allowed_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` reduced to the keys that a supported family needs, so that no key can lead to foreign code.

    Transformers before 5.3 followed an attention implementation named in config.json (CVE-2026-4372); an
    allow-list closes that whole class.
    """
    return {key: value for key, value in config.items() if key in _CONFIG_KEYS}
