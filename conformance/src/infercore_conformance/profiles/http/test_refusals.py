"""Requests that are wrong: each is refused in its dialect, and harms nobody."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from infercore_conformance import Level, check
from infercore_conformance.http_bodies import TEXTS, completion, ids_of, native
from infercore_conformance.http_client import Reply
from infercore_conformance.http_server import LENGTH, SERVER, ServerProcess

LONG = "word " * (2 * LENGTH)
BESIDE = 12  # tokens of what is right, beside what is wrong
CHAT = "/v1/chat/completions"
WRONG: dict[str, tuple[str, Any]] = {
    "no_json": ("/generate", b"{"),
    "no_inputs": ("/generate", {"parameters": {}}),
    "temperature": ("/generate", native(TEXTS[0], temperature=-1.0)),
    "too_long": ("/generate", native(LONG)),
    "too_many": ("/generate", native(TEXTS[0], tokens=2 * LENGTH)),
    "openai_no_json": ("/v1/completions", b"[1, "),
    "openai_temperature": ("/v1/completions", completion(TEXTS[0], temperature=-1)),
    "openai_token": ("/v1/completions", completion([10**8])),
    "openai_negative": ("/v1/completions", completion([-1])),
    "openai_model": ("/v1/completions", {**completion(TEXTS[0]), "model": "another"}),
    "openai_unknown": ("/v1/completions", completion(TEXTS[0], no_such_field=1)),
    "openai_too_long": ("/v1/completions", completion(LONG)),
    "chat_empty": (CHAT, {"messages": []}),
    "chat_no_messages": (CHAT, {"max_tokens": 3}),
}


@check(
    "http.refusals.dialect",
    "What is wrong is refused with a status of 400 or more, in the words of its dialect.",
    level=Level.EXTENDED,
    needs=SERVER,
)
@pytest.mark.parametrize("case", WRONG)
def test_dialect(server: ServerProcess, case: str) -> None:
    """Clients read `error` and `error_type`, or an `error` with `message` and `type`."""
    path, body = WRONG[case]
    _require_refusal(path, server.post(path, body))


def _require_refusal(path: str, reply: Reply) -> None:
    assert 400 <= reply.status < 500, f"{path} answered {reply.status}: {reply.body}"
    error = reply.body["error"] if isinstance(reply.body, dict) else None
    if path.startswith("/v1/"):
        told = isinstance(error, dict) and {"message", "type"} <= error.keys()
    else:
        told = isinstance(error, str) and isinstance(reply.body.get("error_type"), str)
    assert told, f"{path}: no client of its dialect reads {reply.body}"


@check(
    "http.refusals.harmless",
    "Wrong requests change nothing for right ones, before, beside and after them.",
    level=Level.EXTENDED,
    needs=SERVER,
)
def test_harmless(server: ServerProcess) -> None:
    """All of them at once, while others are served; then nothing is held."""
    expected = [ids_of(server.sound("/generate", native(text, tokens=BESIDE))) for text in TEXTS]
    with ThreadPoolExecutor(8) as pool:
        good = [
            pool.submit(server.sound, "/generate", native(text, tokens=BESIDE)) for text in TEXTS
        ]
        bad = [pool.submit(server.post, path, body) for path, body in WRONG.values()]
        statuses = [each.result().status for each in bad]
        beside = [ids_of(each.result()) for each in good]
    assert all(400 <= status < 500 for status in statuses), f"{list(WRONG)} are answered {statuses}"
    assert beside == expected, "a right request beside wrong ones got another answer"
    after = ids_of(server.sound("/generate", native(TEXTS[0], tokens=BESIDE)))
    assert after == expected[0], "a right request after wrong ones got another answer"
