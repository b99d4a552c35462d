"""The Backend contract: what most vendors write, on top of core's torch executor.

Three methods must be written; everything else has a default that is correct on any device torch
knows. A backend gets fast by overriding. Core never asks for a backend's name, only for its
capabilities. Importing this module does not import torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from infercore.capabilities import FULL, Capabilities, Capability, Support
from infercore.executor import (
    Bucket,
    CopyDirection,
    Executor,
    ExecutorConfig,
    KVGroup,
    Probe,
)
from infercore.kinds import Kind
from infercore.model_spec import AttentionSpec
from infercore.step import Int32

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from infercore.layers.ops import Ops


@dataclass(slots=True)
class AttentionBatch:
    """One step's geometry for one KV group, on the host and on the device.

    query_start int32[R + 1], context_len int32[R], block_table int32[R, B], slot_mapping int64[T]:
    tensors on the device. `host_query_start` and `host_context_len` are the same as NumPy, so that
    planning never waits for the device. fresh_blocks int64[F]: first handed out in this step.
    """

    query_start: "Tensor"
    context_len: "Tensor"
    block_table: "Tensor"
    slot_mapping: "Tensor"
    host_query_start: Int32
    host_context_len: Int32
    fresh_blocks: "Tensor"


class Attention(ABC):
    """Writes keys and values into the paged cache of one KV group, then attends over it.

    The cache's layout is this class's own. One instance serves all layers of its group.
    """

    @abstractmethod
    def allocate(self, num_blocks: int) -> None:
        """Allocate the cache of every layer of the group, block 0 included."""

    @abstractmethod
    def plan(self, batch: AttentionBatch) -> object:
        """Once per step: whatever `forward` needs, computed once for all layers."""

    @abstractmethod
    def forward(
        self, layer: int, q: "Tensor", k: "Tensor", v: "Tensor | None", plan: object
    ) -> "Tensor":
        """Write k and v, attend with q. `v` is None for latent caches.

        layer: index into the group's layers. q [T, H, D]; k, v [T, H_kv, D]. Returns [T, H, D].
        Only causal positions, inside the window if there is one, are read.
        """

    @abstractmethod
    def copy_blocks(self, src: Int32, dst: Int32, direction: CopyDirection) -> None:
        """Copy whole blocks of all layers."""


class PackedLinear(Protocol):
    """A weight in the backend's own layout."""

    def __call__(self, x: "Tensor") -> "Tensor":
        """x [T, K] in the compute dtype → [T, N]."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that it takes on the device."""
        ...


class Collective(Protocol):
    """What tensor-parallel layers ask of a process group."""

    rank: int
    size: int

    def all_reduce(self, x: "Tensor") -> "Tensor":
        """Sum over ranks."""
        ...

    def all_gather(self, x: "Tensor", dim: int) -> "Tensor":
        """Concatenate the ranks' tensors along `dim`."""
        ...


class Backend(ABC):
    """One kind of hardware, as core's torch executor sees it. One instance per rank.

    Constructed without arguments; `configure` brings what the operator chose.
    """

    name: ClassVar[str]
    config: ExecutorConfig

    @classmethod
    @abstractmethod
    def probe(cls) -> Probe:
        """Look for the hardware in under a second, without a driver or torch being imported."""

    @abstractmethod
    def device(self, rank: int) -> "torch.device":
        """The torch device of this rank."""

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """(bytes that this process may use in all, bytes in use now), on the device."""

    def peak_memory(self) -> int:
        """Most bytes in use since the last call, which starts anew.

        The default is right for allocators that keep what was freed.
        """
        return self.memory()[1]

    def configure(self, config: ExecutorConfig) -> None:
        """Take what the operator chose; called once, before all that follows but `capabilities`.

        Override to set up the device or its threads.
        """
        self.config = config

    def capabilities(self) -> Capabilities:
        """What this backend can do, for any model; constant after construction."""
        return Capabilities(
            dtypes=("bfloat16", "float32", "float16"),
            block_sizes=(16, 32, 64, 128),
            late_inputs=FULL,
            prompt_logprobs=FULL,
            block_copy=Capability(Support.NOT_IMPLEMENTED, "no blocks are kept on the host"),
        )

    def ops(self) -> "Ops":
        """The operations that layers call; the default is plain torch."""
        from infercore.layers.ops import Ops

        return Ops()

    def attention(self, group: KVGroup, specs: Sequence[AttentionSpec]) -> Attention:
        """The attention, and the cache, of one KV group; specs[i] is the group's i-th layer."""
        from infercore.layers.attention import PagedAttention

        return PagedAttention(group, specs, self.ops(), self.device(0), self.config)

    def compile(self, model: "torch.nn.Module", buckets: Sequence[Bucket]) -> "torch.nn.Module":
        """Lower the model for the planned shapes. The default runs it as it is."""
        del buckets
        return model

    def pack(self, kind: Kind) -> PackedLinear:
        """Turn a weight into this backend's layout. The default multiplies it densely."""
        from infercore.layers.linear import DenseLinear

        return DenseLinear(kind, self.device(0), self.config.dtype)

    def pack_head(self, kind: Kind) -> PackedLinear:
        """The output matrix: x float32 → logits float32. The default holds it in float32."""
        from infercore.layers.linear import DenseLinear

        return DenseLinear(kind, self.device(0), "float32")

    def collective(self, ranks: int) -> Collective:
        """The process group of this engine's ranks. The default serves one rank."""
        from infercore.layers.common import SingleRank

        return SingleRank(ranks)

    def synchronize(self) -> None:
        """Wait until the device is idle. The default suits devices that run in order on call."""

    def executor(self) -> Executor:
        """What the engine talks to: core's torch executor over this backend."""
        from infercore.worker.torch_executor import TorchExecutor

        return TorchExecutor(self)
