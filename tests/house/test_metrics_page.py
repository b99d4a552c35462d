"""The page of metrics, and of what the log and traces say, against what is served."""

import logging
import re
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from infercore_api.observability.logs import RequestRecord, log_access, trace_id
from infercore_api.observability.metrics import Metrics
from memory_engine import MemoryEngine
from pages import ROOT, page

ROW = re.compile(r"^\| ([^|]+) \| (\w+) \| (?:([^|]*)\| )?[^|]+\|$", re.MULTILINE)
NAME = re.compile(r"`((?:infercore|tgi)_\w+|vllm:\w+)`")
HIDDEN = {"model_name", "engine", "le"}  # said once, for all of vLLM's


def documented() -> Iterator[tuple[str, str]]:
    """(name, type) of each row."""
    for names, kind, _ in ROW.findall(page("reference/metrics.md")):
        for name in NAME.findall(names):
            yield name, kind


def served() -> Iterator[tuple[str, str]]:
    """(name, type) of each family, with every switch on."""
    text = Metrics(MemoryEngine(), "infercore/demo").render().decode()
    for family in text_string_to_metric_families(text):
        total = "_total" if family.type == "counter" else ""
        yield family.name + total, "counter" if family.type == "unknown" else family.type


def test_every_metric_is_there_with_its_type_and_nothing_else() -> None:
    rows = list(documented())
    assert len(rows) == len(dict(rows))
    assert dict(rows) == dict(served())


def test_every_label_is_there() -> None:
    text = Metrics(MemoryEngine()).render().decode()
    labels = {
        family.name: {label for sample in family.samples for label in sample.labels} - HIDDEN
        for family in text_string_to_metric_families(text)
    }
    for names, kind, told in ROW.findall(page("reference/metrics.md")):
        for name in NAME.findall(names):
            if not name.startswith("vllm:"):
                family = name.removesuffix("_total") if kind == "counter" else name
                assert set(re.findall(r"`(\w+)`", told)) == labels[family], name


def test_every_field_of_an_access_line_is_there(caplog: pytest.LogCaptureFixture) -> None:
    token = trace_id.set("1" * 32)
    try:
        with caplog.at_level(logging.INFO, "infercore.access"):
            log_access(RequestRecord("id", "GET", "/x"))
    finally:
        trace_id.reset(token)
    (record,) = caplog.records
    table = page("how-to/observe.md").partition("## The log")[2]
    cells = re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert named == set(vars(record)["fields"])


def test_every_attribute_of_a_span_is_there() -> None:
    source = (ROOT / "api/src/infercore_api/observability/traces.py").read_text()
    used = set(re.findall(r'"((?:http|url|server|error|gen_ai|infercore)\.[a-z_.]+)"', source))
    told: set[str] = set()
    for line in page("how-to/observe.md").splitlines():
        first = ""
        for span in re.findall(r"`([a-z_.]+)`", line):
            first = first or span
            whole = span if not span.startswith(".") else ".".join(first.split(".")[:2]) + span
            told.add(whole)
    assert used <= told, used - told
