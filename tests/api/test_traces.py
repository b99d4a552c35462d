"""Traces: real servers, real exporters, a collector that keeps what it was sent, and dead ones."""

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from infercore.errors import ConfigError
from infercore_api.observability import trace_setup
from processes import Server, eventually, free_port, serving

pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="needs infercore-api[otel]")

from otlp_collector import Collector, attributes, grpc_collector, http_collector

CANARY = "xyzzycanary"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
BODY: dict[str, Any] = {
    "inputs": f"say {CANARY}",
    "parameters": {"max_new_tokens": 8, "seed": 2**64 - 1, "stop": [CANARY], "do_sample": True},
}


def ask(server: Server, path: str, body: dict[str, Any], **headers: str) -> bytes:
    request = urllib.request.Request(
        server.url + path,
        json.dumps(body).encode(),
        {"content-type": "application/json", **headers},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: bytes = response.read()
    return answer


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Collector]]:
    folder = tmp_path_factory.mktemp("t")
    with grpc_collector() as collector:
        flags = ("--otlp-endpoint", collector.url, "--otlp-service-name", "shop", "--json-output")
        with serving(folder, *flags, toy=True, env=SOON) as server:
            yield server, collector


def spans_of(collector: Collector, trace: str) -> dict[str, Any]:
    """{name: span} of a trace, once its server's span came."""
    mine: dict[str, Any] = {}

    def complete() -> bool:
        mine.update({s.name: s for s in collector.spans() if s.trace_id.hex() == trace})
        return any(span.kind == span.SPAN_KIND_SERVER for span in mine.values())

    eventually(complete, 20, "the spans arrive")
    return mine


@pytest.mark.parametrize(
    ("path", "body", "operation"),
    [
        ("/generate", BODY, "text_completion"),
        ("/generate_stream", BODY, "text_completion"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": CANARY}], "max_tokens": 8},
            "chat",
        ),
    ],
)
def test_a_request_is_a_trace_below_its_callers(
    traced: tuple[Server, Collector], path: str, body: dict[str, Any], operation: str
) -> None:
    server, collector = traced
    trace = f"{hash(path) & (2**64 - 1):032x}"
    before = time.time_ns()
    ask(server, path, body, traceparent=f"00-{trace}-{PARENT}-01")
    spans = spans_of(collector, trace)
    model = f"{operation} infercore/demo"
    assert spans.keys() == {f"POST {path}", model, "queue", "prefill", "decode"}
    top, whole = spans[f"POST {path}"], spans[model]
    assert top.parent_span_id.hex() == PARENT
    assert whole.parent_span_id == top.span_id
    phases = [spans[name] for name in ("queue", "prefill", "decode")]
    assert all(phase.parent_span_id == whole.span_id for phase in phases)
    assert before <= top.start_time_unix_nano <= whole.start_time_unix_nano + 10**6
    edges = [edge for p in phases for edge in (p.start_time_unix_nano, p.end_time_unix_nano)]
    assert edges == sorted(edges)
    assert whole.end_time_unix_nano >= edges[-1] - 10**6
    assert collector.services() == {"shop"}
    told = attributes(top)
    assert (told["http.route"], told["http.response.status_code"]) == (path, 200)
    told = attributes(whole)
    assert told["gen_ai.operation.name"] == operation
    assert told["gen_ai.request.model"] == told["gen_ai.response.model"] == "infercore/demo"
    assert told["gen_ai.request.max_tokens"] == told["gen_ai.usage.output_tokens"] == 8
    assert told["gen_ai.response.finish_reasons"] == ["length"]


def test_a_refused_request_has_no_generation_and_says_why(
    traced: tuple[Server, Collector],
) -> None:
    server, collector = traced
    with pytest.raises(urllib.error.HTTPError):
        ask(
            server,
            "/generate",
            {"inputs": CANARY, "parameters": {"max_new_tokens": 0}},
            traceparent=f"00-{TRACE}-{PARENT}-01",
        )
    (span,) = spans_of(collector, TRACE).values()
    told = attributes(span)
    assert (told["http.response.status_code"], told["error.type"]) == (422, "422")


def test_a_caller_that_does_not_sample_gets_no_spans(traced: tuple[Server, Collector]) -> None:
    server, collector = traced
    ask(server, "/generate", BODY, traceparent=f"00-{'1' * 32}-{PARENT}-00")
    ask(server, "/generate", BODY, traceparent="00-nonsense")  # its own trace
    eventually(lambda: "POST /generate" in {s.name for s in collector.spans()}, 20, "one arrives")
    assert "1" * 32 not in {span.trace_id.hex() for span in collector.spans()}


def test_the_access_line_names_the_trace_and_nothing_tells_a_prompt(
    traced: tuple[Server, Collector],
) -> None:
    server, collector = traced
    trace = "2" * 32
    ask(server, "/generate", BODY, traceparent=f"00-{trace}-{PARENT}-01", **{"x-request-id": "me"})
    spans = spans_of(collector, trace)
    assert attributes(spans["POST /generate"])["infercore.request_id"] == "me"
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line[:1] == "{"]
    (line,) = (line for line in lines if line.get("request_id") == "me")
    assert (line["trace_id"], line["generated_tokens"]) == (trace, 8)
    assert CANARY not in server.log.read_text()
    assert not any(CANARY.encode() in raw for raw in collector.raw)


def test_traces_go_over_http_where_the_environment_says_so(folder: Path) -> None:
    with http_collector() as collector:
        env = {
            **SOON,
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_SERVICE_NAME": "ours",
        }
        with serving(folder, toy=True, env=env) as server:
            ask(server, "/generate", BODY)
            assert server.end() == 0  # what waits is sent at the end
        assert {"queue", "prefill", "decode"} <= {span.name for span in collector.spans()}
        assert collector.services() == {"ours"}


@contextmanager
def black_hole() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen(64)
        yield hole.getsockname()[1]


@pytest.mark.parametrize("kind", ["closed", "black hole"])
def test_a_dead_collector_harms_nothing(folder: Path, kind: str) -> None:
    with black_hole() as hole:
        port = hole if kind == "black hole" else free_port()
        # a queue of few spans, so that most are dropped
        env = {**SOON, "OTEL_BSP_MAX_QUEUE_SIZE": "8", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4"}
        flags = ("--otlp-endpoint", f"http://127.0.0.1:{port}")
        with serving(folder, *flags, toy=True, env=env) as server:
            for _ in range(12):
                ask(server, "/generate", BODY)
            assert server.health() == 200
            assert server.end() == 0
        text = server.log.read_text()
        assert "Traceback" not in text
        assert CANARY not in text
        assert text.count("opentelemetry") + text.count("Span") < 12  # it is told, not repeated


def test_an_endpoint_that_is_no_url_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"write http://HOST:4317"):
        trace_setup.check_endpoint("localhost:4317")


def test_without_the_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_setup, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install infercore-api\[otel\]"):
        trace_setup.check_endpoint("http://localhost:4317")
