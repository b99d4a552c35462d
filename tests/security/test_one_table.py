"""One table for all front ends: TGI, OpenAI, Anthropic, KServe, Vertex, SageMaker, gRPC."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc.aio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpc_calls import asked, first_of, generation, inference, serving_grpc
from infercore_api.router.grpc import open_inference_pb2 as oip
from infercore_api.router.options import RouterOptions
from infercore_api.router.validation import MAX_STOP_LENGTH
from memory_engine import INFO
from memory_router import MODELS, Router

OPTIONS = RouterOptions(MODELS)
WORD = " a"  # one token

# {limit: {field of a front end: how its value is spelt}}; a front end that is missing has no such
TGI_NAMES = {"max_tokens": "max_new_tokens", "top": "top_n_tokens", "best": "best_of"}
OPENAI_NAMES = {"best": "n", "top": "top_logprobs"}


def tgi(asked_for: Mapping[str, Any]) -> dict[str, Any]:
    """As parameters of `/generate`."""
    given = {TGI_NAMES.get(name, name): value for name, value in asked_for.items()}
    if "best_of" in given:
        given["do_sample"] = True
    return given


def chat(asked_for: Mapping[str, Any]) -> dict[str, Any]:
    given = {OPENAI_NAMES.get(name, name): value for name, value in asked_for.items()}
    return {"logprobs": True, **given} if "top" in asked_for else given


Call = Callable[[Router, Any, str, Mapping[str, Any]], Awaitable[bool]]


def over_http(path: str, body: Callable[[str, Mapping[str, Any]], dict[str, Any]]) -> Call:
    """A call that says whether it was taken."""

    async def call(router: Router, channel: Any, text: str, asked_for: Mapping[str, Any]) -> bool:
        del channel
        answer = await router.http.post(path, json=body(text, asked_for))
        assert answer.status_code in (200, 400, 413, 422), answer.text
        return answer.status_code == 200

    return call


CODES = (
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)


def over_grpc(call_of: Callable[[Any, str, Mapping[str, Any]], Awaitable[Any]]) -> Call:
    async def call(router: Router, channel: Any, text: str, asked_for: Mapping[str, Any]) -> bool:
        del router
        code = grpc.StatusCode.OK
        try:
            await call_of(channel, text, asked_for)
        except grpc.aio.AioRpcError as error:
            code = error.code()
        assert code in CODES, code
        return code is grpc.StatusCode.OK

    return call


def _messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _tensors(text: str, asked_for: Mapping[str, Any]) -> dict[str, Any]:
    tensor = {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": [text]}
    return {"inputs": [tensor], "parameters": tgi(asked_for)}


def _anthropic(text: str, asked_for: Mapping[str, Any]) -> dict[str, Any]:
    names = {"stop": "stop_sequences"}
    fields = {names.get(name, name): value for name, value in asked_for.items()}
    return {"model": "tgi", "max_tokens": 2, "messages": _messages(text), **fields}


def _responses(text: str, asked_for: Mapping[str, Any]) -> dict[str, Any]:
    names = {"max_tokens": "max_output_tokens"}
    return {"input": text, **{names.get(name, name): v for name, v in asked_for.items()}}


def _completion(text: str, asked_for: Mapping[str, Any]) -> dict[str, Any]:
    names = {"best": "best_of", "top": "logprobs"}
    return {"prompt": text, **{names.get(name, name): v for name, v in asked_for.items()}}


async def _triton(channel: Any, text: str, asked_for: Mapping[str, Any]) -> Any:
    request = oip.ModelInferRequest(model_name=MODELS[0])
    tensor = request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(text.encode())
    for name, value in tgi(asked_for).items():
        where, kind = request.parameters[name], value
        if isinstance(value, list):
            kind = value[0] if len(value) == 1 else None
        if kind is None:
            raise AssertionError("the protocol's parameters hold no lists")
        field = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
        setattr(where, field[type(kind)], kind)
    return await inference(channel).ModelInfer(request)


ALL = {"max_tokens", "stop", "stop_length", "best", "top", "prompt", "temperature", "top_p", "body"}
FRONT_ENDS: dict[str, tuple[set[str], Call]] = {
    "generate": (ALL, over_http("/generate", lambda t, a: {"inputs": t, "parameters": tgi(a)})),
    "/": (ALL, over_http("/", lambda t, a: {"inputs": t, "parameters": tgi(a)})),
    "generate_stream": (
        ALL - {"best"},
        over_http("/generate_stream", lambda t, a: {"inputs": t, "parameters": tgi(a)}),
    ),
    "sagemaker": (
        ALL,
        over_http("/invocations", lambda t, a: {"inputs": t, "parameters": tgi(a)}),
    ),
    "vertex": (
        ALL,
        over_http("/vertex", lambda t, a: {"instances": [{"inputs": t, "parameters": tgi(a)}]}),
    ),
    "chat": (
        ALL,
        over_http("/v1/chat/completions", lambda t, a: {"messages": _messages(t), **chat(a)}),
    ),
    "completions": (ALL, over_http("/v1/completions", _completion)),
    "responses": (
        ALL - {"stop", "stop_length", "best", "top"},
        over_http("/v1/responses", _responses),
    ),
    # its clients always name the most tokens of Anthropic's own models: it takes what fits
    "anthropic": (ALL - {"best", "top", "max_tokens"}, over_http("/v1/messages", _anthropic)),
    "kserve": (ALL - {"top"}, over_http(f"/v2/models/{MODELS[0]}/infer", _tensors)),
    "kserve generate": (
        ALL,
        over_http(
            f"/v2/models/{MODELS[0]}/generate",
            lambda t, a: {"text_input": t, "parameters": tgi(a)},
        ),
    ),
    "grpc": (ALL, over_grpc(lambda c, t, a: generation(c).Generate(asked(t, **tgi(a))))),
    "grpc stream": (
        ALL - {"best"},
        over_grpc(lambda c, t, a: first_of(generation(c).GenerateStream)(asked(t, **tgi(a)))),
    ),
    "kserve grpc": (ALL - {"top", "stop"}, over_grpc(_triton)),
}


def _near(limit: int, slack: int = 0) -> st.SearchStrategy[int]:
    """Numbers on both sides of a limit; `slack` below it depends on how a prompt is wrapped."""
    under = st.integers(1, limit - slack)
    over = st.integers(limit + 1, limit + 2) | st.integers(limit + 1, 2**31 - 1)
    return under | st.just(limit - slack) | over


TEMPLATE = 60  # tokens at most that a chat's template adds to a short prompt
WANTED: dict[str, st.SearchStrategy[tuple[str, Mapping[str, Any], bool]]] = {
    "max_tokens": _near(INFO.max_model_len, TEMPLATE).map(
        lambda n: ("a", {"max_tokens": n}, n <= INFO.max_model_len)
    ),
    "stop": st.integers(1, 2 * OPTIONS.max_stop_sequences).map(
        lambda n: ("a", {"stop": ["b"] * n}, n <= OPTIONS.max_stop_sequences)
    ),
    "stop_length": st.sampled_from([1, MAX_STOP_LENGTH, MAX_STOP_LENGTH + 1, 50_000]).map(
        lambda n: ("a", {"stop": ["b" * n]}, n <= MAX_STOP_LENGTH)
    ),
    "best": st.sampled_from([1, 2, 5, 1000, 2**31 - 1]).map(
        lambda n: ("a", {"best": n}, n <= OPTIONS.max_best_of)
    ),
    "top": _near(OPTIONS.max_top_n_tokens).map(
        lambda n: ("a", {"top": n}, n <= OPTIONS.max_top_n_tokens)
    ),
    "prompt": st.sampled_from([1, 300, INFO.max_input_len + 1, 5000]).map(
        lambda n: (WORD * n, {"max_tokens": 1}, n <= INFO.max_input_len)
    ),
    "temperature": st.sampled_from([0.1, 1.0, -0.1, -1e300]).map(
        lambda x: ("a", {"temperature": x}, x > 0)
    ),
    "top_p": st.sampled_from([0.1, 0.99, 0.0, -0.5, 1.5, 1e300]).map(
        lambda x: ("a", {"top_p": x}, 0 < x < 1)
    ),
    "body": st.just(("a" * OPTIONS.payload_limit, {}, False)),
}


@pytest.mark.parametrize("limit", WANTED)
def test_every_front_end_decides_alike(router: Router, limit: str) -> None:
    """S11: what one of them refuses, all do, and what one takes, all do."""
    taken_by = {name: call for name, (limits, call) in FRONT_ENDS.items() if limit in limits}
    assert len(taken_by) >= 8

    @settings(max_examples=6, deadline=None)
    @given(WANTED[limit])
    def decide(case: tuple[str, Mapping[str, Any], bool]) -> None:
        asyncio.run(_decide(router, taken_by, *case))

    decide()


async def _decide(
    router: Router,
    taken_by: Mapping[str, Call],
    text: str,
    asked_for: Mapping[str, Any],
    fits: bool,
) -> None:
    router.engine.requests.clear()
    async with serving_grpc(router.state) as channel:
        found = {
            name: await call(router, channel, text, asked_for) for name, call in taken_by.items()
        }
    assert set(found.values()) == {fits}, json.dumps(found)
    sent = len(router.engine.requests)
    lengths = {
        len(request.prompt_ids) + (request.sampling.max_tokens or 0)
        for request in router.engine.requests.values()
    }
    assert max(lengths, default=0) <= INFO.max_model_len
    assert (sent >= len(taken_by)) if fits else sent == 0


def test_every_route_that_generates_is_a_front_end_here(router: Router) -> None:
    """S11: a new one cannot slip through."""
    known = {
        *("/", "/generate", "/generate_stream", "/invocations", "/vertex", "/v1/chat/completions"),
        *("/v1/completions", "/v1/responses", "/v1/messages", "/v2/models/{name}/infer"),
        "/v2/models/{name}/generate",
        "/v2/models/{name}/generate_stream",  # the bodies and checks of `/generate` beside it
        "/v2/models/{name}/versions/{version}/infer",
        "/v2/models/{name}/versions/{version}/generate",
        "/v2/models/{name}/versions/{version}/generate_stream",
    }
    silent = {"/tokenize", "/chat_tokenize", "/detokenize", "/v1/messages/count_tokens"}
    posts = {path for path, methods in router.app.openapi()["paths"].items() if "post" in methods}
    assert {path for path in posts if "watermark" not in path} == known | silent
