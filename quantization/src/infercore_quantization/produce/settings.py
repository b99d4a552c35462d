"""What `infercore quantize` was asked for, checked before anything is read."""

from dataclasses import asdict, dataclass, field
from typing import Any

from infercore.errors import ConfigError
from infercore_quantization.produce.gptq import Search
from infercore_quantization.produce.rounding import Scheme

WHOLE = -1  # a group size: all inputs
CALIBRATED = ("gptq", "awq")
PACKED = ("gptq", "awq", "int4", "int8")
METHODS = (*PACKED, "nf4", "fp4")
BITS = {"gptq": (4, 2, 3, 8), "awq": (4,), "int4": (4,), "int8": (8,)}  # the first by default


@dataclass(frozen=True, slots=True)
class Settings:
    """One run's. windows, window: how much text calibrates, and in which pieces."""

    method: str
    bits: int = 4
    group_size: int = 128
    symmetric: bool = True
    search: Search = field(default_factory=Search)
    windows: int = 128
    window: int = 2048

    @classmethod
    def of(cls, method: str, **options: Any) -> "Settings":
        """From options of which None means "not given".

        Raises ConfigError for a value that the method does not have, or an option that it would
        ignore.
        """
        if method not in METHODS:
            raise ConfigError(f"--method {method!r} is not known; there are {', '.join(METHODS)}")
        given = {name: value for name, value in options.items() if value is not None}
        _require_used(method, given)
        bits = given.pop("bits", BITS.get(method, (4,))[0])
        if bits not in BITS.get(method, (4,)):
            legal = ", ".join(map(str, sorted(BITS.get(method, (4,)))))
            raise ConfigError(f"--method {method} has {legal} bits. Given: --bits {bits}")
        if given.get("group_size", 1) < 1 and given["group_size"] != WHOLE:
            raise ConfigError(f"--group-size {given['group_size']} is neither positive nor -1")
        given.setdefault("static_groups", given.get("act_order", True))
        names = ("damping", "act_order", "static_groups")
        search = Search(**{name: given.pop(name) for name in names if name in given})
        given.setdefault("symmetric", method != "awq")
        return cls(method, bits, search=search, **given)

    @property
    def calibrated(self) -> bool:
        return self.method in CALIBRATED

    @property
    def scheme(self) -> Scheme:
        """In files of "gptq" a zero point is stored less 1, so that it must not be 0."""
        size = None if self.group_size == WHOLE else self.group_size
        least = 0 if self.method == "awq" else 1
        return Scheme(self.bits, size, self.symmetric, least)

    def facts(self) -> dict[str, Any]:
        """What two runs must share for one to go on with the other's layers."""
        return asdict(self)


def _require_used(method: str, given: dict[str, Any]) -> None:
    used = {
        **dict.fromkeys(("windows", "window"), CALIBRATED),
        **dict.fromkeys(("damping", "act_order", "static_groups"), ("gptq",)),
        "symmetric": ("gptq", "int4", "int8"),
        **dict.fromkeys(("bits", "group_size"), PACKED),
    }
    for name in given:
        if method not in used[name]:
            raise ConfigError(
                f"--{name.replace('_', '-')} means nothing to --method {method}; it is for "
                f"{', '.join(used[name])}. Leave it out"
            )
