"""The plugin API, whole. Hooks register and configure; none is called in the token loop.

A plugin is a module named by an entry point of the group `infercore.plugins`. Its entry point's
name says what it brings, `kind.name` (`backend.cpu`, `quantization.gptq`, `models.acme`,
`routes.openai`, `commands.bench`), so that a plugin is imported only when it is wanted. The module
holds `API_VERSION`, the contract that it was written for, and functions marked `@hookimpl`:

    from infercore.hookspecs import hookimpl

    API_VERSION = (1, 0)

    @hookimpl
    def register_backend():
        from acme.backend import AcmeBackend
        return AcmeBackend
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from infercore.backend import Backend
    from infercore.executor import Executor
    from infercore.model_spec import ModelFamily
    from infercore.quantization import QuantizationMethod

PROJECT = "infercore"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_backend() -> "type[Backend | Executor]":  # type: ignore[empty-body]
    """The class behind `--backend NAME`; NAME is that of the entry point, after `backend.`.

    Import the class inside the function: listing plugins must not import torch.
    """


@hookspec
def register_quantization() -> "Sequence[type[QuantizationMethod]]":  # type: ignore[empty-body]
    """Formats that this plugin reads; the checkpoint decides, `--quantize NAME` overrides."""


@hookspec
def register_models() -> "Sequence[ModelFamily]":  # type: ignore[empty-body]
    """Model families; their architectures join those that are served."""


@hookspec
def register_routes(app: Any, state: Any) -> None:
    """Add HTTP routes to the router. `app` is a FastAPI application, `state` the router's own."""


@hookspec
def register_commands(cli: Any) -> None:
    """Add commands to `infercore`. `cli` is a typer.Typer."""
