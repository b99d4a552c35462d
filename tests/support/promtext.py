"""Prometheus' text format and queries, as far as tests need to read them."""

import re
from collections.abc import Iterator, Mapping

from prometheus_client.parser import text_string_to_metric_families

_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}")
_MATCHER = re.compile(r'(\w+)="([^"]*)"')
_UNITS = re.compile(r"_(milliseconds|ms|minutes|hours|percent|kilobytes|kb|megabytes|mb)(_|$)")
_TYPES = ("gauge", "counter", "histogram", "summary")
_LABEL = re.compile(r"[a-z][a-z0-9_]*")

Series = tuple[str, frozenset[tuple[str, str]]]


def samples(text: str) -> dict[Series, float]:
    """{(name, labels): value}"""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def selectors(query: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Each series that a query selects: its name, and the labels that it must have."""
    for name, matchers in _SELECTOR.findall(query):
        yield name, dict(_MATCHER.findall(matchers))


def selected(
    found: Mapping[Series, float], name: str, labels: Mapping[str, str]
) -> dict[Series, float]:
    """Of those samples, the ones that a selector selects."""
    return {
        series: value
        for series, value in found.items()
        if series[0] == name and labels.items() <= set(series[1])
    }


def family_of(text: str, prefix: str) -> str:
    """The lines of a text that are about names with a prefix."""
    begins = re.compile(rf"(# (HELP|TYPE) )?{prefix}")
    return "".join(line for line in text.splitlines(keepends=True) if begins.match(line))


def faults(text: str) -> list[str]:
    """What a linter of metrics would say: the rules of `promtool check metrics`, and ours."""
    said: list[str] = []
    described: dict[str, int] = {}
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name = line.split()[2]
            described[name] = described.get(name, 0) + 1
    said += [f"{name}: described {count} times" for name, count in described.items() if count > 1]
    for family in text_string_to_metric_families(text):
        name = family.name + ("_total" if family.type == "counter" else "")
        if not family.documentation:
            said.append(f"{name}: no help")
        if family.type == "unknown":
            said.append(f"{name}: no type")
        if family.type == "counter" and name not in described:
            said.append(f"{name}: a counter without _total")
        if family.type != "counter" and name.endswith("_total"):
            said.append(f"{name}: _total, and no counter")
        if ":" in name or re.search(r"[A-Z]", name):
            said.append(f"{name}: a character that is not for exporters")
        if _UNITS.search(name):
            said.append(f"{name}: not in base units")
        if any(word in _TYPES for word in name.split("_")):
            said.append(f"{name}: its type in its name")
        said += [
            f"{name}: label {label}"
            for sample in family.samples
            for label in sample.labels
            if not _LABEL.fullmatch(label)
        ]
    return said
