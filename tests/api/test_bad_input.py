"""Bad input gets a clear error in the dialect of its path, and nothing else is harmed."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from processes import Server

TGI = ("/generate", "/generate_stream", "/")
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
OPENAI = (CHAT, COMPLETIONS)
HELLO = [{"role": "user", "content": "Hello!"}]
LONG = "word " * 700


def body_for(path: str, **changes: Any) -> dict[str, Any]:
    """A small good body for the route, with `changes` where parameters go."""
    if path in TGI:
        return {"inputs": "Hello", "parameters": {"max_new_tokens": 2, **changes}}
    start = {"messages": HELLO} if path == CHAT else {"prompt": "Hello"}
    return {**start, "max_tokens": 2, **changes}


def check_problem(path: str, response: httpx2.Response, status: int | None = None) -> Any:
    """The error object; its shape follows the path, and it gives nothing of the inside away."""
    assert 400 <= response.status_code < 500, response.text
    assert status is None or response.status_code == status, response.text
    text = response.text
    for word in ("Traceback", "/src/", ".py", "0x7f", "site-packages"):
        assert word not in text
    error = response.json()
    if path.startswith("/v1/"):
        inner = error["error"]
        assert inner.keys() == {"message", "type", "param", "code"}
        assert inner["message"]
        return inner
    assert error.keys() == {"error", "error_type"}
    assert error["error"]
    return error


@pytest.fixture(scope="module", autouse=True)
def bystander(server: Server) -> Iterator[None]:
    """Somebody whose streams run beside all of this gets the same tokens every time."""
    request = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 24}}

    def stream() -> tuple[int, ...]:
        lines = server.open("/generate_stream", request).read().splitlines()
        return tuple(json.loads(line[6:])["token"]["id"] for line in lines if line)

    def listen() -> None:
        while not over.wait(0.4):
            heard.append(stream())

    alone, pids = stream(), (server.engine.pid, server.router.pid)
    heard: list[tuple[int, ...]] = []
    over = threading.Event()
    listener = threading.Thread(target=listen)
    listener.start()
    yield
    over.set()
    listener.join()
    assert set(heard) == {alone}
    assert (server.engine.pid, server.router.pid) == pids


NUMBERS: tuple[tuple[str, str, str], ...] = (  # TGI's name, OpenAI's name, JSON
    ("temperature", "temperature", "NaN"),
    ("temperature", "temperature", "Infinity"),
    ("temperature", "temperature", "1e400"),
    ("temperature", "temperature", "-0.5"),
    ("temperature", "temperature", "true"),
    ("temperature", "temperature", '"hot"'),
    ("temperature", "temperature", "[]"),
    ("top_p", "top_p", "0"),
    ("top_p", "top_p", "1.5"),
    ("top_p", "top_p", "NaN"),
    ("frequency_penalty", "frequency_penalty", "2.5"),
    ("repetition_penalty", "presence_penalty", "-3"),
    ("repetition_penalty", "repetition_penalty", "1e-38"),  # a score divided by it is infinite
    ("max_new_tokens", "max_tokens", "0"),
    ("max_new_tokens", "max_tokens", "-1"),
    ("max_new_tokens", "max_tokens", "1000000000000000000000000"),
    ("max_new_tokens", "max_tokens", "2.5"),
    ("seed", "seed", "36893488147419103232"),
    ("seed", "seed", '"x"'),
    ("top_k", "top_k", "-5"),
    ("top_k", "top_k", "9223372036854775808"),
    ("best_of", "n", "0"),
    ("best_of", "n", "1000000"),
    ("stop", "stop", "[1]"),
    ("stop", "stop", '["a","b","c","d","e"]'),
)


@pytest.mark.parametrize("path", [*TGI, *OPENAI])
@pytest.mark.parametrize(("tgi_name", "openai_name", "value"), NUMBERS)
def test_values_out_of_range_name_their_parameter(
    http: httpx2.Client, path: str, tgi_name: str, openai_name: str, value: str
) -> None:
    name = tgi_name if path in TGI else openai_name
    marked = json.dumps(body_for(path, **{name: "MARK"})).replace('"MARK"', value)
    response = http.post(path, content=marked, headers={"content-type": "application/json"})
    error = check_problem(path, response)
    if path in TGI:
        assert name in error["error"]
        assert error["error_type"] == "validation"
    else:
        assert name in error["param"]


RAW = (
    (b"{", 400),
    (b"", 400),
    (b"[]", 422),
    (b"null", 422),
    (b'"text"', 422),
    (b'{"inputs": "a", "inputs": }', 400),
    (b'\xff\xfe{"inputs": 1}', 400),
    (b"[" * 100_000 + b"]" * 100_000, 400),
    (b'{"inputs": "\\ud800", "prompt": "\\ud800", "messages": "\\ud800"}', 422),
    *((b'{"inputs": %b, "prompt": %b, "messages": %b}' % (deep, deep, deep), 422)
      for deep in (b"[" * 480 + b"]" * 480, b'{"a":' * 480 + b"1" + b"}" * 480)),
    ((b'{"inputs": "a", "messages": [{"role": "user", "content": "a", "k": {"\\ud800": 1}}], '
      b'"parameters": {"grammar": {"value": "\\udfff"}}, "prompt": ["a", "\\udfff"]}'), 422),
    (b'{"inputs": 5, "prompt": 5, "messages": 5}', 422),
    (b'{"inputs": ["a"], "prompt": {}, "messages": {}}', 422),
    (b'{"inputs": "", "prompt": "", "messages": []}', 422),
)  # fmt: skip


@pytest.mark.parametrize("path", [*TGI, *OPENAI])
@pytest.mark.parametrize(("content", "status"), RAW)
def test_bodies_that_are_no_request(
    http: httpx2.Client, path: str, content: bytes, status: int
) -> None:
    response = http.post(path, content=content, headers={"content-type": "application/json"})
    # TGI says 422 for what has the wrong shape, OpenAI 400
    check_problem(path, response, 400 if path in OPENAI else status)


@pytest.mark.parametrize("path", [*TGI, *OPENAI, "/tokenize"])
def test_content_types_lengths_and_methods(http: httpx2.Client, path: str) -> None:
    form = http.post(path, content=b"inputs=a")
    assert "application/json" in str(check_problem(path, form, 415))
    large = http.post(path, json={"inputs": "a" * 2_100_000})
    assert "2000000" in str(check_problem(path, large, 413))

    def chunks() -> Iterator[bytes]:
        for _ in range(25):
            yield b" " * 100_000

    chunked = http.post(path, content=chunks(), headers={"content-type": "application/json"})
    check_problem(path, chunked, 413)
    check_problem(path, http.put(path), 405)
    unknown = f"{path.rstrip('/')}/nowhere"
    check_problem(unknown, http.post(unknown, json={}), 404)


def test_prompts_that_do_not_fit_say_the_arithmetic(http: httpx2.Client) -> None:
    tgi = http.post("/generate", json={"inputs": LONG})
    assert (
        "must have less than 599 tokens. Given: " in check_problem("/generate", tgi, 422)["error"]
    )
    chat = http.post(CHAT, json={"messages": [{"role": "user", "content": LONG}]})
    assert check_problem(CHAT, chat, 400)["param"] == "messages"
    text = http.post(COMPLETIONS, json={"prompt": "Hello", "max_tokens": 600})
    assert "must be <= 600" in check_problem(COMPLETIONS, text, 400)["message"]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"model": "other"}, "model"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"unheard_of": 1}, "unheard_of"),
        ({"logit_bias": {"4096": 1}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 1e38}}, "logit_bias"),  # with a penalty it would be infinite
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"logprobs": True, "top_logprobs": 6}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content.0.type",
        ),
        ({"messages": [{"content": "no role"}]}, "messages"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"stream_options": {"include_everything": True}}, "stream_options"),
    ],
)
def test_chats_that_cannot_be_served(
    http: httpx2.Client, changes: dict[str, Any], param: str
) -> None:
    response = http.post(CHAT, json=body_for(CHAT, **changes))
    error = check_problem(CHAT, response, 404 if param == "model" else 400)
    assert error["param"].startswith(param)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a"] * 5}, "prompt"),
        ({"prompt": [5000]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [[1], [2, "x"]]}, "prompt.1.1"),
        ({"prompt": [[1, 2], []]}, "prompt"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"logprobs": 9}, "logprobs"),
    ],
)
def test_completions_that_cannot_be_served(
    http: httpx2.Client, changes: dict[str, Any], param: str
) -> None:
    response = http.post(COMPLETIONS, json=body_for(COMPLETIONS, **changes))
    assert check_problem(COMPLETIONS, response, 400)["param"].startswith(param)


@pytest.mark.parametrize(
    ("path", "changes", "says"),
    [
        ("/generate_stream", {"best_of": 2, "do_sample": True}, "not supported when streaming"),
        ("/generate", {"best_of": 2}, "you must use sampling"),
        ("/generate", {"best_of": 2, "do_sample": True, "seed": 1}, "`seed` must not be set"),
        ("/generate_stream", {"decoder_input_details": True}, "not supported when streaming"),
        ("/generate", {"truncate": 0}, "`truncate` must be strictly positive"),
        ("/generate", {"top_n_tokens": 6}, "`top_n_tokens` must be >= 0 and <= 5"),
        ("/generate", {"grammar": {"type": "regex", "value": "a"}}, "grammar"),
        ("/generate", {"adapter_id": "x"}, "adapter_id"),
    ],
)
def test_tgi_rules(http: httpx2.Client, path: str, changes: dict[str, Any], says: str) -> None:
    error = check_problem(path, http.post(path, json=body_for(path, **changes)), 422)
    assert says in error["error"]
    assert error["error"].startswith("Input validation error: ")


def test_null_is_the_same_as_absent(http: httpx2.Client) -> None:
    nulls = {
        "temperature": None, "top_p": None, "seed": None, "stop": None, "logprobs": None,
        "logit_bias": None, "n": None, "stream": None, "user": None, "tools": None,
    }  # fmt: skip
    assert http.post(CHAT, json=body_for(CHAT, **nulls)).status_code == 200
    nothing = {"inputs": "Hello", "parameters": {"max_new_tokens": 2, "seed": None, "top_k": None}}
    assert http.post("/generate", json=nothing).status_code == 200


def test_what_changes_nothing_is_ignored_from_a_published_list(http: httpx2.Client) -> None:
    harmless = {"user": "me", "store": False, "tools": [], "response_format": {"type": "text"}}
    assert http.post(CHAT, json=body_for(CHAT, **harmless)).status_code == 200
