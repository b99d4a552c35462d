"""Steps and results as flat buffers, and back: how they reach ranks in other processes.

    int64 header │ arrays, in the order of a table │ int64 length, JSON │ arrays that JSON names

Every part begins at a multiple of eight bytes, in the machine's own byte order, so that decoding
makes views and copies nothing. JSON carries what few steps have (slot_init, extras); a step that
only decodes has none. Nothing here can name code, so a buffer is data whoever sent it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from infercore.sampling import SamplingParams
from infercore.step import SlotInit, Step, StepResult
from infercore.watermark import Watermark

_Array: TypeAlias = NDArray[Any]
_ALIGN = 8

# field, dtype, dimensions: T tokens, R rows, Q = R + 1, G groups, B table width, K, N as in `step`
_STEP: tuple[tuple[str, type, str], ...] = (
    ("token_ids", np.int32, "T"),
    ("token_source", np.int32, "T"),
    ("positions", np.int32, "T"),
    ("slot_mapping", np.int32, "GT"),
    ("prompt_targets", np.int32, "T"),
    ("slots", np.int32, "R"),
    ("query_start", np.int32, "Q"),
    ("context_len", np.int32, "R"),
    ("block_table", np.int32, "GRB"),
    ("sample", np.bool_, "R"),
    ("seeds", np.uint64, "R"),
    ("sample_positions", np.int32, "R"),
    ("adapter", np.int32, "R"),
    ("num_logprobs", np.int32, "R"),
    ("max_tokens", np.int32, "R"),
)
_RESULT: tuple[tuple[str, type, str], ...] = (
    ("tokens", np.int32, "RK"),
    ("n_tokens", np.int32, "R"),
    ("status", np.uint8, "R"),
    ("logprobs", np.float32, "RK"),
    ("top_ids", np.int32, "RKN"),
    ("top_logprobs", np.float32, "RKN"),
)
_PROMPT: tuple[tuple[str, type, str], ...] = (
    ("prompt_logprobs", np.float32, "T"),
    ("prompt_top_ids", np.int32, "TN"),
    ("prompt_top_logprobs", np.float32, "TN"),
)


def encode_step(step: Step) -> bytes:
    """One buffer that holds all of `step`."""
    groups, rows, width = step.block_table.shape
    fresh = [len(blocks) for blocks in step.fresh_blocks]
    header = (step.step_id, step.num_tokens, rows, groups, width, step.late, len(fresh))
    arrays = [getattr(step, name) for name, _, _ in _STEP]
    arrays += [np.array(fresh, np.int64), *step.fresh_blocks]
    rare: dict[str, Any] = {}
    tail: list[_Array] = []
    if step.slot_init:
        rare["slot_init"] = [_describe_init(init) for init in step.slot_init]
        for init in step.slot_init:
            tail += (init.prompt_ids, init.output_ids, init.stop_ids)
    if step.extras:
        rare["extras"] = {name: (a.dtype.str, a.shape) for name, a in step.extras.items()}
        tail += step.extras.values()
    return _pack(header, arrays, rare, tail)


def decode_step(buffer: bytes) -> Step:
    """The step; its arrays are read-only views of `buffer`."""
    reader = _Reader(buffer)
    step_id, tokens, rows, groups, width, late, num_fresh = reader.array(np.int64, (7,)).tolist()
    sizes = {"T": tokens, "R": rows, "Q": rows + 1, "G": groups, "B": width}
    arrays = reader.fields(_STEP, sizes)
    counts = reader.array(np.int64, (num_fresh,)).tolist()
    fresh = tuple(reader.array(np.int32, (count,)) for count in counts)
    rare = reader.json()
    inits = tuple(_read_init(entry, reader) for entry in rare.get("slot_init", ()))
    extras = {
        name: reader.array(np.dtype(dtype), tuple(shape))
        for name, (dtype, shape) in rare.get("extras", {}).items()
    }
    return Step(
        step_id, **arrays, slot_init=inits, fresh_blocks=fresh, late=bool(late), extras=extras
    )


def encode_result(result: StepResult) -> bytes:
    """One buffer that holds all of `result`."""
    rows, most = result.tokens.shape
    fields = _RESULT if result.prompt_logprobs is None else _RESULT + _PROMPT
    tokens = -1 if result.prompt_logprobs is None else len(result.prompt_logprobs)
    header = (result.step_id, rows, most, result.top_ids.shape[2], tokens)
    arrays = [getattr(result, name) for name, _, _ in fields]
    return _pack(header, arrays, {"seconds": dict(result.seconds)}, ())


def decode_result(buffer: bytes) -> StepResult:
    """The result; its arrays are read-only views of `buffer`."""
    reader = _Reader(buffer)
    step_id, rows, most, shown, tokens = reader.array(np.int64, (5,)).tolist()
    fields = _RESULT if tokens < 0 else _RESULT + _PROMPT
    arrays = reader.fields(fields, {"R": rows, "K": most, "N": shown, "T": tokens})
    return StepResult(step_id, **arrays, seconds=reader.json()["seconds"])


def _describe_init(init: SlotInit) -> dict[str, Any]:
    sampling = asdict(init.sampling)
    sampling["logit_bias"] = list(init.sampling.logit_bias.items())  # JSON's keys are texts
    return {
        "slot": init.slot,
        "sampling": sampling,
        "min_position": init.min_position,
        "counts": (len(init.prompt_ids), len(init.output_ids), len(init.stop_ids)),
    }


def _read_init(entry: Mapping[str, Any], reader: "_Reader") -> SlotInit:
    sampling = dict(entry["sampling"])
    sampling["logit_bias"] = dict(sampling["logit_bias"])
    if sampling["watermark"] is not None:
        sampling["watermark"] = Watermark(**sampling["watermark"])
    prompt, output, stops = (reader.array(np.int32, (count,)) for count in entry["counts"])
    return SlotInit(
        entry["slot"], SamplingParams(**sampling), prompt, output, stops, entry["min_position"]
    )


def _pack(
    header: Sequence[int], arrays: Iterable[_Array], rare: Mapping[str, Any], tail: Iterable[_Array]
) -> bytes:
    text = json.dumps(rare).encode() if rare else b""
    parts: list[bytes] = []
    for part in (
        np.array(header, np.int64),
        *arrays,
        np.array([len(text)], np.int64),
        np.frombuffer(text, np.uint8),
        *tail,
    ):
        parts += (part.tobytes(), bytes(-part.nbytes % _ALIGN))
    return b"".join(parts)


class _Reader:
    """Takes arrays off a buffer, front to back."""

    def __init__(self, buffer: bytes) -> None:
        self._buffer = buffer
        self._at = 0

    def array(self, dtype: type | np.dtype[Any], shape: tuple[int, ...]) -> _Array:
        count = int(np.prod(shape, dtype=np.int64))
        array: _Array = np.frombuffer(self._buffer, dtype, count, self._at).reshape(shape)
        self._at += array.nbytes + -array.nbytes % _ALIGN
        return array

    def fields(
        self, layout: Iterable[tuple[str, type, str]], sizes: Mapping[str, int]
    ) -> dict[str, Any]:
        return {
            name: self.array(dtype, tuple(sizes[dim] for dim in dims))
            for name, dtype, dims in layout
        }

    def json(self) -> dict[str, Any]:
        (length,) = self.array(np.int64, (1,)).tolist()
        text = self.array(np.uint8, (length,)).tobytes()
        value: dict[str, Any] = json.loads(text) if text else {}
        return value
