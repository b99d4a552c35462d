"""Llama (Touvron et al. 2023), and the block that its descendants share."""

from collections.abc import Mapping, Sequence
from typing import Any

from infercore.model_spec import (
    AttentionSpec,
    LayerSpec,
    LinearSpec,
    MlpSpec,
    ModelFamily,
    ModelSpec,
    NormSpec,
    Shard,
)
from infercore.models.settings import Settings


def llama_like(
    settings: Settings,
    *,
    windows: Sequence[int | None] | None = None,
    head_dim: int | None = None,
    num_kv_heads: int | None = None,
    qkv_bias: bool = False,
    out_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
) -> ModelSpec:
    """RMSNorm before each branch, rotated grouped-query attention, gated MLP.

    windows: per layer; None = full attention everywhere. head_dim and num_kv_heads are what the
    family means where the file says nothing.
    """
    hidden = settings.integer("hidden_size")
    layers = settings.integer("num_hidden_layers")
    heads = settings.integer("num_attention_heads")
    kv_heads = settings.integer("num_key_value_heads", num_kv_heads or heads)
    dim = settings.integer("head_dim", head_dim or hidden // heads)
    inner = settings.integer("intermediate_size")
    eps = settings.number("rms_norm_eps", 1e-6)
    activation = settings.activation("hidden_act", "silu")
    rope = settings.rope(dim)
    if heads % kv_heads:
        settings.refuse("num_key_value_heads", kv_heads, f"it must divide {heads} heads")

    def layer(index: int) -> LayerSpec:
        block = f"model.layers.{index}"
        attention = f"{block}.self_attn"

        def norm(name: str, size: int) -> NormSpec:
            return NormSpec(f"{block}.{name}", size, eps)

        return LayerSpec(
            pre_attention=norm("input_layernorm", hidden),
            attention=AttentionSpec(
                num_heads=heads,
                num_kv_heads=kv_heads,
                head_dim=dim,
                scale=dim**-0.5,
                qkv=(
                    LinearSpec(f"{attention}.q_proj", hidden, heads * dim, Shard.COLUMN, qkv_bias),
                    LinearSpec(
                        f"{attention}.k_proj", hidden, kv_heads * dim, Shard.COLUMN, qkv_bias
                    ),
                    LinearSpec(
                        f"{attention}.v_proj", hidden, kv_heads * dim, Shard.COLUMN, qkv_bias
                    ),
                ),
                out=LinearSpec(f"{attention}.o_proj", heads * dim, hidden, Shard.ROW, out_bias),
                rope=rope,
                window=windows[index] if windows else None,
                q_norm=norm("self_attn.q_norm", dim) if qk_norm else None,
                k_norm=norm("self_attn.k_norm", dim) if qk_norm else None,
            ),
            pre_mlp=norm("post_attention_layernorm", hidden),
            mlp=MlpSpec(
                inputs=(
                    LinearSpec(f"{block}.mlp.gate_proj", hidden, inner, Shard.COLUMN, mlp_bias),
                    LinearSpec(f"{block}.mlp.up_proj", hidden, inner, Shard.COLUMN, mlp_bias),
                ),
                down=LinearSpec(f"{block}.mlp.down_proj", inner, hidden, Shard.ROW, mlp_bias),
                activation=activation,
                gated=True,
            ),
        )

    vocab = settings.integer("vocab_size")
    return ModelSpec(
        architecture=settings.architecture,
        vocab_size=vocab,
        hidden_size=hidden,
        max_position=settings.integer("max_position_embeddings"),
        dtype=settings.dtype(),
        embedding="model.embed_tokens.weight",
        layers=tuple(layer(index) for index in range(layers)),
        final_norm=NormSpec("model.norm", hidden, eps),
        head=LinearSpec("lm_head", hidden, vocab, Shard.COLUMN),
        tied=settings.flag("tie_word_embeddings", False),
        quantization=settings.config.get("quantization_config") or {},
    )


def build(config: Mapping[str, Any]) -> ModelSpec:
    settings = Settings(config)
    settings.require("sliding_window", None)
    bias = settings.flag("attention_bias", False)
    return llama_like(
        settings, qkv_bias=bias, out_bias=bias, mlp_bias=settings.flag("mlp_bias", False)
    )


FAMILY = ModelFamily("llama", ("LlamaForCausalLM",), build)
