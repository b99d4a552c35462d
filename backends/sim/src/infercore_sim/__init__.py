"""InferCore's simulated accelerator: the plugin module. Importing it does not import torch."""

from infercore.backend import Backend
from infercore.hookspecs import hookimpl

API_VERSION = (1, 0)


@hookimpl
def register_backend() -> type[Backend]:
    from infercore_sim.backend import SimBackend

    return SimBackend
