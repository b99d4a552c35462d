"""Shares of weights, as ranks hold them, and weights that one product joins."""

import numpy as np
import pytest

from infercore.kinds import Dense, Kind
from infercore_conformance import Level, check
from infercore_conformance.accuracy import Accuracy
from infercore_conformance.device import IS_BACKEND, Device
from infercore_conformance.fixtures import Numerics
from infercore_conformance.made_kinds import ALL, VARIANTS, Variant
from infercore_conformance.products import inputs, multiplied, product, product_bound
from infercore_conformance.subject import Subject

N, K = 80, 96
CUTS = [((0, 40), (40, 80)), ((0, 27), (27, 80))]  # halves, and shares of odd sizes
FEATURES = [((0, 48), (48, 96)), ((0, 45), (45, 96))]  # within groups, blocks and bytes


@check(
    "quant.shares_n",
    "Output features in shares are those of the whole.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@pytest.mark.parametrize("variant", ALL, ids=str)
@pytest.mark.parametrize("cuts", CUTS, ids=["even", "odd"])
def test_shares_n(
    subject: Subject, numerics: Numerics, variant: Variant, cuts: tuple[tuple[int, int], ...]
) -> None:
    """A column-parallel layer: q, k, v, gate and up. A share's buffers are views with gaps."""
    kind = variant.weight(N, K)
    for device in Device.each(subject):
        x = inputs(device, 7, K)
        expected, accuracy = product(x, kind), _accuracy(device, numerics)
        for start, stop in cuts:
            found = multiplied(device, kind.slice_n(start, stop), x)
            accuracy.check(found, expected[:, start:stop], f"outputs {start} to {stop}")


@check(
    "quant.shares_k",
    "A share of the input features multiplies as its columns of the whole.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@pytest.mark.parametrize("variant", ALL, ids=str)
@pytest.mark.parametrize("cuts", FEATURES, ids=["even", "odd"])
def test_shares_k(
    subject: Subject, numerics: Numerics, variant: Variant, cuts: tuple[tuple[int, int], ...]
) -> None:
    """A row-parallel layer: out and down. Cuts may go through a group, a block or a byte of two
    codes; groups that a share does not use are gone, and others have new numbers.
    """
    kind = variant.weight(N, K)
    for device in Device.each(subject):
        x = inputs(device, 7, K)
        accuracy = _accuracy(device, numerics)
        for start, stop in cuts:
            part, columns = x[:, start:stop], kind.dequantize()[:, start:stop]
            found = multiplied(device, kind.slice_k(start, stop), part)
            expected = product(part, Dense(columns, "float32"))
            accuracy.check(found, expected, f"inputs {start} to {stop}")


@check(
    "quant.joined",
    "Weights that are joined into one product are beside each other in its outputs.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@pytest.mark.parametrize("variant", ALL, ids=str)
def test_joined(subject: Subject, numerics: Numerics, variant: Variant) -> None:
    """q, k and v, of other sizes and other scales, whole and in the shares of two ranks."""
    parts = [variant.weight(n, K, seed=n) for n in (48, 16, 16)]
    halves = [part.slice_n(part.shape[0] // 2, part.shape[0]) for part in parts]
    _hold_joined(subject, numerics, parts)
    _hold_joined(subject, numerics, halves)


@check(
    "quant.joined_packings",
    "Packings of one kind that differ in groups, bits or scales are joined all the same.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@pytest.mark.parametrize("name", ["dense", "int_grouped"])
def test_joined_packings(subject: Subject, numerics: Numerics, name: str) -> None:
    """Where maps differ, columns that share a group in every part make a new one: there are many
    groups of few columns.
    """
    parts = [v.weight(16 + 8 * number, K, seed=number) for number, v in enumerate(VARIANTS[name])]
    _hold_joined(subject, numerics, parts)


@check(
    "quant.fused",
    "Weights of different kinds are fused into one product.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@pytest.mark.parametrize(
    "names",
    [("int_grouped", "dense"), ("codebook4", "int_grouped", "fp8"), ("dense", "codebook8")],
    ids=" ".join,
)
def test_fused(subject: Subject, numerics: Numerics, names: tuple[str, ...]) -> None:
    """A checkpoint may keep k and v in more bits than q; core dequantizes what no kind holds."""
    parts = [VARIANTS[name][0].weight(32, K, seed=number) for number, name in enumerate(names)]
    _hold_joined(subject, numerics, parts)


def _hold_joined(subject: Subject, numerics: Numerics, parts: list[Kind]) -> None:
    import torch

    from infercore.layers.linear import joined

    whole = joined(parts)
    for device in Device.each(subject):
        x = inputs(device, 7, K)
        expected = torch.cat([product(x, part) for part in parts], dim=1)
        found = multiplied(device, whole, x)
        at = np.cumsum([0, *(part.shape[0] for part in parts)])
        accuracy = _accuracy(device, numerics)
        for part, start, stop in zip(parts, at, at[1:], strict=False):
            case = f"the outputs {start} to {stop}, of a {part.name} weight"
            accuracy.check(found[:, start:stop], expected[:, start:stop], case)


def _accuracy(device: Device, numerics: Numerics) -> Accuracy:
    return Accuracy(numerics, device.dtype, product_bound(device))
