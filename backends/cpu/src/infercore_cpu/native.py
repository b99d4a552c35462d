"""The shared library of native kernels, and weights in the layout that its products read.

The library is compiled where the package is built or installed (hatch_build.py) and chooses its
instruction set when it is loaded. Where there is none, `library` is None and says why, once.
"""

import ctypes
import logging
from ctypes import c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infercore.kinds import Dense

logger = logging.getLogger(__name__)

LIBRARY = Path(__file__).parent / "libinfercore_cpu.so"
PANEL = 16  # outputs that lie side by side
LINE_BYTES = 64
BLOCK_COLUMNS = 128  # of x that share a scale when they are rounded, at most
KINDS = ("float32", "bfloat16", "float16", "int8", "int4", "codebook4")  # in linear.h's order
STEPS = {"float32": 1, "bfloat16": 2, "float16": 2, "int8": 4, "int4": 8, "codebook4": 8}


class LinearWeight(ctypes.Structure):
    """`LinearWeight` of native/linear.h."""

    _fields_ = (
        ("kind", c_int32),
        ("n", c_int32),
        ("k", c_int32),
        ("lines", c_int32),
        ("groups", c_int32),
        ("scale_kind", c_int32),
        ("panels", c_void_p),
        ("scales", c_void_p),
        ("zeros", c_void_p),
        ("table", c_void_p),
        ("group_start", c_void_p),
        ("columns", c_void_p),
        ("bytes", c_void_p),
        ("unit", c_float),
        ("rounds", c_int32),
    )


@cache
def library() -> ctypes.CDLL | None:
    """The library with its signatures, or None where this installation has none."""
    try:
        lib = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        logger.warning(
            "The CPU backend runs without its native kernels, several times slower and with more "
            "memory for weights (%s). Install a C++ compiler, then infercore-cpu again",
            error,
        )
        return None
    signatures = {
        "infercore_set_threads": (None, [c_int]),
        "infercore_isa": (c_char_p, []),
        "infercore_isa_name": (c_char_p, [c_int]),
        "infercore_use_isa": (c_int, [c_char_p]),
        "infercore_linear_pack": (None, [c_void_p, c_void_p, c_int64]),
        "infercore_linear": (c_int, [c_void_p, c_void_p, c_int, c_void_p, c_int]),
        "infercore_linear_rows": (None, [*(c_void_p,) * 3, *(c_int,) * 3]),
        "infercore_pairs": (c_int, []),
        "infercore_rounded_bytes": (c_int64, [c_void_p]),
        "infercore_step": (c_int, [c_void_p, c_void_p, c_int, c_int]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def isas(lib: ctypes.CDLL) -> list[str]:
    """Instruction sets that this CPU and this library have, best first."""
    names: list[str] = []
    while name := lib.infercore_isa_name(len(names)):
        names.append(name.decode())
    return names


class Packed:
    """A weight [N, K] in panels; see native/linear.h."""

    def __init__(
        self,
        lib: ctypes.CDLL,
        kind: str,
        rows: NDArray[np.generic],
        columns: int,
        groups: "Groups | None" = None,
        table: NDArray[np.float32] | None = None,
        *,
        rounds: bool = False,
    ) -> None:
        """rows: what `infercore_linear_pack` reads, [N, bytes or numbers]. columns: K.

        rounds: x is rounded to int8 on its way; only of weights in groups.
        """
        rows = np.ascontiguousarray(rows)
        n, steps = len(rows), STEPS[kind]
        lines = -(-columns // steps) if groups is None else int(groups.start[-1])
        count = -(-n // PANEL)
        self.lib = lib
        self.shape = (n, columns)
        self._panels = aligned(count * lines * LINE_BYTES)
        self._buffers: list[NDArray[np.generic]] = [self._panels]
        self._weight = LinearWeight(KINDS.index(kind), n, columns, lines, 0)
        self._weight.panels = self._panels.ctypes.data
        if groups is not None:
            self._weight.groups = len(groups.start) - 1
            self._weight.scale_kind = KINDS.index(groups.scale_dtype)
            self._keep("scales", groups.scales)
            self._keep("zeros", groups.zeros)
            self._keep("group_start", groups.start)
            self._keep("columns", groups.columns)
        self._keep("table", table)
        self._weight.unit, self._weight.rounds = 1.0, rounds
        if rounds and table is not None:
            self._weight.unit, in_units = whole_table(table)
            self._keep("bytes", in_units)
        self.address = ctypes.addressof(self._weight)
        lib.infercore_linear_pack(self.address, rows.ctypes.data, rows.strides[0])

    def _keep(self, field: str, buffer: NDArray[np.generic] | None) -> None:
        if buffer is not None:
            assert buffer.flags.c_contiguous
            self._buffers.append(buffer)
            setattr(self._weight, field, buffer.ctypes.data)

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._buffers)


class Groups:
    """Columns sorted by group, each group filled up to whole lines, and what they are worth.

    start: int32[G + 1], first line of each group. columns: int32[lines · steps], the column of W
    that lies there, −1 for none; None where all lie in order. scales, zeros: [panels, G, 16],
    W = (code − zero) · scale; zeros are uint8 where codes have 4 bits, else uint16; None = no zero.
    """

    def __init__(
        self,
        group_of_column: NDArray[np.integer],
        steps: int,
        scales: Dense,
        zeros: NDArray[np.int16] | None = None,
    ) -> None:
        """scales, zeros: [G, N], of groups that all have columns."""
        counts = np.bincount(group_of_column, minlength=len(scales.data))
        lines = -(-counts // steps)
        self.start = np.concatenate([[0], np.cumsum(lines)]).astype(np.int32)
        order = np.argsort(group_of_column, kind="stable")
        first = np.cumsum(counts) - counts  # of each group, in `order`
        place = np.arange(len(order)) - np.repeat(first, counts)
        columns = np.full(int(self.start[-1]) * steps, -1, np.int32)
        columns[np.repeat(self.start[:-1] * steps, counts) + place] = order
        plain = np.array_equal(columns, np.arange(len(order)))
        self.columns = None if plain else columns
        narrow = scales.dtype in ("bfloat16", "float16")
        self.scale_dtype = scales.dtype if narrow else "float32"
        self.scales = _in_panels(scales.data if narrow else scales.dequantize())
        width = np.uint8 if steps == STEPS["int4"] else np.uint16  # 0 … 16, 0 … 256
        self.zeros = None if zeros is None else _in_panels(zeros.astype(width))


def whole_table(table: NDArray[np.float32]) -> tuple[float, NDArray[np.uint8]]:
    """(unit, 128 + whole numbers), with table ≈ unit · whole numbers of −127 … 127.

    table: float32[16]. Of the units that use at least half of the range, the one with the least
    error: 0.2 % of the largest entry for NF4, less than the codes of x have; none for E2M1.
    """
    largest = float(np.abs(table).max()) or 1.0
    units = largest / np.arange(64, 128, 0.25)
    whole = np.rint(table[None].astype(np.float64) / units[:, None])
    errors = ((whole * units[:, None] - table) ** 2).sum(1)
    best = int(errors.argmin())
    return float(units[best]), (whole[best] + 128).astype(np.uint8)


def _in_panels(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """[G, N] → [ceil(N / 16), G, 16], filled up with zeros."""
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % PANEL)))
    return np.ascontiguousarray(padded.reshape(len(values), -1, PANEL).swapaxes(0, 1))


def aligned(size: int) -> NDArray[np.uint8]:
    """uint8[size], at a multiple of a line."""
    whole = np.empty(size + LINE_BYTES, np.uint8)
    start = -whole.ctypes.data % LINE_BYTES
    return whole[start : start + size]
