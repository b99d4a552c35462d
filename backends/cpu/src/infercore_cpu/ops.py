"""The elementwise operations of layers, in native code."""

import ctypes
from ctypes import c_float, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from infercore.layers.ops import Ops
from infercore_cpu.attention import DTYPES, by_token

ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}  # as elementwise.h has them


class CpuOps(Ops):
    """Norms, rotary embedding and activations by the native kernels; the rest is torch's.

    Arithmetic is float32 and rounds once, at the end; a sum with the residual is rounded before
    it is normed, as the default does. A row has the same bits whatever other rows there are and
    on any number of threads. Inputs may have gaps between tokens, not inside of one.

    library: the native kernels.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._norm_rows = library.infercore_norm
        self._norm_rows.argtypes = (
            *(c_void_p,) * 6, *(c_int,) * 4, c_int64, c_float, c_int, c_int
        )  # fmt: skip
        self._rope_rows = library.infercore_rope
        self._rope_rows.argtypes = (*(c_void_p,) * 4, *(c_int,) * 3, c_int64, c_int)
        self._activate_rows = library.infercore_activate
        self._activate_rows.argtypes = (
            *(c_void_p,) * 2, *(c_int,) * 2, c_int64, *(c_int,) * 3
        )  # fmt: skip
        for function in (self._norm_rows, self._rope_rows, self._activate_rows):
            function.restype = None

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self._norm(x, weight, None, eps, residual, centered=False)

    def layer_norm(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        residual: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        return self._norm(x, weight, bias, eps, residual, centered=True)

    def _norm(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        residual: Tensor | None,
        *,
        centered: bool,
    ) -> tuple[Tensor, Tensor]:
        size = weight.shape[-1]
        x = by_token(x)
        per_token = x[0].numel() // size if len(x) else 0
        out = torch.empty(x.shape, dtype=x.dtype)
        total = x
        if residual is not None:
            residual = residual.contiguous()
            total = torch.empty(x.shape, dtype=x.dtype)
        self._norm_rows(
            x.data_ptr(),
            None if residual is None else residual.data_ptr(),
            weight.data_ptr(),
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            total.data_ptr(),
            len(x),
            per_token,
            size,
            weight.numel() // size,
            x.stride(0),
            eps,
            centered,
            DTYPES[x.dtype],
        )
        return out, total

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x, cos, sin = by_token(x), cos.contiguous(), sin.contiguous()
        tokens, heads, dim = x.shape
        out = torch.empty(x.shape, dtype=x.dtype)
        self._rope_rows(
            x.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            out.data_ptr(),
            tokens,
            heads,
            dim,
            x.stride(0),
            DTYPES[x.dtype],
        )
        return out

    def activation(self, x: Tensor, name: str) -> Tensor:
        return self._activate(x, name, x.shape[1], gated=False)

    def act_and_mul(self, x: Tensor, name: str) -> Tensor:
        return self._activate(x, name, x.shape[1] // 2, gated=True)

    def _activate(self, x: Tensor, name: str, size: int, *, gated: bool) -> Tensor:
        x = by_token(x)
        out = torch.empty(len(x), size, dtype=x.dtype)
        self._activate_rows(
            x.data_ptr(),
            out.data_ptr(),
            len(x),
            size,
            x.stride(0),
            ACTIVATIONS[name],
            gated,
            DTYPES[x.dtype],
        )
        return out
