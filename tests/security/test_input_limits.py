"""Input: bytes, JSON, numbers, counts. Just under a limit passes, just over is refused."""

import json
from typing import Any

import pytest

from infercore_api.router.anthropic_schema import MessagesBody
from infercore_api.router.connection import MAX_HEAD, MAX_HEADERS
from infercore_api.router.openai_schema import ChatBody, CompletionBody
from infercore_api.router.options import RouterOptions
from infercore_api.router.responses_schema import ResponsesBody
from infercore_api.router.tgi_schema import Parameters
from infercore_api.router.validation import (
    MAX_DEPTH,
    MAX_LOGIT_BIAS,
    MAX_MESSAGES,
    MAX_STOP_LENGTH,
    MAX_STOP_TOKEN_IDS,
    Body,
)
from memory_engine import INFO
from memory_router import MODELS, Router
from raw_http import exchange, post, serving_http, statuses

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES = "/v1/messages"
JSON = {"content-type": "application/json"}
HELLO = {"role": "user", "content": "Hi"}
STARTS: dict[str, dict[str, Any]] = {
    "/generate": {"inputs": "Hi"},
    CHAT: {"messages": [HELLO]},
    COMPLETIONS: {"prompt": "Hi"},
    RESPONSES: {"input": "Hi"},
    MESSAGES: {"model": "tgi", "max_tokens": 2, "messages": [HELLO]},
}


async def status_with(router: Router, path: str, **changes: Any) -> int:
    response = await router.http.post(path, json={**STARTS[path], **changes})
    return response.status_code


# --- bytes ----------------------------------------------------------------------------------------


async def test_bytes_of_a_body(router: Router) -> None:
    """S08: to the byte, told ahead or not."""
    most = router.state.options.payload_limit
    for size, status in ((most, 200), (most + 1, 413)):
        body = b'{"inputs": "Hi"}'.ljust(size)
        async with serving_http(router) as port:
            told = await exchange(port, post("/generate", body))
            head = post("/generate", b"", "transfer-encoding: chunked")
            head = head.replace(b"content-length: 0\r\n", b"")
            chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)
            untold = await exchange(port, head, chunks)
        for answer in (told, untold):  # it may close while much is on its way
            assert statuses(answer) in ([status], [] if status == 413 else [status])


@pytest.mark.parametrize(
    ("count", "value", "status"),
    [
        (MAX_HEADERS - 4, "a", 200),
        (MAX_HEADERS - 3, "a", 431),
        (1, "a" * (MAX_HEAD - 200), 200),
        (1, "a" * MAX_HEAD, 431),
        (8, "a" * (MAX_HEAD // 8), 431),
        (60_000, "", 431),
    ],
)
async def test_headers(router: Router, count: int, value: str, status: int) -> None:
    """S08: their number, and their bytes."""
    more = [f"x-{number}: {value}" for number in range(count)]
    async with serving_http(router) as port:
        answer = await exchange(port, post("/generate", b'{"inputs": "Hi"}', *more))
        assert statuses(answer) == [status]
        assert statuses(await exchange(port, post("/generate", b'{"inputs": "Hi"}'))) == [200]


async def test_a_head_that_never_ends_is_not_kept(router: Router) -> None:
    """S08: one header of megabytes, and a target of megabytes, are refused on the way."""
    for start in (b"GET /info HTTP/1.1\r\nx: ", b"GET /info?"):
        async with serving_http(router) as port:
            answer = await exchange(port, start, *[b"a" * 65_536] * 64)
        assert statuses(answer) in ([431], [])


# --- JSON -----------------------------------------------------------------------------------------


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("field", "status"),
    [
        (f'"logprob": {nested(MAX_DEPTH - 1)}', 200),  # not a field, and so of no effect
        (f'"grammar": {nested(MAX_DEPTH + 1)}', 422),
        (f'"grammar": {nested(100_000)}', 400),
        (f'"seed": {"9" * 4300}', 422),
        (f'"seed": {"9" * 100_000}', 400),
        (f'"temperature": 0.{"1" * 100_000}', 200),
        (f'"temperature": 1e{"9" * 1000}', 422),
        ('"seed": 1, "seed": 2', 200),
        ('"seed": -0', 200),
        ('"seed": 01', 400),
        ('"seed": +1', 400),
        ('"seed": 0x1', 400),
        ('"stop": ["\\ud800"]', 422),
        ('"stop": ["\\ud83d\\ude00"]', 200),
        ('"stop": ["\\u0000"]', 200),
        ('"stop": ["\x00"]', 400),
        ('"stop": ["\x1b"]', 400),
        ('"stop": ["a"],', 400),
        ('"stop": ["a"] // no', 400),
        ('"\\udc00": 1', 422),
    ],
)
async def test_odd_json(router: Router, field: str, status: int) -> None:
    """S08: depth, length of numbers, surrogates, NUL, control characters."""
    content = f'{{"inputs": "Hi", "parameters": {{"do_sample": true, {field}}}}}'
    answer = await router.http.post("/generate", content=content.encode(), headers=JSON)
    assert answer.status_code == status, answer.text
    assert len(answer.content) < 10_000


async def test_of_two_equal_keys_the_last_counts(router: Router) -> None:
    """S08: on every level, as in the JSON parsers of most languages."""
    content = b'{"inputs": "a", "inputs": "Hi", "parameters": {"seed": 1, "seed": 2}}'
    assert (await router.http.post("/generate", content=content, headers=JSON)).is_success
    (request,) = router.engine.requests.values()
    assert request.sampling.seed == 2
    assert request.prompt_ids == router.state.tokenizer.encode("Hi")


@pytest.mark.parametrize(
    "content",
    [b'{"inputs": "\xff"}', b'{"inputs": "\xc3"}', b'{"inputs": "\xed\xa0\x80"}',
     b'{"inputs": "\xc0\x80"}', b'\xef\xbb\xbf{"inputs": 1e999}', b"\x00", b"NaN", b"\x80"],
)  # fmt: skip
async def test_bytes_that_are_no_utf_8(router: Router, content: bytes) -> None:
    """S08: cut, overlong, or half a surrogate pair in UTF-8's clothes."""
    for path in STARTS:
        answer = await router.http.post(path, content=content, headers=JSON)
        assert 400 <= answer.status_code < 500, path
    assert not router.engine.requests


# --- counts ---------------------------------------------------------------------------------------

OPTIONS = RouterOptions(MODELS)
STOPS = OPTIONS.max_stop_sequences
COUNTS: tuple[tuple[str, str, Any, Any], ...] = (  # path, field, what passes, what does not
    (CHAT, "n", OPTIONS.max_client_batch_size, OPTIONS.max_client_batch_size + 1),
    (COMPLETIONS, "n", OPTIONS.max_client_batch_size, OPTIONS.max_client_batch_size + 1),
    (COMPLETIONS, "best_of", OPTIONS.max_best_of, OPTIONS.max_best_of + 1),
    (COMPLETIONS, "prompt", ["a"] * OPTIONS.max_client_batch_size, ["a"] * 5),
    (COMPLETIONS, "prompt", [[1]] * OPTIONS.max_client_batch_size, [[1]] * 50_000),
    (COMPLETIONS, "prompt", [1] * 300, [1] * INFO.max_model_len),
    (COMPLETIONS, "prompt", [1] * 300, [1] * 500_000),
    (COMPLETIONS, "logprobs", OPTIONS.max_top_n_tokens, OPTIONS.max_top_n_tokens + 1),
    (CHAT, "messages", [HELLO] * 20, [HELLO] * (MAX_MESSAGES + 1)),
    (CHAT, "messages", [HELLO] * 20, [HELLO] * 50_000),
    (MESSAGES, "messages", [HELLO] * 20, [HELLO] * (MAX_MESSAGES + 1)),
    (RESPONSES, "input", [HELLO] * 20, [HELLO] * (MAX_MESSAGES + 1)),
    *((path, "stop", ["a"] * STOPS, ["a"] * (STOPS + 1)) for path in (CHAT, COMPLETIONS)),
    *((path, "stop", "a" * MAX_STOP_LENGTH, "a" * (MAX_STOP_LENGTH + 1))
      for path in (CHAT, COMPLETIONS)),
    (MESSAGES, "stop_sequences", ["a"] * STOPS, ["a"] * 200_000),
    (MESSAGES, "stop_sequences", ["a" * MAX_STOP_LENGTH], ["a" * (MAX_STOP_LENGTH + 1)]),
    *((path, "logit_bias", {str(i): 1 for i in range(MAX_LOGIT_BIAS)},
       {str(i): 1 for i in range(MAX_LOGIT_BIAS + 1)}) for path in (CHAT, COMPLETIONS)),
    *((path, "stop_token_ids", [1] * MAX_STOP_TOKEN_IDS, [1] * (MAX_STOP_TOKEN_IDS + 1))
      for path in (CHAT, COMPLETIONS)),
    (CHAT, "max_tokens", 400, INFO.max_model_len),
    (COMPLETIONS, "max_tokens", 400, INFO.max_model_len),
    (CHAT, "tools", [], [{"type": "function", "function": {"name": "f"}}]),
    (MESSAGES, "tools", [], [{"name": "f", "input_schema": {}}]),
    (RESPONSES, "tools", [], [{"type": "function", "name": "f"}]),
)  # fmt: skip


@pytest.mark.parametrize(("path", "field", "under", "over"), COUNTS)
async def test_counts_and_lengths(
    router: Router, path: str, field: str, under: Any, over: Any
) -> None:
    """S09: of whatever multiplies work or memory."""
    assert await status_with(router, path, **{field: under}) == 200
    came = len(router.engine.requests)
    assert await status_with(router, path, **{field: over}) == 400
    assert len(router.engine.requests) == came


async def test_an_adapter_is_refused(router: Router) -> None:
    """S09: none are served, and a name is no path to one."""
    for name in ("a", "../../etc/passwd", "/etc/passwd", "a\0b", "C:\\a"):
        body = {"inputs": "Hi", "parameters": {"adapter_id": name}}
        assert (await router.http.post("/generate", json=body)).status_code == 422


async def test_the_table_is_published(router: Router) -> None:
    """S09: all of it at `/info`, and no field that the table has not."""
    told = (await router.http.get("/info")).json()
    expected = {
        "max_best_of": OPTIONS.max_best_of,
        "max_stop_sequences": STOPS,
        "max_stop_length": MAX_STOP_LENGTH,
        "max_stop_token_ids": MAX_STOP_TOKEN_IDS,
        "max_logit_bias": MAX_LOGIT_BIAS,
        "max_messages": MAX_MESSAGES,
        "max_top_n_tokens": OPTIONS.max_top_n_tokens,
        "max_client_batch_size": OPTIONS.max_client_batch_size,
        "max_input_tokens": INFO.max_input_len,
        "max_total_tokens": INFO.max_model_len,
        "max_concurrent_requests": OPTIONS.max_concurrent_requests,
        "payload_limit": OPTIONS.payload_limit,
    }
    assert expected.items() <= told.items()
    assert {name for name in told if name.startswith("max_")} <= expected.keys() | {
        "max_batch_total_tokens", "max_batch_prefill_tokens", "max_batch_size"
    }  # fmt: skip


# --- numbers --------------------------------------------------------------------------------------


def numbers_of(model: type[Body]) -> list[str]:
    """The fields that hold a number."""
    kinds = (int, float, int | None, float | None)
    return [name for name, field in model.model_fields.items() if field.annotation in kinds]


NUMBERS = [
    *(("/generate", name) for name in numbers_of(Parameters)),
    *((CHAT, name) for name in numbers_of(ChatBody)),
    *((COMPLETIONS, name) for name in numbers_of(CompletionBody)),
    *((RESPONSES, name) for name in numbers_of(ResponsesBody)),
    *((MESSAGES, name) for name in numbers_of(MessagesBody)),
]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "true",
                                   "false", '"1"', "[1]", "{}", "1" + "0" * 400])  # fmt: skip
async def test_what_is_no_number(router: Router, value: str) -> None:
    """S10: in every field that holds one; the fields are the schemas', so none is left out."""
    assert len(NUMBERS) > 40
    for path, name in NUMBERS:
        if (path, name) == (MESSAGES, "max_tokens") and value.isdigit():
            continue  # Anthropic's clients always ask for much: what fits is taken
        start = STARTS[path]
        body = {**start, "parameters": {name: "MARK"}} if path == "/generate" else {
            **start, name: "MARK"}  # fmt: skip
        content = json.dumps(body).replace('"MARK"', value)
        answer = await router.http.post(path, content=content.encode(), headers=JSON)
        assert 400 <= answer.status_code < 500, (path, name, answer.text)
        assert name in answer.text
    assert not router.engine.requests


async def test_numbers_of_any_size_elsewhere(router: Router) -> None:
    """S10: a bias is a number too, and ids are whole ones of the vocabulary."""
    for value in ("NaN", "Infinity", "1e400", "true", '"1"'):
        content = f'{{"prompt": "Hi", "logit_bias": {{"5": {value}}}}}'
        answer = await router.http.post(COMPLETIONS, content=content.encode(), headers=JSON)
        assert answer.status_code == 400, value
    wrong = (-1, INFO.vocab_size, 2**31, 2**63, 2**64, 10**30, 1.5, True, "1")
    for token in wrong:
        assert await status_with(router, COMPLETIONS, prompt=[1, token]) == 400
        assert await status_with(router, COMPLETIONS, stop_token_ids=[token]) == 400
        if token not in (True, "1"):
            assert await status_with(router, COMPLETIONS, logit_bias={str(token): 1}) == 400
        answer = await router.http.post("/detokenize", json={"tokens": [token]})
        assert answer.status_code == 422
    assert not router.engine.requests


async def test_a_negative_zero_is_zero(router: Router) -> None:
    """S10: and no way around a rule about what is positive."""
    assert await status_with(router, COMPLETIONS, temperature=-0.0) == 200
    (request,) = router.engine.requests.values()
    assert request.sampling.greedy
    answer = await router.http.post(
        "/generate", json={"inputs": "Hi", "parameters": {"temperature": -0.0}}
    )
    assert answer.status_code == 422
