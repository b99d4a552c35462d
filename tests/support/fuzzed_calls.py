"""Strategies of HTTP requests: what an OpenAPI document describes, nearly that, and bytes.

A described body has what is required, a few of the other fields, and at most one value of another
type than its schema says. So it gets past the parsers, and often as far as the engine.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from hypothesis import strategies as st

Strategy = st.SearchStrategy[Any]

WORDS = (
    *("Once upon a time", "Hello!", "", " a", "\u65e5\u672c", "a" * 300),
    *("infercore/demo", "tgi", "user", "assistant", "system", "text", "input_text", "message"),
    *("text_input", "text_output", "BYTES", "1"),
)
ANYTHING: Strategy = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(WORDS)
    | st.text(st.characters(exclude_categories=())),  # halves of surrogate pairs too
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)
_TYPES: dict[str, Strategy] = {
    "string": st.sampled_from(WORDS) | st.text(st.characters(exclude_categories=())),
    "integer": st.integers(1, 4) | st.integers(-2, 6) | st.integers(),
    "number": st.floats(0.25, 1) | st.floats(-3, 3) | st.floats(),
    "boolean": st.booleans(),
    "null": st.none(),
}
_NAMED: dict[str, Strategy] = {  # what has only few values that lead anywhere
    "model": st.sampled_from(("infercore/demo", "", "tgi")),
    "name": st.sampled_from(("infercore/demo", "tgi")),
    "version": st.just("1"),
    "role": st.sampled_from(("user", "assistant", "system")),
    "max_tokens": st.integers(1, 6),
    "stream_options": st.none() | st.just({"include_usage": True}),
}
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "QUERY")
CONTENT_TYPES = ("application/x-www-form-urlencoded", "text/plain; charset=utf-16", "*/*", "\xe9")
HEADERS = (
    ("authorization", "Bearer "),
    ("x-api-key", "\xff\xfe"),
    ("x-request-id", "a\tb"),
    ("traceparent", "00-0-0-zz"),
    ("expect", "100-continue"),
    ("upgrade", "websocket"),
    ("inference-header-content-length", "-7"),
    ("content-encoding", "gzip"),
    ("range", "bytes=0-1"),
    ("anthropic-version", "9999-99-99"),
    ("accept", "image/png"),
    ("origin", "null"),
    ("host", "elsewhere:99999"),
)


@dataclass(frozen=True)
class Call:
    """A request. errors: the name of the schema that its path's errors have, "" = unknown."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    content: bytes
    errors: str

    def encode(self) -> bytes:
        """The request as it is sent; its connection closes after the answer."""
        sent = {"host": "x", "connection": "close", **dict(self.headers)}
        sent["content-length"] = str(len(self.content))
        lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{k}: {v}" for k, v in sent.items())]
        return "\r\n".join((*lines, "", "")).encode("latin-1") + self.content


@dataclass(frozen=True)
class Operation:
    """What the document says of one method of one path."""

    method: str
    path: str
    parameters: tuple[tuple[str, str], ...]  # (place, name)
    body: Mapping[str, Any] | None
    errors: str


def operations(document: Mapping[str, Any]) -> Iterator[Operation]:
    """Every operation of the document."""
    for path, methods in document["paths"].items():
        for method, described in methods.items():
            content = described.get("requestBody", {}).get("content", {})
            refused = described["responses"].get("4XX", {}).get("content", {})
            schema = refused.get("application/json", {}).get("schema", {}).get("$ref", "")
            yield Operation(
                method.upper(),
                path,
                tuple((each["in"], each["name"]) for each in described.get("parameters", ())),
                content.get("application/json", {}).get("schema"),
                schema.rpartition("/")[2],
            )


def described_calls(document: Mapping[str, Any]) -> Strategy:
    """Calls of the document's operations, most of them as it describes them."""
    schemas = document["components"]["schemas"]
    weighted = [each for each in operations(document) for _ in range(1 if each.body is None else 6)]
    return st.sampled_from(weighted).flatmap(lambda operation: _calls(operation, schemas))


@st.composite
def _calls(draw: Any, operation: Operation, schemas: Mapping[str, Any]) -> Call:
    path, query = operation.path, ""
    for place, name in operation.parameters:
        value = quote(draw(_usually(_NAMED[name], st.text())), "/")
        if place == "path":
            path = path.replace(f"{{{name}}}", value)
        elif draw(st.booleans()):
            query = f"?{name}={value}"
    method = draw(_usually(st.just(operation.method), st.sampled_from(METHODS)))
    headers: tuple[tuple[str, str], ...] = ()
    content = b""
    if operation.body is not None:
        kind = draw(_usually(st.just("application/json"), st.sampled_from(CONTENT_TYPES)))
        headers = (("content-type", kind),)
        content = json.dumps(draw(_bodies(operation.body, schemas))).encode()
    more = draw(_usually(st.just([]), st.lists(st.sampled_from(HEADERS), max_size=2)))
    return Call(method, path + query, (*headers, *more), content, operation.errors)


def _usually(usual: Strategy, others: Strategy) -> Strategy:
    return st.integers(0, 15).flatmap(lambda dice: others if dice == 15 else usual)


@st.composite
def _bodies(draw: Any, schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Any:
    body = draw(_values(schema, schemas))
    if isinstance(body, dict) and body and draw(st.integers(0, 2)) == 2:
        body = {**body, draw(st.sampled_from(sorted(body))): draw(ANYTHING)}
    return body


def _values(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Strategy:
    """What the schema allows."""
    if "$ref" in schema:
        return _values(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return st.one_of([_values(each, schemas) for each in schema[several]])
    if "const" in schema or "enum" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    if schema.get("type") == "array":
        return st.lists(_values(schema.get("items", {}), schemas), max_size=3)
    if schema.get("type") == "object":
        return _objects(schema, schemas)
    return _TYPES.get(str(schema.get("type")), ANYTHING)


def _objects(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Strategy:
    fields = {
        name: _usually(_NAMED[name], _values(each, schemas))
        if name in _NAMED
        else _values(each, schemas)
        for name, each in schema.get("properties", {}).items()
    }
    if not fields:
        return st.dictionaries(st.text(max_size=5), ANYTHING, max_size=3)
    required = {name: fields.pop(name) for name in schema.get("required", ())}
    if not fields:
        return st.fixed_dictionaries(required)
    some = st.lists(st.sampled_from(sorted(fields)), max_size=4, unique=True)
    return some.flatmap(
        lambda names: st.fixed_dictionaries({**required, **{name: fields[name] for name in names}})
    )


def damaged_bytes(calls: Strategy) -> Strategy:
    """Requests with a few places cut out or written over, and bytes that never were a request."""
    edits = st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 12), st.binary(max_size=8)),
        min_size=1,
        max_size=4,
    )
    return st.builds(_damage, calls.map(Call.encode), edits) | st.binary(min_size=1)


def _damage(data: bytes, edits: Sequence[tuple[float, int, bytes]]) -> bytes:
    for place, length, new in edits:
        at = int(place * len(data))
        data = data[:at] + new + data[at + length :]
    return data


def expected_errors(path: str) -> str:
    """The schema of errors by the path alone, as the pages promise it."""
    if re.match(r"/v1/messages(/|$)", path):
        return "AnthropicError"
    return "NestedError" if path.startswith("/v1/") else "FlatError"
