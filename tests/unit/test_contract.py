"""The contract stands still: what is recorded for an API_VERSION is what the code says."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

import contract_surface
from contract_surface import Surface, breaks, record_path, surface
from infercore import backend, capabilities, executor, hookspecs, kinds, model_spec, quantization
from infercore import step as steps
from infercore.config import EngineConfig
from infercore.executor import API_VERSION

RECORD = "python tests/support/contract_surface.py"
INTERFACES = (
    executor.Executor,
    executor.Handle,
    backend.Backend,
    backend.Attention,
    quantization.QuantizationMethod,
    kinds.Kind,
)
PUBLIC = [
    member
    for module in (executor, backend, steps, capabilities, quantization, model_spec, hookspecs)
    for name, member in vars(module).items()
    if (inspect.isclass(member) or inspect.isfunction(member))
    and member.__module__ == module.__name__
    and not name.startswith("_")
]


def recorded(path: Path) -> Surface:
    surface: Surface = json.loads(path.read_text())
    return surface


def test_the_contract_is_the_one_that_is_recorded_for_its_version() -> None:
    path = record_path(API_VERSION)
    assert path.exists(), f"API_VERSION is {API_VERSION}, and nothing is recorded for it: {RECORD}"
    old, new = recorded(path), surface()
    added = {f"{owner}.{name}" for owner, have in new.items() for name in have} - {
        f"{owner}.{name}" for owner, have in old.items() for name in have
    }
    assert not breaks(old, new), "raise the major of API_VERSION, or take the change back"
    assert not added, f"raise the minor of API_VERSION, then record it: {RECORD}"


def test_a_minor_version_only_adds() -> None:
    major, minor = API_VERSION
    for earlier in range(minor):
        assert not breaks(recorded(record_path((major, earlier))), surface())


OLD: Surface = {"Executor": {"submit": "required (self, step: Step) -> Handle"}, "": {}}


@pytest.mark.parametrize(
    ("new", "found"),
    [
        ({"submit": "required (self, step: Step) -> Handle", "pause": "(self) -> None"}, ""),
        ({"submit": "required (self, step: Step, rank: int) -> Handle"}, "Executor.submit was"),
        ({}, "Executor.submit is gone"),
        (
            {**OLD["Executor"], "pause": "required (self) -> None"},
            "Executor.pause is new, and older plugins have none",
        ),
    ],
)
def test_what_breaks_a_plugin_is_seen(new: dict[str, str], found: str) -> None:
    assert found in "".join(breaks(OLD, {"Executor": new, "": {}}))
    assert bool(breaks(OLD, {"Executor": new, "": {}})) == bool(found)


def test_the_record_holds_signatures_fields_and_what_must_be_written() -> None:
    found = surface()
    assert found["Executor"]["submit"] == "required (self, step: Step) -> Handle"
    assert found["Step"]["late"] == "bool = False"
    assert found["Step"]["token_ids"] == "required Int32"
    assert found["Backend"]["ops"] == "(self) -> 'Ops'"
    assert found[""]["register_routes"] == "(app: Any, state: Any) -> None"
    assert set(contract_surface.MODULES) <= {
        str(path.relative_to(contract_surface.CORE)) for path in contract_surface.CORE.rglob("*.py")
    }


@pytest.mark.parametrize("interface", INTERFACES, ids=lambda each: each.__name__)
def test_no_interface_asks_for_more_than_twelve_methods(interface: type) -> None:
    assert len(inspect.unwrap(interface).__abstractmethods__) <= 12


def test_a_backend_must_write_three_methods_and_may_write_twelve() -> None:
    """Each method more is one that every vendor must understand; a vendor's wish is none."""
    methods = {name for name, _ in inspect.getmembers(backend.Backend, inspect.isroutine)}
    public = {name for name in methods if not name.startswith("_")}
    must = backend.Backend.__abstractmethods__
    assert must == {"probe", "device", "memory"}
    assert len(public - must) == 12


@pytest.mark.parametrize("member", PUBLIC, ids=lambda each: each.__name__)
def test_every_public_name_of_the_contract_is_documented(member: Any) -> None:
    assert _says_something(member)
    if inspect.isclass(member):
        for name, method in vars(member).items():
            function = getattr(method, "__func__", method)
            if inspect.isfunction(function) and getattr(function, "__isabstractmethod__", False):
                assert _says_something(function), f"{member.__name__}.{name}"


def _says_something(member: Any) -> bool:
    own = member.__doc__ or ""
    return len(own.split()) > 2 and not own.startswith(f"{getattr(member, '__name__', '')}(")


@pytest.mark.parametrize(
    "described",
    [
        steps.Step,
        steps.SlotInit,
        steps.LateInputs,
        executor.Probe,
        executor.ExecutorConfig,
        capabilities.StaticDimension,
        EngineConfig,
    ],
    ids=lambda each: each.__name__,
)
def test_every_field_is_described(described: Any) -> None:
    missing = [name for name in described.__dataclass_fields__ if name not in described.__doc__]
    assert set(missing) <= {"step_id"}
