"""The CPU backend's native kernels, for their tests."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from infercore_cpu import native


def library() -> ctypes.CDLL:
    """Skips the calling test module where the backend was installed without a compiler."""
    found = native.library()
    if found is None:
        pytest.skip("infercore-cpu has no native kernels here", allow_module_level=True)
    return found


@contextmanager
def using(lib: ctypes.CDLL, isa: str, threads: int = 1) -> Iterator[None]:
    """Run on this instruction set and this many threads, then on the best set and one thread."""
    lib.infercore_set_threads(threads)
    assert lib.infercore_use_isa(isa.encode())
    try:
        yield
    finally:
        lib.infercore_set_threads(1)
        lib.infercore_use_isa(native.isas(lib)[0].encode())
