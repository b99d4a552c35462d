"""Traces by OpenTelemetry: HTTP request → generation → queue, prefill, decode.

The spans of a generation are made from the request's record when it ended, never per token. They
carry counts, times and sampling parameters, and no text: neither prompts, nor completions, nor
stop texts. Attributes are of OpenTelemetry's semantic conventions for HTTP and for GenAI.

Needs the extra `infercore-api[otel]`; see `trace_setup`, which alone imports this module.
"""

import os
import threading
import time
from collections.abc import Mapping
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, format_trace_id
from starlette.types import ASGIApp, Receive, Scope, Send

from infercore.errors import ConfigError
from infercore_api.observability.logs import QUIET_PATHS, RequestRecord, trace_id

_CLOSE_SECONDS = 2.0  # for what was not sent yet; a dead collector must not hold the end up
_METHODS = frozenset({"GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"})
_CHATS = frozenset({"/v1/chat/completions", "/v1/messages", "/v1/responses"})
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_SAMPLING = {
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "seed": "seed",
}
"""{attribute below `gen_ai.request`: field of SamplingParams}"""


class Traces:
    """Makes spans and hands them to a thread that exports them; nothing here waits for it.

    When the collector is slow or gone, spans beyond its queue (OTEL_BSP_MAX_QUEUE_SIZE) are
    dropped. model: the name that spans carry. exporter: what they end in.
    """

    def __init__(self, exporter: SpanExporter, service: str, version: str, model: str) -> None:
        resource = Resource.create({SERVICE_NAME: service, SERVICE_VERSION: version})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("infercore", version)
        self._model = model

    def begin(self, scope: Scope) -> Span:
        """The server's span, below the one that the request's `traceparent` names."""
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        attributes: dict[str, Any] = {
            "http.request.method": method,
            "url.path": scope["path"],
            "url.scheme": scope["scheme"],
        }
        if scope.get("server"):
            attributes["server.address"], attributes["server.port"] = scope["server"]
        return self._tracer.start_span(
            method, propagate.extract(headers), SpanKind.SERVER, attributes
        )

    def end(self, span: Span, scope: Scope) -> None:
        """End the server's span, and make those of the generation below it."""
        if not span.is_recording():
            return
        record: RequestRecord | None = scope.get("state", {}).get("record")
        route = getattr(scope.get("route"), "path", None)
        if route is not None:
            span.update_name(f"{scope['method']} {route}")
            span.set_attribute("http.route", route)
        if record is not None:
            span.set_attribute("infercore.request_id", record.request_id)
            _tell_status(span, record)
            if record.submitted:
                self._generation(span, record, str(route))
        span.end()

    def _generation(self, parent: Span, record: RequestRecord, route: str) -> None:
        """A span for what the engine did, and one for each phase that the request got to."""
        operation = "chat" if route in _CHATS else "text_completion"
        shift = time.time_ns() - time.monotonic_ns()
        queued = record.submitted + record.queue_seconds
        first = record.started + record.first_token_seconds

        def span(name: str, above: Span, start: float, attributes: Mapping[str, Any]) -> Span:
            context = trace.set_span_in_context(above)
            began = shift + int(start * 1e9)
            return self._tracer.start_span(
                name, context, SpanKind.INTERNAL, attributes, start_time=began
            )

        def phase(name: str, start: float, end: float) -> None:
            span(name, whole, start, {}).end(shift + int(max(start, end) * 1e9))

        attributes = {**_gen_ai(record, self._model), "gen_ai.operation.name": operation}
        whole = span(f"{operation} {self._model}", parent, record.submitted, attributes)
        error = _error_of(record)
        if error is not None:
            whole.set_attribute("error.type", error)
            whole.set_status(Status(StatusCode.ERROR))
        if record.first_token_seconds:
            phase("queue", record.submitted, queued)
            phase("prefill", queued, first)
            phase("decode", first, record.ended)
        whole.end(shift + int(record.ended * 1e9))

    def close(self) -> None:
        """Send what waits, if the collector takes it within two seconds."""
        # the library waits for longer than a server may take to end
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(_CLOSE_SECONDS)


class TraceRequests:
    """Middleware, outermost: a span per request, but for probes and scrapes."""

    def __init__(self, app: ASGIApp, traces: Traces) -> None:
        self.app = app
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in QUIET_PATHS:
            await self.app(scope, receive, send)
            return
        span = self._traces.begin(scope)
        token = trace_id.set(format_trace_id(span.get_span_context().trace_id))
        try:
            await self.app(scope, receive, send)
        finally:
            trace_id.reset(token)
            self._traces.end(span, scope)


def exporter_of(endpoint: str | None) -> SpanExporter:
    """The exporter for OTEL_EXPORTER_OTLP_PROTOCOL, gRPC by default.

    endpoint: http:// or https:// URL; None = what OTEL_EXPORTER_OTLP_ENDPOINT says.
    Raises ConfigError for a protocol that is none.
    """
    found = next((os.environ[name] for name in _PROTOCOLS if os.environ.get(name)), "grpc")
    if found == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return Grpc(endpoint)
    if found == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

        base = endpoint and endpoint.rstrip("/").removesuffix("/v1/traces")
        return Http(base and f"{base}/v1/traces")
    raise ConfigError(
        f"OTEL_EXPORTER_OTLP_PROTOCOL is {found!r}; traces go by `grpc` or `http/protobuf`"
    )


def _tell_status(span: Span, record: RequestRecord) -> None:
    if record.status:
        span.set_attribute("http.response.status_code", record.status)
    if record.status >= 400:
        span.set_attribute("error.type", str(record.status))
    if record.status >= 500:
        span.set_status(Status(StatusCode.ERROR))


def _error_of(record: RequestRecord) -> str | None:
    """What ended a generation early, None if nothing did."""
    return None if record.finish_reason in ("length", "eos", "stop") else record.finish_reason


def _gen_ai(record: RequestRecord, model: str) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "gen_ai.provider.name": "infercore",
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.request.choice.count": len(record.sampling),
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.generated_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
        "gen_ai.response.finish_reasons": [record.finish_reason],
    }
    if record.first_token_seconds:
        attributes["gen_ai.response.time_to_first_chunk"] = record.first_token_seconds
    for sampling in record.sampling[:1]:  # choices differ in their seeds alone
        for name, field in _SAMPLING.items():
            value = getattr(sampling, field)
            if value is not None:
                # seeds have 64 bits, and integers of the protocol a sign
                big = isinstance(value, int) and value >= 2**63
                attributes[f"gen_ai.request.{name}"] = str(value) if big else value
    return attributes
