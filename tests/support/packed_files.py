"""Small checkpoints in the layouts of GPTQ and AWQ, packed bit by bit, beside their matrices."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from infercore.kinds import IntGrouped
from infercore.quantization import QuantizationMethod
from reference_logits import open_quantized
from tiny_models import make_tiny

Arrays = dict[str, NDArray[Any]]
AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # of outputs 0…7 in their word, from the lowest 4 bits on


@dataclass(frozen=True)
class Packed:
    """A packed matrix: its tensors by suffix, and the float32[N, K] that they mean."""

    tensors: Arrays
    weight: NDArray[np.float32]


def stream(codes: Sequence[int], bits: int, word_bits: int = 32) -> list[int]:
    """Unsigned words that hold the codes one after another, bit by bit."""
    words = [0] * -(-len(codes) * bits // word_bits)
    for position in range(len(codes) * bits):
        if codes[position // bits] >> position % bits & 1:
            words[position // word_bits] |= 1 << position % word_bits
    return words


def streams(codes: NDArray[Any], bits: int, word_bits: int = 32) -> NDArray[Any]:
    """int[R, C] → signed words [R, W], one stream for each row."""
    rows = [stream(row, bits, word_bits) for row in codes.tolist()]
    unsigned = np.array(rows, f"u{word_bits // 8}")
    return unsigned.view(f"i{word_bits // 8}")


def awq_words(codes: NDArray[Any]) -> NDArray[np.int32]:
    """int[R, C] → int32[R, C / 8]."""
    words = [
        [sum(row[c + i] << 4 * AWQ_PLACES[i] for i in range(8)) for c in range(0, len(row), 8)]
        for row in codes.tolist()
    ]
    return np.array(words, np.uint32).view(np.int32)


def gptq(
    rng: np.random.Generator,
    n: int,
    k: int,
    bits: int = 4,
    group_size: int = 32,
    *,
    symmetric: bool = False,
    act_order: bool = False,
    less_one: bool = True,
    word_bits: int = 32,
) -> Packed:
    """less_one: zero points are stored as in "gptq", else as in "gptq_v2"."""
    group_of, codes, zeros, factors = _random(rng, n, k, bits, group_size, symmetric, act_order)
    weight = (codes - zeros[group_of].T) * factors.astype(np.float32)[group_of].T
    stored = (zeros - 1) & 7 if less_one and bits == 3 else zeros
    qzeros = streams(stored, bits, word_bits)
    if less_one and bits != 3:
        ones = sum(1 << shift for shift in range(0, word_bits, bits))
        unsigned = [[(w - ones) % 2**word_bits for w in row] for row in _unsigned(qzeros)]
        qzeros = np.array(unsigned, f"u{word_bits // 8}").view(qzeros.dtype)
    tensors: Arrays = {
        "qweight": np.ascontiguousarray(streams(codes, bits, word_bits).T),
        "qzeros": qzeros,
        "scales": factors,
        "g_idx": group_of.astype(np.int32),
    }
    return Packed(tensors, weight.astype(np.float32))


def awq(
    rng: np.random.Generator, n: int, k: int, group_size: int = 32, version: str = "gemm"
) -> Packed:
    group_of, codes, zeros, factors = _random(rng, n, k, 4, group_size, False, False)
    weight = (codes - zeros[group_of].T) * factors.astype(np.float32)[group_of].T
    if version == "gemm":
        tensors: Arrays = {
            "qweight": awq_words(codes.T),
            "qzeros": awq_words(zeros),
            "scales": factors,
        }
        return Packed(tensors, weight.astype(np.float32))
    multiple = {32: 4, 64: 2}.get(group_size, 1)
    width = (len(zeros) + 8 * multiple - 1) // (8 * multiple) * multiple
    missing = ((0, width * 8 - len(zeros)), (0, 0))
    tensors = {
        "qweight": streams(codes, 4),
        "qzeros": streams(np.pad(zeros, missing).T, 4),
        "scales": np.ascontiguousarray(np.pad(factors, missing).T),
    }
    return Packed(tensors, weight.astype(np.float32))


def _unsigned(words: NDArray[Any]) -> list[list[int]]:
    rows: list[list[int]] = words.view(f"u{words.itemsize}").tolist()
    return rows


def _random(
    rng: np.random.Generator,
    n: int,
    k: int,
    bits: int,
    group_size: int,
    symmetric: bool,
    act_order: bool,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[np.float16]]:
    """group_of [K], codes [N, K], zeros [G, N], scales [G, N]."""
    group_of = np.arange(k) // (k if group_size == -1 else group_size)
    if act_order:
        group_of = rng.permutation(group_of)
    shape = (int(group_of.max()) + 1, n)
    middle = 2 ** (bits - 1)
    zeros = np.full(shape, middle) if symmetric else rng.integers(0, 2**bits, shape)
    # as wide as the tiny models' own weights, so that greedy choices have margins
    spread = 2.5 * k**-0.5 / middle
    factors = (spread * rng.uniform(0.5, 1.5, shape)).astype(np.float16)
    return group_of, rng.integers(0, 2**bits, (n, k)), zeros, factors


@dataclass
class PackedFolder:
    """A model folder with packed matrices; `weights` are what they mean, `oracle` uses them."""

    path: Path
    tensors: Arrays
    config: dict[str, Any]
    weights: dict[str, NDArray[np.float32]]
    oracle: Any

    def save(self) -> None:
        save_file(self.tensors, self.path / "model.safetensors")
        settings = json.loads((self.path / "config.json").read_text())
        settings["quantization_config"] = self.config
        (self.path / "config.json").write_text(json.dumps(settings))


def packed_folder(
    path: Path,
    make: Callable[[str, int, int], Packed | None],
    config: dict[str, Any],
    family: str = "llama",
    **overrides: Any,
) -> PackedFolder:
    """A tiny model whose matrices `make`, asked with name, N and K, may replace."""
    import torch

    oracle = make_tiny(path, family, **overrides)
    tensors = load_file(path / "model.safetensors")
    modules = dict(oracle.named_modules())
    weights = {}
    for name in [key.removesuffix(".weight") for key in tensors if key.endswith(".weight")]:
        conv = "Conv1D" in type(modules[name]).__name__
        if not conv and not isinstance(modules[name], torch.nn.Linear):
            continue
        shape = tensors[f"{name}.weight"].shape
        packed = make(name, *(shape[::-1] if conv else shape))
        if packed is None:
            continue
        del tensors[f"{name}.weight"]
        tensors |= {f"{name}.{suffix}": array for suffix, array in packed.tensors.items()}
        weights[name] = packed.weight
        with torch.no_grad():
            weight = torch.from_numpy(packed.weight)
            modules[name].weight.copy_(weight.T if conv else weight)
    folder = PackedFolder(path, tensors, config, weights, oracle)
    folder.save()
    return folder


def gptq_config(**changes: Any) -> dict[str, Any]:
    stated = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
    return {**stated, **changes}


def gptq_folder(path: Path, family: str = "llama", **changes: Any) -> PackedFolder:
    """A folder with every matrix but the head packed as `changes` of the configuration say."""
    stated = gptq_config(**changes)
    rng = np.random.default_rng(7)

    def make(name: str, n: int, k: int) -> Packed | None:
        if name == "lm_head":
            return None
        return gptq(
            rng,
            n,
            k,
            stated["bits"],
            stated["group_size"],
            symmetric=stated["sym"],
            act_order=stated["desc_act"],
            less_one=stated.get("checkpoint_format") != "gptq_v2",
            word_bits=int(stated.get("pack_dtype", "int32")[3:]),
        )

    return packed_folder(path, make, stated, family)


def require_equal(made: PackedFolder, method: type[QuantizationMethod]) -> None:
    """Every matrix, bit for bit."""
    _, weights = open_quantized(made.path, method)
    for name, expected in made.weights.items():
        kind = weights.linear(name)
        assert isinstance(kind, IntGrouped)
        np.testing.assert_array_equal(kind.dequantize(), expected)
