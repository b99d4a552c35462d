"""Seeded tiny random checkpoints of every model family, written by transformers itself."""

from pathlib import Path
from typing import Any

import torch
import transformers

VOCAB = 160
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# family → (transformers' configuration class, settings beside the common ones)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {"sliding_window": 24}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "gemma2": (
        "Gemma2Config",
        {"num_hidden_layers": 4, "sliding_window": 24, "query_pre_attn_scalar": 12},
    ),
    "gpt2": ("GPT2Config", {}),
}
GPT2_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
}


def tiny_config(family: str, **overrides: Any) -> Any:
    """transformers' configuration of a tiny model; `overrides` in its own names."""
    name, settings = FAMILIES[family]
    values = {**COMMON, **settings, **overrides}
    if family == "gpt2":
        values = {GPT2_NAMES.get(key, key): value for key, value in values.items()}
        del values["num_key_value_heads"], values["head_dim"]
    return getattr(transformers, name)(**values)


def make_tiny(
    path: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> Any:
    """Write a model folder to `path` and return transformers' model, in float32 and eager.

    Weights are drawn wide enough for greedy choices to have margins, norms and biases included,
    and rounded to `dtype`, in which they are stored.
    """
    config = tiny_config(family, **overrides)
    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                # Gemma's norms add 1 themselves
                middle = float("norm" in name or "ln_" in name) * (family != "gemma2")
                parameter.copy_(middle * (name[-4:] != "bias") + 0.2 * noise)
            else:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5 * 1.5)
    for parameter in model.parameters():  # the buffers of rope are never stored, nor rounded
        parameter.data = parameter.data.to(dtype)
    model.save_pretrained(path)
    return model.float().eval()
