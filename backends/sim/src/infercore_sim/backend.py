"""The simulated accelerator as a Backend: torch on the CPU, with a device's memory and cache."""

import os
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING, ClassVar

from infercore.backend import Attention, Backend
from infercore.capabilities import (
    FULL,
    Capabilities,
    Capability,
    Dimension,
    StaticDimension,
    Support,
)
from infercore.executor import Executor, ExecutorConfig, KVGroup, Probe
from infercore.model_spec import AttentionSpec
from infercore_sim.options import VARIABLE, Fault, SimOptions

if TYPE_CHECKING:
    import torch

    from infercore.layers.ops import Ops
    from infercore_sim.attention import SimAttention

DEFAULT_MIB = 1024
DEFAULT_COMPILE_SECONDS = 1
DTYPES = {"bf16": "bfloat16", "fp32": "float32", "fp16": "float16"}
MULTIPLES = {Dimension.TOKENS: 8, Dimension.ROWS: 4, Dimension.BLOCKS: 4}


class SimBackend(Backend):
    """A device that exists in this process only, or one of several; each computes on one thread.

    options: what it can do and when it fails; None = the words of the variable INFERCORE_SIM.
    Raises ConfigError for a word that is none.
    """

    name: ClassVar[str] = "sim"

    def __init__(self, options: SimOptions | None = None) -> None:
        self.options = options or SimOptions.parse(os.environ.get(VARIABLE, ""))
        self.caches: list[SimAttention] = []
        self._ranks: list[SimBackend] = [self]
        self.owns_thread = False  # whether the thread that configures it is the device's own

    @classmethod
    def probe(cls) -> Probe:
        try:
            version = metadata.version("torch")
        except metadata.PackageNotFoundError:
            return Probe(False, "torch is not installed; pip install 'torch>=2.11,<2.14'")
        return Probe(True, devices=(f"a simulated device on torch {version}",))

    def device(self, rank: int) -> "torch.device":
        import torch

        del rank
        return torch.device("cpu")

    def executor(self) -> Executor:
        from infercore_sim.executor import SimExecutor

        self.owns_thread = True
        return SimExecutor(self, super().executor())

    def peers(self, ranks: int) -> list[Backend]:
        peers = super().peers(ranks)
        self._ranks = [peer for peer in peers if isinstance(peer, SimBackend)]
        for rank in self._ranks:
            rank.options, rank.owns_thread = self.options, self.owns_thread
        return peers

    def configure(self, config: ExecutorConfig) -> None:
        import torch

        from infercore_sim.faults import SimOps
        from infercore_sim.memory import MIB, DeviceMemory

        torch.set_num_threads(config.threads or 1)
        has = self.options.numbers.get("memory", DEFAULT_MIB) * MIB
        self._memory = DeviceMemory(min(has, config.memory_budget or has))
        if self.owns_thread:  # as a context manager it would end here; the thread never leaves it
            self._memory.__enter__()  # type: ignore[no-untyped-call]
        self._ops = SimOps()
        super().configure(config)

    def sabotage(self, fault: Fault | None) -> None:
        """Let the step that comes next run into `fault`, if it is one of computing."""
        self._ops.nan_logits = fault is Fault.NAN
        self._memory.refuses_next = fault is Fault.OOM

    def forget(self) -> None:
        """Let the next step find the whole KV cache as it was allocated."""
        for rank in self._ranks:
            for cache in rank.caches:
                cache.forgets = True

    @property
    def operations(self) -> int:
        """That were computed so far."""
        return self._memory.operations

    def memory(self) -> tuple[int, int]:
        return self._memory.ceiling, self._memory.used

    def peak_memory(self) -> int:
        return self._memory.take_peak()

    def ops(self) -> "Ops":
        return self._ops

    def attention(self, group: KVGroup, specs: Sequence[AttentionSpec]) -> Attention:
        from infercore_sim.attention import SimAttention

        cache = SimAttention(group, specs, self._ops, self.config, self._memory)
        self.caches.append(cache)
        return cache

    def capabilities(self) -> Capabilities:
        numbers, without = self.options.numbers, self.options.without
        dtypes = tuple(dtype for name, dtype in DTYPES.items() if name not in without)
        return Capabilities(
            dtypes=dtypes,
            kv_dtypes=("auto", *dtypes),
            block_sizes=(numbers["block"],) if "block" in numbers else (16, 32, 64, 128),
            static_dimensions=self._static_dimensions(),
            batch_tokens=256,
            max_in_flight=numbers.get("in-flight", 2),
            tokens_per_step=numbers.get("lookahead", 1),
            collectives=("threads",),
            late_inputs=self._unless("late"),
            prompt_logprobs=self._unless("prompt-logprobs"),
            watermark=FULL,
            graph_capture=self._unless("graph"),
            batch_invariant=Capability(
                Support.UNSUPPORTED, "torch's products round differently for another batch"
            ),
            block_copy=Capability(Support.NOT_IMPLEMENTED, "no blocks are kept on the host"),
        )

    def _static_dimensions(self) -> tuple[StaticDimension, ...]:
        seconds = float(self.options.numbers.get("compile", DEFAULT_COMPILE_SECONDS))
        return tuple(
            StaticDimension(dimension, multiple, compile_seconds=seconds)
            for dimension, multiple in MULTIPLES.items()
            if dimension not in self.options.dynamic
        )

    def _unless(self, feature: str) -> Capability:
        if feature in self.options.without:
            return Capability(Support.UNSUPPORTED, f"{VARIABLE} says no-{feature}")
        return FULL
