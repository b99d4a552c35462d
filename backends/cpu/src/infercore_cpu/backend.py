"""The CPU as a Backend: native matrix products, and torch's operations for the rest."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING, ClassVar

from infercore.backend import Attention, Backend, PackedLinear
from infercore.capabilities import FULL, Capabilities, Capability, Support
from infercore.executor import Bucket, Executor, ExecutorConfig, KVGroup, Probe
from infercore.kinds import Dense, Kind
from infercore.model_spec import AttentionSpec
from infercore_cpu import host, native

if TYPE_CHECKING:
    import torch

    from infercore.layers.ops import Ops

TORCH = ((2, 11), (2, 14))  # first version that was tested, first that was not
SHARE = 0.9  # of the memory that is available at the start, where no budget is given

NATIVE_KINDS = ("dense", "int_grouped", "codebook4")

TORCH_ROUNDS = Capability(
    Support.UNSUPPORTED, "torch, which multiplies here, rounds differently in company"
)
WITHOUT_NATIVE = Capability(Support.NOT_IMPLEMENTED, "only native kernels round activations")

# Without one of these instruction sets torch multiplies the dtype many times slower than float32.
NATIVE: Mapping[str, frozenset[str]] = {
    "bfloat16": frozenset({"avx512_bf16", "amx_bf16", "bf16"}),
    "float16": frozenset({"avx512_fp16", "amx_fp16", "asimdhp"}),
}


class CpuBackend(Backend):
    """Any CPU that torch runs on. One rank, which uses all threads.

    Weights keep the dtype or the codes that they are stored in, and are widened in registers.
    Where the CPU cannot multiply a 16-bit dtype, activations are float32; the KV cache keeps the
    dtype. Without native kernels such weights are widened at load, which takes more memory.
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

        threads = config.threads or host.cpu_count()
        torch.set_num_threads(threads)
        lib = native.library()
        if lib is not None:
            lib.infercore_set_threads(threads)
        self._stored_dtype = config.dtype  # of dense weights that the checkpoint has in a wider one
        flags = NATIVE.get(config.dtype)
        if flags is not None and not flags & host.cpu_flags():
            config = replace(config, dtype="float32")
        self._before = host.private_memory()
        super().configure(config)

    def memory(self) -> tuple[int, int]:
        used = max(0, host.private_memory() - self._before)
        budget = self.config.memory_budget
        return budget or used + int(SHARE * host.available_memory()), used

    def peak_memory(self) -> int:
        return max(0, host.peak_private_memory() - self._before)

    def ops(self) -> "Ops":
        from infercore_cpu.ops import CpuOps

        lib = native.library()
        return super().ops() if lib is None else CpuOps(lib)

    def attention(self, group: KVGroup, specs: Sequence[AttentionSpec]) -> Attention:
        from infercore_cpu.attention import NativeAttention, supports

        lib = native.library()
        if lib is None or not supports(group, specs):
            return super().attention(group, specs)
        return NativeAttention(group, specs, self.config, lib)

    def pack(self, kind: Kind) -> PackedLinear:
        from infercore_cpu.linear import CpuLinear, native_linear

        lib = native.library()
        if lib is None:
            return CpuLinear(kind, self.device(0), self.config.dtype)
        rounds = self.config.activation_int8
        return native_linear(lib, kind, self._stored_dtype, rounds=rounds)

    def pack_head(self, kind: Kind) -> PackedLinear:
        from infercore_cpu.linear import CpuLinear, native_linear
        from infercore_cpu.rows import RowsLinear

        lib = native.library()
        if lib is None:
            return CpuLinear(kind, self.device(0), "float32")
        if isinstance(kind, Dense) and kind.dtype == "float32":
            return RowsLinear(kind, lib)  # a tied embedding shares the matrix
        return native_linear(lib, kind, "float32")

    def compile(self, model: "torch.nn.Module", buckets: Sequence[Bucket]) -> "torch.nn.Module":
        """One native call per step, of any shape. Ranks that share a model run layer by layer."""
        from infercore.layers.common import torch_dtype
        from infercore_cpu.compile import lower

        del buckets
        lib = native.library()
        if lib is None or self.config.ranks > 1:
            return model
        return lower(model, lib, torch_dtype(self.config.dtype))

    def capabilities(self) -> Capabilities:
        return Capabilities(
            dtypes=("bfloat16", "float32", "float16"),
            kv_dtypes=("auto", "float32", "bfloat16", "float16"),
            block_sizes=(16, 32, 64, 128),
            weight_kinds=("dense",) if native.library() is None else NATIVE_KINDS,
            batch_tokens=512,  # a longer chunk of a prompt keeps other streams waiting for seconds
            max_in_flight=2,
            late_inputs=FULL,
            prompt_logprobs=FULL,
            watermark=FULL,
            batch_invariant=FULL if native.library() is not None else TORCH_ROUNDS,
            activation_int8=FULL if native.library() is not None else WITHOUT_NATIVE,
            block_copy=Capability(Support.UNSUPPORTED, "the device's memory is the host's"),
            graph_capture=Capability(Support.UNSUPPORTED, "torch runs eagerly on CPUs"),
        )


def _release(version: str) -> tuple[int, int]:
    """(major, minor) of a version such as "2.13.0+cpu"."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
