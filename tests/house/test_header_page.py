"""Headers, and fields of bodies, each have their place on a page of the reference."""

import ast
import re
from collections.abc import Iterator

import pytest

from infercore_api.router import kserve_generate, kserve_rest, tgi
from infercore_api.router.validation import Body
from pages import ROOT, page

ROUTER = ROOT / "api/src/infercore_api/router"
HEADER = re.compile(
    r"x-[a-z-]+|inference-[a-z-]+|authorization|host|user-agent|retry-after|request-id"
    r"|content-(?:type|length)|cache-control"
)
BY_LIBRARIES = {"traceparent"}
PLUGINS = (tgi, kserve_rest, kserve_generate)  # whose import makes their bodies known


def used() -> set[str]:
    """Every header that the router's own code reads or sends."""
    nodes = [node for file in ROUTER.glob("*.py") for node in ast.walk(ast.parse(file.read_text()))]
    values = [node.value for node in nodes if isinstance(node, ast.Constant)]
    texts = [v.decode("latin-1") if isinstance(v, bytes) else str(v) for v in values]
    return {text for text in texts if HEADER.fullmatch(text)}


def test_every_header_is_there_and_no_other() -> None:
    text = page("reference/http.md").partition("## Headers")[2].partition("\n## Access")[0]
    rows = re.findall(r"^\| (`[^|]+)\| ([^|]+) \|$", text, re.MULTILINE)
    named = {name for row in rows for cell in row for name in re.findall(r"`([a-z-]+)`", cell)}
    generation = page("reference/http.md").partition("Headers of a whole reply")[2]
    named |= set(re.findall(r"`(x-[a-z-]+)`", generation.partition("\n## ")[0]))
    told = {name for name in named if HEADER.fullmatch(name)} | (named & BY_LIBRARIES)
    assert told == used() | BY_LIBRARIES


def bodies(base: type[Body] = Body) -> Iterator[type[Body]]:
    """Every body, and every part of one, that a route takes."""
    for body in base.__subclasses__():
        yield body
        yield from bodies(body)


@pytest.mark.parametrize("body", dict.fromkeys(bodies()))
def test_every_field_of_every_body_is_on_a_page(body: type[Body]) -> None:
    text = page("reference/http.md") + page("reference/kserve.md")
    assert body.model_fields.keys() <= set(re.findall(r"[`\"](\w+)[`\"]", text))
