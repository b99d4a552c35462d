"""Plants a defect in a backend: a class like the base's, with one function in another's place."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

from infercore.backend import Backend
from infercore.executor import Executor, Handle
from infercore.step import LateInputs, Step, StepResult
from planted.defect import Defect, Function, replaced

T = TypeVar("T")
CLASS_METHODS = ("probe",)


def planted(base: type[Backend] | type[Executor], defect: Defect) -> type[Backend] | type[Executor]:
    """`base` with `defect` in it. Raises ValueError if it can only be planted in a Backend."""
    members: dict[str, Any]
    if issubclass(base, Backend):
        members = {"name": f"{base.name}+{defect.id}", **_of_backend(base, defect)}
    elif defect.of_backend or defect.method in CLASS_METHODS:
        raise ValueError(f"{base.__name__} is no Backend, and {defect.id} is planted in one")
    else:
        members = {"__init__": _init(base, defect)}
    return cast("type[Backend | Executor]", type(f"Planted{base.__name__}", (base,), members))


def _of_backend(base: type[Backend], defect: Defect) -> dict[str, Any]:
    match defect.owner:
        case "Backend":
            return {defect.method: _instead(base, defect)}
        case "Ops" | "Attention" | "Collective":
            maker = defect.owner.lower()
            return {maker: _made(getattr(base, maker), _replacing(defect))}
        case "pack" | "pack_head":
            return {defect.owner: _given(getattr(base, defect.owner), defect.fresh())}
        case _:
            return {"executor": _made(base.executor, lambda made: _in_executor(made, defect))}


def _instead(base: type[Backend], defect: Defect) -> Any:
    function, name = defect.fresh(), defect.method
    if name in CLASS_METHODS:
        return classmethod(lambda cls: function(getattr(base, name)))
    right = getattr(base, name)
    return lambda self, *args: function(partial(right, self), *args)


def _made(make: Callable[..., T], changed: Callable[[T], T]) -> Any:
    """A method that makes what `make` makes, changed."""
    return lambda self, *args: changed(make(self, *args))


def _given(pack: Callable[..., T], changed: Function) -> Any:
    return lambda self, kind: pack(self, changed(kind))


def _init(base: type[Executor], defect: Defect) -> Any:
    def init(self: Executor) -> None:
        base.__init__(self)
        _in_executor(self, defect)

    return init


def _replacing(defect: Defect) -> Callable[[T], T]:
    return lambda target: replaced(target, defect.method, defect.fresh())


def _in_executor(executor: Executor, defect: Defect) -> Executor:
    function = defect.fresh()
    match defect.owner:
        case "Executor" if defect.method:
            return replaced(executor, defect.method, function)
        case "Executor":
            function(executor)
            return executor
        case "Handle":
            return _with_handles(executor, lambda h, _: replaced(h, defect.method, function))
        case "step":
            return replaced(executor, "submit", lambda right, step: right(function(step)))
        case "late":
            return _with_handles(executor, partial(_with_late, function))
        case _:
            return _with_handles(executor, partial(_with_result, function))


def _with_handles(executor: Executor, changed: Callable[[Handle, Step], Handle]) -> Executor:
    return replaced(executor, "submit", lambda right, step: changed(right(step), step))


def _with_late(function: Function, handle: Handle, step: Step) -> Handle:
    return replaced(handle, "sample", lambda right, late: right(function(late, step)))


def _with_result(function: Function, handle: Handle, step: Step) -> Handle:
    given: list[LateInputs] = []

    def sample(right: Callable[[LateInputs], None], late: LateInputs) -> None:
        given.append(late)
        right(late)

    def result(right: Callable[..., StepResult], timeout: float | None = None) -> StepResult:
        changed: StepResult = function(right(timeout), step, given[0] if given else None)
        return changed

    return replaced(replaced(handle, "sample", sample), "result", result)
