"""The watermark from end to end: asked for over HTTP, found by route and by command line."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

import memory_engine
from infercore.errors import ConfigError
from infercore.hub import demo_path
from infercore.text.chat_template import ChatTemplate
from infercore.text.tokenizer import Tokenizer
from infercore.watermark import PUBLIC_KEY, Watermark, detect, key_of
from infercore_api.cli.flags import FLAGS
from infercore_api.cli.options import serve_options
from memory_engine import MemoryEngine
from memory_router import Router
from processes import Server, serving

SECRET = "a secret of the tests"
STORY = "Write a story about a river."
SAID = [260, 553]  # " a", " time"


@pytest.fixture(scope="module")
def marking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A server with a secret of its own, in a file; nearly only green tokens come."""
    folder = tmp_path_factory.mktemp("marking")
    file = folder / "secret"
    file.write_text(f"{SECRET}\n")
    flags = ("--dtype", "float32", "--max-total-tokens", "300", "--watermark-delta", "20")
    with serving(folder, *flags, "--watermark-key-file", str(file)) as server:
        yield server, file
        assert server.end() == 0
        assert SECRET not in server.log.read_text()


@pytest.fixture
def http(marking: tuple[Server, Path]) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=marking[0].url, timeout=60) as client:
        yield client


def post(http: httpx2.Client, path: str, body: dict[str, Any]) -> Any:
    response = http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def generate(http: httpx2.Client, watermark: bool) -> tuple[str, list[int]]:
    """A reply of TGI's: its text and its ids."""
    parameters = {
        "max_new_tokens": 100, "do_sample": True, "seed": 5, "details": True,
        "watermark": watermark,
    }  # fmt: skip
    reply = post(http, "/generate", {"inputs": STORY, "parameters": parameters})
    return reply["generated_text"], [token["id"] for token in reply["details"]["tokens"]]


def test_a_marked_reply_is_found_and_another_is_not(http: httpx2.Client) -> None:
    text, ids = generate(http, watermark=True)
    expected = detect(Watermark(key_of(SECRET), delta=20.0), ids)
    found = post(http, "/watermark/detect", {"tokens": ids})
    assert found == {
        "judged": expected.judged,
        "green": expected.green,
        "z_score": expected.z_score,
        "p_value": expected.p_value,
        "gamma": 0.5,
    }
    assert found["p_value"] < 1e-6
    assert post(http, "/watermark/detect", {"inputs": text})["p_value"] < 1e-6
    plain, plain_ids = generate(http, watermark=False)
    assert plain != text
    assert post(http, "/watermark/detect", {"tokens": plain_ids})["p_value"] > 1e-4


def test_the_command_finds_what_the_route_finds(
    http: httpx2.Client, marking: tuple[Server, Path], tmp_path: Path
) -> None:
    text, _ = generate(http, watermark=True)
    file = tmp_path / "text"
    file.write_text(text)
    command = [sys.executable, "-m", "infercore_api.cli.main", "watermark", "detect", "--json"]
    key = ["--watermark-key-file", str(marking[1])]
    ended = subprocess.run(
        [*command, *key, str(file), "-"], input="Hello.", capture_output=True, text=True, check=True
    )
    first, second = map(json.loads, ended.stdout.splitlines())
    expected = post(http, "/watermark/detect", {"inputs": text})
    assert {**first, "gamma": 0.5} == {"file": str(file), **expected}
    assert second["file"] == "-"
    other = {**os.environ, "INFERCORE_WATERMARK_KEY": "another secret"}
    ended = subprocess.run(
        [*command, str(file)], capture_output=True, text=True, check=True, env=other
    )
    assert json.loads(ended.stdout)["p_value"] > 1e-4


@pytest.mark.parametrize("stream", [False, True])
def test_openais_routes_mark_too(http: httpx2.Client, stream: bool) -> None:
    body = {
        "model": "tgi", "max_tokens": 100, "seed": 6, "temperature": 1.0, "stream": stream,
        "watermark": True,
    }  # fmt: skip
    for path, prompt in (
        ("/v1/completions", {"prompt": STORY}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": STORY}]}),
    ):
        response = http.post(path, json=body | prompt)
        assert response.status_code == 200, response.text
        texts = [
            choice.get("text") or choice.get("delta", choice.get("message", {})).get("content", "")
            for reply in _replies(response)
            for choice in reply["choices"]
        ]
        found = post(http, "/watermark/detect", {"inputs": "".join(text or "" for text in texts)})
        assert found["green"] > 0.9 * found["judged"] > 10, path


def _replies(response: httpx2.Response) -> list[Any]:
    if "event-stream" not in response.headers["content-type"]:
        return [response.json()]
    events = response.text.strip().split("\n\n")
    return [json.loads(event[6:]) for event in events if event != "data: [DONE]"]


# --- without processes --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts() -> Iterator[tuple[Tokenizer, ChatTemplate]]:
    with ChatTemplate.open(demo_path()) as template:
        yield Tokenizer(demo_path()), template


async def test_without_a_secret_the_key_is_the_public_one(texts: Any) -> None:
    router = Router(texts, MemoryEngine(SAID), watermark_gamma=0.25)
    body = {"inputs": "a", "parameters": {"watermark": True}}
    assert (await router.http.post("/generate", json=body)).status_code == 200
    [request] = router.engine.requests.values()
    assert request.sampling.watermark == Watermark(PUBLIC_KEY, 0.25, 2.0)


async def test_nobody_is_marked_who_did_not_ask(texts: Any) -> None:
    router = Router(texts, MemoryEngine(SAID))
    assert (await router.http.post("/generate", json={"inputs": "a"})).status_code == 200
    [request] = router.engine.requests.values()
    assert request.sampling.watermark is None


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/generate", {"inputs": "a", "parameters": {"watermark": True}}, 422),
        ("/generate_stream", {"inputs": "a", "parameters": {"watermark": True}}, 422),
        ("/v1/completions", {"prompt": "a", "watermark": True}, 400),
        ("/v1/chat/completions", {"messages": [{"role": "user"}], "watermark": True}, 400),
    ],
)
async def test_an_engine_that_cannot_mark_says_so(
    texts: Any, monkeypatch: pytest.MonkeyPatch, path: str, body: Any, status: int
) -> None:
    from dataclasses import replace

    monkeypatch.setattr(memory_engine, "INFO", replace(memory_engine.INFO, watermark=False))
    router = Router(texts, MemoryEngine(SAID))
    response = await router.http.post(path, json=body)
    assert response.status_code == status
    assert "`watermark`: this engine's backend marks no texts" in response.text


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "either `inputs`, a text, or `tokens`"),
        ({"inputs": "a", "tokens": [1]}, "either `inputs`, a text, or `tokens`"),
        ({"tokens": [4096]}, "`tokens`: 4096 is not a token id"),
        ({"tokens": [-1]}, "`tokens`: -1 is not a token id"),
        ({"tokens": "a"}, "`tokens`: Input should be a valid list"),
        ({"inputs": "a", "key": "b"}, "`key`: This field is not known here"),
    ],
)
async def test_what_cannot_be_judged_is_refused(texts: Any, body: Any, says: str) -> None:
    router = Router(texts, MemoryEngine(SAID))
    response = await router.http.post("/watermark/detect", json=body)
    assert response.status_code == 422
    assert says in response.json()["error"]


@pytest.mark.parametrize("body", [{"inputs": ""}, {"tokens": []}, {"tokens": [5]}])
async def test_a_text_without_neighbours_says_nothing(texts: Any, body: Any) -> None:
    router = Router(texts, MemoryEngine(SAID))
    response = await router.http.post("/watermark/detect", json=body)
    expected = {"judged": 0, "green": 0, "z_score": 0.0, "p_value": 1.0, "gamma": 0.5}
    assert response.json() == expected


def options(**values: Any) -> Any:
    return serve_options({flag.key: flag.default for flag in FLAGS} | values)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"watermark_gamma": 1.0}, "gamma must be between"),
        ({"watermark_gamma": 0.0}, "--watermark-gamma must be positive"),
        ({"watermark_delta": 101.0}, "delta must be in"),
        ({"watermark_key": "a", "watermark_key_file": "b"}, "say the same; give one"),
        ({"watermark_key_file": "/nowhere"}, "--watermark-key-file /nowhere: No such file"),
        ({"watermark_key_file": "/dev/null"}, "/dev/null is empty"),
    ],
)
def test_flags_that_cannot_be_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        options(**values)


def test_flags_reach_the_router(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(f"  {SECRET}\n\n")
    router = options(watermark_gamma=0.25, watermark_delta=3.0, watermark_key_file=str(file)).router
    kept = ("watermark_key", "watermark_gamma", "watermark_delta")
    assert [router[name] for name in kept] == [SECRET, 0.25, 3.0]
