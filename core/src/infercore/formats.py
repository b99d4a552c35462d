"""Which quantization method reads a checkpoint: the one that it names, or the operator's choice."""

from collections.abc import Mapping, Sequence
from typing import Any

from infercore.errors import UnsupportedModel
from infercore.model_spec import ModelSpec
from infercore.quantization import QuantizationMethod

PLAIN = "none"  # the method that reads what is not quantized


def quantization_method(
    methods: Sequence[type[QuantizationMethod]],
    spec: ModelSpec,
    wanted: str | None,
    stored: Mapping[str, tuple[int, ...]] | None = None,
) -> QuantizationMethod:
    """The method that reads this checkpoint: the one asked for, else the one that detects it.

    stored: {name: shape} of a checkpoint that has no configuration, to tell its format by.
    Raises UnsupportedModel with the names of the installed ones.
    """
    config = spec.quantization
    found = _detected(methods, config, stored or {})
    names = ", ".join(sorted(method.name for method in methods))
    if wanted is None:
        if found is None:
            raise UnsupportedModel(
                f"the checkpoint is quantized ({config.get('quant_method', 'unnamed')!r}), and no "
                f"installed method reads that; there are {names}. Install a plugin for it, or "
                "serve an unquantized checkpoint"
            )
        return found(config)
    if found is not None and PLAIN not in (found.name, wanted):
        _require_same(found, config, wanted)
        return found(config)
    for method in methods:
        if wanted in (method.name, *method.aliases):
            return method(config)
    raise UnsupportedModel(f"no quantization method {wanted!r} is installed; there are {names}")


def _detected(
    methods: Sequence[type[QuantizationMethod]],
    config: Mapping[str, Any],
    stored: Mapping[str, tuple[int, ...]],
) -> type[QuantizationMethod] | None:
    by_tensors = (method for method in methods if stored and method.detect_tensors(stored))
    by_config = (method for method in methods if method.detect(config))
    return next(by_tensors, None) or next(by_config, None)


def _require_same(found: type[QuantizationMethod], config: Mapping[str, Any], wanted: str) -> None:
    """Raises UnsupportedModel unless `--quantize` names the format that the checkpoint is of."""
    if wanted not in (found.name, *found.aliases, config.get("quant_method")):
        raise UnsupportedModel(
            f"--quantize {wanted} was asked for, and the checkpoint is quantized already, as "
            f"{found.name}; leave --quantize out to serve it so, or name an unquantized checkpoint"
        )
