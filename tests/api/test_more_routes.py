"""Routes beside the generating ones: tokens, headers, the API's document; TGI's rules in order."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator

from infercore.engine.request import FinishReason
from infercore.hub import demo_path
from infercore.text.chat_template import ChatTemplate
from infercore.text.tokenizer import Tokenizer
from infercore_api.router.anthropic_schema import CountBody, MessagesBody
from infercore_api.router.responses_schema import ResponsesBody
from infercore_api.router.tokenization import (
    DetokenizeBody,
    TokenizeMessagesBody,
    read_tokenizer_info,
)
from memory_engine import MemoryEngine
from memory_router import Router

SAID = [260, 553]  # " a", " time"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def texts() -> Iterator[tuple[Tokenizer, ChatTemplate]]:
    with ChatTemplate.open(demo_path()) as template:
        yield Tokenizer(demo_path()), template


@pytest.fixture(scope="module")
def peer() -> Any:
    """The same tokenizer as another library has it."""
    return transformers.AutoTokenizer.from_pretrained(demo_path())


@pytest.fixture
def router(texts: Any) -> Router:
    """Answers " a time" to everything."""
    return Router(texts, MemoryEngine(SAID))


async def post(router: Router, path: str, body: Any) -> Any:
    response = await router.http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def refusal(router: Router, path: str, body: Any, status: int = 422) -> str:
    """What a flat error says."""
    response = await router.http.post(path, json=body)
    assert response.status_code == status, response.text
    assert response.json().keys() == {"error", "error_type"}
    return str(response.json()["error"])


# --- TGI's rules, in TGI's order ------------------------------------------------------------------

RULES: tuple[tuple[dict[str, Any], str], ...] = (
    ({"best_of": 3}, "`best_of` must be > 0 and <= 2. Given: 3"),
    ({"best_of": 2, "do_sample": False}, "you must use sampling when `best_of` is > 1"),
    ({"do_sample": True, "temperature": 0}, "`temperature` must be strictly positive"),
    ({"repetition_penalty": 0}, "`repetition_penalty` must be strictly positive"),
    ({"frequency_penalty": 2.1}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
    ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
    ({"typical_p": 1.0}, "`typical_p` must be > 0.0 and < 1.0"),
    ({"top_k": 0}, "`top_k` must be strictly positive"),
    ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
    ({"stop": ["a"] * 5}, "`stop` supports up to 4 stop sequences. Given: 5"),
    ({"best_of": 2, "seed": 1, "do_sample": True}, "`seed` must not be set when `best_of` > 1"),
    ({"top_n_tokens": 6}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
    ({"inputs": ""}, "`inputs` cannot be empty"),
    ({"truncate": 512}, "`truncate` must be strictly positive and less than 511. Given: 512"),
)


@pytest.mark.parametrize("first", range(len(RULES)))
async def test_of_several_broken_rules_the_first_is_told(router: Router, first: int) -> None:
    broken: dict[str, Any] = {"inputs": "a"}
    for changes, _ in reversed(RULES[first:]):
        broken |= changes
    body = {"inputs": broken.pop("inputs"), "parameters": broken}
    said = await refusal(router, "/generate", body)
    assert said == f"Input validation error: {RULES[first][1]}"


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        (
            {"max_new_tokens": 5},
            "`inputs` tokens + `max_new_tokens` must be <= 512. Given: 600 `inputs` tokens and 5 `",
        ),
        ({}, "`inputs` must have less than 511 tokens. Given: 600"),
        ({"grammar": {"type": "regex", "value": "a"}}, "grammar is not supported"),
        ({"adapter_id": "a"}, "adapter_id is not supported"),
    ],
)
async def test_lengths_and_what_is_not_served(
    router: Router, parameters: dict[str, Any], says: str
) -> None:
    said = await refusal(router, "/generate", {"inputs": " a" * 600, "parameters": parameters})
    assert said.startswith(f"Input validation error: {says}")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("best_of", 2, "`best_of` != 1 is not supported when streaming tokens"),
        (
            "decoder_input_details",
            True,
            "`decoder_input_details` == true is not supported when streaming tokens",
        ),
    ],
)
async def test_what_no_stream_can_do(router: Router, name: str, value: Any, says: str) -> None:
    body = {"inputs": "a", "parameters": {"do_sample": True, name: value}}
    assert (await refusal(router, "/generate_stream", body)).endswith(says)
    assert (await refusal(router, "/", {**body, "stream": True})).endswith(says)


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/completions", "stop"),
        ("/v1/chat/completions", "stop"),
        ("/v1/messages", "stop_sequences"),
    ],
)
async def test_a_stop_text_has_a_length(router: Router, path: str, field: str) -> None:
    """One of a megabyte would keep the event loop busy for a second."""
    start = {"prompt": "a"} if path == "/v1/completions" else {"messages": QUESTION}
    more = {"model": "", "max_tokens": 2}
    for length, status in ((1000, 200), (1001, 400)):
        answer = await router.http.post(path, json={**start, **more, field: ["a" * length]})
        assert answer.status_code == status
    tgi = {"inputs": "a", "parameters": {"stop": ["a" * 1001]}}
    assert "up to 1000 characters. Given: 1001" in await refusal(router, "/generate", tgi)


# --- headers --------------------------------------------------------------------------------------

WHOLE = {
    f"x-{name}"
    for name in (
        "compute-type", "compute-time", "compute-characters", "total-time", "validation-time",
        "queue-time", "inference-time", "time-per-token", "prompt-tokens", "generated-tokens",
    )
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "characters"),
    [
        ("/generate", {"inputs": "na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve"}, 5),
        ("/", {"inputs": "four"}, 4),
        ("/v1/completions", {"prompt": ["four", "five5"], "n": 2}, 9),
        ("/v1/completions", {"prompt": [260]}, 0),
        ("/v1/chat/completions", {"messages": QUESTION}, 80),
    ],
)
async def test_every_generating_route_has_tgis_headers(
    router: Router, monkeypatch: pytest.MonkeyPatch, path: str, body: Any, characters: int
) -> None:
    whole = await router.http.post(path, json=body)
    assert whole.is_success
    assert whole.headers.keys() >= WHOLE
    assert whole.headers["x-compute-characters"] == str(characters)
    monkeypatch.setenv("COMPUTE_TYPE", "2-\N{SNOWMAN}")
    stream_path = "/generate_stream" if path == "/generate" else path
    streamed = await router.http.post(stream_path, json={**body, "stream": True})
    assert streamed.headers["x-compute-type"] == "2-?"
    assert streamed.headers["x-compute-characters"] == str(characters)
    assert streamed.headers["x-accel-buffering"] == "no"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("last", [False, True])
async def test_usage_in_every_event(texts: Any, path: str, last: bool) -> None:
    """Benchmarks count tokens by it, since an event may carry several."""
    router = Router(texts, MemoryEngine())
    options = {"include_usage": last, "continuous_usage_stats": True}
    body = {"messages": QUESTION} if "chat" in path else {"prompt": "a"}
    sent = {**body, "stream": True, "stream_options": options}
    call = asyncio.create_task(router.http.post(path, json=sent))
    await router.engine.arrived.wait()
    for token_id in SAID:
        router.engine.say(1, [token_id])
    router.engine.say(1, [260], FinishReason.LENGTH)
    lines = (await call).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    counts = [event["usage"]["completion_tokens"] for event in events if event["choices"]]
    assert counts == ([1] if "chat" in path else []) + [1, 2, 3]
    assert (events[-1]["choices"] == []) == last
    assert events[-1]["usage"]["completion_tokens"] == 3


async def test_an_address_that_ends_in_v1_is_tgis_too(router: Router) -> None:
    assert await post(router, "/v1", {"inputs": "a"}) == [{"generated_text": "a a time"}]
    assert "`inputs`" in await refusal(router, "/v1", {})


# --- tokens ---------------------------------------------------------------------------------------

TEXT = "Hello, na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve world"


async def test_tokenize_in_both_shapes_is_what_transformers_says(router: Router, peer: Any) -> None:
    ids = peer(TEXT)["input_ids"]
    spans = await post(router, "/tokenize", {"inputs": TEXT})
    assert [span["id"] for span in spans] == ids
    counted = await post(router, "/tokenize", {"prompt": TEXT, "return_token_strs": True})
    assert counted.keys() == {"count", "max_model_len", "tokens", "token_strs"}
    assert (counted["tokens"], counted["count"], counted["max_model_len"]) == (ids, len(ids), 512)
    assert len(counted["token_strs"]) == len(ids)
    plain = await post(router, "/tokenize", {"model": "tgi", "prompt": TEXT, "messages": None})
    assert plain["token_strs"] is None


@pytest.mark.parametrize("generation_prompt", [True, False])
async def test_chats_are_tokenized_as_transformers_does(
    router: Router, peer: Any, generation_prompt: bool
) -> None:
    text = peer.apply_chat_template(
        QUESTION, tokenize=False, add_generation_prompt=generation_prompt
    )
    ids = peer(text, add_special_tokens=False)["input_ids"]
    body = {"messages": QUESTION, "add_generation_prompt": generation_prompt, "tools": []}
    assert (await post(router, "/tokenize", body))["tokens"] == ids
    if generation_prompt:
        shown = await post(router, "/chat_tokenize", {"messages": QUESTION, "max_tokens": 5})
        assert shown["templated_text"] == text
        assert [span["id"] for span in shown["tokenize_response"]] == ids
        assert "".join(span["text"] for span in shown["tokenize_response"]) == text
    back = await post(router, "/detokenize", {"tokens": ids})
    assert back == {"prompt": text}


async def test_a_last_message_of_the_assistant_is_continued(router: Router) -> None:
    begun = [*QUESTION, {"role": "assistant", "content": "The capital"}]
    plain = await post(router, "/tokenize", {"messages": begun})
    said = {"messages": begun, "continue_final_message": True}
    assert await post(router, "/tokenize", said) == plain
    text = (await post(router, "/detokenize", {"tokens": plain["tokens"]}))["prompt"]
    assert text.endswith("The capital")
    for messages, value in ((begun, False), (QUESTION, True)):
        body = {"messages": messages, "continue_final_message": value}
        assert "leave it out" in await refusal(router, "/tokenize", body)


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/tokenize", {}, "`inputs`: Field required"),
        ("/tokenize", {"inputs": 5}, "`inputs`: Input should be a valid string"),
        ("/tokenize", {"prompt": "a", "unheard_of": 1}, "`unheard_of`: This field is not known"),
        ("/tokenize", {"messages": [{"content": "a"}]}, "`messages.0.role`: Field required"),
        ("/tokenize", {"messages": QUESTION, "tools": [{}]}, "`tools`: List should have at most 0"),
        ("/tokenize", {"messages": QUESTION, "chat_template": "x"}, "`chat_template`: This field"),
        ("/detokenize", {"tokens": [5000]}, "`tokens`: 5000 is not a token id"),
        ("/detokenize", {"tokens": [-1]}, "`tokens`: -1 is not a token id"),
        ("/detokenize", {"tokens": [True]}, "`tokens.0`: Input should be a valid integer"),
        ("/detokenize", {"tokens": "a"}, "`tokens`: Input should be a valid list"),
        ("/chat_tokenize", {"messages": []}, "`messages`: List should have at least 1"),
    ],
)
async def test_bodies_about_tokens_that_are_refused(
    router: Router, path: str, body: Any, says: str
) -> None:
    assert says in await refusal(router, path, body)


async def test_a_model_that_is_not_served_has_no_tokens(router: Router) -> None:
    for path, body in (
        ("/tokenize", {"prompt": "a"}),
        ("/tokenize", {"messages": QUESTION}),
        ("/detokenize", {"tokens": [1]}),
        ("/chat_tokenize", {"messages": QUESTION}),
    ):
        assert "not served here" in await refusal(router, path, {"model": "other", **body}, 404)


def test_what_is_known_of_a_tokenizer(peer: Any) -> None:
    """lm-eval reads these of a server's tokenizer."""
    known = read_tokenizer_info(demo_path())
    assert known["eos_token"] == peer.eos_token
    assert known["pad_token"] == peer.pad_token
    assert known["chat_template"] == peer.chat_template
    assert isinstance(known["tokenizer_class"], str)


def test_a_tokenizer_with_several_templates_names_them(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("a")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("b")
    named = read_tokenizer_info(tmp_path)["chat_template"]
    assert {each["name"]: each["template"] for each in named} == {"default": "a", "tool_use": "b"}


# --- the API's document ---------------------------------------------------------------------------


async def test_the_document_is_valid_openapi_and_the_page_shows_it(router: Router) -> None:
    document = (await router.http.get("/api-doc/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    assert [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()] == []
    page = await router.http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "/api-doc/openapi.json" in page.text


# --- whatever is sent -----------------------------------------------------------------------------

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-2, 5)
    | st.floats()
    | st.text(st.characters(exclude_categories=()))  # surrogates too
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)
BODIES: dict[str, dict[str, Any]] = {
    "/tokenize": {"prompt": "a", "messages": None},
    "/detokenize": {"tokens": [1]},
    "/chat_tokenize": {"messages": QUESTION},
    "/vertex": {"instances": [{"inputs": "a"}]},
    "/invocations": {},
    "/v1/responses": {"input": "a"},
    "/v1/messages": {"model": "", "max_tokens": 2, "messages": QUESTION},
    "/v1/messages/count_tokens": {"model": "", "messages": QUESTION},
}
FIELDS = [
    *(("/tokenize", name) for name in (*TokenizeMessagesBody.model_fields, "inputs", "prompt")),
    *(("/detokenize", name) for name in DetokenizeBody.model_fields),
    *(("/chat_tokenize", name) for name in ("messages", "model", "chat_template_kwargs")),
    ("/vertex", "instances"),
    *(("/invocations", name) for name in ("inputs", "messages", "prompt")),
    *(("/v1/responses", name) for name in (*ResponsesBody.model_fields, *ResponsesBody.HARMLESS)),
    *(("/v1/messages", name) for name in (*MessagesBody.model_fields, *MessagesBody.HARMLESS)),
    *(("/v1/messages/count_tokens", name) for name in CountBody.model_fields),
]


@pytest.fixture(scope="module")
def answering(texts: Any) -> Router:
    """One for many requests, which it answers at once."""
    return Router(texts, MemoryEngine(SAID))


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(FIELDS), VALUES)
def test_no_value_of_any_field_is_the_servers_fault(
    answering: Router, field: tuple[str, str], value: Any
) -> None:
    path, name = field
    check_answer(answering, path, json.dumps({**BODIES[path], name: value}))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(BODIES)), VALUES.map(json.dumps) | st.text())
def test_no_body_is_the_servers_fault(answering: Router, path: str, content: str) -> None:
    check_answer(answering, path, content)


def check_answer(router: Router, path: str, content: str) -> None:
    """The answer is no fault of the server's, and an error is told in the dialect of the path."""
    headers = {"content-type": "application/json"}
    call = router.http.post(path, content=content.encode("utf-8", "replace"), headers=headers)
    response = asyncio.run(call)
    assert response.status_code < 500, response.text
    if response.status_code != 200:
        error = response.json()
        nested = path.startswith("/v1/messages")
        assert (error.keys() == {"type", "error"}) == nested
