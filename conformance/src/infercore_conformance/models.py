"""Tiny models, made here from a seed: no download, no golden text, the same on every machine.

A family's own `build` says which tensors a checkpoint of it holds, so a model of any family, a
vendor's own too, is written from its `config.json` alone.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from infercore.model_spec import ModelFamily, ModelSpec
from infercore.models.registry import ModelRegistry
from infercore.plugins import PluginManager
from infercore.quantization import QuantizationMethod

VOCAB = 160
MAX_POSITION = 512
WINDOW = 24  # of the families that have one
COMMON: Mapping[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": MAX_POSITION,
    "eos_token_id": 2,
    "dtype": "float32",
}
# architecture → settings beside the common ones
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {"sliding_window": WINDOW},
    "Qwen2ForCausalLM": {},
    "Qwen3ForCausalLM": {"head_dim": 16},
    "Gemma2ForCausalLM": {
        "num_hidden_layers": 4,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 12,
    },
    "GPT2LMHeadModel": {
        "n_embd": 48,
        "n_layer": 2,
        "n_head": 6,
        "n_positions": MAX_POSITION,
        "n_inner": 80,
    },
}


@cache
def families() -> tuple[ModelFamily, ...]:
    """Those that are installed; looked for once, since reading every distribution takes long."""
    return tuple(PluginManager().model_families())


@cache
def formats() -> tuple[type[QuantizationMethod], ...]:
    """The checkpoint formats that are installed."""
    return tuple(PluginManager().quantization_methods())


def served(architectures: tuple[str, ...] | None) -> tuple[str, ...]:
    """The architectures of which a tiny model can be made here and that a backend serves.

    architectures: `Capabilities.architectures`; None = those of every installed family.
    """
    installed = {name for family in families() for name in family.architectures}
    wanted = installed if architectures is None else set(architectures)
    return tuple(name for name in SETTINGS if name in wanted & installed)


def config_of(architecture: str, **overrides: Any) -> dict[str, Any]:
    """`config.json` of a tiny model; `overrides` by the names that its family uses."""
    settings = {"architectures": [architecture], **COMMON, **SETTINGS[architecture]}
    return {**settings, **overrides}


def write_model(folder: Path, config: Mapping[str, Any], *, seed: int = 0) -> ModelSpec:
    """Write `config.json` and `model.safetensors` to `folder`; returns the spec.

    Weights are normal, 1.5 / sqrt(fan-in) wide so that greedy choices have margins, and norms and
    biases are drawn too: one that is left out of the computation shows.
    """
    spec = ModelRegistry(families()).build(config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    save_file(_tensors(spec, np.random.default_rng(seed)), folder / "model.safetensors")
    return spec


def _tensors(spec: ModelSpec, random: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    centres = {f"{norm.name}.weight": 1.0 - norm.offset for norm in spec.norms()}
    transposed = {f"{linear.name}.weight" for linear in spec.linears() if linear.transposed}
    tensors = {}
    for name, shape in spec.tensors().items():
        noise = random.standard_normal(shape, np.float32)
        if len(shape) == 1:
            tensors[name] = np.float32(centres.get(name, 0.0)) + np.float32(0.2) * noise
        else:
            fan_in = shape[0] if name in transposed else shape[-1]
            tensors[name] = noise * np.float32(1.5 * fan_in**-0.5)
    return tensors
