"""Qwen 3 (Yang et al. 2025): q and k are normalized per head; no biases."""

from collections.abc import Mapping
from typing import Any

from infercore.model_spec import ModelFamily, ModelSpec
from infercore.models.llama import llama_like
from infercore.models.qwen2 import qwen_windows
from infercore.models.settings import Settings


def build(config: Mapping[str, Any]) -> ModelSpec:
    settings = Settings(config)
    bias = settings.flag("attention_bias", False)
    return llama_like(
        settings,
        windows=qwen_windows(settings),
        head_dim=128,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=True,
    )


FAMILY = ModelFamily("qwen3", ("Qwen3ForCausalLM",), build)
