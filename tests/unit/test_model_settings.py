"""Every setting of a `config.json` is used, known to be harmless, or refused by its name."""

from typing import Any

import pytest

from infercore.errors import PluginError, UnsupportedModel
from infercore.model_spec import ModelFamily, ModelSpec
from infercore.models.plugin import register_models
from infercore.models.registry import ModelRegistry

COMMON: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
}
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
REGISTRY = ModelRegistry(register_models())


def build(family: str, **settings: Any) -> ModelSpec:
    config = {**COMMON, "architectures": [ARCHITECTURES[family]], **settings}
    return REGISTRY.build({key: value for key, value in config.items() if value != "absent"})


def rope(**scaling: Any) -> dict[str, Any]:
    return {"rope_scaling": scaling}


# family, settings, what the message must name
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"hidden_size": "absent"}, "lacks hidden_size"),
    ("llama", {"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ("llama", {"num_hidden_layers": 2.0}, "num_hidden_layers is 2.0"),
    ("llama", {"vocab_size": "many"}, "vocab_size is 'many'"),
    ("llama", {"num_key_value_heads": 4}, "num_key_value_heads is 4; it must divide 6"),
    ("llama", {"hidden_act": "mish"}, "hidden_act is 'mish'; supported are gelu"),
    ("llama", {"attention_bias": 1}, "attention_bias is 1; it must be true or false"),
    ("llama", {"mlp_bias": "yes"}, "mlp_bias"),
    ("llama", {"sliding_window": 24}, "sliding_window is 24"),
    ("llama", {"rms_norm_eps": -1}, "rms_norm_eps is -1"),
    ("llama", {"rms_norm_eps": True}, "rms_norm_eps is True"),
    ("llama", {"torch_dtype": "float8_e4m3fn"}, "torch_dtype is 'float8_e4m3fn'"),
    ("llama", {"dtype": "int8"}, "dtype is 'int8'"),
    ("llama", {"tie_word_embeddings": "no"}, "tie_word_embeddings"),
    ("llama", {"rope_theta": 0}, "rope_theta is 0"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ("llama", rope(rope_type="longrope", factor=2), "rope_scaling.rope_type is 'longrope'"),
    ("llama", rope(type="dynamic", factor=2), "'dynamic'; supported are default, linear"),
    ("llama", rope(rope_type=["yarn"]), "rope_scaling.rope_type"),
    ("llama", rope(rope_type="linear"), "rope_scaling.factor is None"),
    ("llama", rope(rope_type="linear", factor=-2), "rope_scaling.factor is -2"),
    ("llama", rope(rope_type="linear", factor="2"), "rope_scaling.factor is '2'"),
    ("llama", rope(rope_type="linear", factor=2, beta_fast=1), "rope_scaling.beta_fast"),
    ("llama", rope(rope_type="llama3", factor=8), "rope_scaling.high_freq_factor"),
    ("llama", rope(full_attention={"rope_type": "default"}), "one object that holds for all"),
    ("llama", {"rope_parameters": {"rope_type": "odd"}}, "rope_parameters.rope_type is 'odd'"),
    ("mistral", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ("mistral", {"sliding_window": -1}, "sliding_window is -1"),
    ("qwen2", {"use_sliding_window": 1}, "use_sliding_window"),
    ("qwen2", {"use_sliding_window": True, "max_window_layers": -1}, "max_window_layers is -1"),
    ("qwen2", {"layer_types": ["full_attention"]}, "layer_types"),
    ("qwen2", {"layer_types": ["chunked_attention"] * 2}, "chunked_attention"),
    ("qwen2", {"layer_types": ["sliding_attention"] * 2}, "sliding_window is None"),
    ("qwen3", {"head_dim": 0}, "head_dim is 0"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma2", {"attn_logit_softcapping": 0}, "attn_logit_softcapping is 0"),
    ("gemma2", {"query_pre_attn_scalar": "x"}, "query_pre_attn_scalar"),
    ("gemma2", {"hidden_activation": "tanh"}, "hidden_act is 'tanh'"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
    ("gpt2", {"n_embd": 50}, "n_head is 12; it must divide n_embd, 50"),
    ("gpt2", {"activation_function": "selu"}, "activation_function is 'selu'"),
    ("gpt2", {"reorder_and_upcast_attn": 3}, "reorder_and_upcast_attn"),
]


@pytest.mark.parametrize(("family", "settings", "message"), REFUSED)
def test_what_cannot_be_used_is_refused_by_name(
    family: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        build(family, **settings)
    assert message in str(caught.value)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize("given", [None, "LlamaForCausalLM", [], ["A", "B"], 3])
def test_one_architecture_must_be_named(given: object) -> None:
    with pytest.raises(UnsupportedModel, match="it must name one of GPT2LMHeadModel, Gemma2"):
        REGISTRY.build({**COMMON, "architectures": given})


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedModel, match="no model family serves 'BertModel'") as caught:
        REGISTRY.build({**COMMON, "architectures": ["BertModel"]})
    assert all(name in str(caught.value) for name in ARCHITECTURES.values())


def test_two_families_may_not_claim_one_architecture() -> None:
    def never(config: object) -> ModelSpec:
        raise AssertionError

    other = ModelFamily("other", ("LlamaForCausalLM",), never)
    with pytest.raises(PluginError, match="'llama' and 'other' both claim LlamaForCausalLM"):
        ModelRegistry([*register_models(), other])


def test_the_windows_of_each_family() -> None:
    def windows(family: str, **settings: Any) -> list[int | None]:
        layers = build(family, num_hidden_layers=4, **settings).layers
        return [layer.attention.window for layer in layers]

    assert windows("llama") == [None] * 4
    assert windows("mistral") == [4096] * 4
    assert windows("mistral", sliding_window=None) == [None] * 4
    assert windows("qwen2", sliding_window=24) == [None] * 4
    assert windows("qwen2", use_sliding_window=True, sliding_window=24) == [None] * 4
    mixed = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 3}
    assert windows("qwen3", **mixed) == [None, None, None, 24]
    assert windows("gemma2", sliding_window=24) == [24, None, 24, None]
    types = ["full_attention"] * 3 + ["sliding_attention"]
    assert windows("gemma2", sliding_window=24, layer_types=types) == [None, None, None, 24]


def test_a_null_means_what_the_family_means() -> None:
    for key in ("rope_theta", "rope_scaling", "hidden_act", "rms_norm_eps", "head_dim"):
        assert build("llama", **{key: None}) == build("llama")
    assert build("llama", num_key_value_heads=None).layers[0].attention.num_kv_heads == 6
    assert build("gemma2", head_dim=None).layers[0].attention.head_dim == 256
    assert build("gemma2", final_logit_softcapping=None).logit_softcap is None
    assert build("gemma2").logit_softcap == 30.0


def test_both_spellings_of_rope_and_dtype_say_the_same() -> None:
    old = build("llama", rope_theta=5e5, **rope(type="linear", factor=2.0))
    new = build("llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5})
    assert old == new
    assert old.layers[0].attention.rope is not None
    assert old.layers[0].attention.rope.theta == 5e5
    assert build("llama", dtype="bfloat16", torch_dtype="absent") == build("llama")
    assert build("llama", torch_dtype="absent").dtype == "float32"


@pytest.mark.parametrize("kind", ["yarn", "llama3"])
def test_the_original_length_is_the_files_or_the_models(kind: str) -> None:
    more = {"low_freq_factor": 1, "high_freq_factor": 4} if kind == "llama3" else {}

    def original(**settings: Any) -> Any:
        spec = build("llama", **settings).layers[0].attention.rope
        assert spec is not None
        return spec.scaling["original_max_position_embeddings"]

    scaling = {"rope_type": kind, "factor": 4, **more}
    assert original(rope_scaling=scaling) == 512
    assert original(rope_scaling={**scaling, "original_max_position_embeddings": 128}) == 128
    assert original(rope_scaling=scaling, original_max_position_embeddings=64) == 64


def test_a_specs_arithmetic() -> None:
    spec = build("llama", tie_word_embeddings=True)
    attention = 48 * (48 + 2 * 16) + 48 * 48
    layer = attention + 3 * 48 * 80 + 2 * 48
    assert spec.num_parameters == 100 * 48 + 2 * layer + 48
    assert spec.kv_bytes_per_token(2) == 2 * 2 * 2 * 8 * 2
    assert build("llama").num_parameters == spec.num_parameters + 100 * 48
