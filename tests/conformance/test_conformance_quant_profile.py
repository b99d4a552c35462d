"""The quant profile: each check fails for its own cause. Green runs: the ops profile's tests."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from torch import Tensor

from infercore.backend import Backend, PackedLinear
from infercore.kinds import NF4, Blocks, Codebook4, Dense, Fp8, IntGrouped, Kind, pack_cells
from infercore.kinds.base import Activation
from infercore.layers.linear import DenseLinear
from infercore_conformance.fixtures import Numerics
from infercore_conformance.made_kinds import ALL, VARIANTS, Variant, buffers, code_bytes
from infercore_conformance.profiles.quant import test_kinds, test_memory, test_shares
from infercore_conformance.subject import Subject
from plain_backend import Pack, PlainBackend, fails, with_pack

ERROR = r"error is .*, and at most"
SHAPE = (80, 96)


def packings(name: str) -> dict[str, Variant]:
    return {variant.name: variant for variant in VARIANTS[name]}


def dense(backend: Backend, kind: Kind) -> DenseLinear:
    return DenseLinear(kind, backend.device(0), backend.config.dtype)


def order_ignored(backend: Backend, kind: Kind) -> PackedLinear:
    if isinstance(kind, IntGrouped):
        kind = replace(kind, group_of_row=np.sort(kind.group_of_row))
    return dense(backend, kind)


def largest_zero_lost(backend: Backend, kind: Kind) -> PackedLinear:
    if isinstance(kind, IntGrouped):
        kind = replace(kind, zeros=kind.zeros & np.int16(2**kind.bits - 1))
    return dense(backend, kind)


def always_nf4(backend: Backend, kind: Kind) -> PackedLinear:
    if isinstance(kind, Codebook4):
        kind = replace(kind, table=NF4)
    return dense(backend, kind)


def halves_of_bytes_swapped(backend: Backend, kind: Kind) -> PackedLinear:
    if isinstance(kind, Codebook4):
        values = kind.values()
        turned = values.reshape(len(values), -1, 2)[..., ::-1].reshape(values.shape)
        kind = replace(kind, codes=pack_cells(turned))
    return dense(backend, kind)


def cut_blocks_misread(backend: Backend, kind: Kind) -> PackedLinear:
    """The first block is taken for a whole one."""
    if isinstance(kind, Codebook4) and kind.blocks.offset:
        whole = Blocks(kind.blocks.length, kind.blocks.size)
        scales = kind.scales.slice_k(0, whole.count)
        kind = Codebook4(kind.codes, kind.table, whole, scales)
    return dense(backend, kind)


def one_scale(backend: Backend, kind: Kind) -> PackedLinear:
    if isinstance(kind, Fp8):
        n, k = kind.shape
        first = replace(kind.scales, data=kind.scales.data[:1, :1])
        kind = replace(kind, scales=first, rows=Blocks(n, n), columns=Blocks(k, k))
    return dense(backend, kind)


def rounded(packed: DenseLinear) -> DenseLinear:
    packed.weight = packed.weight.bfloat16().to(packed.weight.dtype)
    return packed


def rounded_weight(backend: Backend, kind: Kind) -> PackedLinear:
    return rounded(dense(backend, kind))


def no_nan(backend: Backend, kind: Kind) -> PackedLinear:
    packed = dense(backend, kind)
    packed.weight.nan_to_num_()
    return packed


def spoils_its_source(backend: Backend, kind: Kind) -> PackedLinear:
    packed = dense(backend, kind)
    buffers(kind)[0].view(np.uint8)[...] ^= 1
    return packed


@dataclass
class Around:
    """Another packed weight, and what it gets wrong."""

    packed: DenseLinear
    most_rows: int = 10**6
    rounds: bool = False
    tells: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        if self.rounds:
            scale = x.abs().amax(-1, keepdim=True) / 127
            x = (x / scale).round() * scale
        y = self.packed(x)
        y[self.most_rows :] = y[: len(y) - self.most_rows].clone()
        return y

    @property
    def nbytes(self) -> int:
        return int(self.tells * self.packed.nbytes)


INT4 = packings("int_grouped")


@pytest.mark.parametrize(
    ("pack", "kind", "packing"),
    [
        (order_ignored, "int_grouped", "int4_g32_order"),
        (order_ignored, "int_grouped", "int4_uneven"),
        (largest_zero_lost, "int_grouped", "int3_g32"),
        (largest_zero_lost, "int_grouped", "int8_channel"),
        (always_nf4, "codebook4", "fp4"),
        (halves_of_bytes_swapped, "codebook4", "mxfp4"),
        (one_scale, "fp8", "e4m3_block"),
        (one_scale, "fp8", "e5m2_channel"),
        (rounded_weight, "dense", "float32"),
    ],
)
def test_a_misread_kind_is_caught(pack: Pack, kind: str, packing: str) -> None:
    def run(subject: Subject, numerics: Numerics) -> None:
        check = getattr(test_kinds, f"test_{kind}")
        check(subject, numerics, packings(kind)[packing], SHAPE)

    fails(with_pack(pack), run, ERROR)


def test_rows_beyond_a_tile_that_are_lost_are_caught() -> None:
    def run(subject: Subject, numerics: Numerics) -> None:
        test_kinds.test_int_grouped(subject, numerics, INT4["int4_g128"], SHAPE)

    fails(with_pack(lambda b, kind: Around(dense(b, kind), most_rows=32)), run, ERROR)


def test_a_share_that_is_misread_is_caught() -> None:
    def run(subject: Subject, numerics: Numerics) -> None:
        cuts = test_shares.FEATURES[1]
        test_shares.test_shares_k(subject, numerics, packings("codebook4")["mxfp4"], cuts)

    fails(with_pack(cut_blocks_misread), run, ERROR)


def test_a_joined_weight_that_is_misread_is_caught() -> None:
    def run(subject: Subject, numerics: Numerics) -> None:
        test_shares.test_joined_packings(subject, numerics, "int_grouped")

    fails(with_pack(order_ignored), run, ERROR)


def test_a_rounded_input_is_caught() -> None:
    def run(subject: Subject, numerics: Numerics) -> None:
        test_kinds.test_activation(subject, numerics, Activation("int8"))

    fails(with_pack(lambda b, kind: Around(dense(b, kind), rounds=True)), run, ERROR)


def test_a_nan_that_is_lost_is_caught() -> None:
    fails(with_pack(no_nan), lambda s, _: test_kinds.test_not_finite(s), "NaN is a number")


def test_a_source_that_is_spoilt_is_caught() -> None:
    def run(subject: Subject, _: Numerics) -> None:
        test_kinds.test_kept(subject, INT4["int4_g128"])

    fails(with_pack(spoils_its_source), run, "a buffer changed")


def test_a_head_in_bfloat16_is_caught() -> None:
    class Broken(PlainBackend):
        def pack_head(self, kind: Kind) -> PackedLinear:
            return rounded(DenseLinear(kind, self.device(0), "float32"))

    def run(subject: Subject, numerics: Numerics) -> None:
        test_kinds.test_head(subject, numerics, VARIANTS["dense"][1])

    fails(Broken, run, ERROR)


def test_a_kind_that_is_widened_though_declared_is_caught() -> None:
    def run(subject: Subject, numerics: Numerics) -> None:
        if "int_grouped" in subject.capabilities.weight_kinds:
            test_memory.test_int_grouped_bytes(subject, numerics, INT4["int4_g128"])

    broken = with_pack(dense, weight_kinds=("dense", "int_grouped"))
    fails(broken, run, r"bytes_to_allowed is [3-9]\.\d+, and at most 1\.1")


def test_bytes_that_are_not_told_are_caught() -> None:
    def run(subject: Subject, _: Numerics) -> None:
        test_memory.test_told(subject, VARIANTS["dense"][0])

    fails(with_pack(lambda b, kind: Around(dense(b, kind), tells=0.5)), run, "the codes alone are")


@pytest.mark.parametrize("variant", ALL, ids=str)
def test_made_weights_are_as_large_as_they_should_be(variant: Variant) -> None:
    """Entries of about 1 / sqrt(K), none lost to rounding, and the same from the same seed."""
    kind = variant.weight(64, 96)
    weight = kind.dequantize()
    assert kind.shape == weight.shape == (64, 96)
    assert 0.5 < float(weight.std()) * 96**0.5 < 2.5
    assert code_bytes(kind, "float32") <= kind.nbytes
    assert np.array_equal(variant.weight(64, 96).dequantize(), weight)
    assert not np.array_equal(variant.weight(64, 96, seed=1).dequantize(), weight)
    assert isinstance(kind, Dense) == (kind.name == "dense")
