"""An InferCore executor in NumPy: the plugin module."""

from infercore.executor import Executor
from infercore.hookspecs import hookimpl

API_VERSION = (1, 0)


@hookimpl
def register_backend() -> type[Executor]:
    from infercore_numpy.executor import NumpyExecutor

    return NumpyExecutor
