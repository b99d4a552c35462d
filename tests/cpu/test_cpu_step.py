"""The lowered decoder: one native call gives the bits that its layers give one by one."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from infercore.executor import Weights
from infercore.kinds import (
    NF4,
    Blocks,
    Codebook4,
    Dense,
    IntGrouped,
    Kind,
    pack_cells,
    uniform_groups,
)
from infercore.layers.common import Layer, torch_dtype
from infercore.layers.decoder import Activation
from infercore.step import Step
from infercore.worker.model_runner import ModelRunner
from infercore_cpu import backend as cpu
from infercore_cpu.backend import CpuBackend
from infercore_cpu.lowered import LoweredDecoder, NativePart
from model_runs import BLOCKS, PROMPTS, check, greedy, load, prompt, quiet
from native_library import library
from stepper import Sequenced, Stepper, executor_config, open_model
from tiny_models import FAMILIES, VOCAB, make_tiny

LIB = library()
# of the checkpoint and the cache, and of activations, which not every CPU can multiply in 16 bits
DTYPES = {
    "fp32": ("float32", "float32"),
    "wide": ("bfloat16", "float32"),
    "bf16": ("bfloat16",) * 2,
}


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of the checkpoint; the CPU is made to multiply bfloat16, as any can, or not to."""
    stored, activations = DTYPES[request.param]
    wanting = {} if activations == stored else {stored: frozenset({"an instruction"})}
    monkeypatch.setattr(cpu, "NATIVE", wanting)
    return stored


def lowered(runner: ModelRunner) -> LoweredDecoder:
    runner.compile([])
    assert isinstance(runner._program, LoweredDecoder)
    return runner._program


def made(path: Path, family: str, dtype: str, threads: int = 2, **settings: Any) -> ModelRunner:
    """A tiny model for 700 positions, so that some contexts have several partitions."""
    make_tiny(path, family, dtype=torch_dtype(dtype), max_position_embeddings=700, **settings)
    return load(path, dtype=dtype, kv_dtype=dtype, threads=threads, max_model_len=700)


def steps(runner: ModelRunner) -> list[Step]:
    """Chunks and decodes together, long and short; each reads what those before it wrote."""
    stepper = Stepper(runner.groups, BLOCKS)
    rows = [Sequenced(slot, prompt(length)) for slot, length in enumerate((1, 30, 70, 600))]
    first = stepper.step(list(zip(rows, (1, 20, 33, 599), strict=True)))
    second = stepper.step(list(zip(rows[1:], (10, 37, 1), strict=True)))
    rows[0].ids.append(5)
    return [first, second, stepper.step([(rows[0], 1)])]


@torch.inference_mode()
def check_bits(runner: ModelRunner) -> LoweredDecoder:
    """Runs steps layer by layer, then lowered, over the same cache."""
    made = steps(runner)
    expected = [runner.forward(step).hidden.clone() for step in made]
    program = lowered(runner)
    for step, hidden in zip(made, expected, strict=True):
        found = runner.forward(step).hidden
        assert torch.equal(found, hidden)
        assert found.dtype == hidden.dtype
    return program


@pytest.mark.parametrize("family", FAMILIES)
def test_one_call_gives_the_bits_of_the_layers(tmp_path: Path, family: str, dtype: str) -> None:
    runner = made(tmp_path, family, dtype, threads=3)
    assert check_bits(runner).whole
    assert runner._program.dtype == torch_dtype(runner.config.dtype)


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_any_number_of_threads_does(tmp_path: Path, threads: int) -> None:
    runner = made(tmp_path, "llama", "float32", threads=threads)
    for _ in range(5):
        assert check_bits(runner).whole


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "odd sizes": ("llama", {"hidden_size": 42, "intermediate_size": 51, "head_dim": 12}),
    "equal heads": ("qwen3", {"num_key_value_heads": 6}),
    "scaled, relu": ("gpt2", {"activation_function": "relu"}),
    "erf": ("gemma2", {"hidden_activation": "gelu"}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_settings_lower_too(tmp_path: Path, name: str, dtype: str) -> None:
    family, settings = VARIANTS[name]
    assert check_bits(made(tmp_path, family, dtype, **settings)).whole


def int8(rng: np.random.Generator, n: int, k: int) -> Kind:
    groups = uniform_groups(k, 16)
    shape = (int(groups[-1]) + 1, n)
    scales = Dense(rng.uniform(0.001, 0.003, shape).astype(np.float32), "float32")
    zeros = rng.integers(100, 156, shape, np.int16)
    return IntGrouped(8, rng.integers(0, 256, (n, k), np.uint8), scales, zeros, groups)


def int4(rng: np.random.Generator, n: int, k: int) -> Kind:
    """In shuffled groups, as GPTQ's act-order leaves them."""
    groups = rng.permutation(np.arange(k, dtype=np.int32) % 5)
    scales = Dense(rng.uniform(0.02, 0.06, (5, n)).astype(np.float32), "float32")
    codes = pack_cells(rng.integers(0, 16, (n, k), np.uint8))
    return IntGrouped(4, codes, scales, rng.integers(4, 12, (5, n), np.int16), groups)


def nf4(rng: np.random.Generator, n: int, k: int) -> Kind:
    blocks = Blocks(k, 7)
    scales = Dense(rng.uniform(0.1, 0.5, (n, blocks.count)).astype(np.float32), "float32")
    return Codebook4(pack_cells(rng.integers(0, 16, (n, k), np.uint8)), NF4, blocks, scales)


class Quantized:
    """A checkpoint whose linear layers hold made kinds."""

    def __init__(self, whole: Weights, make: Callable[..., Kind]) -> None:
        self.whole = whole
        self.make = make

    def linear(self, name: str) -> Kind:
        seed = zlib.crc32(name.encode())
        return self.make(np.random.default_rng(seed), *self.whole.linear(name).shape)

    def tensor(self, name: str) -> Dense:
        return self.whole.tensor(name)


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("make", [int8, int4, nf4])
def test_codes_lower_too(
    tmp_path: Path, make: Callable[..., Kind], dtype: str, rounds: bool
) -> None:
    make_tiny(tmp_path, "llama", dtype=torch_dtype(dtype), max_position_embeddings=700)
    backend = CpuBackend()
    backend.configure(
        executor_config(dtype=dtype, threads=2, max_model_len=700, activation_int8=rounds)
    )
    spec, weights = open_model(tmp_path)
    runner = ModelRunner(backend, spec, Quantized(weights, make), backend.config, quiet)
    runner.allocate([BLOCKS] * len(runner.groups))
    assert check_bits(runner).whole


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lowered_model_says_what_transformers_says(tmp_path: Path, family: str) -> None:
    oracle = make_tiny(tmp_path, family)
    runner = load(tmp_path, threads=2)
    assert lowered(runner).whole
    for ids, logits in zip(*greedy(runner, PROMPTS, tokens=4), strict=True):
        check(oracle, ids, logits)


class MadeUp(Layer):
    """A gated activation that no backend has heard of."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        return gate.clamp(-self.limit, self.limit).sigmoid() * up


class Mixing(nn.Module):
    """No layer of core's, and in the middle of things it gives back a view of what it got."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, total = self.norm(x, residual)
        return y * 0.5 + torch.roll(total, 1, dims=-1), total


def replace_activation(runner: ModelRunner) -> None:
    model: Any = runner.model
    model.layers[1].mlp[1] = MadeUp(2.0)


def replace_norms(runner: ModelRunner) -> None:
    model: Any = runner.model
    model.layers[0].pre_mlp = Mixing(model.layers[0].pre_mlp)
    model.final_norm = Mixing(model.final_norm)


class Halved(Activation):
    """A subclass of core's, which computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


def subclass_activation(runner: ModelRunner) -> None:
    model: Any = runner.model
    for layer in model.layers:
        old = layer.mlp[1]
        layer.mlp[1] = Halved(old.ops, old.spec)


class InPlace(Layer):
    """Writes into what it was given, which others read again."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(1.25)


def write_in_place(runner: ModelRunner) -> None:
    model: Any = runner.model
    mlp = model.layers[0].mlp
    model.layers[0].mlp = nn.Sequential(*mlp, InPlace())


class Spun(Layer):
    """Attention's input by a layer that wants the angles, which instructions only look up."""

    def __init__(self, attend: nn.Module) -> None:
        super().__init__()
        self.attend = attend

    def forward(self, qk: Tensor, v: Tensor, angles: tuple[Tensor, Tensor], plans: Any) -> Tensor:
        cos, _ = angles
        return self.attend(qk, (v * cos[..., :1]).to(v.dtype), angles, plans)  # type: ignore[no-any-return]


def spin(runner: ModelRunner) -> None:
    model: Any = runner.model
    attention = model.layers[0].attention
    attention.attend = Spun(attention.attend)


MADE_UP: dict[str, Callable[[ModelRunner], None]] = {
    "an activation": replace_activation,
    "norms": replace_norms,
    "a subclass": subclass_activation,
    "in place": write_in_place,
    "an attention": spin,
}


@pytest.mark.parametrize("name", MADE_UP)
def test_torch_runs_a_layer_without_a_native_form(tmp_path: Path, name: str, dtype: str) -> None:
    runner = made(tmp_path, "llama", dtype)
    MADE_UP[name](runner)
    program = check_bits(runner)
    native = sum(isinstance(part, NativePart) for part in program.parts)
    assert not program.whole
    assert 2 <= native < len(program.parts)


@torch.inference_mode()
def test_ids_and_positions_out_of_range_are_refused(tmp_path: Path) -> None:
    make_tiny(tmp_path, "gpt2")
    runner = load(tmp_path)
    lowered(runner)
    step = Stepper(runner.groups, BLOCKS).step([(Sequenced(0, prompt(9)), 9)])
    step.token_ids[3] = VOCAB
    with pytest.raises(ValueError, match=f"a token id of the step is not within 0 and {VOCAB}"):
        runner.forward(step)
    step.token_ids[3] = 0
    step.positions[3] = -1
    with pytest.raises(ValueError, match="a position of the step is not within 0 and 512"):
        runner.forward(step)


def test_what_cannot_be_traced_runs_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Deciding(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    make_tiny(tmp_path, "llama")
    runner = load(tmp_path)
    model: Any = runner.model
    mlp = model.layers[0].mlp
    model.layers[0].mlp = nn.Sequential(*mlp, Deciding())
    runner.compile([])
    assert runner._program is runner.model
    assert "cannot be traced" in caplog.text
