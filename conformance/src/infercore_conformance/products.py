"""Matrix products of a Backend, and what they are by definition. Imports torch late."""

from typing import TYPE_CHECKING

from infercore.kinds import Kind
from infercore_conformance.accuracy import ERROR_INT8, error_bound
from infercore_conformance.device import Device

if TYPE_CHECKING:
    from torch import Tensor

    from infercore.step import Float32


def product_bound(device: Device) -> float:
    """What rounding activations to int8 costs is allowed where it is declared, in 16 bits."""
    bound = error_bound(device.dtype)
    if device.capabilities.activation_int8 and device.dtype != "float32":
        return max(bound, ERROR_INT8)
    return bound


def product(x: "Float32", kind: Kind, bias: "Float32 | None" = None) -> "Tensor":
    """x Wᵀ + b in float64, W being the kind's own dequantized matrix."""
    import torch

    y = torch.from_numpy(x).double() @ torch.from_numpy(kind.dequantize()).double().T
    return y if bias is None else y + torch.from_numpy(bias).double()


def multiplied(device: Device, kind: Kind, x: "Float32", bias: "Float32 | None" = None) -> "Tensor":
    """The same, packed and multiplied by the backend, as a layer does it."""
    packed = device.backend.pack(kind)
    found = device.ops.linear(
        device.activations(x), packed, None if bias is None else device.activations(bias)
    )
    assert found.dtype == device.compute_dtype, f"a product is {found.dtype}"
    return found


def inputs(device: Device, least: int, k: int) -> "Float32":
    """x [T, K]: as many rows as the device may be given, from `least` on."""
    return device.normal(1000 + k, device.tokens(least), k)
