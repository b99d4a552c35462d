"""The contract as text, read from its source: every public name, signature and field.

`python tests/support/contract_surface.py` records it for the present API_VERSION. The record is
made anew only together with API_VERSION; see `breaks` for what a minor version may change.
"""

import ast
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import infercore
from infercore.executor import API_VERSION

Surface: TypeAlias = dict[str, dict[str, str]]
"""{"Step": {"token_ids": "Int32", "num_rows": "property -> int"}}; "" holds what is no class."""

CORE = Path(infercore.__file__).parent
HOUSE = Path(__file__).parents[1] / "house"
MODULES = (
    "executor.py",
    "backend.py",
    "step.py",
    "capabilities.py",
    "quantization.py",
    "model_spec.py",
    "hookspecs.py",
    "kinds/base.py",
    "layers/ops.py",
)
CLASSES_ONLY = {"kinds/base.py"}  # its functions serve the kinds themselves
CALLED_BY_NAME = {"__init__", "__call__", "__getitem__"}
GIVEN_BY_CORE = {"Weights", "TensorFile"}  # protocols that plugins use and do not write
REQUIRED = "required "


def record_path(version: tuple[int, int]) -> Path:
    return HOUSE / "contract_{}_{}.json".format(*version)


def surface() -> Surface:
    found: Surface = {"": {}}
    for module in MODULES:
        for node in ast.parse((CORE / module).read_text()).body:
            if isinstance(node, ast.ClassDef):
                if not node.name.startswith("_"):
                    found[node.name] = dict(_members(node))
            elif module not in CLASSES_ONLY:
                found[""].update(_described(node, written_by_plugins=False))
    del found[""]["API_VERSION"]
    return found


def _members(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    bases = [ast.unparse(base) for base in node.bases]
    yield "class", f"({', '.join(bases)})"
    protocol = "Protocol" in bases and node.name not in GIVEN_BY_CORE
    for member in node.body:
        yield from _described(member, written_by_plugins=protocol)


def _described(node: ast.stmt, *, written_by_plugins: bool) -> Iterator[tuple[str, str]]:
    """The name and the text of a definition; nothing for what is private."""
    if isinstance(node, ast.FunctionDef) and _is_public(node.name):
        marks = [ast.unparse(each) for each in node.decorator_list]
        required = written_by_plugins or "abstractmethod" in marks
        how = "".join(f"{mark} " for mark in marks if mark in ("classmethod", "property"))
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        text = f"{how}({ast.unparse(node.args)}){returns}"
        yield node.name, f"{REQUIRED if required else ''}{text}"
    elif isinstance(node, ast.AnnAssign) and _is_public(ast.unparse(node.target)):
        kind = ast.unparse(node.annotation)
        default = f" = {ast.unparse(node.value)}" if node.value else ""
        required = not default and not kind.startswith("ClassVar")
        yield ast.unparse(node.target), f"{REQUIRED if required else ''}{kind}{default}"
    elif isinstance(node, ast.Assign) and _is_public(name := ast.unparse(node.targets[0])):
        yield name, ast.unparse(node.value)


def _is_public(name: str) -> bool:
    return name in CALLED_BY_NAME or not name.startswith("_")


def breaks(old: Mapping[str, Mapping[str, str]], new: Mapping[str, Mapping[str, str]]) -> list[str]:
    """What a plugin written for `old` could trip over in `new`. Additions are none, if optional."""
    found = []
    for owner, members in old.items():
        have = new.get(owner, {})
        for name, text in members.items():
            if name not in have:
                found.append(f"{owner}.{name} is gone")
            elif have[name] != text:
                found.append(f"{owner}.{name} was {text!r} and is {have[name]!r}")
        found += [
            f"{owner}.{name} is new, and older plugins have none"
            for name, text in have.items()
            if name not in members and text.startswith(REQUIRED)
        ]
    return found


def main() -> None:
    path = record_path(API_VERSION)
    path.write_text(json.dumps(surface(), indent=1) + "\n")
    print(f"recorded in {path}")


if __name__ == "__main__":
    main()
