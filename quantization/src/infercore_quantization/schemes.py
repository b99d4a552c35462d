"""How each matrix was quantized, as the configurations of GPTQ, AWQ and AutoRound say it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from infercore.errors import UnsupportedModel
from infercore_quantization.reading import pattern_of

# One setting's names: transformers', AutoAWQ's, GPTQ-for-LLaMa's.
BITS = ("bits", "w_bit", "wbits")
GROUP_SIZE = ("group_size", "q_group_size", "groupsize")

WHOLE = -1  # as group_size: all inputs share one scale

# What an exception for some layers may repeat, and not change.
FIXED = ("quant_method", "method", "checkpoint_format", "format", "pack_dtype", "data_type")

PLAIN_BITS = (16, 32)  # of a layer that is not quantized, which the file shows by itself


@dataclass(frozen=True, slots=True)
class Scheme:
    """bits: of a code. group_size: inputs that share a scale, None = all of them.

    symmetric: every zero point is 2^(bits − 1); False = each is as stored.
    """

    bits: int
    group_size: int | None
    symmetric: bool

    def groups(self, inputs: int) -> int:
        return 1 if self.group_size is None else -(-inputs // self.group_size)

    def overridden(self, settings: Mapping[str, Any], bits: Iterable[int]) -> "Scheme":
        """The scheme with what `settings` say otherwise. Raises UnsupportedModel."""
        symmetric = _setting(settings, ("sym",), self.symmetric)
        zero_point = _setting(settings, ("zero_point",), not symmetric)
        if type(symmetric) is not bool or type(zero_point) is not bool:
            raise _refused("sym or zero_point", [symmetric, zero_point], "it must be true or false")
        chosen = _setting(settings, BITS, self.bits)
        if type(chosen) is not int or chosen not in bits:
            raise _refused("bits", chosen, f"served are {', '.join(map(str, bits))}")
        size = _setting(settings, GROUP_SIZE, self.group_size or WHOLE)
        if type(size) is not int or (size <= 0 and size != WHOLE):
            raise _refused(
                "group_size", size, "it must be a positive integer, or -1 for all inputs"
            )
        return Scheme(chosen, None if size == WHOLE else size, not zero_point)


class Schemes:
    """The scheme of every layer: one for all, with GPTQModel's and AutoRound's exceptions.

    bits: those that the format can have. Raises UnsupportedModel for what cannot be served.
    """

    def __init__(self, config: Mapping[str, Any], bits: tuple[int, ...]) -> None:
        self._bits = bits
        for names in (BITS, GROUP_SIZE):
            if _setting(config, names, None) is None:
                raise UnsupportedModel(
                    f"quantization_config lacks {names[0]}; add it as the tool that wrote the "
                    "checkpoint has it, or download config.json again"
                )
        if config.get("rotation"):
            raise _refused(
                "rotation",
                config["rotation"],
                "such weights expect inputs that are rotated at run time; quantize without it",
            )
        self._common = Scheme(0, None, symmetric=False).overridden(config, bits)
        # GPTQModel: settings under an expression, bare or after "+:"; after "-:", of plain layers
        self._dynamic = [
            (pattern_of(key.removeprefix("+:")), settings)
            for key, settings in _objects(config, "dynamic").items()
            if not key.startswith("-:")
        ]
        # AutoRound: settings under a layer's name, or under an expression
        self._extra = _objects(config, "extra_config")
        self._patterns = [
            (pattern_of(key), settings)
            for key, settings in self._extra.items()
            if not re.fullmatch(r"[\w.]+", key)
        ]
        for settings in (*(settings for _, settings in self._dynamic), *self._extra.values()):
            self._require_served(settings, config)

    def _require_served(self, settings: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        if _setting(settings, BITS, 0) in PLAIN_BITS:
            return
        changed = [key for key in FIXED if settings.get(key) not in (None, config.get(key))]
        if changed:
            raise _refused(
                f"{changed[0]} of some layers",
                settings[changed[0]],
                "it must be that of all; quantize the model again with one for all",
            )
        self._common.overridden(settings, self._bits)

    def of(self, name: str) -> Scheme:
        """The scheme of the layer `name`, if it is quantized."""
        named = [self._extra[name]] if name in self._extra else []
        exceptions = (
            *(settings for pattern, settings in self._dynamic if pattern.match(name)),
            *named,
            *(settings for pattern, settings in self._patterns if pattern.fullmatch(name)),
        )
        return self._common.overridden(exceptions[0] if exceptions else {}, self._bits)


def _setting(settings: Mapping[str, Any], names: Iterable[str], default: Any) -> Any:
    """The value under the first of `names` that is set."""
    return next((settings[n] for n in names if settings.get(n) is not None), default)


def _objects(config: Mapping[str, Any], key: str) -> Mapping[str, Mapping[str, Any]]:
    """{name: settings} under `key`, empty if there is none."""
    value = config.get(key) or {}
    if not isinstance(value, Mapping) or not all(isinstance(v, Mapping) for v in value.values()):
        raise _refused(key, value, "it must hold one object of settings for each name")
    return value


def _refused(key: str, value: object, remedy: str) -> UnsupportedModel:
    return UnsupportedModel(f"quantization_config: {key} is {value!r}; {remedy}")
