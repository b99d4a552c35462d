"""Writes a safetensors file: one tensor after another, under its name only once it is whole."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from infercore.kinds import Dense
from infercore.worker.safetensors_file import DTYPES

NAMES = {tag: name for name, (_, tag) in DTYPES.items()}


def write_safetensors(path: Path, tensors: Mapping[str, Dense]) -> None:
    """Replace `path`; a reader sees the old file, or none, or all of the new one."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in tensors.items():
        end = at + tensor.data.nbytes
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, end],
        }
        at = end
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for tensor in tensors.values():
            file.write(tensor.data.tobytes())
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_json(path: Path, value: object) -> None:
    """Likewise, for a JSON file."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
