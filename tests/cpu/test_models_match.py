"""Every family against transformers: float32, eager attention, the same tiny checkpoint."""

from pathlib import Path
from typing import Any

import pytest

from infercore.executor import GroupKind
from model_runs import PROMPTS, check, greedy, load
from tiny_models import FAMILIES, make_tiny

CASES = [
    (family, heads)
    for family in FAMILIES
    for heads in (("grouped", "equal") if family != "gpt2" else ("equal",))
]


@pytest.mark.parametrize(("family", "heads"), CASES)
def test_greedy_tokens_and_logits_equal_transformers(
    tmp_path: Path, family: str, heads: str
) -> None:
    oracle = make_tiny(tmp_path, family, num_key_value_heads=2 if heads == "grouped" else 6)
    runner = load(tmp_path)
    for ids, logits in zip(*greedy(runner, PROMPTS), strict=True):
        check(oracle, ids, logits)


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("family", FAMILIES)
def test_chunked_prefill_equals_transformers(tmp_path: Path, family: str, chunk: int) -> None:
    """Rows reach their decode at different steps, so chunks and decodes share steps."""
    oracle = make_tiny(tmp_path, family)
    lengths = (1, 17, 70) if chunk == 1 else (1, 17, 200)
    for ids, logits in zip(*greedy(load(tmp_path), lengths, tokens=8, chunk=chunk), strict=True):
        check(oracle, ids, logits)


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
HALF_WINDOWED = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}
# name → (family, transformers' settings)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, linear rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}},
    ),
    "llama 3 rope": ("llama", {"rope_parameters": LLAMA3}),
    "llama, yarn": ("llama", {"rope_parameters": YARN}),
    "llama, odd head size": ("llama", {"head_dim": 12, "hidden_act": "gelu"}),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "mistral, head size": ("mistral", {"head_dim": 16}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, some windows": ("qwen2", {**HALF_WINDOWED, "num_hidden_layers": 3}),
    "qwen3, some windows": ("qwen3", {**HALF_WINDOWED, "num_hidden_layers": 3}),
    "qwen3, biases, yarn": ("qwen3", {"attention_bias": True, "rope_parameters": YARN}),
    "gemma2, no soft caps": (
        "gemma2",
        {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "gemma2, tight soft caps": (
        "gemma2",
        {"attn_logit_softcapping": 0.7, "final_logit_softcapping": 1.5, "attention_bias": True},
    ),
    "gpt2, untied": ("gpt2", {"tie_word_embeddings": False}),
    "gpt2, scaled by layer": (
        "gpt2",
        {"scale_attn_by_inverse_layer_idx": True, "activation_function": "relu"},
    ),
    "gpt2, unscaled": ("gpt2", {"scale_attn_weights": False, "intermediate_size": 100}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_settings_mean_what_they_mean_in_transformers(tmp_path: Path, name: str) -> None:
    family, settings = VARIANTS[name]
    oracle = make_tiny(tmp_path, family, **settings)
    runner = load(tmp_path)
    for ids, logits in zip(*greedy(runner, (1, 33, 150), tokens=12), strict=True):
        check(oracle, ids, logits)


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_layers_with_a_window_have_a_group_of_their_own(tmp_path: Path, family: str) -> None:
    windows: dict[str, Any] = HALF_WINDOWED if family == "qwen2" else {}
    make_tiny(tmp_path, family, num_hidden_layers=4, **windows)
    groups = {group.kind: group for group in load(tmp_path).groups}
    by_family = {"qwen2": ((0,), (1, 2, 3)), "gemma2": ((1, 3), (0, 2))}
    full, window = by_family[family]
    assert groups[GroupKind.FULL].layers == full
    assert groups[GroupKind.WINDOW].layers == window
    assert groups[GroupKind.WINDOW].window == 24


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_sharded_checkpoint_is_the_same_model(tmp_path: Path, family: str) -> None:
    oracle = make_tiny(tmp_path / "one", family)
    oracle.save_pretrained(tmp_path / "many", max_shard_size="30KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    for ids, logits in zip(*greedy(load(tmp_path / "many"), (5, 40), tokens=8), strict=True):
        check(oracle, ids, logits)


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_takes_its_memory_once(tmp_path: Path, tied: bool) -> None:
    make_tiny(tmp_path, "llama", tie_word_embeddings=tied)
    runner = load(tmp_path)
    table, head = runner.model.embedding.table, runner.model.head.packed
    assert (table.data_ptr() == head.weight.data_ptr()) is tied  # type: ignore[attr-defined]
    rope = 2 * 512 * 8 * 4
    assert runner.weight_bytes == 4 * runner.spec.num_parameters + rope
