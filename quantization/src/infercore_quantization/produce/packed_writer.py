"""int_grouped as the tensors of GPTQ and AWQ files (see `packing` for their words).

What `infercore_quantization.gptq` and `.awq` read, written.
"""

import numpy as np
from numpy.typing import NDArray

from infercore.errors import UnsupportedModel
from infercore.kinds import Dense, IntGrouped
from infercore.model_spec import LinearSpec
from infercore_quantization.packing import AWQ_CODES, AWQ_COLUMNS

UInt8 = NDArray[np.uint8]
Int32 = NDArray[np.int32]
WORD = 32


def gptq_tensors(name: str, kind: IntGrouped) -> dict[str, Dense]:
    """The layer `name` in the format "gptq": zero points less 1, so each must be at least 1.

    Its shape fills whole words (see `require_whole`), also below.
    """
    assert int(kind.zeros.min()) >= 1, "a zero point of 0 would borrow from its neighbour"
    zeros = (kind.zeros - 1).astype(np.uint8)
    return {
        f"{name}.qweight": _int32(np.ascontiguousarray(stream(kind.values(), kind.bits).T)),
        f"{name}.qzeros": _int32(stream(zeros, kind.bits)),
        f"{name}.scales": kind.scales,
        f"{name}.g_idx": _int32(kind.group_of_row),
    }


def awq_tensors(name: str, kind: IntGrouped) -> dict[str, Dense]:
    """The layer `name` in AutoAWQ's layout "gemm"."""
    return {
        f"{name}.qweight": _int32(awq_words(np.ascontiguousarray(kind.values().T))),
        f"{name}.qzeros": _int32(awq_words(kind.zeros.astype(np.uint8))),
        f"{name}.scales": kind.scales,
    }


def stream(codes: UInt8, bits: int) -> Int32:
    """[R, C] → [R, C · bits / 32]: the codes of each row without gaps, the first lowest."""
    places = np.arange(bits, dtype=np.uint8)
    single = (codes[..., None] >> places & 1).reshape(len(codes), -1)
    packed = np.packbits(single, axis=-1, bitorder="little")
    words: Int32 = np.ascontiguousarray(packed).view("<i4")
    return words


def awq_words(codes: UInt8) -> Int32:
    """[R, C] → [R, C / 8]: evens first."""
    wide = codes.reshape(len(codes), -1, AWQ_CODES).astype(np.uint32)
    words = np.zeros(wide.shape[:-1], np.uint32)
    for place, column in enumerate(AWQ_COLUMNS):
        words |= wide[..., column] << np.uint32(4 * place)
    return words.view(np.int32)


def _int32(data: Int32) -> Dense:
    return Dense(data, "int32")


def require_whole(linear: LinearSpec, bits: int) -> None:
    """Raises UnsupportedModel if the layer's codes do not fill whole words."""
    n, k = linear.out_features, linear.in_features
    if n * bits % WORD or k * bits % WORD:
        raise UnsupportedModel(
            f"{linear.name} has {k} inputs and {n} outputs, whose {bits}-bit codes do not fill "
            f"words of {WORD} bits as the format needs; use --method nf4, or other --bits"
        )
