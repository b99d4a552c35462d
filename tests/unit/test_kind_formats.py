"""What each weight kind is, byte by byte: packing, tables, formulas, sizes and refusals."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from infercore.errors import CheckpointError, UnsupportedModel
from infercore.kinds import (
    E2M1,
    FP4,
    NF4,
    Blocks,
    Codebook4,
    Codebook8,
    Dense,
    Fp8,
    IntGrouped,
    Kind,
    pack_cells,
    to_float32,
    uniform_groups,
    unpack_cells,
)
from infercore.kinds.cells import slice_cells
from kind_cases import FLOAT8, Float32, by_torch, f32, make_int_grouped, ranges, same, seeds, sizes

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "kinds.md"


def test_reference_page_names_every_kind_and_operation() -> None:
    page = REFERENCE.read_text(encoding="utf-8")
    for kind in Kind.__subclasses__():
        assert f"| `{kind.__name__}` | `{kind.name}` |" in page
    missing = [name for name in vars(Kind) if name[0] != "_" and f"`{name}" not in page]
    assert not missing


# --- dtypes and packing ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOAT8)
def test_every_byte_of_float8_is_what_torch_reads(dtype: str) -> None:
    every = np.arange(256, dtype=np.uint8)
    got, want = to_float32(every, dtype), by_torch(Dense(every, dtype))
    np.testing.assert_array_equal(got, want)
    finite = np.isfinite(want)
    assert (np.signbit(got) == np.signbit(want))[finite].all()


def test_float8_landmarks() -> None:
    """Largest and smallest numbers, as the OCP specifications print them."""
    e4m3 = to_float32(np.array([0x7E, 0x08, 0x01, 0x7F], np.uint8), "float8_e4m3fn")
    np.testing.assert_array_equal(e4m3, f32([448, 2**-6, 2**-9, np.nan]))
    e5m2 = to_float32(np.array([0x7B, 0x04, 0x01, 0x7C, 0xFC], np.uint8), "float8_e5m2")
    np.testing.assert_array_equal(e5m2, f32([57344, 2**-14, 2**-16, np.inf, -np.inf]))
    e8m0 = to_float32(np.array([0, 127, 254, 255], np.uint8), "float8_e8m0fnu")
    np.testing.assert_array_equal(e8m0, f32([2**-127, 1, 2.0**127, np.nan]))


def test_every_bfloat16_is_what_torch_reads() -> None:
    every = np.arange(2**16, dtype=np.uint16)
    np.testing.assert_array_equal(to_float32(every, "bfloat16"), by_torch(Dense(every, "bfloat16")))


def test_cells_lie_as_the_reference_draws_them() -> None:
    packed = pack_cells(np.array([[1, 2, 3, 4, 5], [15, 0, 0, 15, 9]], np.uint8))
    assert packed.tolist() == [[0x21, 0x43, 0x05], [0x0F, 0xF0, 0x09]]


@given(data=st.data(), seed=seeds, n=sizes, k=sizes)
def test_cells_come_out_as_they_went_in(data: st.DataObject, seed: int, n: int, k: int) -> None:
    values = np.random.default_rng(seed).integers(0, 16, (n, k), np.uint8)
    packed = pack_cells(values)
    assert packed.shape == (n, (k + 1) // 2)
    assert np.array_equal(unpack_cells(packed, k), values)
    start, stop = data.draw(ranges(k))
    # the unused half of an odd cut's last byte is 0 too
    assert np.array_equal(slice_cells(packed, start, stop), pack_cells(values[:, start:stop]))


def test_tables_are_those_of_their_sources() -> None:
    # QLoRA's quantiles: 8 positive and 7 negative ones between 0.5 and the offset, and zero
    high, low = (norm.ppf(np.linspace(0.9677083, 0.5, count)[:-1]) for count in (9, 8))
    quantiles = np.sort(np.concatenate([high, [0], -low])) / high.max()
    np.testing.assert_allclose(NF4, quantiles, atol=2e-7)

    def e2m1(code: int) -> float:
        sign, exponent, mantissa = 1 - 2 * (code >> 3), code >> 1 & 3, code & 1
        return sign * (
            math.ldexp(1, exponent - 1) * (1 + mantissa / 2) if exponent else mantissa / 2
        )

    def fp4(code: int) -> float:
        # bitsandbytes counts its exponent downwards
        sign, exponent, mantissa = 1 - 2 * (code >> 3), code >> 1 & 3, code & 1
        value = math.ldexp(1, 4 - exponent) * (1 + mantissa / 2) if exponent else mantissa / 16
        return sign * value / 12

    assert np.array_equal(E2M1, f32([e2m1(code) for code in range(16)]))
    assert np.array_equal(FP4, f32([fp4(code) for code in range(16)]))
    assert not any(table.flags.writeable for table in (NF4, FP4, E2M1))


# --- dense ----------------------------------------------------------------------------------


def test_dense_parts_of_two_dtypes_widen_exactly() -> None:
    half, brain = np.array([[1.5, 2.5]], np.float16), np.array([[0x3F80, 0x4000]], np.uint16)
    joined = Dense.concat_n([Dense(half, "float16"), Dense(brain, "bfloat16")])
    assert joined.dtype == "float32"
    assert joined.dequantize().tolist() == [[1.5, 2.5], [1.0, 2.0]]


# --- int_grouped ----------------------------------------------------------------------------


def grouped(bits: int, codes: Any, scales: Any, zeros: Any, of_row: Any) -> IntGrouped:
    codes = np.array(codes, np.uint8)
    return IntGrouped(
        bits,
        codes if bits == 8 else pack_cells(codes),
        Dense(np.array(scales, np.float32), "float32"),
        np.array(zeros, np.int16),
        np.array(of_row, np.int32),
    )


def test_zeros_reach_two_to_the_bits() -> None:
    """A GPTQ v1 file stores zero − 1 in 4 bits, so that 15 means 16."""
    four = grouped(4, [[0, 15]], [[2.0]], [[16]], [0, 0])
    assert four.dequantize().tolist() == [[-32.0, -2.0]]
    eight = grouped(8, [[0, 255]], [[2.0]], [[256]], [0, 0])
    assert eight.dequantize().tolist() == [[-512.0, -2.0]]


@given(seed=seeds, n=sizes, k=sizes, size=sizes)
def test_act_order_is_another_map_and_no_permutation(seed: int, n: int, k: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    case = make_int_grouped(rng, n, k)
    assert isinstance(case.kind, IntGrouped)
    order = rng.permutation(k)
    kind, values = case.kind, case.kind.values()[:, order]
    packed = values if kind.bits == 8 else pack_cells(values)
    same(replace(kind, codes=packed, group_of_row=kind.group_of_row[order]), case.weight[:, order])


def test_slices_drop_groups_that_nobody_uses() -> None:
    kind = grouped(4, [[1, 2, 3, 4, 5]], [[1], [10], [100]], [[0], [0], [0]], [2, 0, 2, 1, 0])
    part = kind.slice_k(1, 3)
    assert part.group_of_row.tolist() == [0, 1]
    assert part.scales.data.tolist() == [[1], [100]]
    assert part.dequantize().tolist() == [[2, 300]]


def test_uniform_groups_of_two_sizes_join_in_the_finer_one() -> None:
    coarse = grouped(4, [[1] * 8], [[1], [2]], [[0], [0]], uniform_groups(8, 4))
    fine = grouped(4, [[1] * 8], [[3], [4], [5], [6]], [[0]] * 4, uniform_groups(8, 2))
    joined = IntGrouped.concat_n([coarse, fine])
    assert joined.group_of_row.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert joined.scales.data.tolist() == [[1, 3], [1, 4], [2, 5], [2, 6]]


def test_int_grouped_takes_what_it_says() -> None:
    kind = grouped(4, np.ones((6, 7)), np.ones((2, 6)), np.ones((2, 6)), [0, 0, 0, 0, 1, 1, 1])
    assert kind.nbytes == 6 * 4 + 2 * 6 * 4 + 2 * 6 * 2 + 7 * 4
    assert kind.slice_k(0, 4).nbytes == 6 * 2 + 6 * 4 + 6 * 2 + 4 * 4
    # an even cut shares the codes, so that a shard of a mapped file is read once
    assert np.shares_memory(kind.slice_k(2, 7).codes, kind.codes)
    assert torch.from_numpy(kind.codes).data_ptr() == kind.codes.ctypes.data


def test_int_grouped_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(UnsupportedModel, match="of 5 bits"):
        grouped(5, [[1, 2]], [[1]], [[0]], [0, 0])
    for of_row, found in (([0, 1], "group 1"), ([0, -1], "group -1")):
        with pytest.raises(CheckpointError, match=found):
            grouped(4, [[1, 2]], [[1]], [[0]], of_row)
    with pytest.raises(ValueError, match=r"scales of int_grouped: \[1, 2\] instead of \[1, 1\]"):
        grouped(4, [[1, 2]], [[1, 1]], [[0]], [0, 0])


# --- codebook4 ------------------------------------------------------------------------------


def test_nf4_with_double_quantization_equals_bitsandbytes_formula() -> None:
    """Scales in blocks of 256 through all rows: 3 rows of 200 share 3 second-level scales."""
    rng = np.random.default_rng(5)
    codes = rng.integers(0, 16, (3, 200 * 64), np.uint8)
    absmax_codes = rng.integers(0, 256, 600, np.uint8)
    table, second = rng.standard_normal(256, np.float32), rng.random(3, np.float32)
    scales = Codebook8.from_flat(absmax_codes.reshape(3, 200), table, second, 0.125)
    kind = Codebook4(pack_cells(codes), NF4, Blocks(200 * 64, 64), scales)
    absmax = table[absmax_codes] * np.repeat(second, 256)[:600] + np.float32(0.125)
    want = f32(NF4[codes].reshape(600, 64) * absmax[:, None]).reshape(3, -1)
    same(kind, want)
    part = kind.slice_n(1, 2).slice_k(100, 5000)
    same(part, want[1:2, 100:5000])
    assert isinstance(part.scales, Codebook8)
    assert len(part.scales.absmax) == 2  # rows 200..279 of 600 lie in the first two blocks
    # 4.127 bits a weight, as the paper says; what names the rows is nothing beside it
    assert kind.nbytes == codes.size // 2 + 64 + 600 + 1024 + 3 * 4 + 3 * 8


def test_mxfp4_and_nvfp4_equal_their_formulas() -> None:
    rng = np.random.default_rng(6)
    codes = rng.integers(0, 16, (4, 64), np.uint8)
    powers = rng.integers(100, 150, (4, 2), np.uint8)
    mx = Codebook4(pack_cells(codes), E2M1, Blocks(64, 32), Dense(powers, "float8_e8m0fnu"))
    factors = f32(np.ldexp(1.0, powers.astype(int) - 127))
    same(mx, E2M1[codes] * np.repeat(factors, 32, 1))
    small = rng.integers(0, 127, (4, 4), np.uint8)
    one = Dense(f32(0.003), "float32")
    nv = Codebook4(
        pack_cells(codes), E2M1, Blocks(64, 16), Fp8.from_scales("float8_e4m3fn", small, one)
    )
    scales = by_torch(Dense(small, "float8_e4m3fn")) * np.float32(0.003)
    same(nv, E2M1[codes] * np.repeat(f32(scales), 16, 1))
    assert nv.nbytes == 4 * 32 + 64 + 4 * 4 + 4


def test_parts_with_their_own_global_scales_keep_them() -> None:
    """q, k and v of an NVFP4 model, whose float32 scales differ."""
    rng = np.random.default_rng(7)

    def part(n: int, scale: float) -> Codebook4:
        codes = pack_cells(rng.integers(0, 16, (n, 32), np.uint8))
        small = rng.integers(0, 127, (n, 2), np.uint8)
        first = Fp8.from_scales("float8_e4m3fn", small, Dense(f32(scale), "float32"))
        return Codebook4(codes, E2M1, Blocks(32, 16), first)

    parts = [part(8, 0.1), part(4, 0.2), part(4, 0.3)]
    joined = Codebook4.concat_n(parts)
    assert isinstance(joined.scales, Fp8)
    assert joined.scales.scales.data.ravel().tolist() == f32([0.1, 0.1, 0.2, 0.3]).tolist()
    same(joined, np.concatenate([p.dequantize() for p in parts]))


def test_a_cut_inside_a_block_keeps_its_scale() -> None:
    scales = Dense(f32([[1, 2, 3]]), "float32")
    kind = Codebook4(pack_cells(np.full((1, 9), 2, np.uint8)), E2M1, Blocks(9, 4), scales)
    part = kind.slice_k(3, 9)
    assert part.blocks == Blocks(6, 4, offset=3)
    assert part.dequantize().tolist() == [[1, 2, 2, 2, 2, 3]]
    assert part.slice_k(1, 5).blocks == Blocks(4, 4)


def test_codebooks_with_other_tables_do_not_join() -> None:
    codes, scales = np.zeros((2, 2), np.uint8), Dense(np.ones((2, 1), np.float32), "float32")
    four = [Codebook4(codes, table, Blocks(4, 4), scales) for table in (NF4, FP4)]
    table, one = np.zeros(256, np.float32), np.ones(4, np.float32)
    eight = [Codebook8.from_flat(codes, table, one, 0.0, size) for size in (2, 4)]
    for join in (Codebook4.concat_n, Codebook4.stack):
        with pytest.raises(UnsupportedModel, match="different 4-bit tables"):
            join(four)
    for join_eight in (Codebook8.concat_n, Codebook8.stack):
        with pytest.raises(UnsupportedModel, match="different 8-bit tables or block sizes"):
            join_eight(eight)


# --- fp8 ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scales", "block", "want"),
    [
        (f32(3), None, (1, 1)),
        (f32([3]), None, (1, 1)),
        (np.arange(5, dtype=np.float32), None, (5, 1)),
        (np.arange(5, dtype=np.float32)[:, None], None, (5, 1)),
        (np.ones((3, 3), np.float32), (2, 3), (3, 3)),
    ],
)
def test_fp8_scales_come_in_all_the_shapes_of_checkpoints(
    scales: Float32, block: tuple[int, int] | None, want: tuple[int, int]
) -> None:
    kind = Fp8.from_scales(
        "float8_e4m3fn", np.zeros((5, 7), np.uint8), Dense(scales, "float32"), block
    )
    assert kind.scales.shape == want
    assert kind.nbytes == 35 + 4 * math.prod(want)
    # shape tells the case, after slices too
    assert (kind.slice_n(1, 4).scales.shape[0] == 1) == (want[0] == 1)


def test_blocks_that_do_not_divide_share_their_scale() -> None:
    one = to_code(1.0)
    codes = np.full((5, 5), one, np.uint8)
    scales = Dense(np.arange(9, dtype=np.float32).reshape(3, 3), "float32")
    kind = Fp8.from_scales("float8_e4m3fn", codes, scales, (2, 2))
    part = kind.slice_n(1, 5).slice_k(3, 5)
    assert part.dequantize().tolist() == [[1, 2], [4, 5], [4, 5], [7, 8]]
    assert part.rows == Blocks(4, 2, offset=1)


def to_code(value: float) -> int:
    return int(torch.tensor(value).to(torch.float8_e4m3fn).view(torch.uint8))


def test_fp8_refuses_what_it_cannot_hold() -> None:
    codes, one = np.zeros((2, 2), np.uint8), Dense(f32(1), "float32")
    with pytest.raises(UnsupportedModel, match="float8_e8m0fnu cannot be served as fp8"):
        Fp8.from_scales("float8_e8m0fnu", codes, one)
    parts = [Fp8.from_scales(dtype, codes, one) for dtype in FLOAT8[:2]]
    with pytest.raises(UnsupportedModel, match="cannot be joined"):
        Fp8.concat_n(parts)
    signed: Any = codes.view(np.int8)
    with pytest.raises(ValueError, match="codes of fp8: int8.*instead of uint8"):
        Fp8("float8_e4m3fn", signed, one, Blocks(2, 2), Blocks(2, 2))
