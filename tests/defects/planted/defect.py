"""How a defect is declared: a function that stands in the place of a right one.

    @defect(at="late", caught_by="executor.late.mask")
    def masks_dropped(late: LateInputs, step: Step) -> LateInputs:
        'Masks never reach the sampler.'

Its name is the defect's id, its docstring the sentence. Places that it may stand at:

    step            (step) → the step that is submitted
    late            (late, step) → what the step's sampling gets
    result          (result, step, late) → what the engine gets
    Executor        (executor) → None, once for every executor that is made
    Executor.NAME, Handle.NAME, Backend.NAME, Ops.NAME, Attention.NAME, Collective.NAME
                    (right, *arguments), in the place of the method NAME; `right` is the method
    pack, pack_head (kind) → the kind that is packed instead
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeVar

Function: TypeAlias = Callable[..., Any]
T = TypeVar("T")

WHOLE = frozenset({"step", "late", "result", "pack", "pack_head", "Executor"})
OWNERS = frozenset({"Executor", "Handle", "Backend", "Ops", "Attention", "Collective"})
OF_BACKEND = frozenset({"Backend", "Ops", "Attention", "Collective", "pack", "pack_head"})

DEFECTS: "dict[str, Defect]" = {}


@dataclass(frozen=True, slots=True)
class Defect:
    """A defect, and the check that must catch it.

    cause: the exception by which that check fails, by its name. "AssertionError" is one that the
        suite itself raises; any other is the backend's, which the check lets through on purpose.
    stateful: `function` makes the function, one for every executor.
    slow: its check takes seconds by design, such as starting new processes.
    thorough: the quick suite leaves its check out.
    base: the backend that it is planted in, where another one would do without what it breaks.
    """

    id: str
    sentence: str
    at: str
    caught_by: str
    function: Function
    cause: str = "AssertionError"
    stateful: bool = False
    slow: bool = False
    thorough: bool = False
    base: str = "cpu"

    @property
    def owner(self) -> str:
        """Whose it is: "Ops" of Ops.attention."""
        return self.at.partition(".")[0]

    @property
    def method(self) -> str:
        return self.at.partition(".")[2]

    @property
    def of_backend(self) -> bool:
        """Whether it can only be planted in a Backend, and not in an Executor of its own."""
        return self.owner in OF_BACKEND

    def fresh(self) -> Function:
        """The function, with a state of its own if it has one."""
        made: Function = self.function() if self.stateful else self.function
        return made


def defect(
    *,
    at: str,
    caught_by: str,
    cause: str = "AssertionError",
    stateful: bool = False,
    slow: bool = False,
    thorough: bool = False,
    base: str = "cpu",
) -> Callable[[Function], Function]:
    """Declare one. Raises ValueError for a place that there is not, or an id that is taken."""

    def declare(function: Function) -> Function:
        owner, _, method = at.partition(".")
        if at not in WHOLE and not (owner in OWNERS and method):
            raise ValueError(f"defect {function.__name__}: there is no place {at!r}")
        if function.__name__ in DEFECTS:
            raise ValueError(f"defect {function.__name__} is declared twice")
        sentence = " ".join((function.__doc__ or "").split())
        DEFECTS[function.__name__] = Defect(
            function.__name__, sentence, at, caught_by, function,
            cause, stateful, slow, thorough, base,
        )  # fmt: skip
        return function

    return declare


def replaced(target: T, name: str, function: Function) -> T:
    """`target`, whose method `name` is now `function`, which is given the right one first."""
    if name not in vars(target):  # a backend may hand out the same one twice
        setattr(target, name, partial(function, getattr(target, name)))
    return target
