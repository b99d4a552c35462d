"""The project's pages, their fenced blocks and their links."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\w*)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block; `label` stands after its language: a file's name, "" if there is none."""

    language: str
    label: str
    text: str


def pages() -> list[Path]:
    """Every Markdown page that people read here."""
    rooms = (
        *("core", "backends", "quantization", "api", "conformance"),
        *("examples", "benchmarks", "docs"),
    )
    inside = [page for room in rooms for page in (ROOT / room).rglob("*.md")]
    return sorted([*ROOT.glob("*.md"), *inside])


def page(name: str) -> str:
    """The text of a page below docs/."""
    return (ROOT / "docs" / name).read_text()


def blocks(text: str) -> list[Block]:
    """Every fenced block, in order."""
    return [Block(*groups) for groups in _FENCE.findall(text)]


def links(text: str) -> Iterator[tuple[str, str]]:
    """(path, anchor) of every link to another page; links to the web are left out."""
    for target in _LINK.findall(_FENCE.sub("", text)):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            yield path, anchor


def anchors(text: str) -> set[str]:
    """What links may name after #: headings in lower case, with dashes and without marks."""
    headings = _HEADING.findall(_FENCE.sub("", text))
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def code_spans(text: str) -> set[str]:
    """Everything between single backquotes, outside of fences."""
    return set(re.findall(r"`([^`\n]+)`", _FENCE.sub("", text)))
