"""Products of codes with activations that are rounded to int8, on every instruction set here."""

from collections.abc import Iterator
from ctypes import CDLL

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from infercore.kinds import (
    E2M1,
    FP4,
    NF4,
    Blocks,
    Codebook4,
    Dense,
    IntGrouped,
    Kind,
    pack_cells,
    uniform_groups,
)
from infercore_cpu import native
from infercore_cpu.backend import CpuBackend
from infercore_cpu.linear import NativeLinear, native_linear
from infercore_cpu.native import BLOCK_COLUMNS, STEPS, whole_table
from kind_cases import Make, make_codebook4, make_int_grouped, seeds, sizes
from stepper import executor_config

library = native.library()
if library is None:
    pytest.skip("infercore-cpu was installed without a C++ compiler", allow_module_level=True)
LIB: CDLL = library
ISAS = native.isas(LIB)
SHAPES = [(1, 1), (5, 3), (40, 24), (130, 520)]
GROUPS = (16, 32, 128, 1000)
HEIGHTS = (*range(1, 18), 31, 63, 64, 65)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    assert LIB.infercore_use_isa(request.param.encode())
    yield request.param
    LIB.infercore_use_isa(ISAS[0].encode())


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    LIB.infercore_set_threads(2)
    yield
    LIB.infercore_set_threads(1)


def random_x(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))


def int_grouped(n: int, k: int, bits: int, group: int, *, act_order: bool = False) -> IntGrouped:
    rng = np.random.default_rng(n * 1000 + k)
    group_of_row = uniform_groups(k, min(group, k))
    if act_order:
        group_of_row = rng.permutation(group_of_row)
    groups = int(group_of_row.max()) + 1
    codes = rng.integers(0, 2**bits, (n, k), np.uint8)
    codes[0], codes[-1] = 0, 2**bits - 1  # the largest sums that there are
    scales = Dense(rng.random((groups, n), np.float32).astype(np.float16), "float16")
    zeros = rng.integers(0, 2**bits + 1, (groups, n), np.int16)
    return IntGrouped(bits, codes if bits == 8 else pack_cells(codes), scales, zeros, group_of_row)


def codebook4(n: int, k: int, size: int, table: NDArray[np.float32] = NF4) -> Codebook4:
    rng = np.random.default_rng(n * 1000 + k)
    blocks = Blocks(k, size)
    codes = pack_cells(rng.integers(0, 16, (n, k), np.uint8))
    scales = Dense(rng.random((n, blocks.count), np.float32), "float32")
    return Codebook4(codes, table, blocks, scales)


def kinds(n: int, k: int) -> dict[str, IntGrouped | Codebook4]:
    codes = {
        f"int{bits} in {group}{', act-order' * act_order}": int_grouped(
            n, k, bits, group, act_order=act_order
        )
        for bits in (4, 8)
        for group in GROUPS
        for act_order in (False, True)
    }
    return {**codes, **{f"nf4 in {size}": codebook4(n, k, size) for size in (16, 64)}}


def rounded(kind: IntGrouped | Codebook4, x: Tensor) -> NDArray[np.float64]:
    """x as the kernels round it: blocks inside of groups, by the largest magnitude."""
    group_of = kind.group_of_row if isinstance(kind, IntGrouped) else kind.blocks.index()
    order = np.argsort(group_of, kind="stable")
    values, found = x.float().numpy(), np.zeros(x.shape)
    for group in np.unique(group_of):
        columns = order[group_of[order] == group]
        for at in range(0, len(columns), BLOCK_COLUMNS):
            block = columns[at : at + BLOCK_COLUMNS]
            largest = np.abs(values[:, block]).max(1, keepdims=True)
            factor = np.divide(np.float32(127), largest, where=largest > 0, out=largest * 0)
            found[:, block] = np.rint(values[:, block] * factor) * (largest / np.float32(127))
    return found


def weight_of(kind: Kind) -> NDArray[np.float64]:
    """W as the kernels have it: a codebook's entries are whole numbers of a unit."""
    if not isinstance(kind, Codebook4):
        return kind.dequantize().astype(np.float64)
    unit, whole = whole_table(kind.table)
    table = ((whole.astype(np.float64) - 128) * unit).astype(np.float32)
    return Codebook4(kind.codes, table, kind.blocks, kind.scales).dequantize().astype(np.float64)


def check(y: Tensor, x: Tensor, kind: IntGrouped | Codebook4) -> None:
    """Within float32's rounding of a sum of blocks, and that of y's dtype."""
    exact, weight = rounded(kind, x), weight_of(kind)
    size = np.abs(exact) @ np.abs(weight).T + 1e-30
    if isinstance(kind, IntGrouped):  # code and zero are large beside what is left of them
        span = np.abs(kind.scales.dequantize().astype(np.float64)).max(0) * 2**kind.bits
        size += np.abs(exact).sum(1, keepdims=True) * span
    error = np.abs(y.double().numpy() - exact @ weight.T)
    assert (error <= size * (2.0**-8 if y.dtype == torch.bfloat16 else 2e-6)).all()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_every_kind_equals_its_rounded_reference(n: int, k: int) -> None:
    for kind in kinds(n, k).values():
        product = native_linear(LIB, kind, "float32", rounds=True)
        for rows in (1, 2, 7, 70):
            for dtype in (torch.float32, torch.bfloat16):
                x = random_x(rows, k).to(dtype)
                y = product(x)
                assert (y.shape, y.dtype) == ((rows, n), dtype)
                check(y, x, kind)


@pytest.mark.usefixtures("isa")
@settings(max_examples=40, deadline=None)
@given(st.sampled_from([make_int_grouped, make_codebook4]), seeds, sizes, sizes)
def test_a_random_kind(make: Make, seed: int, n: int, k: int) -> None:
    kind = make(np.random.default_rng(seed), n, k).kind
    assert isinstance(kind, IntGrouped | Codebook4)
    largest = np.abs(kind.dequantize()).max(initial=0)
    if not largest < 1e30:  # an infinite scale meets codes that are zero
        return
    x = random_x(5, k)
    check(native_linear(LIB, kind, "float32", rounds=True)(x), x, kind)


@pytest.mark.usefixtures("isa")
def test_a_row_has_the_same_bits_in_any_batch_on_any_threads() -> None:
    for name, kind in kinds(130, 520).items():
        product = native_linear(LIB, kind, "float32", rounds=True)
        x = random_x(65, 520)
        alone = torch.cat([product(x[i : i + 1]) for i in range(65)])
        for threads in (1, 3, 8):
            LIB.infercore_set_threads(threads)
            for rows in HEIGHTS:
                assert torch.equal(product(x[65 - rows :]), alone[65 - rows :]), (name, rows)


@pytest.mark.usefixtures("isa")
def test_rounding_costs_less_than_a_hundredth() -> None:
    for name, kind in kinds(130, 520).items():
        x = random_x(70, 520)
        exact = native_linear(LIB, kind, "float32")(x)
        error = native_linear(LIB, kind, "float32", rounds=True)(x) - exact
        assert error.norm() / exact.norm() < 0.01, name


@pytest.mark.usefixtures("isa")
def test_what_is_zero_or_not_finite() -> None:
    for kind in kinds(40, 24).values():
        x = random_x(9, 24)
        x[1], x[2], x[3, 5], x[4, 23], x[5] = 0, 1e-38, torch.inf, torch.nan, 1e30
        y = native_linear(LIB, kind, "float32", rounds=True)(x)
        assert not y[1:3].any()
        assert y[3:5].isnan().all()
        assert y[[0, *range(5, 9)]].isfinite().all()


def test_a_table_of_whole_numbers() -> None:
    for table, bound in ((E2M1, 1e-7), (NF4, 0.004), (FP4, 0.004), (np.zeros(16, np.float32), 0)):
        unit, whole = whole_table(table)
        found = (whole.astype(np.float64) - 128) * unit
        assert np.abs(found - table).max() <= bound * np.abs(table).max()


def test_columns_of_a_block_are_whole_lines() -> None:
    assert all(BLOCK_COLUMNS % steps == 0 for steps in STEPS.values())


@pytest.mark.parametrize("rounds", [False, True])
def test_the_backend_rounds_only_what_meets_codes(rounds: bool) -> None:
    backend = CpuBackend()
    backend.configure(executor_config(dtype="bfloat16", activation_int8=rounds))
    assert backend.capabilities().activation_int8
    x = random_x(3, 256)
    for kind in (int_grouped(64, 256, 4, 32), codebook4(64, 256, 64)):
        exact = native_linear(LIB, kind, "float32")(x)
        packed = backend.pack(kind)
        assert isinstance(packed, NativeLinear)
        assert torch.equal(packed(x), exact) != rounds
        assert torch.equal(backend.pack_head(kind)(x), exact)
    dense = Dense(np.ones((64, 256), np.float32), "float32")
    assert torch.equal(backend.pack(dense)(x[:1].bfloat16()), backend.pack(dense)(x.bfloat16())[:1])
