"""Mistral 7B (Jiang et al. 2023): Llama's block, with a sliding window in every layer."""

from collections.abc import Mapping
from typing import Any

from infercore.model_spec import ModelFamily, ModelSpec
from infercore.models.llama import llama_like
from infercore.models.settings import Settings


def build(config: Mapping[str, Any]) -> ModelSpec:
    settings = Settings(config)
    layers = settings.integer("num_hidden_layers")
    sliding = "sliding_window" not in config or config["sliding_window"] is not None
    window = settings.integer("sliding_window", 4096) if sliding else None
    everywhere = "sliding_attention" if sliding else "full_attention"
    types = settings.layer_types([everywhere] * layers, layers)
    if set(types) != {everywhere}:
        settings.refuse("layer_types", list(types), f"every layer must be {everywhere}")
    return llama_like(settings, windows=settings.windows(types, window), num_kv_heads=8)


FAMILY = ModelFamily("mistral", ("MistralForCausalLM",), build)
