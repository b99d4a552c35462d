"""The Executor contract: what the engine talks to.

Numbers go in, numbers come out. An executor never sees a scheduler, a request or a text, and
the engine never sees a tensor, so an executor may be torch, JAX, NumPy or a compiled engine.
Most vendors do not write one: they write a `Backend`, which core's torch executor drives.

What is in flight obeys these rules:
  (a) submit and copy_blocks take effect in call order; at most max_in_flight steps are unresolved.
  (b) A step's arrays belong to the executor until its result returned.
  (c) A block is released only at the update of the last step that names it.
  (d) Only a sequence with nothing in flight is preempted.
  (e) A block enters the prefix cache at the update of the step that wrote its last slot.
  (f) If step k fails, later unresolved steps end as StepDropped and count for nothing.
  (g) Length is known ahead and never overrun; EOS and stops are learnt one step late.
  (h) Only a row that yields exactly one token may be followed ahead.
  (i) Block 0 is never given out: padding writes to it, and what is read there is ignored.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeAlias

from infercore.capabilities import Capabilities
from infercore.kinds import Dense, Kind
from infercore.model_spec import ModelSpec
from infercore.step import Int32, LateInputs, Step, StepResult

API_VERSION = (1, 0)
"""(major, minor) of both contracts, Executor and Backend. Inside a major, changes only add."""

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called as progress(phase, done, total), often, from the thread that does the work."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether the hardware is there.

    available: False makes `reason` say what is missing and what to install.
    devices: a readable name per device ("a CPU of 2 threads").
    """

    available: bool
    reason: str = ""
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExecutorConfig:
    """What the operator chose, resolved against the capabilities before anything loads.

    dtype, kv_dtype: compute and KV-cache dtype ("float32", "bfloat16", "float16").
    block_size: tokens per KV block.
    max_num_seqs: most rows in a step; also the number of slots.
    max_batch_tokens: most tokens in a step.
    max_model_len: longest sequence, prompt and output.
    memory_budget: bytes that weights, workspace and KV cache may take together; None = the
        backend's own limit.
    threads: CPU threads for compute; None = the backend's choice.
    ranks: how many share the model by tensor parallelism; memory and threads are each one's.
    activation_int8: round inputs of weight-only kinds to int8, per token and group; only where the
        capability is declared and dtype is "bfloat16".
    """

    dtype: str
    kv_dtype: str
    block_size: int
    max_num_seqs: int
    max_batch_tokens: int
    max_model_len: int
    memory_budget: int | None = None
    threads: int | None = None
    ranks: int = 1
    activation_int8: bool = False


class GroupKind(Enum):
    """How a KV group's blocks age."""

    FULL = "full"  # every position of the sequence is kept
    WINDOW = "window"  # only the last `window` positions are read
    LATENT = "latent"  # like full, one compressed vector per token
    STATE = "state"  # one block per sequence, overwritten in place


@dataclass(frozen=True, slots=True)
class KVGroup:
    """Layers whose KV cache shares one block table.

    layers: indices into `ModelSpec.layers`.
    bytes_per_block: over all layers of the group, K and V, scales included.
    window: positions read, the current one included (WINDOW only).
    """

    name: str
    kind: GroupKind
    layers: tuple[int, ...]
    block_size: int
    bytes_per_block: int
    window: int | None = None


KVGroups: TypeAlias = tuple[KVGroup, ...]


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on the device, measured after the worst-case step.

    total: what the budget allows. weights, workspace: what is taken. `free` is left for KV.
    """

    total: int
    weights: int
    workspace: int

    @property
    def free(self) -> int:
        return max(0, self.total - self.weights - self.workspace)


@dataclass(frozen=True, slots=True)
class Bucket:
    """A planned step shape: tokens, rows, width of the block table."""

    tokens: int
    rows: int
    blocks: int


class CopyDirection(Enum):
    """Where `copy_blocks` reads and writes."""

    DEVICE_TO_DEVICE = "device-device"
    DEVICE_TO_HOST = "device-host"
    HOST_TO_DEVICE = "host-device"


class Weights(Protocol):
    """A checkpoint as named kinds; nothing is read from disk before it is asked for.

    Names are those of the checkpoint, as `ModelSpec` lists them. Both raise CheckpointError.
    """

    def linear(self, name: str) -> Kind:
        """The matrix of the linear layer `name`, [out, in] whatever the file's order."""
        ...

    def tensor(self, name: str) -> Dense:
        """Any other tensor: embedding, norm, bias."""
        ...


class Handle(ABC):
    """A submitted step, or a copy, that may not have finished."""

    @abstractmethod
    def sample(self, late: LateInputs) -> None:
        """Give a `late` step what its sampling waits for; exactly once, before `result`."""

    @abstractmethod
    def result(self, timeout: float | None = None) -> StepResult:
        """Wait and return the result. Call once.

        timeout: seconds. Raises TimeoutError, StepFailed, StepDropped or ExecutorLost.
        """


class Executor(ABC):
    """Runs steps of one model on one device group. Called from one thread only.

    Constructed without arguments; then, in this order: capabilities, load, memory, allocate_kv,
    warm_up, and steps until shutdown.
    """

    @classmethod
    @abstractmethod
    def probe(cls) -> Probe:
        """Look for the hardware in under a second, without a driver or torch being imported."""

    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What this executor can do; constant after construction."""

    @abstractmethod
    def load(
        self, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
    ) -> KVGroups:
        """Read the weights and build the model. Returns the KV groups that it needs.

        config: resolved against `capabilities`, so its dtype and block size are legal here.

        Raises UnsupportedModel if an operation or kind has no implementation here.
        """

    @abstractmethod
    def memory(self) -> Memory:
        """Measured after a worst-case step (max_batch_tokens, max_num_seqs, planned captures)."""

    @abstractmethod
    def allocate_kv(self, num_blocks: Mapping[str, int]) -> None:
        """Allocate {group name: blocks, block 0 included}. Replaces an earlier allocation."""

    @abstractmethod
    def warm_up(self, buckets: Sequence[Bucket], deadline: float, progress: Progress) -> int:
        """Compile or capture the buckets in order, and return how many of them are warm.

        deadline: time.monotonic after which none is begun. The first is warmed whatever it takes:
        it holds any step, so every other may be left out.
        """

    @abstractmethod
    def submit(self, step: Step) -> Handle:
        """Start the step's forward, and its sampling unless `step.late`. Does not wait.

        Raises StepFailed only for what is known without running it (an unknown extra).
        """

    @abstractmethod
    def copy_blocks(self, group: str, src: Int32, dst: Int32, direction: CopyDirection) -> Handle:
        """Copy whole blocks, src[i] to dst[i], ordered with `submit`."""

    @abstractmethod
    def health(self) -> None:
        """Return if the device answers. Raises ExecutorLost."""

    @abstractmethod
    def reset(self) -> None:
        """Drop all slots and KV contents; the model stays loaded and buckets stay warm."""

    @abstractmethod
    def shutdown(self) -> None:
        """Free the device. Idempotent."""
