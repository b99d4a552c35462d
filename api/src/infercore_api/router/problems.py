"""Problems: one description of every refusal, told in the dialect of the path.

TGI's paths answer `{"error", "error_type"}`, OpenAI's (`/v1/...`)
`{"error": {"message", "type", "param", "code"}}`, Anthropic's (`/v1/messages`)
`{"type": "error", "error": {"type", "message"}}`, in streams too.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from infercore.errors import (
    EngineUnavailable,
    GenerationFailed,
    InvalidRequest,
    Overloaded,
    RequestError,
    TemplateError,
)

# a path, an address, an object's repr, a trace, a place in a source file, a version
_INSIDE = re.compile(
    r"(?:^|[\s'\"(\[])/[\w.-]+/|0x[0-9a-fA-F]{4,}|<[\w.]+ (?:object|at)\b|Traceback|\n"
    r"|\.(?:py|cpp|cu|h|so)\b|\b\d+\.\d+\.\d+\b"
)


class _Row(NamedTuple):
    status: int
    error_type: str
    text: str  # TGI's sentence; {} is the error's own
    openai_status: int
    openai_type: str
    code: str | None


# the order matters only where classes inherit from each other
_ROWS: dict[type[RequestError], _Row] = {
    InvalidRequest: _Row(
        422, "validation", "Input validation error: {}", 400, "invalid_request_error", None
    ),
    TemplateError: _Row(
        422, "template_error", "Template error: {}", 400, "invalid_request_error", "template_error"
    ),
    Overloaded: _Row(
        429, "overloaded", "Model is overloaded", 429, "rate_limit_error", "overloaded"
    ),
    GenerationFailed: _Row(
        424,
        "generation",
        "Request failed during generation: {}",
        500,
        "server_error",
        "generation_failed",
    ),
    EngineUnavailable: _Row(503, "unavailable", "{}", 503, "server_error", "engine_unavailable"),
}
_UNKNOWN_MODEL = _Row(
    404, "validation", "Input validation error: {}", 404, "invalid_request_error", "model_not_found"
)
_INTERNAL = _Row(500, "incomplete_generation", "{}", 500, "server_error", "internal_error")
_MESSAGES = {  # instead of pydantic's, which speak of Python
    "extra_forbidden": "This field is not known here",
    "model_type": "Input should be an object",
    "model_attributes_type": "Input should be an object",
}
_HTTP_NAMES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "payload_too_large",
    415: "unsupported_media_type",
    431: "headers_too_large",
}


ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    415: "invalid_request_error",
    405: "invalid_request_error",
    429: "rate_limit_error",
}
"""{status: type of Anthropic's}; where none is named it is api_error."""


class FlatError(BaseModel):
    """An error on TGI's paths."""

    error: str
    error_type: str


class AnthropicErrorObject(BaseModel):
    """What went wrong, on Anthropic's paths."""

    type: str
    message: str


class AnthropicError(BaseModel):
    """An error on Anthropic's paths."""

    type: Literal["error"]
    error: AnthropicErrorObject


class ErrorObject(BaseModel):
    """What went wrong, and `param`, the field at fault if one is."""

    message: str
    type: str
    param: str | None
    code: str | None


class NestedError(BaseModel):
    """An error on OpenAI's paths."""

    error: ErrorObject


def documented(
    model: type[FlatError | NestedError | AnthropicError],
) -> dict[int | str, dict[str, Any]]:
    """The answers of a route that did not succeed, for the API's document."""
    return {
        "4XX": {"model": model, "description": "The request is refused; the message says why"},
        "5XX": {"model": model, "description": "The server or its engine failed"},
    }


@dataclass(frozen=True, slots=True)
class Problem:
    """What went wrong, before it is put into a dialect. `name` is TGI's error type."""

    row: _Row
    message: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.row.error_type

    @property
    def text(self) -> str:
        """The error in TGI's words."""
        return self.row.text.format(self.message)

    def status(self, path: str) -> int:
        flat = not speaks_openai(path) and not speaks_anthropic(path)
        return self.row.status if flat else self.row.openai_status

    def body(self, path: str) -> str:
        """The error as one line of JSON."""
        if speaks_anthropic(path):
            kind = ANTHROPIC_TYPES.get(self.row.openai_status, "api_error")
            inner = {"type": kind, "message": self.message}
            return json.dumps({"type": "error", "error": inner})
        if not speaks_openai(path):
            return json.dumps({"error": self.text, "error_type": self.row.error_type})
        return json.dumps(
            {
                "error": {
                    "message": self.message,
                    "type": self.row.openai_type,
                    "param": self.param,
                    "code": self.row.code,
                }
            }
        )

    def event(self, path: str) -> str:
        """The error as a framed event, for a stream that has begun."""
        name = "event: error\n" if speaks_anthropic(path) else ""
        return f"{name}data: {self.body(path)}\n\n"

    def response(self, path: str) -> Response:
        return Response(
            self.body(path), self.status(path), dict(self.headers), media_type="application/json"
        )


def speaks_openai(path: str) -> bool:
    """Whether this path is OpenAI's: its errors are nested, its streams end with `[DONE]`."""
    return path.startswith("/v1/") and not speaks_anthropic(path)


def speaks_anthropic(path: str) -> bool:
    """Whether this path is Anthropic's: its errors have a type, its events a name."""
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def problem_of(error: BaseException) -> Problem:
    """The problem that an exception stands for; what nobody raised on purpose is internal."""
    match error:
        case InvalidRequest(param="model"):
            return Problem(_UNKNOWN_MODEL, str(error), "model")
        case InvalidRequest():
            return Problem(_ROWS[InvalidRequest], str(error), error.param)
        case Overloaded():
            wait = {"retry-after": f"{max(1, round(error.retry_after))}"}
            return Problem(_ROWS[Overloaded], str(error), headers=wait)
        case EngineUnavailable():
            return Problem(_ROWS[EngineUnavailable], str(error), headers={"retry-after": "1"})
        case GenerationFailed():
            # the same request would most likely fail again
            stop = {"x-should-retry": "false"}
            return Problem(_ROWS[GenerationFailed], _outward(error), headers=stop)
        case TemplateError():
            return Problem(_ROWS[TemplateError], str(error), "messages")
        case RequestValidationError():
            return _body_problem(error.errors())
        case HTTPException():
            return _http_problem(error)
        case ClientDisconnect():
            # nobody hears it; the access log does
            return _http_problem(HTTPException(400, "The client left before its body was complete"))
        case _:
            return Problem(_INTERNAL, "Internal server error. Its cause is in the server's log.")


def _outward(error: GenerationFailed) -> str:
    """The message without what a library, or the device, said of this machine's inside."""
    text, inside = str(error), _INSIDE.search(str(error))
    if inside is None:
        return text
    known = _INSIDE.split(text)[0].rpartition(": ")[0] or "the step failed"
    return f"{known}. Its cause is in the server's log"


def _http_problem(error: HTTPException) -> Problem:
    if isinstance(error.__cause__, RequestError):  # FastAPI wraps what reading a body raises
        return problem_of(error.__cause__)
    name = _HTTP_NAMES.get(error.status_code, "http_error")
    kind = "authentication_error" if error.status_code == 401 else "invalid_request_error"
    row = _Row(error.status_code, name, "{}", error.status_code, kind, name)
    return Problem(row, str(error.detail), headers=error.headers or {})


def _body_problem(errors: Sequence[Mapping[str, Any]]) -> Problem:
    first = errors[0]
    if first["type"] == "json_invalid":
        detail = first.get("ctx", {}).get("error", "it cannot be parsed")
        return _http_problem(HTTPException(400, f"The body is not valid JSON: {detail}"))
    if first["type"] == "missing" and first["loc"] == ("body",):
        return _http_problem(HTTPException(400, "The body is empty; send a JSON object"))
    # the deepest place is the most telling: of a union, it is of the member that fits best
    places = [_place(error["loc"]) for error in errors]
    place = max(places, key=len)
    texts: list[str] = [
        str(_MESSAGES.get(error["type"], error["msg"]))
        for error, other in zip(errors, places, strict=True)
        if other == place
    ]
    param = ".".join(place) or None
    message = f"{f'`{param}`' if param else 'The body'}: {' or '.join(dict.fromkeys(texts))}"
    return Problem(_ROWS[InvalidRequest], message, param)


def _place(loc: Sequence[str | int]) -> list[str]:
    """The path to a value, without the names that pydantic gives to a union's members."""
    return [str(part) for part in loc[1:] if part != "str" and "[" not in str(part)]
