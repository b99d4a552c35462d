"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm, one fused and transposed qkv."""

from collections.abc import Mapping
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


def build(config: Mapping[str, Any]) -> ModelSpec:
    settings = Settings(config)
    settings.require("add_cross_attention", False)
    settings.flag("reorder_and_upcast_attn", False)  # the order of rounding only
    hidden = settings.integer("n_embd", 768)
    heads = settings.integer("n_head", 12)
    inner = settings.integer("n_inner", 4 * hidden)
    eps = settings.number("layer_norm_epsilon", 1e-5)
    activation = settings.activation("activation_function", "gelu_new")
    scaled = settings.flag("scale_attn_weights", True)
    by_layer = settings.flag("scale_attn_by_inverse_layer_idx", False)
    if hidden % heads:
        settings.refuse("n_head", heads, f"it must divide n_embd, {hidden}")

    def norm(name: str) -> NormSpec:
        return NormSpec(f"transformer.{name}", hidden, eps, centered=True, bias=True)

    def layer(index: int) -> LayerSpec:
        def conv(
            name: str, size: int, out: int, shard: Shard, parts: tuple[int, ...] = ()
        ) -> LinearSpec:
            path = f"transformer.h.{index}.{name}"
            return LinearSpec(path, size, out, shard, bias=True, parts=parts, transposed=True)

        scale = (hidden // heads) ** -0.5 if scaled else 1.0
        return LayerSpec(
            pre_attention=norm(f"h.{index}.ln_1"),
            attention=AttentionSpec(
                num_heads=heads,
                num_kv_heads=heads,
                head_dim=hidden // heads,
                scale=scale / (index + 1) if by_layer else scale,
                qkv=(conv("attn.c_attn", hidden, 3 * hidden, Shard.COLUMN, (hidden,) * 3),),
                out=conv("attn.c_proj", hidden, hidden, Shard.ROW),
            ),
            pre_mlp=norm(f"h.{index}.ln_2"),
            mlp=MlpSpec(
                inputs=(conv("mlp.c_fc", hidden, inner, Shard.COLUMN),),
                down=conv("mlp.c_proj", inner, hidden, Shard.ROW),
                activation=activation,
                gated=False,
            ),
        )

    vocab = settings.integer("vocab_size", 50257)
    return ModelSpec(
        architecture=settings.architecture,
        vocab_size=vocab,
        hidden_size=hidden,
        max_position=settings.integer("n_positions", 1024),
        dtype=settings.dtype(),
        embedding="transformer.wte.weight",
        position_embedding="transformer.wpe.weight",
        layers=tuple(layer(index) for index in range(settings.integer("n_layer", 12))),
        final_norm=norm("ln_f"),
        head=LinearSpec("lm_head", hidden, vocab, Shard.COLUMN),
        tied=settings.flag("tie_word_embeddings", True),
        quantization=settings.config.get("quantization_config") or {},
    )


FAMILY = ModelFamily("gpt2", ("GPT2LMHeadModel",), build)
