"""What packed weights take: a kind that a backend multiplies natively is not widened."""

import pytest

from infercore_conformance import Both, Level, Listed, check
from infercore_conformance.device import IS_BACKEND, Device
from infercore_conformance.fixtures import Numerics
from infercore_conformance.made_kinds import ALL, VARIANTS, Variant, code_bytes, widened_bytes
from infercore_conformance.subject import Subject

SHAPE = (1024, 1024)
MOST = 1.1  # times the kind, for panels that are filled up


def _native(kind: str) -> Both:
    return Both(IS_BACKEND, Listed("weight_kinds", kind))


def _hold(subject: Subject, numerics: Numerics, variant: Variant) -> None:
    """Scales and zeros may become float32; codes may not become anything wider."""
    kind = variant.weight(*SHAPE)
    for device in Device.each(subject):
        nbytes = device.backend.pack(kind).nbytes
        numerics.record("bytes_to_kind", nbytes / kind.nbytes)
        allowed = max(kind.nbytes, widened_bytes(kind, device.dtype))
        numerics.record(f"{variant}.bytes_to_allowed", nbytes / allowed, MOST)


@check(
    "quant.memory.dense",
    "A dense weight takes no more than in its own dtype, or in the one that was chosen.",
    level=Level.EXTENDED,
    needs=_native("dense"),
)
@pytest.mark.parametrize("variant", VARIANTS["dense"], ids=str)
def test_dense_bytes(subject: Subject, numerics: Numerics, variant: Variant) -> None:
    _hold(subject, numerics, variant)


@check(
    "quant.memory.int_grouped",
    "Integers that are multiplied natively keep their bits.",
    level=Level.EXTENDED,
    needs=_native("int_grouped"),
)
@pytest.mark.parametrize("variant", VARIANTS["int_grouped"][:4], ids=str)
def test_int_grouped_bytes(subject: Subject, numerics: Numerics, variant: Variant) -> None:
    _hold(subject, numerics, variant)


@check(
    "quant.memory.codebook4",
    "4-bit codes that are multiplied natively stay 4-bit codes.",
    level=Level.EXTENDED,
    needs=_native("codebook4"),
)
@pytest.mark.parametrize("variant", VARIANTS["codebook4"], ids=str)
def test_codebook4_bytes(subject: Subject, numerics: Numerics, variant: Variant) -> None:
    _hold(subject, numerics, variant)


@check(
    "quant.memory.codebook8",
    "8-bit codes that are multiplied natively stay 8-bit codes.",
    level=Level.EXTENDED,
    needs=_native("codebook8"),
)
@pytest.mark.parametrize("variant", VARIANTS["codebook8"], ids=str)
def test_codebook8_bytes(subject: Subject, numerics: Numerics, variant: Variant) -> None:
    _hold(subject, numerics, variant)


@check(
    "quant.memory.fp8",
    "8-bit floats that are multiplied natively stay 8-bit floats.",
    level=Level.EXTENDED,
    needs=_native("fp8"),
)
@pytest.mark.parametrize("variant", VARIANTS["fp8"], ids=str)
def test_fp8_bytes(subject: Subject, numerics: Numerics, variant: Variant) -> None:
    _hold(subject, numerics, variant)


@check(
    "quant.memory.told",
    "A packed weight tells at least the bytes that its codes need.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
@pytest.mark.parametrize("variant", ALL, ids=str)
def test_told(subject: Subject, variant: Variant) -> None:
    """What is left for the KV cache is computed from it: too little told is out of memory later."""
    kind = variant.weight(256, 512)
    for device in Device.each(subject):
        nbytes = device.backend.pack(kind).nbytes
        least = code_bytes(kind, device.dtype)
        assert nbytes >= least, f"{nbytes} bytes are told, and the codes alone are {least}"
