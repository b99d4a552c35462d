"""What the simulated device can do and when it fails, as words in the variable INFERCORE_SIM."""

import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from infercore.capabilities import Dimension
from infercore.errors import ConfigError

VARIABLE = "INFERCORE_SIM"
FEATURES = ("bf16", "fp16", "graph", "late", "prompt-logprobs")
NUMBERS: Mapping[str, Container[int]] = {
    "block": (8, 16, 32, 64, 128, 256),
    "in-flight": (1, 2),
    "lookahead": range(1, 9),
    "memory": range(1, 2**20),
    "compile": range(3601),
}


class Fault(Enum):
    """What goes wrong in a step."""

    OOM = "oom"  # its first allocation is refused
    HANG = "hang"  # it never ends
    LOST = "lost"  # the device, or a rank of it, is gone
    NAN = "nan"  # its logits are NaN
    DTYPE = "dtype"  # its result has arrays of the wrong dtype
    GARBAGE = "garbage"  # its tokens are no ids of the model
    STEP_ID = "step-id"  # its result names another step


@dataclass(frozen=True, slots=True)
class SimOptions:
    """The words, parsed. The device without any is the strictest one.

    without: of FEATURES, those that it lacks. dynamic: dimensions that need no planning.
    numbers: block (the one legal block size), in-flight (steps), lookahead (tokens of a row in a
        step), memory (MiB), compile (seconds that one bucket takes).
    faults: {step: what goes wrong in it}, steps being counted from 0 as they are submitted.
    """

    without: frozenset[str] = frozenset()
    dynamic: frozenset[Dimension] = frozenset()
    numbers: Mapping[str, int] = field(default_factory=dict)
    faults: Mapping[int, Fault] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "SimOptions":
        """Read words such as "no-bf16,block-128,oom@5".

        Raises ConfigError for a word that means nothing here, or that says something twice.
        """
        options = cls()
        for word in text.split(",") if text.strip() else ():
            options = _with(options, word.strip())
        return options


def _with(options: SimOptions, word: str) -> SimOptions:
    for pattern, add in _FORMS:
        match = re.fullmatch(pattern, word)
        if match:
            added = add(options, *match.groups())
            if added == options:
                raise ConfigError(f"{VARIABLE}: {word!r} says again what was said; drop it")
            return added
    raise ConfigError(f"{VARIABLE}: {word!r} is none of its words; they are {_WORDS}")


def _number(options: SimOptions, name: str, digits: str) -> SimOptions:
    value = int(digits)
    if value not in NUMBERS[name]:
        raise ConfigError(f"{VARIABLE}: {name} cannot be {value}; legal is {NUMBERS[name]}")
    if name in options.numbers:
        raise ConfigError(f"{VARIABLE}: {name} is given twice; give it once")
    return replace(options, numbers={**options.numbers, name: value})


def _fault(options: SimOptions, name: str, digits: str) -> SimOptions:
    step = int(digits)
    if step in options.faults:
        raise ConfigError(f"{VARIABLE}: step {step} has two faults; give it one")
    return replace(options, faults={**options.faults, step: Fault(name)})


_FAULTS = [fault.value for fault in Fault]
_DIMENSIONS = [dimension.value for dimension in Dimension]
_FORMS: tuple[tuple[str, Callable[..., SimOptions]], ...] = (
    (
        f"no-({'|'.join(FEATURES)})",
        lambda options, name: replace(options, without=options.without | {name}),
    ),
    (
        f"dynamic-({'|'.join(_DIMENSIONS)})",
        lambda options, name: replace(options, dynamic=options.dynamic | {Dimension(name)}),
    ),
    (rf"({'|'.join(NUMBERS)})-(\d+)", _number),
    (rf"({'|'.join(_FAULTS)})@(\d+)", _fault),
)
_WORDS = ", ".join(
    [
        *(f"no-{name}" for name in FEATURES),
        *(f"dynamic-{name}" for name in _DIMENSIONS),
        *(f"{name}-N" for name in NUMBERS),
        *(f"{name}@STEP" for name in _FAULTS),
    ]
)
