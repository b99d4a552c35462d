"""A Backend under test without an engine around it: its operations, and tensors on its device.

Importing this module does not import torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from infercore.backend import Backend
from infercore.capabilities import Capabilities, Dimension
from infercore_conformance.needs import Feature
from infercore_conformance.running import config_for
from infercore_conformance.subject import BACKEND, Subject

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from infercore.layers.ops import Ops
    from infercore.step import Float32

IS_BACKEND = Feature(BACKEND)


@dataclass
class Device:
    """A configured Backend. dtype: what was chosen; it may compute in a wider one."""

    backend: Backend
    dtype: str
    capabilities: Capabilities

    @classmethod
    def open(cls, subject: Subject, dtype: str, **config: Any) -> "Device":
        """A new one. config: fields of ExecutorConfig; the KV cache is in `dtype` by default."""
        backend = subject.cls()
        assert isinstance(backend, Backend), "needs=IS_BACKEND keeps other executors away"
        values = {"dtype": dtype, "kv_dtype": dtype, **config}
        backend.configure(config_for(subject.capabilities, **values))
        return cls(backend, dtype, subject.capabilities)

    @classmethod
    def each(cls, subject: Subject, **config: Any) -> Iterator["Device"]:
        """One in each compute dtype that is declared."""
        for dtype in subject.capabilities.dtypes:
            yield cls.open(subject, dtype, **config)

    @cached_property
    def ops(self) -> "Ops":
        return self.backend.ops()

    @property
    def compute_dtype(self) -> "torch.dtype":
        """Of activations."""
        from infercore.layers.common import torch_dtype

        return torch_dtype(self.backend.config.dtype)

    def legal(self, dimension: Dimension, least: int) -> int:
        """The smallest size of a dimension that the device may be given, from `least` on."""
        for static in self.capabilities.static_dimensions:
            if static.dimension is dimension:
                return -(-least // static.multiple_of) * static.multiple_of
        return least

    def tokens(self, least: int) -> int:
        return self.legal(Dimension.TOKENS, least)

    def put(self, array: "np.ndarray[Any, Any]", dtype: "torch.dtype | None" = None) -> "Tensor":
        """The array on the device, in `dtype`; in its own by default."""
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).to(self._place, dtype)

    def activations(self, array: "Float32") -> "Tensor":
        """The array on the device, in the dtype of activations."""
        return self.put(array, self.compute_dtype)

    def held(self, values: "Float32") -> "Float32":
        """Like `values`, and held exactly by activations, so that no rounding is the input's."""
        return values if self.computes_float32 else coarse(values)

    def normal(self, seed: int, *shape: int) -> "Float32":
        """Normal numbers that activations hold."""
        return self.held(normal(seed, *shape))

    @property
    def computes_float32(self) -> bool:
        return self.backend.config.dtype == "float32"

    @property
    def _place(self) -> "torch.device":
        return self.backend.device(self.backend.rank)


def normal(seed: int, *shape: int) -> "Float32":
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def coarse(values: "Float32") -> "Float32":
    """To multiples of 1/32 up to 8, which have the 8 significant bits of bfloat16."""
    return np.clip(np.round(values * 32), -255, 255).astype(np.float32) / np.float32(32)


def on_host(array: "Float32") -> "Tensor":
    import torch

    return torch.from_numpy(array)


def definition() -> "Ops":
    """Core's operations; given float32 on the host, they are what a backend's are held against."""
    from infercore.layers.ops import Ops

    return Ops()
