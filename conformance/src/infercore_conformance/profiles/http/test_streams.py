"""Streams: the same as whole replies, each ends once, and those who leave hold nothing."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from itertools import islice
from typing import Any

import pytest

from infercore_conformance import Level, check, thorough
from infercore_conformance.http_bodies import (
    GREEDY,
    SEEDED,
    TEXTS,
    Choice,
    chat,
    completion,
    native,
    text_of_chat,
    text_of_completion,
)
from infercore_conformance.http_client import event_texts
from infercore_conformance.http_server import ROWS, SERVER, ServerProcess

CHOICES = pytest.mark.parametrize(
    "choice",
    [pytest.param(GREEDY, id="greedy"), pytest.param(SEEDED, id="seeded", marks=thorough)],
)
STREAMED: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")
GAUGES = ("running_sequences", "waiting_sequences", "kv_usage_ratio", "requests_in_flight")
CANCELLED = 'infercore_requests_total{outcome="cancelled"}'
PATIENCE = 30.0  # seconds until something must have happened
CROWD = 2 * ROWS  # clients that leave together with the first
LONG = 40  # tokens of an answer that somebody leaves
STREAMS = 6  # at once: more than a step holds


@check(
    "http.streams.native",
    "/generate_stream gives the tokens, the text and the details of /generate.",
    level=Level.EXTENDED,
    needs=SERVER,
)
@CHOICES
def test_native(server: ServerProcess, choice: Choice) -> None:
    """An event per token, numbered from 1; only the last one has the text."""
    for text in TEXTS:
        whole = server.sound("/generate", native(text, choice))
        events = server.events("/generate_stream", native(text, choice))
        _require_native(whole, events)


def _require_native(whole: Any, events: list[dict[str, Any]]) -> None:
    ids = [event["token"]["id"] for event in events]
    expected = [token["id"] for token in whole["details"]["tokens"]]
    assert ids == expected, f"streamed tokens {ids}, not {expected}"
    numbers = [event["index"] for event in events]
    assert numbers == list(range(1, len(events) + 1)), f"events are numbered {numbers}"
    texts = [event["generated_text"] for event in events]
    assert texts == [None] * (len(texts) - 1) + [whole["generated_text"]], f"texts are {texts}"
    for name in ("finish_reason", "generated_tokens", "seed"):
        streamed, at_once = events[-1]["details"][name], whole["details"][name]
        assert streamed == at_once, f"{name} is {streamed} in a stream, and else {at_once}"


@check(
    "http.streams.openai",
    "Streams of OpenAI's routes join to the text, reason and usage of the whole reply.",
    level=Level.EXTENDED,
    needs=SERVER,
)
@CHOICES
def test_openai(server: ServerProcess, choice: Choice) -> None:
    """Of completions and of chats; the last event before [DONE] has the usage that was asked."""
    path = "/v1/completions"
    reply = server.sound(path, completion(TEXTS[0], choice))
    *events, last = server.events(path, completion(TEXTS[0], choice, **STREAMED))
    joined = "".join(event["choices"][0]["text"] for event in events)
    assert joined == text_of_completion(reply), f"{path}: {joined!r} in a stream, not in {reply}"
    _require_end(path, reply, events, last)

    path = "/v1/chat/completions"
    reply = server.sound(path, chat(choice))
    *events, last = server.events(path, chat(choice, **STREAMED))
    joined = "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
    assert joined == text_of_chat(reply), f"{path}: {joined!r} in a stream, not in {reply}"
    _require_end(path, reply, events, last)


def _require_end(path: str, reply: Any, events: list[dict[str, Any]], last: Any) -> None:
    """One reason, in the last event with a choice, and then the usage, as of the whole reply."""
    reasons = [event["choices"][0]["finish_reason"] for event in events]
    expected = [None] * (len(reasons) - 1) + [reply["choices"][0]["finish_reason"]]
    assert reasons == expected, f"{path}: reasons {reasons}, not {expected}"
    streamed, at_once = ([each["usage"][name] for name in COUNTS] for each in (last, reply))
    assert streamed == at_once, f"{path}: {COUNTS} are {streamed} in a stream, not {at_once}"


@check(
    "http.streams.together",
    "Streams at once each end once, with the answer that they get alone.",
    level=Level.EXTENDED,
    needs=SERVER,
)
def test_together(server: ServerProcess) -> None:
    """More than a step holds, of many lengths, greedy and seeded in turn.

    In 16 bits another company may round otherwise, so there only the ends are looked at.
    """
    bodies = [_one_of_many(number) for number in range(STREAMS)]
    alone = [server.sound("/generate", body) for body in bodies]
    with ThreadPoolExecutor(STREAMS) as pool:
        streams = list(pool.map(lambda body: server.events("/generate_stream", body), bodies))
    for number, (whole, events) in enumerate(zip(alone, streams, strict=True)):
        ends = sum(event["generated_text"] is not None for event in events)
        assert ends == 1, f"stream {number} ended {ends} times"
        assert events[-1]["details"]["finish_reason"], f"stream {number} does not say why it ended"
        if server.dtype == "float32":
            _require_native(whole, events)


def _one_of_many(number: int) -> dict[str, Any]:
    if number % 2:
        return native(TEXTS[1], SEEDED, 3 + 2 * number, seed=number)
    return native(TEXTS[0], GREEDY, 3 + 2 * number)


@check(
    "http.streams.cancel",
    "Clients that leave within their answers free all that they held.",
    level=Level.EXTENDED,
    needs=SERVER,
)
@pytest.mark.parametrize("path", ["/generate_stream", "/v1/completions", "/v1/chat/completions"])
def test_cancel(server: ServerProcess, path: str) -> None:
    """Those that decode, and those that wait. The gauges of sequences and of KV return to zero.

    They are more than a step holds, and leave at the first one's third token, so that no device is
    fast enough to be done with all.
    """
    bodies = {
        "/generate_stream": native(TEXTS[0], SEEDED, LONG),
        "/v1/completions": completion(TEXTS[0], tokens=LONG, ignore_eos=True, stream=True),
        "/v1/chat/completions": chat(tokens=LONG, ignore_eos=True, stream=True),
    }
    _wait(lambda: _idle(server), "requests of earlier checks are gone")
    before = server.metrics()[CANCELLED]
    with server.opened(path, bodies[path], beside=CROWD) as response:
        read = list(islice(event_texts(response), 3))
        assert len(read) == 3, f"{path} ended by itself behind {read}"
    _wait(lambda: _idle(server), "what clients that left held is free")
    _wait(lambda: server.metrics()[CANCELLED] > before, "clients left, and count as cancelled")
    server.sound("/generate", native(TEXTS[0]))


def _idle(server: ServerProcess) -> bool:
    values = server.metrics()
    return all(values[f"infercore_{gauge}"] == 0 for gauge in GAUGES)


def _wait(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"not so within {PATIENCE:g} s: {what}"
        time.sleep(0.05)


@check(
    "http.streams.drain",
    "After SIGTERM the streams that run end as they would have, and the server ends with 0.",
    level=Level.EXTENDED,
    needs=SERVER,
)
def test_drain(server: ServerProcess) -> None:
    """New requests are turned away meanwhile. A backend that does not shut down holds it up."""
    body = native(TEXTS[0], tokens=LONG)
    whole = server.sound("/generate", body)
    with server.opened("/generate_stream", body) as response:
        texts = event_texts(response)
        first = next(texts)
        server.terminate()
        events = [json.loads(text) for text in (first, *texts)]
    _require_native(whole, events)
    status = server.wait_ended()
    assert status == 0, f"it ended with {status}"
    with pytest.raises((OSError, HTTPException)):
        server.get("/health")
