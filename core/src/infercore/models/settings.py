"""Reads `config.json`: every setting is used, known to be harmless, or refused by name."""

from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from infercore.errors import UnsupportedModel
from infercore.model_spec import RopeSpec

# Hugging Face's names of activations → MlpSpec's
ACTIVATIONS: Mapping[str, str] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}

# rope_type → (settings that it needs, settings that it may have)
ROPE_TYPES: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "default": (frozenset(), frozenset()),
    "linear": (frozenset({"factor"}), frozenset()),
    "llama3": (
        frozenset({"factor", "low_freq_factor", "high_freq_factor"}),
        frozenset({"original_max_position_embeddings"}),
    ),
    "yarn": (
        frozenset({"factor"}),
        frozenset(
            {
                "original_max_position_embeddings",
                "attention_factor",
                "beta_fast",
                "beta_slow",
                "mscale",
                "mscale_all_dim",
                "truncate",
            }
        ),
    ),
}


class Settings:
    """A `config.json` whose values are asked for by name and type.

    Every method raises UnsupportedModel, naming key and value, for what it cannot use.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    @property
    def architecture(self) -> str:
        return str(self.config["architectures"][0])

    def refuse(self, key: str, value: object, remedy: str) -> NoReturn:
        raise UnsupportedModel(f"config.json: {key} is {value!r}; {remedy}")

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer; `default` stands for a missing or null one, None = required."""
        value = self._get(key, default)
        if type(value) is not int or value <= 0:
            self.refuse(key, value, "it must be a positive integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            self.refuse(key, value, "it must be a positive number")
        return float(value)

    def optional_number(self, key: str, default: float | None) -> float | None:
        """A positive number, or None where the file says null."""
        if self.config.get(key, default) is None:
            return None
        return self.number(key, default)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if type(value) is not bool:
            self.refuse(key, value, "it must be true or false")
        return value

    def require(self, key: str, only: object) -> None:
        """Refuse any value of `key` but `only`, null and absence."""
        value = self.config.get(key)
        if value is not None and value != only:
            self.refuse(key, value, f"only {only!r} is supported")

    def activation(self, key: str, default: str) -> str:
        value = self._get(key, default)
        if value not in ACTIVATIONS:
            self.refuse(key, value, f"supported are {', '.join(sorted(ACTIVATIONS))}")
        return ACTIVATIONS[value]

    def dtype(self) -> str:
        """The checkpoint's dtype, under its older name `torch_dtype` too."""
        key = "dtype" if self.config.get("dtype") is not None else "torch_dtype"
        value = str(self._get(key, "float32"))
        if value not in ("float32", "float16", "bfloat16"):
            self.refuse(key, value, "supported are float32, float16 and bfloat16")
        return value

    def rope(self, head_dim: int) -> RopeSpec:
        """`rope_parameters`, or `rope_theta` and `rope_scaling` as they were called before."""
        key = "rope_parameters" if self.config.get("rope_parameters") else "rope_scaling"
        given = self.config.get(key) or {}
        if not isinstance(given, Mapping) or any(isinstance(v, Mapping) for v in given.values()):
            self.refuse(key, given, "it must be one object that holds for all layers")
        scaling = {name: value for name, value in given.items() if value is not None}
        theta = scaling.pop("rope_theta", self._get("rope_theta", 10000.0))
        if isinstance(theta, bool) or not isinstance(theta, int | float) or not theta > 0:
            self.refuse("rope_theta", theta, "it must be a positive number")
        kind = scaling.pop("type", "default")
        kind = scaling.pop("rope_type", kind)
        partial = scaling.pop("partial_rotary_factor", self._get("partial_rotary_factor", 1.0))
        if partial != 1.0:
            self.refuse("partial_rotary_factor", partial, "only whole heads are rotated")
        return RopeSpec(float(theta), head_dim, self._rope_scaling(key, kind, scaling))

    def _rope_scaling(self, key: str, kind: object, scaling: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(kind, str) or kind not in ROPE_TYPES:
            supported = ", ".join(sorted(ROPE_TYPES))
            self.refuse(f"{key}.rope_type", kind, f"supported are {supported}")
        needed, allowed = ROPE_TYPES[kind]
        for name in sorted(needed - scaling.keys()):
            self.refuse(f"{key}.{name}", None, f"rope_type {kind!r} needs it")
        for name, value in sorted(scaling.items()):
            if name not in needed | allowed:
                self.refuse(f"{key}.{name}", value, f"rope_type {kind!r} does not use it")
            if not isinstance(value, int | float) or (value <= 0 and name != "truncate"):
                self.refuse(f"{key}.{name}", value, "it must be a positive number")
        if "original_max_position_embeddings" in allowed:
            name = "original_max_position_embeddings"
            own = scaling.get(name, self.config.get("max_position_embeddings"))
            scaling[name] = self.integer(name, own)
        return {"rope_type": kind, **scaling}

    def windows(self, layer_types: Collection[str], window: int | None) -> tuple[int | None, ...]:
        """Per layer its window, from names as in `layer_types`."""
        for name in layer_types:
            if name not in ("full_attention", "sliding_attention"):
                self.refuse(
                    "layer_types", name, "supported are full_attention and sliding_attention"
                )
        if window is None and "sliding_attention" in layer_types:
            self.refuse("sliding_window", None, "layer_types names sliding_attention")
        return tuple(window if name == "sliding_attention" else None for name in layer_types)

    def layer_types(self, default: Collection[str], layers: int) -> tuple[str, ...]:
        """`layer_types`, one per layer."""
        value = self.config.get("layer_types")
        names = tuple(default if value is None else value)
        if len(names) != layers:
            self.refuse("layer_types", value, f"the model has {layers} layers")
        return names

    def _get(self, key: str, default: Any) -> Any:
        value = self.config.get(key)
        if value is not None:
            return value
        if default is None:
            raise UnsupportedModel(f"config.json lacks {key}, which its architecture needs")
        return default
