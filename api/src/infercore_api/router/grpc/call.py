"""Call: one RPC, from its metadata to its status and its line in the access log."""

import logging
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self, TypeAlias

import grpc
import grpc.aio

from infercore_api.observability.logs import RequestRecord, log_access
from infercore_api.router.middleware import request_id_of
from infercore_api.router.problems import Problem, problem_of
from infercore_api.router.streaming import ClientLeft

log = logging.getLogger(__name__)

Context: TypeAlias = grpc.aio.ServicerContext

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    424: grpc.StatusCode.INTERNAL,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}
"""{status that TGI's paths would have: gRPC's}; others are INTERNAL."""

CLIENT_CLOSED_REQUEST = 499
_MAX_DETAILS = 2000  # characters: a status travels in headers, and clients bound those


class Call:
    """A context manager around the work of one RPC.

    An error raised in it becomes the status: its code, TGI's sentence, and as trailing metadata
    `x-request-id`, `error-type` and, where it helps, `retry-after` in seconds and gRPC's own
    `grpc-retry-pushback-ms`. The record has the HTTP status of the same outcome.
    """

    def __init__(self, context: Context, method: str) -> None:
        self.context = context
        headers = headers_of(context.invocation_metadata() or ())
        self.record = RequestRecord(request_id_of(headers), "GRPC", method)

    async def __aenter__(self) -> Self:
        self.context.set_trailing_metadata((("x-request-id", self.record.request_id),))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        problem = problem_of(error) if isinstance(error, Exception) else None
        self.record.status = _status(error, problem)
        self.record.seconds = time.monotonic() - self.record.started
        log_access(self.record)
        if problem is not None and not isinstance(error, ClientLeft):
            await self._abort(problem, error)

    async def _abort(self, problem: Problem, error: BaseException | None) -> None:
        status = problem.status("")
        if status == 500:
            log.error("%s failed", self.record.path, exc_info=error)
        metadata = (
            ("x-request-id", self.record.request_id),
            ("error-type", problem.name),
            *_retry_metadata(problem),
        )
        code = CODES.get(status, grpc.StatusCode.INTERNAL)
        await self.context.abort(code, shortened(problem.text), metadata)


def headers_of(metadata: Any) -> Iterator[tuple[bytes, bytes]]:
    """Metadata as the headers that it is."""
    for name, value in metadata:
        yield name.encode(), value.encode() if isinstance(value, str) else value


def shortened(text: str) -> str:
    """A message that fits into a status, whatever of the request it quotes."""
    return text if len(text) <= _MAX_DETAILS else text[: _MAX_DETAILS - 1] + "…"


def _status(error: BaseException | None, problem: Problem | None) -> int:
    if error is None:
        return 200
    if problem is None or isinstance(error, ClientLeft):
        return CLIENT_CLOSED_REQUEST
    return problem.status("")


def _retry_metadata(problem: Problem) -> Iterator[tuple[str, str]]:
    """When to try again, and in the words of gRPC's retry policy, which knows "never" too."""
    seconds = problem.headers.get("retry-after")
    if seconds is not None:
        yield "retry-after", seconds
        yield "grpc-retry-pushback-ms", str(1000 * int(seconds))
    elif problem.headers.get("x-should-retry") == "false":
        yield "grpc-retry-pushback-ms", "-1"
