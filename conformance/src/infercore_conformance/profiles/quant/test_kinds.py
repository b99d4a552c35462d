"""Weights of each kind, packed and multiplied, against the matrix that they stand for."""

from dataclasses import replace

import numpy as np
import pytest

from infercore.kinds import Dense
from infercore.kinds.base import Activation
from infercore_conformance import Both, Level, Listed, check, thorough
from infercore_conformance.accuracy import Accuracy
from infercore_conformance.device import IS_BACKEND, Device, normal
from infercore_conformance.fixtures import Numerics
from infercore_conformance.made_kinds import COMMONEST, VARIANTS, Variant, buffers
from infercore_conformance.products import inputs, multiplied, product, product_bound
from infercore_conformance.subject import Subject

ROWS = (1, 2, 7, 33)
SHAPES = pytest.mark.parametrize(
    "shape",
    [(80, 96), pytest.param((33, 17), marks=thorough), pytest.param((768, 1024), marks=thorough)],
    ids=str,
)  # (N, K)


def _hold(subject: Subject, numerics: Numerics, variant: Variant, shape: tuple[int, int]) -> None:
    """Few rows and many take different ways through most backends."""
    kind = variant.weight(*shape)
    for device in Device.each(subject):
        accuracy = Accuracy(numerics, device.dtype, product_bound(device))
        packed = device.backend.pack(kind)
        for least in ROWS:
            x = inputs(device, least, shape[1])
            found = device.ops.linear(device.activations(x), packed, None)
            accuracy.check(found, product(x, kind), f"{len(x)} rows, N and K {shape}")


@check(
    "quant.dense",
    "A dense weight in any dtype multiplies as its values say.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@SHAPES
@pytest.mark.parametrize("variant", VARIANTS["dense"], ids=str)
def test_dense(
    subject: Subject, numerics: Numerics, variant: Variant, shape: tuple[int, int]
) -> None:
    _hold(subject, numerics, variant, shape)


@check(
    "quant.int_grouped",
    "Integers of 2, 3, 4 and 8 bits multiply as (code − zero) · scale of their column's group.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@SHAPES
@pytest.mark.parametrize("variant", VARIANTS["int_grouped"], ids=str)
def test_int_grouped(
    subject: Subject, numerics: Numerics, variant: Variant, shape: tuple[int, int]
) -> None:
    """Zeros go up to 2^bits, one more than a code; groups have any size and any columns, and a
    group may have none.
    """
    _hold(subject, numerics, variant, shape)


@check(
    "quant.codebook4",
    "NF4, FP4, MXFP4 and NVFP4 multiply as their table's entry times their block's scale.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@SHAPES
@pytest.mark.parametrize("variant", VARIANTS["codebook4"], ids=str)
def test_codebook4(
    subject: Subject, numerics: Numerics, variant: Variant, shape: tuple[int, int]
) -> None:
    """Scales are a kind of their own: float32, bfloat16, powers of two, or quantized once more."""
    _hold(subject, numerics, variant, shape)


@check(
    "quant.codebook8",
    "8-bit codes into a table, in blocks across rows, multiply as they dequantize.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@SHAPES
@pytest.mark.parametrize("variant", VARIANTS["codebook8"], ids=str)
def test_codebook8(
    subject: Subject, numerics: Numerics, variant: Variant, shape: tuple[int, int]
) -> None:
    _hold(subject, numerics, variant, shape)


@check(
    "quant.fp8",
    "8-bit floats multiply as their values times the scale of tensor, channel or block.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@SHAPES
@pytest.mark.parametrize("variant", VARIANTS["fp8"], ids=str)
def test_fp8(
    subject: Subject, numerics: Numerics, variant: Variant, shape: tuple[int, int]
) -> None:
    """The smallest codes are subnormal numbers, and not zero."""
    _hold(subject, numerics, variant, shape)


@check(
    "quant.head",
    "The head multiplies any kind in float32, whatever the compute dtype is.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@pytest.mark.parametrize("variant", COMMONEST, ids=str)
def test_head(subject: Subject, numerics: Numerics, variant: Variant) -> None:
    """Its weight is not rounded to a 16-bit dtype on the way: what it dequantizes to counts."""
    kind = variant.weight(160, 96)
    for device in Device.each(subject):
        x = device.normal(60, 5, 96)
        head = device.backend.pack_head(kind)
        found = device.ops.logits(device.activations(x), head, None)
        accuracy = Accuracy(numerics, "float32")
        accuracy.check(found, product(x, kind), f"5 rows, computing in {device.dtype}")


@check(
    "quant.kept",
    "Packing a weight leaves the kind as it was.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@pytest.mark.parametrize("variant", COMMONEST, ids=str)
def test_kept(subject: Subject, variant: Variant) -> None:
    """Other ranks, and a head that is tied to the embedding, pack the same buffers."""
    for device in Device.each(subject):
        kind = variant.weight(48, 96)
        before = [buffer.copy() for buffer in buffers(kind)]
        packed = device.backend.pack(kind)
        device.ops.linear(device.activations(inputs(device, 2, 96)), packed, None)
        for old, new in zip(before, buffers(kind), strict=True):
            assert np.array_equal(old.view(np.uint8), new.view(np.uint8)), "a buffer changed"


@check(
    "quant.activation",
    "In float32 an input is not rounded, whatever the checkpoint's maker wanted.",
    level=Level.EXTENDED,
    needs=Both(IS_BACKEND, Listed("dtypes", "float32")),
)
@pytest.mark.parametrize(
    "activation",
    [Activation("int8"), Activation("int8", 0.5), Activation("float8_e4m3fn")],
    ids=str,
)
def test_activation(subject: Subject, numerics: Numerics, activation: Activation) -> None:
    """Kinds say how inputs were rounded when the weight was made; float32 is there to compare."""
    device = Device.open(subject, "float32")
    x = inputs(device, 7, 96)
    for variant in (VARIANTS["int_grouped"][2], VARIANTS["fp8"][0], VARIANTS["dense"][1]):
        kind = replace(variant.weight(80, 96), activation=activation)  # type: ignore[type-var]
        accuracy = Accuracy(numerics, "float32")
        accuracy.check(multiplied(device, kind, x), product(x, kind), f"{variant}, {activation}")


@check(
    "quant.not_finite",
    "What is no number in a weight is none in its outputs, and nowhere else.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
def test_not_finite(subject: Subject) -> None:
    """Checkpoints have such entries; they are the business of the rows that they are in."""
    weight = normal(61, 48, 96)
    weight[5, 7] = np.nan
    for device in Device.each(subject):
        found = multiplied(device, Dense(weight, "float32"), inputs(device, 7, 96))
        wrong = ~np.isfinite(found.float().cpu().numpy())
        assert wrong[:, 5].all(), "a product with NaN is a number"
        assert not np.delete(wrong, 5, axis=1).any(), "NaN is in outputs of other rows of W"
