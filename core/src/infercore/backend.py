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
from infercore.errors import UnsupportedModel
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
    from infercore.worker.thread_group import ThreadGroup


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
    """One rank's end of a process group. All ranks make the same calls in the same order."""

    rank: int
    size: int

    def all_reduce(self, x: "Tensor") -> "Tensor":
        """Sum over ranks, as a new tensor; every rank gets the same bits. Raises StepDropped."""
        ...

    def all_gather(self, x: "Tensor", dim: int) -> "Tensor":
        """Concatenate the ranks' tensors, of one shape, along `dim`. Raises StepDropped."""
        ...

    def abort(self) -> None:
        """This rank failed: whoever waits for it, now or later, raises StepDropped instead."""
        ...

    def recover(self) -> None:
        """After an abort, once the ranks dropped what it broke. Returns when all have called.

        Raises ExecutorLost if the group cannot be used again.
        """
        ...


class Backend(ABC):
    """One kind of hardware, as core's torch executor sees it. One instance per rank.

    Constructed without arguments; `configure` brings what the operator chose.
    rank, thread_group: which rank this instance is, and of which group; set by `peers`.
    """

    name: ClassVar[str]
    config: ExecutorConfig
    rank: int = 0
    thread_group: "ThreadGroup | None" = None

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
            watermark=FULL,
            block_copy=Capability(Support.NOT_IMPLEMENTED, "no blocks are kept on the host"),
        )

    def ops(self) -> "Ops":
        """The operations that layers call; the default is plain torch."""
        from infercore.layers.ops import Ops

        return Ops()

    def attention(self, group: KVGroup, specs: Sequence[AttentionSpec]) -> Attention:
        """The attention, and the cache, of one KV group; specs[i] is the group's i-th layer."""
        from infercore.layers.attention import PagedAttention

        return PagedAttention(group, specs, self.ops(), self.device(self.rank), self.config)

    def compile(self, model: "torch.nn.Module", buckets: Sequence[Bucket]) -> "torch.nn.Module":
        """Lower the model for the planned shapes. The default runs it as it is."""
        del buckets
        return model

    def pack(self, kind: Kind) -> PackedLinear:
        """Turn a weight into this backend's layout. The default multiplies it densely."""
        from infercore.layers.linear import DenseLinear

        return DenseLinear(kind, self.device(self.rank), self.config.dtype)

    def pack_head(self, kind: Kind) -> PackedLinear:
        """The output matrix: x float32 → logits float32. The default holds it in float32."""
        from infercore.layers.linear import DenseLinear

        return DenseLinear(kind, self.device(self.rank), "float32")

    def peers(self, ranks: int) -> "list[Backend]":
        """An instance for each of the ranks that are threads, this one first; before `configure`.

        Only a backend whose capabilities name the collective "threads" is asked.
        """
        from infercore.worker.thread_group import ThreadGroup

        group = ThreadGroup(ranks)
        peers: list[Backend] = [self, *(type(self)() for _ in range(1, ranks))]
        for rank, peer in enumerate(peers):
            peer.rank, peer.thread_group = rank, group
        return peers

    def collective(self, ranks: int) -> Collective:
        """This rank's end of the process group. The default knows the threads of `peers` only.

        Raises UnsupportedModel.
        """
        from infercore.worker.thread_group import ThreadGroup

        if self.thread_group is None and ranks != 1:
            raise UnsupportedModel(f"{self.name} joins no process group, {ranks} ranks need one")
        return (self.thread_group or ThreadGroup(1)).member(self.rank)

    def synchronize(self) -> None:
        """Wait until the device is idle. The default suits devices that run in order on call."""

    def executor(self) -> Executor:
        """What the engine talks to: core's torch executor over this backend."""
        from infercore.worker.torch_executor import TorchExecutor

        return TorchExecutor(self)
