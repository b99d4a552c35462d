"""Formats of quantized checkpoints, each turned into weight kinds at load.

A format lives in a module of its own. The classes are imported inside the hook, so that listing
plugins costs nothing.
"""

from collections.abc import Sequence

from infercore.hookspecs import hookimpl
from infercore.quantization import QuantizationMethod

API_VERSION = (1, 0)


@hookimpl
def register_quantization() -> Sequence[type[QuantizationMethod]]:
    from infercore_quantization.awq import Awq
    from infercore_quantization.bitsandbytes import Bitsandbytes
    from infercore_quantization.compressed_tensors import CompressedTensors
    from infercore_quantization.fp8 import Fp8Format
    from infercore_quantization.gptq import Gptq
    from infercore_quantization.on_load import Eetq, Fp4, Int4, Int8, Nf4

    stored = [Gptq, Awq, Bitsandbytes, CompressedTensors, Fp8Format]
    return [*stored, Nf4, Fp4, Eetq, Int8, Int4]
