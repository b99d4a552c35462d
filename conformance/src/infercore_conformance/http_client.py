"""A client of the server: plain HTTP, with nothing but the standard library."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from typing import Any

ANSWER = 60.0  # seconds for any reply


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply. body: parsed where it is JSON, else the text."""

    status: int
    headers: Mapping[str, str]
    body: Any


@dataclass
class Client:
    """Asks whoever listens on a port of this machine."""

    port: int

    def get(self, path: str) -> Reply:
        return self._ask("GET", path)

    def post(self, path: str, body: Any) -> Reply:
        """body: made JSON, unless it is bytes already."""
        return self._ask("POST", path, body)

    def sound(self, path: str, body: Any) -> Any:
        """The body of a reply that has to be a success."""
        reply = self.post(path, body)
        assert reply.status == 200, f"{path} answered {reply.status}: {reply.body}"
        return reply.body

    def events(self, path: str, body: Any) -> list[dict[str, Any]]:
        """All events of a stream; OpenAI's ends with [DONE], which is looked for and left out."""
        with self.opened(path, body) as response:
            texts = list(event_texts(response))
        if path.startswith("/v1/"):
            assert texts[-1:] == ["[DONE]"], f"{path}: the stream does not end with [DONE]"
            texts.pop()
        assert "[DONE]" not in texts, f"{path}: [DONE] stands within the stream"
        return [json.loads(text) for text in texts]

    @contextmanager
    def opened(self, path: str, body: Any, beside: int = 0) -> Iterator[HTTPResponse]:
        """A response whose body is still to be read; leaving closes the connection.

        beside: how many more connections ask the same, and are closed unread.
        """
        with ExitStack() as stack:
            first, *others = [self._connection() for _ in range(1 + beside)]
            for connection in (first, *others):
                stack.callback(connection.close)
                _send(connection, "POST", path, body)
            response = first.getresponse()
            assert response.status == 200, f"{path}: {response.status}, {response.read()[:300]!r}"
            yield response

    def metrics(self) -> dict[str, float]:
        """{series as it is written, labels too: value}."""
        return parsed_metrics(str(self.get("/metrics").body))

    def _ask(self, method: str, path: str, body: Any = None) -> Reply:
        with closing(self._connection()) as connection:
            _send(connection, method, path, body)
            response = connection.getresponse()
            content = response.read().decode()
            headers = {name.lower(): value for name, value in response.getheaders()}
        is_json = headers.get("content-type", "").startswith("application/json")
        return Reply(response.status, headers, json.loads(content) if is_json else content)

    def _connection(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=ANSWER)


def event_texts(response: HTTPResponse) -> Iterator[str]:
    """What is behind `data: ` of each event; comments are skipped."""
    for line in response:
        text = line.decode().rstrip("\r\n")
        assert not text or text.startswith(("data: ", ":")), f"no line of an event: {text!r}"
        if text.startswith("data: "):
            yield text.removeprefix("data: ")


def parsed_metrics(text: str) -> dict[str, float]:
    """Raises AssertionError for a line that is not Prometheus' text format, or a series twice."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        series, _, value = line.rpartition(" ")
        assert series, f"a line of /metrics that is no series: {line!r}"
        assert series not in found, f"/metrics has {series} twice"
        try:
            found[series] = float(value)
        except ValueError:
            raise AssertionError(f"/metrics has {value!r} as a value of {series}") from None
    return found


def _send(connection: HTTPConnection, method: str, path: str, body: Any) -> None:
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    headers = {} if content is None else {"content-type": "application/json"}
    connection.request(method, path, content, headers)
