"""Access: which routes need a key, whether a request brings one, and whom it was sent to."""

import re
from collections.abc import Iterable, Sequence

from fastapi import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from infercore_api.router.api_keys import ApiKeys
from infercore_api.router.problems import problem_of

_POLICY_VIOLATION = 1008  # RFC 6455, section 7.4.1
_PORT = re.compile(r":\d+$")


def open_routes(*more: str | None) -> frozenset[tuple[str, str]]:
    """(method, path) of what needs no key: health, also under the paths `more`.

    Whatever is not named needs one, routes of plugins too.
    """
    health = ("/", "/health", "/health/live", "/health/ready", "/ping")
    kserve = ("/v2/health/live", "/v2/health/ready")
    return frozenset(("GET", path) for path in (*health, *kserve, *more) if path)


def is_open(scope: Scope, open_routes: frozenset[tuple[str, str]]) -> bool:
    """Whether a request is for one of these, by the path that was sent."""
    return scope["type"] == "http" and (scope["method"], scope["path"]) in open_routes


class Authorization:
    """Refuses requests without a key, as `Authorization: Bearer KEY` or `x-api-key: KEY`.

    A request that carries several must carry the same, so that no proxy and server differ. The
    path that counts is the one that was sent, not one rebuilt from headers.
    """

    def __init__(
        self, app: ASGIApp, keys: ApiKeys, open_routes: frozenset[tuple[str, str]]
    ) -> None:
        self.app = app
        self._keys = keys
        self._open = open_routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or is_open(scope, self._open) or self._allows(scope):
            await self.app(scope, receive, send)
        else:
            await _refuse(no_key(), scope, receive, send)

    def _allows(self, scope: Scope) -> bool:
        return bring_key(scope["headers"], self._keys)


def bring_key(headers: Iterable[tuple[bytes, bytes]], keys: ApiKeys) -> bool:
    """Whether headers, their names in lower case, bring one of `keys`, and nothing against it."""
    given = set()
    for name, value in headers:
        if name == b"x-api-key":
            given.add(value.strip())
        elif name == b"authorization":
            scheme, _, token = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                given.add(token.strip())
    return len(given) == 1 and keys.allows(given.pop())


def no_key() -> HTTPException:
    """What a request without a key is told."""
    return HTTPException(
        401,
        "The API key is missing or wrong; send it as `Authorization: Bearer KEY`",
        {"www-authenticate": "Bearer"},
    )


class HostCheck:
    """Refuses requests that were sent to another name than those of `hosts`, except for health.

    A page can have its own name resolve to this machine (DNS rebinding), and then call the server
    from the browser of somebody who reaches it; the Host header still has the page's name.
    """

    def __init__(
        self, app: ASGIApp, hosts: Sequence[str], open_routes: frozenset[tuple[str, str]]
    ) -> None:
        self.app = app
        self._hosts = frozenset(host.lower() for host in hosts)
        self._open = open_routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or is_open(scope, self._open) or self._expects(scope):
            await self.app(scope, receive, send)
        else:
            error = HTTPException(403, "The server is not called by this Host; see --allowed-host")
            await _refuse(error, scope, receive, send)

    def _expects(self, scope: Scope) -> bool:
        given = {value for name, value in scope["headers"] if name == b"host"}
        name = given.pop().decode("latin-1").lower() if len(given) == 1 else ""
        return name in self._hosts or _PORT.sub("", name) in self._hosts


async def _refuse(error: HTTPException, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await problem_of(error).response(scope["path"])(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
