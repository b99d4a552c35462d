"""The ASGI stack around the routes: request id and access log, body limits."""

import re
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infercore.errors import Overloaded
from infercore_api.observability.logs import RequestRecord, log_access
from infercore_api.router.problems import problem_of, speaks_anthropic

_RETRY_SECONDS = 1.0
_PLAIN_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RequestContext:
    """Gives every request an id and a record, echoes the id, and writes one access line.

    The id is the client's `x-request-id` or `x-amzn-trace-id` if it is plain ASCII, else drawn.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = RequestRecord(request_id_of(scope["headers"]), scope["method"], scope["path"])
        scope.setdefault("state", {})["record"] = record
        names = [b"x-request-id"]
        if speaks_anthropic(scope["path"]):
            names.append(b"request-id")  # where its clients look
        id_headers = [(name, record.request_id.encode()) for name in names]

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message["headers"], *id_headers]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            record.seconds = time.monotonic() - record.started
            log_access(record)


class BodyLimit:
    """Refuses bodies that are not JSON (415) or longer than `limit` bytes (413).

    total: most bytes that the bodies of all requests in work may have; over it is 429.
    """

    def __init__(self, app: ASGIApp, limit: int, total: int) -> None:
        self.app = app
        self._limit = limit
        self._total = total
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        error = None
        if length.isdigit() and int(length) > self._limit:
            error = self._too_large()
        elif not (_is_json(headers.get(b"content-type", b"")) or _is_inference(scope, headers)):
            error = HTTPException(
                415, "The body must be JSON: send the header `Content-Type: application/json`"
            )
        if error is not None:
            await problem_of(error).response(scope["path"])(scope, receive, send)
            return
        counted = _Counted(receive)
        try:
            await self.app(scope, lambda: self._receive(counted), send)
        finally:
            self._held -= counted.size

    async def _receive(self, counted: "_Counted") -> Message:
        message = await counted.receive()
        size = len(message.get("body", b""))
        counted.size += size
        self._held += size
        if counted.size > self._limit:
            raise self._too_large()
        if self._held > self._total:
            raise Overloaded(
                f"The requests in work hold over {self._total} bytes. Try again in "
                f"{_RETRY_SECONDS:.0f} s.",
                _RETRY_SECONDS,
            )
        return message

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"The body is longer than {self._limit} bytes")


@dataclass(slots=True)
class _Counted:
    """Where a request's body comes from, and how much of it came."""

    receive: Receive
    size: int = 0


def _is_json(content_type: bytes) -> bool:
    kind = content_type.partition(b";")[0].strip().lower()
    return kind == b"application/json" or kind.endswith(b"+json")


def _is_inference(scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
    """Whether a body is one of KServe's: its clients name no type, or binary data follow JSON."""
    untyped = b"content-type" not in headers or b"inference-header-content-length" in headers
    return untyped and scope["path"].startswith("/v2/models/") and scope["path"].endswith("/infer")


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The id that a request brings, or a new one."""
    values = dict(headers)
    for name in (b"x-request-id", b"x-amzn-trace-id"):
        given: str = values.get(name, b"").decode("latin-1")
        if _PLAIN_ID.fullmatch(given):
            return given
    return uuid.uuid4().hex
