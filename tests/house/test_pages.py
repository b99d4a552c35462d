"""What the pages say is what the code says: links, hooks, errors, options, hops."""

import ast
import inspect
import re
from dataclasses import fields

import pytest

from infercore import errors, hookspecs, plugins
from infercore.backend import Backend
from infercore.child import ExitCode
from infercore.config import EngineConfig
from infercore.llm import Completion
from infercore.sampling import SamplingParams
from pages import ROOT, anchors, blocks, code_spans, links, page, pages

DOCS = ROOT / "docs"
PAGES = {str(each.relative_to(ROOT)): each for each in pages()}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    here = PAGES[name]
    for path, anchor in links(here.read_text()):
        target = (here.parent / path).resolve() if path else here
        assert target.exists(), path
        assert not anchor or anchor in anchors(target.read_text()), f"{path}#{anchor}"


def test_every_page_is_in_the_index() -> None:
    index = DOCS / "index.md"
    linked = {(DOCS / path).resolve() for path, _ in links(index.read_text())}
    assert set(DOCS.rglob("*.md")) - {index} == linked


def test_decisions_are_numbered_and_say_why() -> None:
    for number, file in enumerate(sorted((DOCS / "adr").glob("*.md")), 1):
        text = file.read_text()
        assert file.name.startswith(f"{number:04}-")
        assert re.match(rf"# 0*{number}\.? \w", text)
        headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert headings == ["Context", "Decision", "Consequences"], file.name


def test_every_hook_is_there_with_its_exact_signature() -> None:
    text = page("reference/plugins.md")
    documented = dict(re.findall(r"^\| `(\w+)` \| `(register_.+?)` \|", text, re.MULTILINE))
    for kind, name in plugins.HOOK_OF_KIND.items():
        signature = str(inspect.signature(getattr(hookspecs, name)))
        signature = signature.replace("'", "").replace("typing.", "").replace("|", r"\|")
        assert documented.pop(kind) == f"{name}{signature}"
    assert not documented


def test_every_hook_has_a_kind() -> None:
    marked = f"{hookspecs.PROJECT}_spec"
    hooks = {name for name, member in vars(hookspecs).items() if hasattr(member, marked)}
    assert hooks == set(plugins.HOOK_OF_KIND.values())


def test_every_method_of_a_backend_is_there() -> None:
    methods = {name for name, _ in inspect.getmembers(Backend, inspect.isroutine)}
    spans = {span.partition("(")[0] for span in code_spans(page("how-to/write-a-backend.md"))}
    assert {name for name in methods if not name.startswith("_")} <= spans


def test_the_tree_of_errors_is_that_of_the_code() -> None:
    text = page("reference/errors.md")
    (tree,) = (block.text for block in blocks(text) if block.text.startswith("InferCoreError"))
    assert errors.__doc__ is not None
    assert "".join(f"    {line}\n" for line in tree.splitlines()) in errors.__doc__
    classes = {
        name: member
        for name, member in vars(errors).items()
        if inspect.isclass(member) and issubclass(member, errors.InferCoreError)
    }
    assert classes.keys() == set(re.findall(r"^\W*(\w+)", tree, re.MULTILINE))
    codes = {name: str(member.exit_code) for name, member in classes.items()}
    own = {
        name: code for name, code in codes.items() if issubclass(classes[name], errors.ConfigError)
    }
    documented = re.findall(r"^\| (\d+) \| `(\w+)`", text, re.MULTILINE)
    assert {name: code for code, name in documented} == {
        **own,
        **{code.name: str(code.value) for code in ExitCode},
    }


@pytest.mark.parametrize("described", [EngineConfig, SamplingParams, Completion])
def test_every_field_of_python_is_there(described: type) -> None:
    names = {field.name for field in fields(described)} - {"model"}
    assert names <= code_spans(page("reference/python.md"))


def test_the_hops_of_a_request_are_in_the_files_that_the_page_names() -> None:
    text = page("architecture.md")
    hops = re.findall(r"^\| \d+ \| `(\S+)` \| [^`\n]*`(\w+)`", text, re.MULTILINE)
    assert len(hops) == len(re.findall(r"^\| \d+ \|", text, re.MULTILINE)) > 15
    for file, name in hops:
        tree = ast.walk(ast.parse((ROOT / file).read_text()))
        assert name in {getattr(node, "name", "") for node in tree}, f"{file} has no {name}"
