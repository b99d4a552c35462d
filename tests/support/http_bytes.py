"""HTTP by the bytes: what is sent need not be a request, and what is answered is kept whole."""

import asyncio
import io
import json
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any


async def answer_to(port: int, data: bytes, patience: float) -> bytes:
    """All that the server answers to `data` until it closes, or is silent for `patience` seconds.

    A server may close while it is still being sent to.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        writer.write(data)
        while part := await asyncio.wait_for(reader.read(65536), patience):
            answer += part
    except (TimeoutError, ConnectionError):
        return answer
    finally:
        writer.transport.abort()
    return answer


def answers_to(port: int, requests: list[bytes], patience: float) -> list[bytes]:
    """The answers to requests that are sent at the same time, each on a connection of its own."""

    async def all_of_them() -> list[bytes]:
        return await asyncio.gather(*(answer_to(port, each, patience) for each in requests))

    return asyncio.run(all_of_them())


@dataclass(frozen=True)
class Answer:
    """The first response among bytes."""

    status: int
    headers: dict[str, str]
    content: bytes

    @classmethod
    def parse(cls, data: bytes, method: str = "GET") -> "Answer":
        """Raises HTTPException for what is no response, or one that was cut short."""
        response = HTTPResponse(_Received(data), method=method)  # type: ignore[arg-type]
        response.begin()
        content = response.read()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return cls(response.status, headers, content)

    @property
    def kind(self) -> str:
        """Its content type, without parameters."""
        return self.headers.get("content-type", "").partition(";")[0]

    def json(self) -> Any:
        return json.loads(self.content)

    def events(self) -> list[str]:
        """The data of each event; asserts that an event is at most a name and a line of data."""
        found = []
        for event in self.content.decode().split("\n\n")[:-1]:
            lines = [line for line in event.split("\n") if not line.startswith(":")]
            if not lines:
                continue
            *names, data = lines
            assert len(names) < 2, event
            assert all(name.startswith("event: ") for name in names), event
            assert data.startswith("data: "), event
            found.append(data.removeprefix("data: "))
        assert self.content.endswith(b"\n\n")
        return found


class _Received:
    """As much of a socket as HTTPResponse reads from."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)
