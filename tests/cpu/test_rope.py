"""Rotary frequencies and rotation against transformers' own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama import modeling_llama

from infercore.layers.common import Source
from infercore.layers.ops import Ops
from infercore.layers.rope import Rotary, frequencies
from infercore.model_spec import RopeSpec
from infercore.models.plugin import register_models
from infercore.models.registry import ModelRegistry

BASE = {"rope_theta": 10000.0}
ORIGINAL = {"original_max_position_embeddings": 256}
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "default, other base": {"rope_type": "default", "rope_theta": 1e6},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "llama3": {**LLAMA3, "factor": 8.0, **ORIGINAL},
    "llama3, all stretched": {**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 4},
    "yarn": {"rope_type": "yarn", "factor": 4.0, **ORIGINAL},
    "yarn, betas": {
        "rope_type": "yarn",
        "factor": 40.0,
        "beta_fast": 16,
        "beta_slow": 2,
        **ORIGINAL,
    },
    "yarn, not truncated": {"rope_type": "yarn", "factor": 4.0, "truncate": False, **ORIGINAL},
    "yarn, own temperature": {
        "rope_type": "yarn",
        "factor": 4.0,
        "attention_factor": 0.8,
        **ORIGINAL,
    },
    "yarn, mscale": {
        "rope_type": "yarn",
        "factor": 4.0,
        "mscale": 0.7,
        "mscale_all_dim": 1.1,
        **ORIGINAL,
    },
}


def configured(name: str, head_dim: int) -> tuple[LlamaConfig, RopeSpec]:
    """transformers' configuration, and the spec that core reads from the same file."""
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=1024,
        rope_parameters={**BASE, **SCALINGS[name]},
        architectures=["LlamaForCausalLM"],
    )
    spec = ModelRegistry(register_models()).build(config.to_dict())
    rope = spec.layers[0].attention.rope
    assert rope is not None
    return config, rope


@pytest.mark.parametrize("head_dim", [8, 64, 128])
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_equal_transformers(name: str, head_dim: int) -> None:
    config, spec = configured(name, head_dim)
    found, factor = frequencies(spec)
    if SCALINGS[name]["rope_type"] == "default":
        rotary = modeling_llama.LlamaRotaryEmbedding(config)
        expected: torch.Tensor = rotary.inv_freq
        expected_factor = rotary.attention_scaling
    else:
        init = ROPE_INIT_FUNCTIONS[SCALINGS[name]["rope_type"]]
        expected, expected_factor = init(config, torch.device("cpu"))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert factor == pytest.approx(expected_factor)


@pytest.mark.parametrize("name", ["default", "llama3", "yarn"])
def test_heads_are_rotated_as_in_transformers(name: str) -> None:
    config, spec = configured(name, 16)
    positions = torch.tensor([0, 1, 7, 500, 1023])
    q, k = torch.randn(1, 4, 5, 16), torch.randn(1, 2, 5, 16)
    cos, sin = modeling_llama.LlamaRotaryEmbedding(config)(q, positions[None])
    expected = modeling_llama.apply_rotary_pos_emb(q, k, cos, sin)
    rotary = Rotary(spec, 1024)
    source: Any = Source(None, None, torch.device("cpu"), torch.float32)  # type: ignore[arg-type]
    rotary.load(source)
    angles = rotary(positions)
    for x, rotated in zip((q, k), expected, strict=True):
        found = Ops().rope(x[0].transpose(0, 1), *angles)
        torch.testing.assert_close(found, rotated[0].transpose(0, 1), rtol=1e-5, atol=1e-5)


def test_a_position_turns_a_head_and_keeps_its_length(tmp_path: Path) -> None:
    rotary = Rotary(RopeSpec(10000.0, 8, {}), 64)
    source: Any = Source(None, None, torch.device("cpu"), torch.float32)  # type: ignore[arg-type]
    rotary.load(source)
    x = torch.randn(64, 3, 8)
    turned = Ops().rope(x, *rotary(torch.arange(64)))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(turned[0], x[0])
    # what attention sees depends on the distance only
    one = x[:1].expand(64, -1, -1)
    scores = (
        Ops().rope(one, *rotary(torch.arange(64)))[1:]
        * Ops().rope(one, *rotary(torch.arange(64)))[:-1]
    ).sum(-1)
    torch.testing.assert_close(scores, scores[:1].expand_as(scores), rtol=1e-4, atol=1e-4)
