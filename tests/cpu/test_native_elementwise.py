"""Native norms, rotary embedding and activations, and the functions that they are made of."""

import ctypes
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

from infercore.layers.ops import Ops
from infercore_cpu import native
from infercore_cpu.ops import ACTIVATIONS, CpuOps
from native_library import library, using

LIB = library()
ISAS = native.isas(LIB)
OURS, DEFAULT = CpuOps(LIB), Ops()
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

isas = pytest.mark.parametrize("isa", ISAS)
Float32 = NDArray[np.float32]


def elementary(function: int, x: Float32) -> Float32:
    out = np.empty_like(x)
    pointers = (ctypes.c_void_p(array.ctypes.data) for array in (x, out))
    LIB.infercore_elementary(function, *pointers, len(x))
    return out


def ulps(found: Float32, exact: NDArray[np.float64]) -> float:
    """The largest error, in units of the last place of the exact value."""
    return float((np.abs(found - exact) / np.spacing(np.abs(exact).astype(np.float32))).max())


@isas
def test_exp_is_within_an_ulp_or_so(isa: str) -> None:
    x = np.linspace(-87.3, 88.7, 400_001, dtype=np.float32)
    with using(LIB, isa):
        assert ulps(elementary(0, x), np.exp(x.astype(float))) < 1.5
        tiny = np.linspace(-104, -87.3, 10_001, dtype=np.float32)
        assert ulps(elementary(0, tiny), np.exp(tiny.astype(float))) < 1.5
        edges = np.array([0, -0.0, 89, 1e30, np.inf, -105, -1e30, -np.inf, np.nan], np.float32)
        expected = [1, 1, math.inf, math.inf, math.inf, 0, 0, 0, math.nan]
        np.testing.assert_array_equal(elementary(0, edges), np.array(expected, np.float32))


@isas
def test_tanh(isa: str) -> None:
    x = np.concatenate([np.linspace(-10, 10, 200_001), np.geomspace(1e-30, 1, 1000)])
    x = x.astype(np.float32)
    with using(LIB, isa):
        assert ulps(elementary(1, x), np.tanh(x.astype(float))) < 3
        edges = np.array([np.inf, -np.inf, np.nan, 1e30], np.float32)
        np.testing.assert_array_equal(elementary(1, edges), np.array([1, -1, np.nan, 1]))


@isas
def test_erfc(isa: str) -> None:
    """Relative to 1 where it is near 1; relative to itself in the tail."""
    x = np.linspace(0, 3.999, 200_001).astype(np.float32)
    exact = special.erfc(x.astype(float))
    with using(LIB, isa):
        found = elementary(2, x)
        assert np.abs(found - exact).max() < 2e-7
        assert (np.abs(found - exact) / exact).max() < 4e-6
        assert elementary(2, np.array([4, 9, 1e30, np.inf], np.float32)).max() == 0


def close(found: Tensor, expected: Tensor, places: int = 1) -> None:
    """Within `places` roundings of the dtype, or a few of float32 where values cancel."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    eps = torch.finfo(found.dtype).eps
    torch.testing.assert_close(found, expected, atol=3e-6, rtol=max(places * eps, 3e-6))


SIZES = st.sampled_from([1, 2, 3, 4, 7, 8, 15, 16, 17, 64, 100, 576, 2048])
CASES = (SIZES, st.integers(0, 5), st.sampled_from(DTYPES), st.sampled_from(ISAS))


def drawn(*shape: int, dtype: torch.dtype = torch.float32, spread: float = 3.0) -> Tensor:
    return (torch.randn(shape) * spread).to(dtype)


@settings(max_examples=40, deadline=None)
@given(*CASES, st.booleans(), st.booleans(), st.booleans())
def test_norms_equal_the_defaults(
    size: int, tokens: int, dtype: torch.dtype, isa: str, summed: bool, centered: bool, biased: bool
) -> None:
    x = drawn(tokens, size + 3, dtype=dtype)[:, :size]
    residual = drawn(tokens, size, dtype=dtype) if summed else None
    weight, bias = drawn(size), drawn(size) if biased else None
    with using(LIB, isa, threads=2):
        if centered:
            found = OURS.layer_norm(x, weight, bias, 1e-5, residual)
            expected = DEFAULT.layer_norm(x, weight, bias, 1e-5, residual)
        else:
            found = OURS.rms_norm(x, weight, 1e-6, residual)
            expected = DEFAULT.rms_norm(x, weight, 1e-6, residual)
    assert torch.equal(found[1], expected[1])
    if centered and size < 4:  # the default loses what a few equal numbers differ by
        return
    close(found[0], expected[0], 2)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), *CASES)
def test_heads_are_normed_each_by_its_weight_and_rotated(
    heads: int, half: int, tokens: int, dtype: torch.dtype, isa: str
) -> None:
    """x is a view into a larger product, as the decoder has it."""
    dim = 2 * half
    x = drawn(tokens, heads + 2, dim, dtype=dtype)[:, 1 : heads + 1]
    weight, cos, sin = drawn(heads, dim), drawn(tokens, 1, dim), drawn(tokens, 1, dim)
    with using(LIB, isa):
        close(OURS.rms_norm(x, weight, 1e-6)[0], DEFAULT.rms_norm(x, weight, 1e-6)[0], 2)
        found, expected = OURS.rope(x, cos, sin), DEFAULT.rope(x, cos, sin)
    assert found.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, atol=8e-6, rtol=eps)


@pytest.mark.parametrize("name", ACTIVATIONS)
@settings(max_examples=20, deadline=None)
@given(*CASES)
def test_activations_equal_the_defaults(
    name: str, size: int, tokens: int, dtype: torch.dtype, isa: str
) -> None:
    """The default rounds twice where an activation is multiplied, ours once."""
    x = drawn(tokens, 2 * size + 1, dtype=dtype)[:, 1:]
    with using(LIB, isa, threads=2):
        close(OURS.activation(x, name), DEFAULT.activation(x, name))
        close(OURS.act_and_mul(x, name), DEFAULT.act_and_mul(x, name), 2)


@isas
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_at_the_ends(isa: str, name: str) -> None:
    x = torch.tensor([[1e4, -1e4, 88.0, -88.0, 0.0, -0.0, 3e38, -3e38, torch.nan, torch.inf]])
    with using(LIB, isa):
        found = OURS.activation(x, name)
    torch.testing.assert_close(
        found, DEFAULT.activation(x, name), atol=1e-30, rtol=1e-6, equal_nan=True
    )


ROWS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rms_norm": lambda x, w: OURS.rms_norm(x, w, 1e-6, x.flip(1))[0],
    "layer_norm": lambda x, w: OURS.layer_norm(x, w, w, 1e-6)[0],
    "act_and_mul": lambda x, w: OURS.act_and_mul(x, "silu"),
    "gelu": lambda x, w: OURS.activation(x, "gelu"),
    "rope": lambda x, w: OURS.rope(
        x.view(len(x), -1, 38), w[:38].expand(len(x), 1, 38), w[:38].expand(len(x), 1, 38)
    ),
}


@isas
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_company_and_threads_do_not_change_a_bit(isa: str, name: str, dtype: torch.dtype) -> None:
    x, weight = drawn(300, 570, dtype=dtype), drawn(570)
    with using(LIB, isa):
        alone = torch.cat([ROWS[name](row[None], weight) for row in x[:20]])
    for threads in (1, 2, 3):
        with using(LIB, isa, threads):
            assert torch.equal(ROWS[name](x, weight)[:20], alone)
