"""Matrix products: linear layers over every weight kind, and the head."""

import pytest

from infercore_conformance import Level, check, thorough
from infercore_conformance.accuracy import Accuracy
from infercore_conformance.device import IS_BACKEND, Device
from infercore_conformance.fixtures import Numerics
from infercore_conformance.made_kinds import ALL, COMMONEST, VARIANTS, Variant
from infercore_conformance.products import inputs, multiplied, product, product_bound
from infercore_conformance.subject import Subject

SHAPES = [(80, 48), (33, 17), pytest.param((512, 1024), marks=thorough)]  # (N, K)
HEAD = (160, 48)


def _with_quick(quick: tuple[Variant, ...]) -> list[object]:
    """All packings; those that `quick` does not name only in a full run."""
    return [v if v in quick else pytest.param(v, marks=thorough) for v in ALL]


@check(
    "ops.linear",
    "A product with a dense weight is right, with a bias and without.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@pytest.mark.parametrize("least", [1, 7, pytest.param(33, marks=thorough)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS["dense"], ids=str)
def test_linear(
    subject: Subject, numerics: Numerics, least: int, shape: tuple[int, int], variant: Variant
) -> None:
    """x [T, K], W [N, K], b [N]; no size has to be a multiple of anything."""
    kind = variant.weight(*shape)
    for device in Device.each(subject):
        bias = device.normal(2, shape[0])
        accuracy = Accuracy(numerics, device.dtype, product_bound(device))
        x = inputs(device, least, shape[1])
        for added in (None, bias):
            what = f"{len(x)} rows, {'without' if added is None else 'with'} a bias"
            accuracy.check(multiplied(device, kind, x, added), product(x, kind, added), what)


@check(
    "ops.linear_kinds",
    "A product with a weight of any kind is right, whatever its groups and their order.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@pytest.mark.parametrize("variant", _with_quick((*COMMONEST, *VARIANTS["int_grouped"])), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_kinds(
    subject: Subject, numerics: Numerics, shape: tuple[int, int], variant: Variant
) -> None:
    """group_of_row says which group each column is in: for act-order, any. A kind that the
    backend does not name is dequantized by core, and is right as well.
    """
    kind = variant.weight(*shape)
    for device in Device.each(subject):
        bias = device.normal(2, shape[0])
        x = inputs(device, 7, shape[1])
        accuracy = Accuracy(numerics, device.dtype, product_bound(device))
        accuracy.check(multiplied(device, kind, x, bias), product(x, kind, bias), f"K, N {shape}")


@check(
    "ops.logits",
    "Logits are float32 sums that are not rounded, under the soft cap if there is one.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@pytest.mark.parametrize("rows", [1, 5, pytest.param(33, marks=thorough)])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("variant", _with_quick(VARIANTS["dense"]), ids=str)
def test_logits(
    subject: Subject, numerics: Numerics, rows: int, softcap: float | None, variant: Variant
) -> None:
    """A 16-bit logit has ties that the model has not, and greedy choices hang on them: the bound
    is float32's in every compute dtype.
    """
    kind = variant.weight(*HEAD)
    for device in Device.each(subject):
        x = device.normal(3, rows, HEAD[1])
        expected = product(x, kind)
        if softcap is not None:
            expected = softcap * (expected / softcap).tanh()
        head = device.backend.pack_head(kind)
        found = device.ops.logits(device.activations(x), head, softcap)
        assert str(found.dtype) == "torch.float32", f"logits are {found.dtype}"
        accuracy = Accuracy(numerics, "float32")
        accuracy.check(found, expected, f"{rows} rows, computing in {device.dtype}")
