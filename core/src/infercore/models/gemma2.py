"""Gemma 2 (Gemma Team 2024): norms around each branch, soft caps, every other layer windowed."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from infercore.model_spec import LayerSpec, ModelFamily, ModelSpec, NormSpec
from infercore.models.llama import llama_like
from infercore.models.settings import Settings


def build(config: Mapping[str, Any]) -> ModelSpec:
    # transformers reads `hidden_activation`; `hidden_act` is a relic in published files
    activation = config.get("hidden_activation") or "gelu_pytorch_tanh"
    tied = config.get("tie_word_embeddings", True)
    settings = Settings({**config, "hidden_act": activation, "tie_word_embeddings": tied})
    settings.require("use_bidirectional_attention", False)
    layers = settings.integer("num_hidden_layers")
    window = settings.integer("sliding_window", 4096)
    alternating = [("sliding_attention", "full_attention")[i % 2] for i in range(layers)]
    types = settings.layer_types(alternating, layers)
    bias = settings.flag("attention_bias", False)
    base = llama_like(
        settings,
        windows=settings.windows(types, window),
        head_dim=256,
        num_kv_heads=4,
        qkv_bias=bias,
        out_bias=bias,
    )
    scale = settings.number("query_pre_attn_scalar", 256) ** -0.5
    softcap = settings.optional_number("attn_logit_softcapping", 50.0)
    return replace(
        base,
        layers=tuple(_layer(layer, scale, softcap) for layer in base.layers),
        final_norm=_offset(base.final_norm),
        embedding_scale=base.hidden_size**0.5,
        logit_softcap=settings.optional_number("final_logit_softcapping", 30.0),
    )


def _layer(layer: LayerSpec, scale: float, softcap: float | None) -> LayerSpec:
    """Llama's layer, whose second norm moves behind the attention branch."""
    after_attention = _offset(layer.pre_mlp)
    block = after_attention.name.removesuffix(".post_attention_layernorm")
    return replace(
        layer,
        pre_attention=_offset(layer.pre_attention),
        attention=replace(layer.attention, scale=scale, softcap=softcap),
        post_attention=after_attention,
        pre_mlp=replace(after_attention, name=f"{block}.pre_feedforward_layernorm"),
        post_mlp=replace(after_attention, name=f"{block}.post_feedforward_layernorm"),
    )


def _offset(norm: NormSpec) -> NormSpec:
    return replace(norm, offset=1.0)


FAMILY = ModelFamily("gemma2", ("Gemma2ForCausalLM",), build)
