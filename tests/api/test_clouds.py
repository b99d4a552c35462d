"""Two clouds that serve TGI's containers: their routes, their bodies, their variables."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import typer

from infercore.engine.request import FinishReason
from infercore.errors import ConfigError
from infercore.hub import demo_path
from infercore.text.chat_template import ChatTemplate
from infercore.text.tokenizer import Tokenizer
from infercore_api.cli.flags import FLAGS
from infercore_api.cli.main import build
from infercore_api.cli.options import serve_options
from memory_engine import MemoryEngine
from memory_router import Router
from processes import serving

SAID = [260, 553]  # " a", " time"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def texts() -> Iterator[tuple[Tokenizer, ChatTemplate]]:
    with ChatTemplate.open(demo_path()) as template:
        yield Tokenizer(demo_path()), template


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


# --- SageMaker ------------------------------------------------------------------------------------


async def test_an_invocation_is_answered_by_the_route_of_its_shape(router: Router) -> None:
    generated = await post(router, "/invocations", {"inputs": "a", "messages": QUESTION})
    assert generated == [{"generated_text": "a a time"}]
    chat = await post(router, "/invocations", {"messages": QUESTION, "inputs": None})
    assert chat["object"] == "chat.completion"
    assert chat["choices"][0]["message"]["content"] == " a time"
    completion = await post(router, "/invocations", {"prompt": "a"})
    assert completion["object"] == "text_completion"


@pytest.mark.parametrize(
    ("body", "done"),
    [({"inputs": "a"}, False), ({"messages": QUESTION}, True), ({"prompt": "a"}, True)],
)
async def test_invocations_stream(router: Router, body: Any, done: bool) -> None:
    streamed = await router.http.post("/invocations", json={**body, "stream": True})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert streamed.text.endswith("data: [DONE]\n\n") == done
    assert streamed.text.count("data: {") >= 2


async def test_a_refused_invocation_speaks_as_its_route_does(router: Router) -> None:
    for content in (b"{", b"[" * 100_000, b""):
        headers = {"content-type": "application/json"}
        answer = await router.http.post("/invocations", content=content, headers=headers)
        assert (answer.status_code, answer.json()["error_type"]) == (400, "bad_request")
    assert "`inputs`: Field required" in await refusal(router, "/invocations", {})
    assert "should be an object" in await refusal(router, "/invocations", [1])
    chat = await router.http.post("/invocations", json={"messages": QUESTION, "n": 0})
    assert (chat.status_code, chat.json()["error"]["param"]) == (400, "n")
    large = await router.http.post("/invocations", json={"inputs": "a" * 2_000_000})
    assert large.status_code == 413


async def test_a_client_that_leaves_an_invocation_ends_it(texts: Any) -> None:
    router = Router(texts, MemoryEngine())
    messages = [{"type": "http.request", "body": b'{"inputs": "a"}', "more_body": False}]
    left = asyncio.Event()

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        del message

    scope = {
        "type": "http", "method": "POST", "path": "/invocations", "raw_path": b"/invocations",
        "query_string": b"", "headers": [(b"content-type", b"application/json")],
        "scheme": "http", "server": ("router", 80), "client": ("client", 1),
        "http_version": "1.1", "root_path": "",
    }  # fmt: skip
    call = asyncio.create_task(router.app(scope, receive, send))
    await router.engine.arrived.wait()
    left.set()
    await asyncio.wait_for(call, 10)
    assert router.engine.aborted == [1]


# --- Vertex AI ------------------------------------------------------------------------------------


async def test_each_instance_has_its_text_and_its_parameters(texts: Any) -> None:
    router = Router(texts, MemoryEngine(SAID))
    instances = [
        {"inputs": "Once", "parameters": {"return_full_text": True, "max_new_tokens": 7}},
        {"messages": QUESTION, "temperature": 0, "max_tokens": 9},
        {"inputs": "Twice", "parameters": {"best_of": 2, "top_k": 3}},
    ]
    answer = await router.http.post("/vertex", json={"instances": instances})
    assert answer.json() == {"predictions": ["Once a time", " a time", " a time"]}
    assert answer.headers["x-generated-tokens"] == "8"
    asked = [request.sampling for request in router.engine.requests.values()]
    assert [each.max_tokens for each in asked[:2]] == [7, 9]
    assert [each.top_k for each in asked] == [0, 0, 3, 3]


async def test_the_likeliest_of_an_instances_choices_is_its_text(texts: Any) -> None:
    router = Router(texts, MemoryEngine())
    instance = {"inputs": "a", "parameters": {"best_of": 2, "top_k": 3, "max_new_tokens": 2}}
    call = asyncio.create_task(
        router.http.post("/vertex", json={"instances": [instance, {"inputs": "b"}]})
    )
    await router.engine.arrived.wait()
    for request_id, ids in ((3, [553]), (1, [260]), (2, [553])):
        router.engine.say(request_id, ids, reason=FinishReason.EOS)
    assert (await call).json()["predictions"] == [" a", " time"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "`instances`: Field required"),
        ({"instances": []}, "`instances`: List should have at least 1 item"),
        ({"instances": [{"inputs": "a"}] * 5}, "`instances` holds 5, and at most 4 are taken"),
        ({"instances": [{"inputs": "a"}, {}]}, "`instances.1.inputs`: Field required"),
        ({"instances": [{"messages": 3}]}, "`instances.0.messages`: Input should be a valid list"),
        ({"instances": [{"messages": QUESTION, "stream": True}]}, "`stream`: an instance is"),
        ({"instances": [{"messages": QUESTION, "n": 2}]}, "`n`: an instance is answered by one"),
        ({"instances": [{"inputs": "a", "parameters": {"top_p": 2}}]}, "`top_p` must be > 0.0"),
    ],
)
async def test_instances_that_are_refused(router: Router, body: Any, says: str) -> None:
    assert says in await refusal(router, "/vertex", body)


async def test_vertex_may_choose_its_paths(texts: Any) -> None:
    predict, health = "/v1/endpoints/7/deployedModels/8:predict", "/v1/endpoints/7/deployedModels/8"
    router = Router(
        texts,
        MemoryEngine(SAID),
        api_keys=("k",),
        vertex_predict_route=predict,
        vertex_health_route=health,
    )
    assert (await router.http.get(health)).status_code == 200
    body = {"instances": [{"inputs": "a"}]}
    assert (await router.http.post(predict, json=body)).status_code == 401
    for path in (predict, "/vertex"):
        answer = await router.http.post(path, json=body, headers={"x-api-key": "k"})
        assert answer.json() == {"predictions": [" a time"]}


def test_a_server_that_vertex_starts(folder: Path) -> None:
    variables = {"AIP_PREDICT_ROUTE": "/predict", "AIP_HEALTH_ROUTE": "/alive", "PORT": "1"}
    with serving(folder, toy=True, env=variables) as server:
        assert httpx2.get(f"{server.url}/alive").status_code == 200
        body = {"instances": [{"inputs": "a", "parameters": {"max_new_tokens": 2}}]}
        answer = server.post("/predict", body)
        assert len(answer["predictions"]) == 1


@pytest.mark.parametrize(
    ("line", "variables", "port"),
    [
        ([], {"AIP_HTTP_PORT": "8080", "PORT": "80"}, 8080),
        ([], {"PORT": "80"}, 80),
        (["-p", "5"], {"AIP_HTTP_PORT": "8080", "PORT": "80"}, 5),
        ([], {}, 3000),
    ],
)
def test_vertex_names_the_port(
    monkeypatch: pytest.MonkeyPatch, line: list[str], variables: dict[str, str], port: int
) -> None:
    for name in ("AIP_HTTP_PORT", "PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    commands: Any = typer.main.get_command(build())
    context = commands.get_command(None, "serve").make_context("serve", line)
    assert context.params["port"] == port


def test_a_path_that_is_none_is_refused_at_the_start() -> None:
    values = {flag.key: flag.default for flag in FLAGS}
    for route in ("predict", "", "/a b", "/{x}"):
        with pytest.raises(ConfigError, match="--vertex-predict-route"):
            serve_options({**values, "vertex_predict_route": route})
