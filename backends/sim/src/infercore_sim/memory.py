"""The device's memory: an allocator that counts what torch allocates, under a hard ceiling."""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

MIB = 2**20


class OutOfMemory(RuntimeError):
    """An allocation went over the device's ceiling; torch's own error is a RuntimeError too."""


class DeviceMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts every storage that an operation of the entered thread makes, until it is freed.

    What an operation returns in a storage that none of its inputs has is the device's; arrays of
    the host come in without an operation, and are not. operations: how many there were.
    """

    def __init__(self, ceiling: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ceiling = ceiling
        self.refuses_next = False  # the fault on demand
        self.operations = 0
        self._used = 0
        self._peak = 0
        # A storage may be freed by any thread, at any moment, even while one holds the lock.
        self._freed: deque[int] = deque()
        self._lock = threading.Lock()

    @property
    def used(self) -> int:
        """Bytes in use."""
        return self._settle(0)

    def require(self, nbytes: int) -> None:
        """Raises OutOfMemory if `nbytes` more do not fit; asked before what is large is made."""
        used = self.used
        if self.refuses_next or used + nbytes > self.ceiling:
            self.refuses_next = False
            raise OutOfMemory(
                f"out of memory: {nbytes} bytes more than the {used} in use do not fit in "
                f"the simulated device's {self.ceiling} ({self.ceiling / MIB:.0f} MiB)"
            )

    def take_peak(self) -> int:
        """Most bytes in use since the last call."""
        used = self.used
        peak, self._peak = self._peak, used
        return peak

    @classmethod
    def is_infra_mode(cls) -> bool:
        """It stays entered: what other threads compile with torch is none of its business."""
        return True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # which would import all of torch's compiler

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        self.operations += 1
        out = func(*args, **kwargs)
        given = {t.untyped_storage().data_ptr() for t in _tensors((args, *kwargs.values()))}
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            nbytes = storage.nbytes()
            if nbytes and storage.data_ptr() not in given:
                given.add(storage.data_ptr())
                self.require(nbytes)
                self._settle(nbytes)
                weakref.finalize(storage, self._freed.append, nbytes)
        return out

    def _settle(self, nbytes: int) -> int:
        """Count what was freed, then `nbytes` more. Returns the bytes in use."""
        with self._lock:
            while self._freed:
                self._used -= self._freed.popleft()
            self._used += nbytes
            self._peak = max(self._peak, self._used)
            return self._used


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
