"""bitsandbytes: NF4 and FP4 (Dettmers et al. 2023, QLoRA), LLM.int8 (Dettmers et al. 2022).

A 4-bit matrix p of a checkpoint, flattened row after row, is stored as

    p.weight                             two codes a byte, the first in the high half
    p.weight.absmax                      float32, one per block of 64 weights; or uint8 codes of it
    p.weight.quant_map                   float32[16], what each code is worth
    p.weight.nested_absmax, .nested_quant_map    of doubly quantized absmax: float32[G], [256]
    p.weight.quant_state.bitsandbytes__nf4       JSON: block sizes, shape, mean of absmax

and an 8-bit one as p.weight int8[N, K] and p.SCB float32[N], W[n, k] = weight · SCB / 127.
LLM.int8 multiplies its outlier inputs in 16 bits; here no input is rounded.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from infercore.errors import CheckpointError, UnsupportedModel
from infercore.kinds import Blocks, Codebook4, Codebook8, Dense, IntGrouped, Kind
from infercore.model_spec import LinearSpec, ModelSpec
from infercore.quantization import QuantizationMethod, TensorFile
from infercore_quantization.layouts import blocks_of_flat, cells_of_flat, symmetric_rows
from infercore_quantization.on_load import in_parts, int8_rows
from infercore_quantization.reading import (
    expected,
    is_head,
    names,
    plain,
    scales,
    skipped,
    tensor,
)

Shape = tuple[int, ...]

STATE = "weight.quant_state.bitsandbytes__"
TYPES = ("nf4", "fp4")

# bnb_4bit_quant_storage → bytes; the codes' bytes are only viewed as that dtype
STORAGE: Mapping[str, int] = {
    "uint8": 1,
    "int8": 1,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
}


@dataclass(frozen=True, slots=True)
class QuantState:
    """The JSON that lies beside a 4-bit matrix. nested_*: of doubly quantized absmax."""

    blocksize: int
    nested_blocksize: int
    nested_offset: float

    @classmethod
    def parse(cls, raw: bytes, name: str, kind: str, shape: tuple[int, int]) -> "QuantState":
        """Raises CheckpointError, naming the tensor `name`, unless it fits `kind` and `shape`."""
        try:
            state = json.loads(raw)
            own = (state["quant_type"], tuple(state["shape"]))
            parsed = cls(
                int(state["blocksize"]),
                int(state.get("nested_blocksize", 256)),
                float(state.get("nested_offset", 0.0)),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{name} is not the JSON that bitsandbytes writes ({error!r}); "
                "download the checkpoint again"
            ) from error
        if own != (kind, shape) or parsed.blocksize <= 0 or parsed.nested_blocksize <= 0:
            raise CheckpointError(
                f"{name} describes {own[0]} of shape {list(own[1])} in blocks of "
                f"{parsed.blocksize}, and the model needs {kind} of shape {list(shape)}; "
                "download the checkpoint again, or check that config.json belongs to it"
            )
        return parsed


class Bitsandbytes(QuantizationMethod):
    """4-bit and 8-bit files of bitsandbytes; of a 16-bit checkpoint it makes the 8-bit kind.

    The file says which matrices are quantized, as each of them carries a marker.
    """

    name: ClassVar[str] = "bitsandbytes"

    @classmethod
    def detect(cls, config: Mapping[str, Any]) -> bool:
        return config.get("quant_method") == cls.name or (
            "quant_method" not in config
            and bool(config.get("load_in_4bit") or config.get("load_in_8bit"))
        )

    def __init__(self, config: Mapping[str, Any]) -> None:
        if config and not self.detect(config):
            raise UnsupportedModel(
                f"the checkpoint is quantized by {config.get('quant_method')!r} and not by "
                "bitsandbytes; serve it without --quantize"
            )
        self._on_load = not config
        self._eight = bool(config.get("load_in_8bit"))
        self._double = bool(config.get("bnb_4bit_use_double_quant"))
        self._skip = names(config, "llm_int8_skip_modules")
        kind, storage = config.get("bnb_4bit_quant_type"), config.get("bnb_4bit_quant_storage")
        self._type = str(kind or "fp4")
        self._storage = str(storage or "uint8").removeprefix("torch.")
        if not self._eight and self._type not in TYPES:
            raise UnsupportedModel(
                f"quantization_config: bnb_4bit_quant_type is {kind!r}; served are nf4 and fp4"
            )
        if self._storage not in STORAGE:
            raise UnsupportedModel(
                f"quantization_config: bnb_4bit_quant_storage is {storage!r}; "
                f"served are {', '.join(STORAGE)}"
            )
        self._stored: Mapping[str, Shape] = {}

    def inspect(self, stored: Mapping[str, Shape]) -> None:
        self._stored = stored

    def kind(self, linear: LinearSpec) -> str:
        if not self._quantized(linear):
            return Dense.name
        return IntGrouped.name if self._eight or self._on_load else Codebook4.name

    def _quantized(self, linear: LinearSpec) -> bool:
        marker = "SCB" if self._eight else f"{STATE}{self._type}"
        if not self._on_load and f"{linear.name}.{marker}" in self._stored:
            return True
        # a marker that is absent though nothing excuses it is then reported as missing
        return not is_head(linear) and not skipped(linear.name, self._skip)

    def tensors(self, spec: ModelSpec) -> dict[str, Shape]:
        shapes = spec.tensors()
        if self._on_load:
            return shapes
        for linear in spec.linears():
            if self._quantized(linear):
                del shapes[f"{linear.name}.weight"]
                shapes |= self._eight_bit(linear) if self._eight else self._four_bit(linear)
        return shapes

    def _eight_bit(self, linear: LinearSpec) -> dict[str, Shape]:
        n, k = linear.out_features, linear.in_features
        extra: dict[str, Shape] = {"weight": (n, k), "SCB": (n,)}
        if f"{linear.name}.weight_format" in self._stored:
            extra["weight_format"] = ()
        return expected(linear, extra)

    def _four_bit(self, linear: LinearSpec) -> dict[str, Shape]:
        """The sizes of blocks are in the file alone, so `read` checks what depends on them."""
        count = linear.out_features * linear.in_features
        width = (count + 1) // 2 // STORAGE[self._storage]
        extra: dict[str, Shape] = {
            "weight": (width, 1),
            "weight.absmax": self._length(linear, "weight.absmax"),
            "weight.quant_map": (16,),
            f"{STATE}{self._type}": self._length(linear, f"{STATE}{self._type}"),
        }
        if self._double or f"{linear.name}.weight.nested_absmax" in self._stored:
            extra["weight.nested_absmax"] = self._length(linear, "weight.nested_absmax")
            extra["weight.nested_quant_map"] = (256,)
        return expected(linear, extra)

    def _length(self, linear: LinearSpec, suffix: str) -> Shape:
        """The stored shape if it has one dimension; (0,) stands for a tensor that is not there."""
        shape = self._stored.get(f"{linear.name}.{suffix}", ())
        return shape if len(shape) == 1 else (0,)

    def read(self, linear: LinearSpec, file: TensorFile) -> Kind:
        if not self._quantized(linear):
            return plain(linear, file)
        if self._on_load:
            return in_parts(plain(linear, file), int8_rows)
        return self._read_8bit(linear, file) if self._eight else self._read_4bit(linear, file)

    def _read_4bit(self, linear: LinearSpec, file: TensorFile) -> Kind:
        n, k = linear.out_features, linear.in_features
        name = f"{linear.name}.{STATE}{self._type}"
        raw = tensor(file, name, ("uint8",), self._stored[name]).data.tobytes()
        state = QuantState.parse(raw, name, self._type, (n, k))
        weight = f"{linear.name}.weight"
        table = tensor(file, f"{weight}.quant_map", ("float32",), (16,)).data
        width = (n * k + 1) // 2 // STORAGE[self._storage]
        stored = tensor(file, weight, (self._storage,), (width, 1)).data
        nested = f"{weight}.nested_absmax" in self._stored
        blocks, absmax = (_nested if nested else _single)(file, weight, (n, k), state)
        codes = cells_of_flat(np.ascontiguousarray(stored).reshape(-1).view(np.uint8), n, k)
        return Codebook4(codes, table, blocks, absmax)

    def _read_8bit(self, linear: LinearSpec, file: TensorFile) -> Kind:
        n, k = linear.out_features, linear.in_features
        layout = f"{linear.name}.weight_format"
        if layout in self._stored and (code := int(file[layout].data.reshape(()))) != 0:
            raise CheckpointError(
                f"{layout} is {code}, a layout of one generation of devices; load the model with "
                "transformers and bitsandbytes 0.45 or later and save it again, in rows"
            )
        values = tensor(file, f"{linear.name}.weight", ("int8",), (n, k)).data
        absmax = scales(file, f"{linear.name}.SCB", (n,)).dequantize()
        return symmetric_rows(values, absmax * np.float32(1 / 127))


def _single(
    file: TensorFile, weight: str, shape: tuple[int, int], state: QuantState
) -> tuple[Blocks, Kind]:
    """How K falls into blocks, and their scales [N, blocks]."""
    count = -(-shape[0] * shape[1] // state.blocksize)
    absmax = scales(file, f"{weight}.absmax", (count,)).dequantize()
    return blocks_of_flat(absmax, *shape, state.blocksize)


def _nested(
    file: TensorFile, weight: str, shape: tuple[int, int], state: QuantState
) -> tuple[Blocks, Kind]:
    """Like `_single`, with scales that stay quantized unless a row ends inside a block."""
    n, k = shape
    count = -(-n * k // state.blocksize)
    codes = tensor(file, f"{weight}.absmax", ("uint8",), (count,)).data
    table = tensor(file, f"{weight}.nested_quant_map", ("float32",), (256,)).data
    groups = (-(-count // state.nested_blocksize),)
    second = scales(file, f"{weight}.nested_absmax", groups).dequantize()
    whole = k % state.blocksize == 0
    codes = codes.reshape(n if whole else 1, -1)
    size, offset = state.nested_blocksize, state.nested_offset
    nested = Codebook8.from_flat(codes, table, second, offset, size)
    if whole:
        return Blocks(k, state.blocksize), nested
    return blocks_of_flat(nested.dequantize()[0], n, k, state.blocksize)
