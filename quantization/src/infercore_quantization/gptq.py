"""GPTQ (Frantar et al. 2022), as AutoGPTQ, GPTQModel, AutoRound and TGI write it.

A matrix p is stored with its inputs first, in words of `pack_dtype` (see `packing`):

    p.qweight    [K · bits / 32, N]    codes, packed along K
    p.qzeros     [G, N · bits / 32]    zero points, packed along N; "gptq" stores them less 1
    p.scales     [G, N]                float16, bfloat16 or float32
    p.g_idx      [K]                   each input's group: sorted, unless `desc_act` ordered the
                                       inputs; absent or all 0 = groups of neighbours

W[n, k] = (code − zero) · scale of the group of k. `static_groups`, `true_sequential`, damping and
so on steered the search for the codes; they are nothing to a reader.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from infercore.errors import CheckpointError, UnsupportedModel
from infercore.kinds import IntGrouped, uniform_groups
from infercore.model_spec import LinearSpec, ModelSpec
from infercore.quantization import TensorFile
from infercore_quantization.packed import (
    AGAIN,
    PackedMethod,
    Shape,
    checked_zeros,
    require_served,
    words,
)
from infercore_quantization.packing import Words, stream_codes, stream_words, unpack_stream
from infercore_quantization.reading import choice, scales, tensor
from infercore_quantization.schemes import WHOLE, Scheme, Schemes

BITS = (2, 3, 4, 8)
FORMATS = ("gptq", "gptq_v2")
AUTO_ROUND = ("auto-round", "intel/auto-round")
WORD_BITS: Mapping[str, int] = {"int32": 32, "int8": 8, "int16": 16, "int64": 64}

# Scalars in which TGI's own quantizer kept what others write into config.json.
TGI_BITS, TGI_GROUP_SIZE, TGI_SYMMETRIC = "gptq_bits", "gptq_groupsize", "gptq_sym"


def method_of(config: Mapping[str, Any]) -> str:
    """The configuration's `quant_method`, or what older tools called it; "" if it says none."""
    return str(config.get("quant_method") or config.get("method") or "").lower()


def auto_round_packing(config: Mapping[str, Any]) -> str:
    """How AutoRound packed the matrices: "auto_round:auto_gptq", …"""
    return str(config.get("packing_format") or config.get("backend") or "auto_round:auto_gptq")


class Gptq(PackedMethod):
    """GPTQ of 2, 3, 4 or 8 bits, symmetric or not, in any order of inputs."""

    name: ClassVar[str] = "gptq"
    aliases: ClassVar[tuple[str, ...]] = ("marlin",)  # TGI's name of a faster way to serve GPTQ

    @classmethod
    def detect(cls, config: Mapping[str, Any]) -> bool:
        method = method_of(config)
        if method in AUTO_ROUND:
            return "awq" not in auto_round_packing(config)
        if not method:  # quantize_config.json of AutoGPTQ
            return "bits" in config and "group_size" in config
        return method in ("gptq", "marlin", "exl2", "exl3", "bitblas")

    @classmethod
    def detect_tensors(cls, stored: Mapping[str, Shape]) -> bool:
        return any(name.endswith(".qweight") for name in stored)

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._schemes: Schemes | None = None  # what TGI's scalars and the shapes say
        self._pack_dtype = choice(config, "pack_dtype", "int32", WORD_BITS)
        self._sorted = not config.get("desc_act")
        self._stored_less = require_served(_format(config), FORMATS) == "gptq"
        if config:
            self._schemes = Schemes(config, BITS)

    def inspect(self, stored: Mapping[str, Shape]) -> None:
        super().inspect(stored)
        if self._schemes is None and not {TGI_BITS, TGI_GROUP_SIZE} <= stored.keys():
            raise CheckpointError(
                "the checkpoint's matrices are packed, and neither config.json nor "
                "quantize_config.json says how: add the quantization_config of the tool that "
                "wrote it, or download the folder again"
            )

    def tensors(self, spec: ModelSpec) -> dict[str, Shape]:
        notes = (TGI_BITS, TGI_GROUP_SIZE, TGI_SYMMETRIC)
        kept = {name: self._stored[name] for name in notes if name in self._stored}
        return {**super().tensors(spec), **kept}

    def scheme(self, linear: LinearSpec) -> Scheme:
        if self._schemes is not None:
            return self._schemes.of(linear.name)
        k = linear.in_features
        rows, groups = (
            (*self._stored.get(f"{linear.name}.{suffix}", ()), 0)[0]
            for suffix in ("qweight", "scales")
        )
        bits = next((bits for bits in BITS if stream_words(k, bits) == rows), None)
        if bits is None or not groups or k % groups:
            raise CheckpointError(
                f"{linear.name}: {rows} rows of words and {groups} groups are those of no "
                f"{k} inputs; download the checkpoint again"
            )
        return Scheme(bits, None if groups == 1 else k // groups, symmetric=False)

    def packed_shapes(self, linear: LinearSpec, scheme: Scheme) -> dict[str, Shape]:
        n, k = linear.out_features, linear.in_features
        word_bits, groups = WORD_BITS[self._pack_dtype], scheme.groups(k)
        shapes: dict[str, Shape] = {
            "qweight": (stream_words(k, scheme.bits, word_bits), n),
            "qzeros": (groups, stream_words(n, scheme.bits, word_bits)),
            "scales": (groups, n),
        }
        if not self._sorted or f"{linear.name}.g_idx" in self._stored:
            shapes["g_idx"] = (k,)
        return shapes

    def unpack(self, linear: LinearSpec, scheme: Scheme, file: TensorFile) -> IntGrouped:
        if self._schemes is None:
            _require_noted(linear, scheme, file)
        name, shapes = linear.name, self.packed_shapes(linear, scheme)
        qweight = words(file, f"{name}.qweight", shapes["qweight"], self._pack_dtype)
        qzeros = words(file, f"{name}.qzeros", shapes["qzeros"], self._pack_dtype)
        zeros = self._zeros(qzeros, scheme.bits, linear.out_features)
        return IntGrouped(
            scheme.bits,
            stream_codes(qweight.T, scheme.bits, linear.in_features),
            scales(file, f"{name}.scales", shapes["scales"]),
            checked_zeros(zeros, scheme, f"{name}.qzeros"),
            self._groups(linear, scheme, file),
        )

    def _zeros(self, qzeros: Words, bits: int, count: int) -> NDArray[np.int16]:
        """Zero points [G, N]. What was taken from each is given back as the tools take it.

        GPTQModel adds to whole words; so a borrow from a neighbour, where 0 − 1 was stored,
        comes back. Codes of 3 bits, which words cut, count for themselves.
        """
        if self._stored_less and bits != 3:
            unsigned = qzeros.view(np.dtype(f"u{qzeros.itemsize}"))
            ones = sum(1 << shift for shift in range(0, 8 * qzeros.itemsize, bits))
            qzeros = unsigned + unsigned.dtype.type(ones)
        zeros = unpack_stream(qzeros, bits, count).astype(np.int16)
        return (zeros + 1) & 7 if self._stored_less and bits == 3 else zeros

    def _groups(self, linear: LinearSpec, scheme: Scheme, file: TensorFile) -> NDArray[np.int32]:
        k = linear.in_features
        size, name = scheme.group_size or k, f"{linear.name}.g_idx"
        if name not in self._stored:
            return uniform_groups(k, size)
        groups = tensor(file, name, ("int32", "int64"), (k,)).data
        if not groups.any():
            return uniform_groups(k, size)
        count = scheme.groups(k)
        if groups.min() < 0 or groups.max() >= count or np.bincount(groups).max() > size:
            raise CheckpointError(
                f"{name} does not put the {k} inputs into {count} groups of at most {size}; check "
                "group_size in quantization_config, or download the checkpoint again"
            )
        return groups.astype(np.int32)


def _format(config: Mapping[str, Any]) -> str:
    method = method_of(config)
    if method in AUTO_ROUND:
        packing = auto_round_packing(config)
        # its own packing stores zero points as they are
        native = ("auto_round", "auto_round:exllamav2", "auto_round:tritonv2", "auto_round:triton")
        if str(config.get("data_type") or "int") != "int" or not (
            "gptq" in packing or packing in native
        ):
            raise UnsupportedModel(
                f"AutoRound's packing_format {packing!r} with data_type "
                f"{config.get('data_type')!r} is not read here; {AGAIN}"
            )
        return "gptq" if "gptq" in packing else "gptq_v2"
    if method not in ("", "gptq"):
        return method
    if config.get("is_marlin_format"):
        return "marlin"
    return str(config.get("checkpoint_format") or config.get("format") or "gptq")


def _require_noted(linear: LinearSpec, scheme: Scheme, file: TensorFile) -> None:
    """Raises CheckpointError unless TGI's scalars agree with what the shapes say."""
    bits, size = (int(file[name].data.reshape(-1)[0]) for name in (TGI_BITS, TGI_GROUP_SIZE))
    whole = size == WHOLE or size >= linear.in_features
    if bits != scheme.bits or (None if whole else size) != scheme.group_size:
        raise CheckpointError(
            f"{linear.name} has {scheme.bits} bits and groups of {scheme.group_size or 'all'} "
            f"inputs by its shapes, and {TGI_BITS} says {bits}, {TGI_GROUP_SIZE} {size}; "
            "download the checkpoint again"
        )
