"""What every layer is: a leaf of the traced graph that loads its own parameters."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from infercore.errors import UnsupportedModel
from infercore.executor import Weights
from infercore.kinds import STORAGE, Dense
from infercore.layers.ops import Ops
from infercore.model_spec import NormSpec

if TYPE_CHECKING:
    from infercore.backend import Backend, Collective


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype that a dtype tag names. Raises UnsupportedModel if this torch has none."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise UnsupportedModel(f"torch {torch.__version__} has no dtype {name}; choose another one")
    return dtype


def to_tensor(dense: Dense, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A copy of a checkpoint's tensor on `device`, in `dtype`."""
    if dense.dtype not in STORAGE:
        raise UnsupportedModel(f"a tensor is stored as {dense.dtype}, which is no dtype of torch")
    source = torch.from_numpy(dense.data).view(torch_dtype(dense.dtype))
    return torch.empty(source.shape, dtype=dtype, device=device).copy_(source)


@dataclass(frozen=True, slots=True)
class Source:
    """What layers load from: the checkpoint, and the backend that says where it goes."""

    weights: Weights
    backend: "Backend"
    device: torch.device
    dtype: torch.dtype

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        return to_tensor(self.weights.tensor(name), self.device, dtype or self.dtype)


class Layer(nn.Module):
    """A leaf of the traced graph. `forward` calls the backend's operations."""

    def load(self, source: Source) -> None:
        """Take this layer's parameters, if it has any, from the checkpoint.

        Raises CheckpointError, UnsupportedModel.
        """

    def join(self, collective: "Collective") -> None:
        """Talk to the other ranks, if this layer holds a share of what all of them need."""

    @property
    def nbytes(self) -> int:
        """Bytes of parameters on the device."""
        return sum(parameter.nbytes for parameter in self.buffers())


class Norm(Layer):
    """RMSNorm or LayerNorm, with parameters in float32 and the offset already added.

    heads: how many heads of its input each of `specs` normalizes, one after another; () = the
    whole last dimension, by one spec.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, ops: Ops, *specs: NormSpec, heads: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.ops = ops
        self.specs = specs
        self.heads = heads

    def load(self, source: Source) -> None:
        spec = self.specs[0]
        weights = [source.tensor(f"{s.name}.weight", torch.float32) + s.offset for s in self.specs]
        if self.heads:
            rows = [w.expand(count, -1) for w, count in zip(weights, self.heads, strict=True)]
            weights = [torch.cat(rows)]
        self.register_buffer("weight", weights[0])
        bias = source.tensor(f"{spec.name}.bias", torch.float32) if spec.bias else None
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(norm(x + residual), x + residual)."""
        spec = self.specs[0]
        if spec.centered:
            return self.ops.layer_norm(x, self.weight, self.bias, spec.eps, residual)
        return self.ops.rms_norm(x, self.weight, spec.eps, residual)
