"""Streams and those who read them: who leaves, who reads slowly, and many at once."""

import asyncio
import json
import re
import socket
import struct
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from processes import Server, eventually

STORY = "Once upon a time"


def idle(server: Server) -> bool:
    """Nothing runs, waits or holds a KV block."""
    gauges = ("running_sequences", "waiting_sequences", "kv_usage_ratio", "requests_in_flight")
    return all(server.metric(f"infercore_{gauge}") == 0 for gauge in gauges)


def raw_stream(server: Server, path: str, body: dict[str, Any]) -> socket.socket:
    """A connection on which a request was sent and nothing read."""
    content = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    connection.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
    return connection


def sampled(tokens: int, **parameters: Any) -> dict[str, Any]:
    return {
        "inputs": STORY,
        "parameters": {"max_new_tokens": tokens, "do_sample": True, **parameters},
    }


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize(
    ("path", "body", "read"),
    [
        ("/generate_stream", sampled(500), 3),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}] * 3,
                                  "ignore_eos": True, "stream": True}, 3),
        ("/generate", sampled(500), 0),
    ],
    ids=["stream", "chat", "whole"],
)  # fmt: skip
def test_a_client_that_leaves_frees_what_it_held(
    server: Server, path: str, body: dict[str, Any], read: int, reset: bool
) -> None:
    cancelled = server.metric('infercore_requests_total{outcome="cancelled"}')
    connection = raw_stream(server, path, body)
    with connection, connection.makefile("rb") as response:
        for _ in range(read):
            while not response.readline().startswith(b"data:"):
                pass
        if not read:
            eventually(lambda: not idle(server), 30, "it runs")
        if reset:
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    eventually(lambda: idle(server), 30, "all is free again")
    assert server.metric('infercore_requests_total{outcome="cancelled"}') == cancelled + 1


def test_many_streams_a_third_of_them_cancelled(server: Server) -> None:
    """Every stream ends exactly once; those that stay get the whole of it, and nobody else's."""
    outcomes = asyncio.run(_many(server.url, 64))
    assert outcomes.count("cancelled") == 22
    assert outcomes.count("whole") == 42
    eventually(lambda: idle(server), 30, "all is free again")
    with httpx2.Client(base_url=server.url) as client:
        families = text_string_to_metric_families(client.get("/metrics").text)
    values = {
        (sample.name, sample.labels.get("outcome", "")): sample.value
        for family in families
        for sample in family.samples
    }
    ended = sum(
        values["infercore_requests_total", outcome]
        for outcome in ("success", "failure", "cancelled")
    )
    assert values["infercore_requests_started_total", ""] == ended


async def _many(url: str, count: int) -> list[str]:
    async with httpx2.AsyncClient(base_url=url, timeout=120) as client:
        return list(await asyncio.gather(*(_one(client, index) for index in range(count))))


async def _one(client: httpx2.AsyncClient, index: int) -> str:
    tokens, length = 4 + index % 24, 1 + 3 * index
    body = sampled(tokens, seed=index, truncate=length, details=True)
    body["inputs"] = "word " * length
    events = []
    async with client.stream("POST", "/generate_stream", json=body) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if not line:
                continue
            assert line.startswith("data: "), "one event is one line"
            events.append(json.loads(line[6:]))
            if index % 3 == 0:
                return "cancelled"
    assert [event["index"] for event in events] == list(range(1, len(events) + 1))
    last = events[-1]
    assert sum(event["generated_text"] is not None for event in events) == 1
    assert last["details"]["generated_tokens"] == len(events)
    assert last["details"]["seed"] == index
    ended_early = last["details"]["finish_reason"] == "eos_token"
    assert ended_early or len(events) == tokens
    shown = "".join(e["token"]["text"] for e in events if not e["token"]["special"])
    assert last["generated_text"] == shown
    return "whole"


def test_streams_end_as_their_dialect_does(
    http: httpx2.Client,
) -> None:
    native = http.post("/generate_stream", json=sampled(3)).text
    assert "[DONE]" not in native
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "stream": True}
    text = http.post("/v1/chat/completions", json=chat).text
    assert text.endswith("data: [DONE]\n\n")
    for stream in (native, text):
        assert re.fullmatch(r"(data: [^\n]+\n\n)+", stream)


def test_a_request_that_fails_before_its_first_event_has_its_own_status(
    http: httpx2.Client,
) -> None:
    """TGI says 200 and hides the error in the stream; clients that check the status miss it."""
    response = http.post("/generate_stream", json=sampled(5, temperature=-1.0))
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/json"
