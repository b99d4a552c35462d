"""Qwen 2 and 2.5 (Yang et al. 2024): Llama's block, with biases on q, k and v."""

from collections.abc import Mapping
from typing import Any

from infercore.model_spec import ModelFamily, ModelSpec
from infercore.models.llama import llama_like
from infercore.models.settings import Settings


def qwen_windows(settings: Settings) -> tuple[int | None, ...]:
    """Layers from `max_window_layers` on have a window, if `use_sliding_window` says so."""
    layers = settings.integer("num_hidden_layers")
    window = None
    if settings.flag("use_sliding_window", False):
        window = settings.integer("sliding_window", 4096)
    first = layers if window is None else settings.config.get("max_window_layers", 28)
    if type(first) is not int or first < 0:
        settings.refuse("max_window_layers", first, "it must be a number of layers")
    default = ["full_attention" if i < first else "sliding_attention" for i in range(layers)]
    return settings.windows(settings.layer_types(default, layers), window)


def build(config: Mapping[str, Any]) -> ModelSpec:
    settings = Settings(config)
    return llama_like(settings, windows=qwen_windows(settings), qkv_bias=True)


FAMILY = ModelFamily("qwen2", ("Qwen2ForCausalLM",), build)
