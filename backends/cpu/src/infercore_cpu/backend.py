"""The CPU as a Backend, on torch's own operations."""

import os
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING, ClassVar

from infercore.backend import Backend, PackedLinear
from infercore.capabilities import FULL, Capabilities, Capability, Support
from infercore.executor import Executor, ExecutorConfig, Probe
from infercore.kinds import Kind
from infercore_cpu import host

if TYPE_CHECKING:
    import torch

TORCH = ((2, 11), (2, 14))  # first version that was tested, first that was not
SHARE = 0.9  # of the memory that is available at the start, where no budget is given

# Without one of these instruction sets torch multiplies the dtype many times slower than float32.
NATIVE: Mapping[str, frozenset[str]] = {
    "bfloat16": frozenset({"avx512_bf16", "amx_bf16", "bf16"}),
    "float16": frozenset({"avx512_fp16", "amx_fp16", "asimdhp"}),
}


class CpuBackend(Backend):
    """Any CPU that torch runs on. One rank, which uses all threads.

    Where the CPU cannot multiply a 16-bit dtype, its weights are widened to float32 at load, which
    takes twice the memory, and computed in float32; the KV cache keeps the dtype.
    """

    name: ClassVar[str] = "cpu"

    @classmethod
    def probe(cls) -> Probe:
        device = f"{host.cpu_name()}, {host.cpu_count()} threads"
        low, high = ("{}.{}".format(*version) for version in TORCH)
        remedy = f"install one that is: pip install 'torch>={low},<{high}'"
        try:
            version = metadata.version("torch")
        except metadata.PackageNotFoundError:
            return Probe(False, f"torch is not installed; {remedy}", (device,))
        if not TORCH[0] <= _release(version) < TORCH[1]:
            return Probe(False, f"torch {version} is not supported; {remedy}", (device,))
        return Probe(True, devices=(device,))

    def device(self, rank: int) -> "torch.device":
        import torch

        del rank
        return torch.device("cpu")

    def executor(self) -> Executor:
        # Before torch loads its threads: those that wait actively take the cores from the engine's
        # and the router's, and a step then takes many times as long. The operator's choice wins.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        return super().executor()

    def configure(self, config: ExecutorConfig) -> None:
        import torch

        torch.set_num_threads(config.threads or host.cpu_count())
        native = NATIVE.get(config.dtype)
        if native is not None and not native & host.cpu_flags():
            config = replace(config, dtype="float32")
        self._before = host.private_memory()
        super().configure(config)

    def memory(self) -> tuple[int, int]:
        used = max(0, host.private_memory() - self._before)
        budget = self.config.memory_budget
        return budget or used + int(SHARE * host.available_memory()), used

    def peak_memory(self) -> int:
        return max(0, host.peak_private_memory() - self._before)

    def pack(self, kind: Kind) -> PackedLinear:
        from infercore_cpu.linear import CpuLinear

        return CpuLinear(kind, self.device(0), self.config.dtype)

    def pack_head(self, kind: Kind) -> PackedLinear:
        from infercore_cpu.linear import CpuLinear

        return CpuLinear(kind, self.device(0), "float32")

    def capabilities(self) -> Capabilities:
        return Capabilities(
            dtypes=("bfloat16", "float32", "float16"),
            kv_dtypes=("auto", "float32", "bfloat16", "float16"),
            block_sizes=(16, 32, 64, 128),
            batch_tokens=512,  # a longer chunk of a prompt keeps other streams waiting for seconds
            max_in_flight=2,
            late_inputs=FULL,
            prompt_logprobs=FULL,
            batch_invariant=Capability(
                Support.UNSUPPORTED, "torch's products round differently for another batch"
            ),
            activation_int8=Capability(Support.NOT_IMPLEMENTED, "needs native kernels"),
            block_copy=Capability(Support.UNSUPPORTED, "the device's memory is the host's"),
            graph_capture=Capability(Support.UNSUPPORTED, "torch runs eagerly on CPUs"),
        )


def _release(version: str) -> tuple[int, int]:
    """(major, minor) of a version such as "2.13.0+cpu"."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
