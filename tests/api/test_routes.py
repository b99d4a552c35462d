"""Replies field by field, where clients do not look but users do."""

import re

import httpx2
import pytest

STORY = "Once upon a time"
CHAT = "/v1/chat/completions"


def test_whole_replies_are_an_object_or_a_list_of_one(http: httpx2.Client) -> None:
    body = {"inputs": STORY, "parameters": {"max_new_tokens": 5}}
    single = http.post("/generate", json=body)
    listed = http.post("/", json=body)
    assert list(single.json()) == ["generated_text"]
    assert listed.json() == [{"generated_text": STORY + single.json()["generated_text"]}]
    without = {**body, "parameters": {"max_new_tokens": 5, "return_full_text": False}}
    assert http.post("/", json=without).json() == [single.json()]
    streamed = http.post("/", json={**body, "stream": True})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert streamed.headers["x-accel-buffering"] == "no"
    assert streamed.headers["cache-control"] == "no-cache"
    assert streamed.headers["x-compute-characters"] == str(len(STORY))


def test_headers_of_a_whole_reply(http: httpx2.Client) -> None:
    response = http.post(
        "/generate",
        json={"inputs": STORY, "parameters": {"max_new_tokens": 5}},
        headers={"x-request-id": "my-own"},
    )
    headers = response.headers
    assert headers["x-request-id"] == "my-own"
    assert (headers["x-prompt-tokens"], headers["x-generated-tokens"]) == ("4", "5")
    assert headers["x-compute-type"] == "cpu"
    assert float(headers["x-compute-time"]) > 0
    for name in ("total", "validation", "queue", "inference"):
        assert int(headers[f"x-{name}-time"]) >= 0
    assert int(headers["x-time-per-token"]) >= 0
    amazon = http.get("/health", headers={"x-amzn-trace-id": "trace"})
    assert amazon.headers["x-request-id"] == "trace"
    forged = http.get("/health", headers={"x-request-id": "a\tb"})
    assert "\t" not in forged.headers["x-request-id"]


def test_no_parameters_sample_and_empty_ones_are_greedy(http: httpx2.Client) -> None:
    greedy = {http.post("/generate", json={"inputs": STORY, "parameters": {"max_new_tokens": 9}})
              .json()["generated_text"] for _ in range(3)}  # fmt: skip
    assert len(greedy) == 1
    details = http.post(
        "/generate", json={"inputs": STORY, "parameters": {"max_new_tokens": 2, "details": True}}
    ).json()["details"]
    assert details["seed"] is None
    sampled = http.post(
        "/generate",
        json={
            "inputs": STORY,
            "parameters": {"max_new_tokens": 2, "details": True, "do_sample": True},
        },
    ).json()["details"]
    assert isinstance(sampled["seed"], int)


def test_a_false_do_sample_wins_over_sampling_parameters(http: httpx2.Client) -> None:
    """langchain-huggingface sends both."""
    plain = {"max_new_tokens": 9}
    both = {**plain, "do_sample": False, "temperature": 0.8, "top_p": 0.95, "typical_p": 0.95}
    texts = [
        http.post("/generate", json={"inputs": STORY, "parameters": p}).json()["generated_text"]
        for p in (plain, both)
    ]
    assert texts[0] == texts[1]


def test_truncate_full_text_and_stops_as_tgi_has_them(http: httpx2.Client) -> None:
    def generate(**parameters: object) -> dict[str, object]:
        given = {"max_new_tokens": 9, **parameters}
        answer: dict[str, object] = http.post(
            "/generate", json={"inputs": STORY, "parameters": given}
        ).json()
        return answer

    text = str(generate()["generated_text"])
    assert generate(return_full_text=True)["generated_text"] == STORY + text
    stop = text[4:7]
    stopped = generate(stop=[stop], details=True)
    assert stopped["generated_text"] == text[: text.index(stop) + len(stop)]
    assert stopped["details"]["finish_reason"] == "stop_sequence"  # type: ignore[index]
    cut = http.post(
        "/generate",
        json={"inputs": "word " * 40 + STORY, "parameters": {"max_new_tokens": 9, "truncate": 4}},
    )
    assert cut.headers["x-prompt-tokens"] == "4"
    assert cut.json()["generated_text"] == text


def test_eos_is_a_special_token_outside_the_text(http: httpx2.Client) -> None:
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    body = {"inputs": prompt, "parameters": {"max_new_tokens": 40, "details": True}}
    reply = http.post("/generate", json=body).json()
    last = reply["details"]["tokens"][-1]
    assert (last["text"], last["special"]) == ("<|im_end|>", True)
    assert reply["details"]["finish_reason"] == "eos_token"
    assert reply["generated_text"] == "The capital of France is Paris."


def test_tokenize_gives_the_bytes_of_each_token(http: httpx2.Client) -> None:
    text = "Hello, naïve 日本"
    tokens = http.post("/tokenize", json={"inputs": text}).json()
    raw = text.encode()
    for token in tokens:
        piece = raw[token["start"] : token["stop"]].decode(errors="replace")
        assert token["text"] == piece
    assert tokens[0].keys() == {"id", "text", "start", "stop"}


def test_info_and_models(http: httpx2.Client) -> None:
    info = http.get("/info").json()
    assert info["model_id"] == "infercore/demo"
    assert (info["max_total_tokens"], info["max_input_tokens"]) == (600, 599)
    assert info["max_best_of"] == 4
    models = http.get("/v1/models").json()
    assert models["object"] == "list"
    assert models["data"][0].keys() >= {"id", "object", "created", "owned_by"}
    assert http.get("/v1/models/someone/else").status_code == 404


@pytest.mark.parametrize("path", ["/", "/health", "/health/ready", "/health/live", "/ping"])
def test_health_is_empty_when_all_is_well(http: httpx2.Client, path: str) -> None:
    response = http.get(path)
    assert (response.status_code, response.content) == (200, b"")


def test_chats_continue_the_assistant_and_take_parts_and_developers(http: httpx2.Client) -> None:
    question = {"role": "user", "content": [{"type": "text", "text": "What is the capital of "},
                                            {"type": "text", "text": "France?"}]}  # fmt: skip
    begun = {"role": "assistant", "content": "The capital of France"}
    body = {"messages": [question, begun], "temperature": 0, "max_tokens": 20}
    continued = http.post(CHAT, json=body).json()
    assert continued["choices"][0]["message"]["content"] == " is Paris."
    system = {"role": "developer", "content": "Be brief."}
    told = {**body, "messages": [system, question]}
    as_system = {**body, "messages": [{**system, "role": "system"}, question]}
    answers = [http.post(CHAT, json=each).json()["choices"] for each in (told, as_system)]
    assert answers[0] == answers[1]


def test_a_second_turn_finds_the_first_in_the_cache(http: httpx2.Client) -> None:
    turn = [{"role": "user", "content": "Tell me a long story about a fox and a hen, please."}]
    body = {"messages": turn, "temperature": 0, "max_tokens": 20}
    answer = http.post(CHAT, json=body).json()["choices"][0]["message"]["content"]
    messages = [
        *turn,
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "Go on"},
    ]
    usage = http.post(CHAT, json={**body, "messages": messages}).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 16


def test_penalties_change_what_is_said(http: httpx2.Client) -> None:
    body = {"prompt": "word word word word word", "max_tokens": 12, "temperature": 0}
    plain = http.post("/v1/completions", json=body).json()["choices"][0]["text"]
    for penalty in ({"repetition_penalty": 1.8}, {"frequency_penalty": 2, "presence_penalty": 2}):
        other = http.post("/v1/completions", json={**body, **penalty}).json()["choices"][0]["text"]
        assert other != plain


def test_min_tokens_and_ignore_eos(http: httpx2.Client) -> None:
    body = {"messages": [{"role": "user", "content": "What is the capital of France?"}],
            "temperature": 0, "max_tokens": 20}  # fmt: skip
    for more in ({"min_tokens": 15}, {"ignore_eos": True}):
        done = http.post(CHAT, json={**body, **more}).json()
        assert done["usage"]["completion_tokens"] >= 15


def test_the_document_of_the_api_names_every_route(http: httpx2.Client) -> None:
    response = http.get("/api-doc/openapi.json")
    document, schemas = response.json(), response.json()["components"]["schemas"]
    assert document["openapi"].startswith("3.")
    named = set(re.findall(r'"#/components/schemas/([^"]+)"', response.text))
    assert named == schemas.keys()
    for path, route in document["paths"].items():
        for operation in route.values():
            assert operation["responses"]["200"]["description"]
            if path != "/metrics":
                error = operation["responses"]["4XX"]["content"]["application/json"]["schema"]
                wanted_error = "NestedError" if path.startswith("/v1/") else "FlatError"
                if path.startswith("/v1/messages"):
                    wanted_error = "AnthropicError"
                assert error["$ref"].endswith(f"/{wanted_error}")
    wanted = {"/", "/generate", "/generate_stream", "/tokenize", "/info", "/health", "/metrics",
              "/v1/chat/completions", "/v1/completions", "/v1/models"}  # fmt: skip
    assert wanted <= document["paths"].keys()
