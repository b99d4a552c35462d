"""Float32 products with torch's own matrix, which a tied embedding shares."""

import ctypes

import torch
from torch import Tensor

from infercore.kinds import Kind
from infercore.layers.linear import DenseLinear


class RowsLinear(DenseLinear):
    """y = x Wᵀ in float32, each row of y with the same bits in any company; see linear_rows.h.

    library: the native kernels.
    """

    def __init__(self, kind: Kind, library: ctypes.CDLL) -> None:
        super().__init__(kind, torch.device("cpu"), "float32")
        self._multiply = library.infercore_linear_rows

    def __call__(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        y = torch.empty(len(x), len(self.weight))
        addresses = (self.weight.data_ptr(), x.data_ptr(), y.data_ptr())
        self._multiply(*addresses, *self.weight.shape, len(x))
        return y
