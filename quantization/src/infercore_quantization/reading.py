"""What the formats share: tensors checked as they are read, and lists of layers left alone."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from infercore.errors import CheckpointError, UnsupportedModel
from infercore.kinds import Dense
from infercore.model_spec import LinearSpec
from infercore.quantization import TensorFile

FLOATS = ("float32", "float16", "bfloat16")

# What families call their output matrix. No tool quantizes it unless it is told to.
HEADS = ("lm_head", "embed_out", "output")

KV_SCALES = re.compile(r".*\.([qkv]|kv|attn|[kv]_proj\.output|[kv]_cache|prob)_(scale|zero_point)")


def is_head(linear: LinearSpec) -> bool:
    return linear.name.rpartition(".")[2] in HEADS


def tensor(file: TensorFile, name: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> Dense:
    """The tensor `name`. Raises CheckpointError unless it has that shape and one of the dtypes."""
    found = file[name]
    if found.dtype not in dtypes or found.shape != shape:
        raise CheckpointError(
            f"{name} is {found.dtype}{list(found.shape)} instead of {' or '.join(dtypes)}"
            f"{list(shape)}; download the checkpoint again, or check that its "
            "quantization_config belongs to these weights"
        )
    return found


def scales(file: TensorFile, name: str, shape: tuple[int, ...], *more: str) -> Dense:
    """Like `tensor`, in a float dtype or one of `more`; raises for values that are not finite."""
    found = tensor(file, name, (*FLOATS, *more), shape)
    if not np.isfinite(found.dequantize()).all():
        raise CheckpointError(
            f"{name} holds infinities or NaN, so its weights mean nothing; "
            "download the checkpoint again, or quantize the model again"
        )
    return found


def scalar(file: TensorFile, name: str, shape: tuple[int, ...]) -> float:
    """The one number that the tensor `name` holds."""
    return float(scales(file, name, shape).dequantize().reshape(()))


def plain(linear: LinearSpec, file: TensorFile) -> Dense:
    """The matrix [N, K] of a layer that is not quantized. Raises CheckpointError."""
    stored = file[f"{linear.name}.weight"]
    if stored.dtype not in FLOATS:
        raise CheckpointError(
            f"{linear.name}.weight is stored as {stored.dtype} without the scales that its "
            "quantization needs; download the checkpoint again"
        )
    return Dense(stored.data.T, stored.dtype) if linear.transposed else stored


def skipped(name: str, patterns: Iterable[str]) -> bool:
    """Whether a list like `modules_to_not_convert` names this layer, or a module around it.

    An entry is a path from the start ("model.layers.1"), a suffix ("down_proj"), or a regular
    expression for the start of a name, after "re:" or without it; a * at its start is any text.
    """
    return any(_names(pattern, name) for pattern in patterns)


def _names(pattern: str, name: str) -> bool:
    if name == pattern or name.endswith(f".{pattern}"):
        return True
    expression = f".{pattern}" if pattern.startswith("*") else pattern.removeprefix("re:")
    return pattern_of(rf"(?:{expression})(?=\.|$)").match(name) is not None


def pattern_of(expression: str) -> re.Pattern[str]:
    """A regular expression from a configuration. Raises UnsupportedModel."""
    try:
        return re.compile(expression)
    except re.error as error:
        raise UnsupportedModel(
            f"quantization_config: {expression!r} is no regular expression ({error}); "
            "correct it in config.json"
        ) from error


def names(config: Mapping[str, Any], *keys: str) -> tuple[str, ...]:
    """The list of names under the first of `keys` that is set. Raises UnsupportedModel."""
    key = next((key for key in keys if config.get(key) is not None), None)
    if key is None:
        return ()
    value = config[key]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UnsupportedModel(
            f"quantization_config: {key} is {value!r}; it must be a list of module names"
        )
    return tuple(value)


def choice(config: Mapping[str, Any], key: str, default: str, choices: Iterable[str]) -> str:
    """A setting with few values. Raises UnsupportedModel with those that are served."""
    value = config.get(key)
    value = default if value is None else value
    if value not in choices:
        raise UnsupportedModel(
            f"quantization_config: {key} is {value!r}; served are {', '.join(choices)}"
        )
    return str(value)


def expected(
    linear: LinearSpec, extra: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """The layer's tensors with `extra`, {suffix after its name: shape}, in place of its weight."""
    shapes = {f"{linear.name}.{suffix}": shape for suffix, shape in extra.items()}
    if linear.bias:
        shapes[f"{linear.name}.bias"] = (linear.out_features,)
    return shapes


def kv_scales(stored: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Scales for an 8-bit key-value cache, which a cache in 16 or 32 bits does not need."""
    return {name: shape for name, shape in stored.items() if KV_SCALES.fullmatch(name)}
