"""The rules of `infercore.executor` that a step keeps or breaks, as seen from the device."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infercore.capabilities import Capabilities
from infercore.step import Bool, Step

Array = NDArray[np.generic]


class RuleBroken(AssertionError):
    """Whoever drives the executor broke its contract; the message names the rule."""


def require(kept: bool, rule: str) -> None:
    """Raises RuleBroken with what the rule is, and how it was broken."""
    if not kept:
        raise RuleBroken(rule)


class Owned:
    """Arrays that belong to the device: by their checksums it knows if they were changed."""

    def __init__(self, what: str, owner: object) -> None:
        self.what = what
        self._owner = owner
        self._sums: dict[str, int] = {}
        for name, array in _arrays(owner):
            require(array.flags.c_contiguous, f"{what}: {name} is not C-contiguous")
            self._sums[name] = zlib.crc32(array.data)

    def check(self) -> None:
        """Raises RuleBroken if an array is not what it was when it was handed over."""
        for name, array in _arrays(self._owner):
            require(
                self._sums.get(name) == zlib.crc32(array.data),
                f"rule (b): {name} of {self.what} changed before its result returned",
            )


def _arrays(owner: Any) -> Iterator[tuple[str, Array]]:
    """Every array in a Step or in LateInputs, by name."""
    for field in fields(owner):
        yield from _inside(field.name, getattr(owner, field.name))


def _inside(name: str, value: object) -> Iterator[tuple[str, Array]]:
    if isinstance(value, np.ndarray):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _inside(f"{name}[{key!r}]", item)
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            if isinstance(item, np.ndarray):
                yield f"{name}[{index}]", item
            elif hasattr(item, "__dataclass_fields__"):
                for part, array in _arrays(item):
                    yield f"{name}[{index}].{part}", array


def followable(step: Step) -> Bool:
    """bool[R]: the rows whose token the next step may be given before the host knows it."""
    single: Bool = step.max_tokens == 1
    return single & step.sample


def check_step(step: Step, followed: Bool, unresolved: Sequence[Step], can: Capabilities) -> None:
    """Raises RuleBroken for a step that may not be submitted now.

    followed: `followable` of the step submitted just before. unresolved: those whose result has
    not returned.
    """
    name, most = f"step {step.step_id}", can.max_in_flight
    sources = step.token_source[step.token_source >= 0]
    follows = bool((sources < len(followed)).all() and followed[sources].all())
    for kept, rule in (
        (
            len(unresolved) < most,
            f"rule (a): {name} is submitted while {most} are unresolved, the most",
        ),
        (
            follows,
            f"rule (h): {name} follows rows of the step before that yield no single token",
        ),
        (
            bool(can.late_inputs) or not step.late,
            f"{name} is late, which was not declared",
        ),
        (
            bool(can.prompt_logprobs) or not (step.prompt_targets >= 0).any(),
            f"{name} has prompt targets, which were not declared",
        ),
        (
            bool((step.max_tokens <= can.tokens_per_step).all()),
            f"{name} wants more than {can.tokens_per_step} tokens of a row",
        ),
    ):
        require(kept, rule)
    _check_blocks(step, unresolved, name)
    busy = {slot for other in unresolved for slot in other.slots.tolist()}
    for slot in (init.slot for init in step.slot_init):
        require(slot not in busy, f"rule (d): {name} starts slot {slot} anew while in flight")


def _check_blocks(step: Step, unresolved: Sequence[Step], name: str) -> None:
    for group, blocks in enumerate(step.fresh_blocks):
        fresh = set(blocks.tolist())
        require(0 not in fresh, f"rule (i): {name} hands out block 0")
        for other in unresolved:
            taken = sorted(fresh & set(other.block_table[group].ravel().tolist()))
            require(
                not taken,
                f"rule (c): {name} hands out {taken}, which step {other.step_id} still reads",
            )
