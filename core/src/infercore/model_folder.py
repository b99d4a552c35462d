"""A model's folder: its settings, read as data. Code that a folder brings is never imported."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infercore.errors import CheckpointError

# The second is compressed-tensors' older name.
QUANTIZATION_KEYS = ("quantization_config", "compression_config")

# Where older AutoGPTQ, AutoAWQ and AutoRound wrote it.
QUANTIZATION_FILES = ("quantize_config.json", "quant_config.json", "quantization_config.json")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """The JSON settings of a model folder.

    config: config.json. generation: generation_config.json, empty if there is none.
    """

    path: Path
    config: Mapping[str, Any]
    generation: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> "ModelFolder":
        """Raises CheckpointError for a missing folder, or a missing or damaged file."""
        if not path.is_dir():
            raise CheckpointError(f"{path} is no folder; name a model folder or a hub id")
        return cls(path, read_config(path), read_json(path / "generation_config.json") or {})

    def quantization(self) -> Mapping[str, Any]:
        """How the weights were quantized, as the tool that wrote them says; {} if no file does.

        Raises CheckpointError for a damaged file.
        """
        for key in QUANTIZATION_KEYS:
            stated = self.config.get(key)
            if stated is not None and not isinstance(stated, Mapping):
                raise CheckpointError(
                    f"{self.path / 'config.json'}: {key} is {stated!r}; it must be an object"
                )
            if stated:
                return stated
        files = (read_json(self.path / name) for name in QUANTIZATION_FILES)
        return next((stated for stated in files if stated), {})

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a text: generation_config's, else config's and the tokenizer's.

        Raises CheckpointError if they are not token ids.
        """
        ids = self._ids("generation_config.json", self.generation)
        if ids:
            return ids
        ids = self._ids("config.json", self.config)
        if (self.path / "tokenizer.json").is_file():
            from infercore.text.tokenizer import Tokenizer

            eos = Tokenizer(self.path).eos_id
            ids += (eos,) if eos is not None and eos not in ids else ()
        return ids

    def _ids(self, file: str, settings: Mapping[str, Any]) -> tuple[int, ...]:
        value = settings.get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(item) is int and item >= 0 for item in ids):
            raise CheckpointError(
                f"{self.path / file}: eos_token_id is {value!r}; it must be a token id or a list"
            )
        return tuple(dict.fromkeys(ids))


def read_config(path: Path) -> Mapping[str, Any]:
    """config.json of folder `path`. Raises CheckpointError if it is missing or damaged."""
    config = read_json(path / "config.json")
    if config is None:
        raise CheckpointError(
            f"{path} has no config.json, so it is no model folder; check the path, "
            "or download the model again"
        )
    return config


def read_json(file: Path) -> Mapping[str, Any] | None:
    """A JSON object from `file`, None if there is no such file. Raises CheckpointError."""
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} holds no JSON object; download it again")
    return value
