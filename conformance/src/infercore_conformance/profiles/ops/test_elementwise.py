"""Operations on every token alone: embedding, norms, rotary embedding, activations."""

from typing import TYPE_CHECKING

import numpy as np
import pytest

from infercore_conformance import Level, check, thorough
from infercore_conformance.accuracy import Accuracy
from infercore_conformance.device import IS_BACKEND, Device, definition, normal, on_host
from infercore_conformance.fixtures import Numerics
from infercore_conformance.subject import Subject

if TYPE_CHECKING:
    from torch import Tensor

    from infercore.step import Float32

EPS = 1e-5
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
TOKENS = pytest.mark.parametrize("least", [1, 7, pytest.param(33, marks=thorough)])
SIZES = [48, 80, pytest.param(33, marks=thorough), pytest.param(1024, marks=thorough)]


@check(
    "ops.embedding",
    "An embedding is the row of its token, bit for bit.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@TOKENS
@pytest.mark.parametrize("size", SIZES)
def test_embedding(subject: Subject, least: int, size: int) -> None:
    """The first and the last row too, and one that several tokens ask for."""
    for device in Device.each(subject):
        table = device.normal(1, 97, size)
        ids = np.random.default_rng(2).integers(0, 97, device.tokens(least))
        ids[0] = 96
        ids[-1] = ids[0] if least > 1 else 0
        found = device.ops.embedding(device.put(ids), device.activations(table))
        assert found.dtype == device.compute_dtype, f"the result is {found.dtype}"
        assert np.array_equal(found.float().cpu().numpy(), table[ids]), "a row is another one"


@check(
    "ops.rms_norm",
    "RMSNorm is right, with a residual and without.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@TOKENS
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("magnitude", [1.0, 2.0**-10, 64.0])
def test_rms_norm(
    subject: Subject, numerics: Numerics, least: int, size: int, magnitude: float
) -> None:
    """Sums of squares are float32: those of large float16 numbers overflow, and eps counts for
    small ones. The residual's sum is returned as it is normed.
    """
    weight = _gains(5, size)
    for device in Device.each(subject):
        shape, accuracy = (device.tokens(least), size), Accuracy(numerics, device.dtype)
        x = np.float32(magnitude) * device.normal(3, *shape)
        for residual in (None, np.float32(magnitude) * device.normal(4, *shape)):
            added = None if residual is None else device.activations(residual)
            found = device.ops.rms_norm(device.activations(x), device.put(weight), EPS, added)
            added = None if residual is None else on_host(residual)
            expected = definition().rms_norm(on_host(x), on_host(weight), EPS, added)
            _check_pair(device, accuracy, found, expected, f"x {shape}")


@check(
    "ops.rms_norm_heads",
    "RMSNorm of each head is right, with one weight for all heads and with one for each.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@TOKENS
@pytest.mark.parametrize("dim", [16, 80, pytest.param(128, marks=thorough)])
def test_rms_norm_heads(subject: Subject, numerics: Numerics, least: int, dim: int) -> None:
    """x [T, H, D] is a part of what one product made: tokens have gaps between them (Qwen3)."""
    for device in Device.each(subject):
        accuracy = Accuracy(numerics, device.dtype)
        x = device.normal(3, device.tokens(least), 5, dim)
        for weight in (_gains(5, dim), _gains(6, 3, dim)):
            heads = device.activations(x)[:, :3]
            found = device.ops.rms_norm(heads, device.put(weight), EPS)
            expected = definition().rms_norm(on_host(x)[:, :3], on_host(weight), EPS)
            _check_pair(device, accuracy, found, expected, f"3 heads, weight {weight.shape}")


@check(
    "ops.layer_norm",
    "LayerNorm is right, with a residual and without, with a bias and without.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@TOKENS
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mean", [0.0, 2.0])
def test_layer_norm(
    subject: Subject, numerics: Numerics, least: int, size: int, mean: float
) -> None:
    """The mean is taken off before squares are summed; a variance from E[x²] − E[x]² is not."""
    weight, bias = _gains(6, size), normal(7, size)
    for device in Device.each(subject):
        shape, accuracy = (device.tokens(least), size), Accuracy(numerics, device.dtype)
        x = device.held(normal(8, *shape) + np.float32(mean))
        for residual, shift in ((None, None), (None, bias), (device.normal(9, *shape), bias)):
            found = device.ops.layer_norm(
                device.activations(x),
                device.put(weight),
                None if shift is None else device.put(shift),
                EPS,
                None if residual is None else device.activations(residual),
            )
            expected = definition().layer_norm(
                on_host(x),
                on_host(weight),
                None if shift is None else on_host(shift),
                EPS,
                None if residual is None else on_host(residual),
            )
            _check_pair(device, accuracy, found, expected, f"x {shape}")


@check(
    "ops.rope",
    "Each head is turned by the angles of its token, halves as pairs.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@TOKENS
@pytest.mark.parametrize(
    ("heads", "dim"), [(1, 64), (8, 16), (5, 80), pytest.param(40, 128, marks=thorough)]
)
def test_rope(subject: Subject, numerics: Numerics, least: int, heads: int, dim: int) -> None:
    """GPT-NeoX's order, not GPT-J's. Heads are a part of what one product made: rows have gaps."""
    for device in Device.each(subject):
        tokens, accuracy = device.tokens(least), Accuracy(numerics, device.dtype)
        made = device.normal(10, tokens, heads + 2, dim)
        angles = np.random.default_rng(11).uniform(-3, 3, (tokens, 1, dim // 2))
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        cos, sin = np.concatenate([cos, cos], -1), np.concatenate([-sin, sin], -1)
        found = device.ops.rope(
            device.activations(made)[:, :heads], device.put(cos), device.put(sin)
        )
        expected = definition().rope(on_host(made)[:, :heads], on_host(cos), on_host(sin))
        assert found.dtype == device.compute_dtype, f"the result is {found.dtype}"
        accuracy.check(found, expected, f"{tokens} tokens, {heads} heads of {dim}")


@check(
    "ops.activation",
    "Activations that the backend names are right, for large numbers too.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@TOKENS
@pytest.mark.parametrize("magnitude", [1.0, 2.0**10])
def test_activation(subject: Subject, numerics: Numerics, least: int, magnitude: float) -> None:
    """gelu is the one with erf, gelu_tanh the approximation; they differ in the third digit."""
    for device in Device.each(subject):
        accuracy = Accuracy(numerics, device.dtype)
        x = np.float32(magnitude) * device.normal(12, device.tokens(least), 80)
        for name in _known(device):
            found = device.ops.activation(device.activations(x), name)
            accuracy.check(found, definition().activation(on_host(x), name), name)
            assert found.dtype == device.compute_dtype, f"{name} of it is {found.dtype}"


@check(
    "ops.act_and_mul",
    "The activation of the first half times the second half is right.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@TOKENS
@pytest.mark.parametrize("size", SIZES)
def test_act_and_mul(subject: Subject, numerics: Numerics, least: int, size: int) -> None:
    """The gate is the first half, and its own activation is what the second half scales."""
    for device in Device.each(subject):
        accuracy = Accuracy(numerics, device.dtype)
        x = device.normal(13, device.tokens(least), 2 * size)
        for name in _known(device):
            found = device.ops.act_and_mul(device.activations(x), name)
            accuracy.check(found, definition().act_and_mul(on_host(x), name), name)
            assert found.dtype == device.compute_dtype, f"{name} of it is {found.dtype}"


def _gains(seed: int, *shape: int) -> "Float32":
    """The weight of a norm, around 1."""
    return normal(seed, *shape) / np.float32(4) + np.float32(1)


def _known(device: Device) -> list[str]:
    """Activations that have a definition here, of those that the backend names."""
    return [name for name in device.ops.activations if name in ACTIVATIONS]


def _check_pair(
    device: Device,
    accuracy: Accuracy,
    found: "tuple[Tensor, Tensor]",
    expected: "tuple[Tensor, Tensor]",
    case: str,
) -> None:
    for what, result, reference in zip(("norm", "sum"), found, expected, strict=True):
        assert result.dtype == device.compute_dtype, f"the {what} is {result.dtype}"
        accuracy.check(result, reference, f"the {what} of {case}")
