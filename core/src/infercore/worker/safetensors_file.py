"""A safetensors file, mapped into memory; its header is trusted only after every check.

Format: huggingface.co/docs/safetensors. Eight bytes (little end first) give the length of a JSON
header {name: {dtype, shape, data_offsets}}, the tensors' bytes follow without gap or overlap.
"""

import json
import math
import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infercore.errors import CheckpointError
from infercore.kinds import STORAGE, Dense

MAX_HEADER = 100_000_000  # bytes; the reference implementation's own limit
MAX_DIMS = 64  # NumPy's limit

# safetensors dtype → (bits, our dtype tag; kinds that STORAGE lacks cannot be read)
DTYPES: dict[str, tuple[int, str]] = {
    "F64": (64, "float64"),
    "F32": (32, "float32"),
    "F16": (16, "float16"),
    "BF16": (16, "bfloat16"),
    "F8_E4M3": (8, "float8_e4m3fn"),
    "F8_E5M2": (8, "float8_e5m2"),
    "F8_E8M0": (8, "float8_e8m0fnu"),
    "F6_E2M3": (6, "float6_e2m3fn"),
    "F6_E3M2": (6, "float6_e3m2fn"),
    "F4": (4, "float4_e2m1fn"),
    "C64": (64, "complex64"),
    "I64": (64, "int64"),
    "I32": (32, "int32"),
    "I16": (16, "int16"),
    "I8": (8, "int8"),
    "U64": (64, "uint64"),
    "U32": (32, "uint32"),
    "U16": (16, "uint16"),
    "U8": (8, "uint8"),
    "BOOL": (8, "bool"),
}


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """Where one tensor lies: bytes begin:end after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """The tensors of one file. Constructing it reads and checks the header, nothing else.

    Raises CheckpointError, naming file and tensor, for whatever the format forbids.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map: mmap.mmap | None = None
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                header = self._read_header(file.read(8), size, file.read)
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be read: {error.strerror}; check the path and its permissions"
            ) from error
        self._check_layout(header, size - self._start)
        self.headers = header

    def __getitem__(self, name: str) -> Dense:
        """The tensor as a view of the mapping; pages are read when touched."""
        header = self.headers[name]
        if header.dtype not in STORAGE:
            raise self._error(
                f"{name} is stored as {header.dtype}, which no kernel here reads; "
                "save the checkpoint in bfloat16, float16 or float32"
            )
        dtype = np.dtype(STORAGE[header.dtype])
        count = math.prod(header.shape)
        if count == 0:
            return Dense(np.empty(header.shape, dtype), header.dtype)
        data = np.frombuffer(self._mapping(), dtype, count, self._start + header.begin)
        if not data.flags.aligned:  # the format does not promise it, kernels need it
            data = data.copy()
        return Dense(data.reshape(header.shape), header.dtype)

    def release(self) -> None:
        """Give the mapped pages back; views still held stay valid and are read again if touched."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._map = None

    def _mapping(self) -> mmap.mmap:
        if self._map is None:
            with self.path.open("rb") as file:
                # private and writable, though nobody writes: torch warns about read-only arrays
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._map

    def _read_header(self, prefix: bytes, size: int, read: Any) -> dict[str, TensorHeader]:
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or (length <= MAX_HEADER and 8 + length > size):
            needed = 8 + length if len(prefix) == 8 else 8
            raise self._error(
                f"truncated inside its header, at {size} of at least {needed} bytes; "
                "download it again"
            )
        if length > MAX_HEADER:
            raise self._error(
                f"declares a header of {length} bytes (at most {MAX_HEADER} are legal), so it is "
                "damaged or no safetensors file; download it again"
            )
        self._start = 8 + length
        try:
            raw = json.loads(read(length), object_pairs_hook=self._unique)
        except (ValueError, RecursionError) as error:
            raise self._error(f"its header is not JSON ({error}); download it again") from error
        if not isinstance(raw, dict):
            raise self._error("its header is no JSON object; download it again")
        raw.pop("__metadata__", None)
        return {name: self._entry(name, value) for name, value in raw.items()}

    def _unique(self, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, value in pairs:
            if name in result:
                raise self._error(f"its header names {name} twice; download it again")
            result[name] = value
        return result

    def _entry(self, name: str, value: Any) -> TensorHeader:
        if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
            raise self._error(f"{name} lacks dtype, shape or data_offsets; download it again")
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise self._error(f"{name} has the unknown dtype {dtype!r}; save it again as BF16")
        if not _naturals(shape, MAX_DIMS) or not _naturals(offsets, 2) or len(offsets) != 2:
            raise self._error(
                f"{name} has a shape or data_offsets that are no lists of non-negative integers; "
                "download it again"
            )
        bits, tag = DTYPES[dtype]
        begin, end = offsets
        if math.prod(shape) * bits != (end - begin) * 8:  # Python's integers do not overflow
            raise self._error(
                f"{name} of shape {tuple(shape)} in {dtype} cannot fill bytes {begin}:{end}; "
                "download it again"
            )
        return TensorHeader(tag, tuple(shape), begin, end)

    def _check_layout(self, headers: dict[str, TensorHeader], available: int) -> None:
        total = max((header.end for header in headers.values()), default=0)
        if total > available:
            raise self._error(
                f"truncated at {self._start + available} of {self._start + total} bytes; "
                "download it again"
            )
        position, previous = 0, "the header"
        for name, header in sorted(headers.items(), key=lambda item: (item[1].begin, item[1].end)):
            if header.begin != position:
                relation = "overlaps" if header.begin < position else "leaves a gap after"
                raise self._error(f"{name} {relation} {previous}; download it again")
            position, previous = header.end, name
        if available != total:
            raise self._error(
                f"holds {available - total} bytes after its last tensor; download it again"
            )

    def _error(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {message}")


def _naturals(value: object, longest: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= longest
        and all(type(item) is int and item >= 0 for item in value)
    )
