"""Reads what the layers of core's decoder hand on, on any Backend, through its own contract."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from infercore.backend import Backend
from infercore.executor import Bucket
from infercore.step import Float32
from infercore_conformance.subject import Subject

if TYPE_CHECKING:
    from torch import nn


class LayerTap:
    """states: {part of the decoder: its output float32 [T, E] in the last step}, in their order.

    Parts are called as in the decoder ("layers.3.attention"), and T counts padding too.
    """

    def __init__(self) -> None:
        self.states: dict[str, Float32] = {}

    def on(self, subject: Subject) -> Subject:
        """The same Backend, except that its decoder is tapped, and runs as it is.

        Lowered, a module need not have parts any more.
        """
        assert issubclass(subject.cls, Backend), "an Executor of its own has no decoder of core's"

        def compile_(backend: Backend, model: "nn.Module", buckets: Sequence[Bucket]) -> Any:
            del backend, buckets
            self._listen(model)
            return model

        return replace(subject, cls=type("Tapped", (subject.cls,), {"compile": compile_}))

    def _listen(self, model: "nn.Module") -> None:
        for name, module in model.named_modules():
            if name in ("embedding", "final_norm") or name.endswith((".attention", ".mlp")):
                module.register_forward_hook(partial(self._keep, name))

    def _keep(self, name: str, module: "nn.Module", arguments: Any, output: Any) -> None:
        """A norm hands on (its output, the sum for the residual); the others a tensor."""
        del module, arguments
        hidden = output[0] if isinstance(output, tuple) else output
        self.states.pop(name, None)  # so that the order is that of this step
        self.states[name] = hidden.float().cpu().numpy()
