"""The configuration of compressed-tensors: which layers are quantized, and how."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NoReturn

from infercore.errors import UnsupportedModel
from infercore.kinds import Array
from infercore.kinds.int_grouped import BITS
from infercore.model_spec import LinearSpec
from infercore_quantization.reading import names, pattern_of

Shape = tuple[int, ...]

STRATEGIES = ("tensor", "channel", "group", "block", "tensor_group")  # the last for NVFP4 alone


class Layout(Enum):
    """How a matrix lies in the file; see `compressed_tensors` for each one's tensors."""

    PACKED = "integers in 32-bit words"
    INT = "integers, one in a byte"
    FP8 = "8-bit floats"
    FP4 = "4-bit floats, two in a byte"


# (format, type of its numbers) → the layout
LAYOUTS: Mapping[tuple[str, str], Layout] = {
    ("pack-quantized", "int"): Layout.PACKED,
    ("int-quantized", "int"): Layout.INT,
    ("naive-quantized", "int"): Layout.INT,
    ("naive-quantized", "float"): Layout.FP8,
    ("float-quantized", "float"): Layout.FP8,
    ("mxfp8-quantized", "float"): Layout.FP8,
    ("mxfp4-pack-quantized", "float"): Layout.FP4,
    ("nvfp4-pack-quantized", "float"): Layout.FP4,
}
FORMATS = tuple(dict.fromkeys(form for form, _ in LAYOUTS))
BITS_OF = {Layout.PACKED: BITS, Layout.INT: BITS, Layout.FP8: (8,), Layout.FP4: (4,)}


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one layer is quantized.

    group: weights of a row that share a scale (strategies "group" and "tensor_group", which has
    one more scale for all). block_structure: rows and columns that do (strategy "block").
    powers: scales are powers of two, as bytes.
    activation: a dtype of `Activation`, None = inputs are not rounded. static: by one known scale.
    """

    layout: Layout
    bits: int
    symmetric: bool
    strategy: str
    group: int
    block_structure: tuple[int, int]
    powers: bool
    activation: str | None
    static: bool

    @property
    def block(self) -> tuple[int, int] | None:
        """(rows, columns) that share a scale, None where that is a row or the matrix."""
        if self.group:
            return 1, self.group
        return self.block_structure if self.strategy == "block" else None

    @property
    def packs_zeros(self) -> bool:
        return self.layout is Layout.PACKED and self.strategy in ("group", "channel")

    def columns(self, k: int) -> int:
        """Columns that share a scale."""
        return self.block[1] if self.block else k

    def grid(self, n: int, k: int) -> Shape:
        """The scales of a matrix [n, k], in two dimensions."""
        if self.block is None:
            return (n if self.strategy == "channel" else 1, 1)
        return (-(-n // self.block[0]), -(-k // self.block[1]))

    def per_row(self, values: Array, n: int) -> Array:
        """Numbers of that grid, repeated so that each of the n rows has its own."""
        rows = self.block[0] if self.block else n // len(values)
        return values.repeat(rows, axis=0)[:n]


class Schemes:
    """The configuration's groups. Raises UnsupportedModel for what cannot be served."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        _refuse_changed_products(config)
        groups = config.get("config_groups")
        if not isinstance(groups, Mapping) or not groups:
            raise UnsupportedModel(
                f"quantization_config: config_groups is {groups!r}; it must name the layers and "
                "how they are quantized, so save the model again with llm-compressor"
            )
        self._ignore = names(config, "ignore")
        default = config.get("format")
        self._groups = [_group(name, group, default) for name, group in groups.items()]

    def of(self, linear: LinearSpec) -> Scheme | None:
        """The scheme whose target names the layer best: by its name, a pattern, or its class."""
        if any(_rank(pattern, linear) is not None for pattern in self._ignore):
            return None
        found = [
            (rank, scheme)
            for targets, scheme in self._groups
            for rank in (_rank(target, linear) for target in targets)
            if rank is not None
        ]
        return min(found, key=lambda each: each[0])[1] if found else None


def _refuse_changed_products(config: Mapping[str, Any]) -> None:
    """Some weights mean something only in another product than x Wᵀ."""
    sparse = (config.get("sparsity_config") or {}).get("format", "dense") != "dense"
    rotated = bool((config.get("transform_config") or {}).get("config_groups"))
    for key, what, found in (("sparsity", "sparse", sparse), ("transform", "rotated", rotated)):
        if found:
            raise UnsupportedModel(
                f"quantization_config: {key}_config says that the weights are {what}, which is "
                "not served; quantize the model again without it"
            )


def _rank(target: str, linear: LinearSpec) -> int | None:
    """How closely a target names the layer, 0 the closest; None = not at all."""
    if target == linear.name:
        return 0
    if target.startswith("re:"):
        return 1 if pattern_of(target.removeprefix("re:")).match(linear.name) else None
    return 2 if target == ("Conv1D" if linear.transposed else "Linear") else None


def _group(name: str, group: Any, default: Any) -> tuple[tuple[str, ...], Scheme | None]:
    """(targets, scheme); a group without weights leaves them as they are."""
    if not isinstance(group, Mapping):
        _refuse(name, group, "it must be an object, so save the model again with llm-compressor")
    targets = names(group, "targets")
    weights = group.get("weights")
    if weights is None:
        return targets, None
    form = group.get("format") or default
    if form not in FORMATS:
        _refuse(f"{name}.format", form, f"served are {', '.join(FORMATS)}")
    inputs = group.get("input_activations") or {}
    return targets, _scheme(f"{name}.weights", weights, inputs, form)


def _scheme(name: str, weights: Mapping[str, Any], inputs: Mapping[str, Any], form: str) -> Scheme:
    bits, kind = weights.get("num_bits", 8), weights.get("type", "int")
    layout = LAYOUTS.get((form, str(kind)))
    if layout is None:
        _refuse(f"{name}.type", kind, f"{form} holds other numbers, so save the model again")
    if bits not in BITS_OF[layout]:
        served = ", ".join(map(str, BITS_OF[layout]))
        _refuse(f"{name}.num_bits", bits, f"of {form}, {served} are served")
    if weights.get("dynamic"):
        _refuse(f"{name}.dynamic", weights["dynamic"], "weights are quantized once, so save them")
    group = weights.get("group_size")
    strategy = weights.get("strategy") or _strategy(group)
    if strategy not in STRATEGIES or (strategy == "tensor_group" and layout is not Layout.FP4):
        _refuse(f"{name}.strategy", strategy, f"served are {', '.join(STRATEGIES[:-1])}")
    symmetric = weights.get("symmetric", True) is True
    if kind == "float" and not symmetric:
        _refuse(f"{name}.symmetric", False, "floats have no zero points, so save the model again")
    grouped = strategy in ("group", "tensor_group")
    if grouped and not (type(group) is int and group > 0):
        _refuse(f"{name}.group_size", group, f"strategy {strategy} needs a positive integer")
    activation, static = _activation(inputs)
    return Scheme(
        layout=layout,
        bits=bits,
        symmetric=symmetric,
        strategy=strategy,
        group=int(group) if group and grouped else 0,
        block_structure=_block(name, weights) if strategy == "block" else (0, 0),
        powers=form.startswith("mx"),
        activation=activation,
        static=static,
    )


def _strategy(group: Any) -> str:
    """The library's own default."""
    if group is None:
        return "tensor"
    return "channel" if group == -1 else "group"


def _block(name: str, weights: Mapping[str, Any]) -> tuple[int, int]:
    size: Any = weights.get("block_structure")
    if isinstance(size, str):  # "128x128", as older versions wrote it
        size = [int(part) if part.isdecimal() else 0 for part in size.split("x")]
    if not isinstance(size, Sequence) or len(size) != 2 or not all(type(s) is int for s in size):
        _refuse(f"{name}.block_structure", size, "it must be two positive integers")
    if min(size) <= 0:
        _refuse(f"{name}.block_structure", size, "it must be two positive integers")
    return size[0], size[1]


def _activation(inputs: Mapping[str, Any]) -> tuple[str | None, bool]:
    """(dtype, whether one static scale serves all tokens); see the module for what is left out."""
    if not inputs or inputs.get("num_bits", 8) != 8 or inputs.get("symmetric", True) is not True:
        return None, False
    dtype = "float8_e4m3fn" if inputs.get("type", "int") == "float" else "int8"
    if inputs.get("dynamic"):
        return dtype, False
    return (dtype, True) if inputs.get("strategy", "tensor") == "tensor" else (None, False)


def _refuse(key: str, value: object, remedy: str) -> NoReturn:
    raise UnsupportedModel(f"quantization_config: {key} is {value!r}; {remedy}")
