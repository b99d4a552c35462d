"""Isolation: what one request does ends with it, and nobody else hears of it."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_traffic import GREEDY, answers, make_engine, prompt
from grpc_calls import asked, generation, serving_grpc, until
from infercore.engine.request import FinishReason, Request
from infercore.errors import InvalidRequest
from infercore.hub import demo_path
from infercore.sampling import MAX_SEED, SamplingParams
from infercore.text.tokenizer import Tokenizer
from memory_engine import MemoryEngine
from memory_router import Router
from numpy_executor import NumpyExecutor
from toy_model import VOCAB

PATHS: dict[str, dict[str, Any]] = {
    "/generate": {"inputs": "boom"},
    "/generate_stream": {"inputs": "boom"},
    "/tokenize": {"prompt": "boom"},
    "/vertex": {"instances": [{"inputs": "boom"}]},
    "/v1/completions": {"prompt": "boom"},
    "/v2/models/infercore/demo/generate": {"text_input": "boom"},
}
IDS = (-1, VOCAB, VOCAB + 1, 2**31, 2**63, -(2**63))


class BrokenTokenizer(Tokenizer):
    """Fails at one text, as a library might."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        if text == "boom":
            raise RuntimeError(f"thread panicked at {__file__}, object at 0x7f0012345678")
        return super().encode(text, add_special_tokens=add_special_tokens)


async def test_an_unforeseen_error_ends_one_request(texts: Any) -> None:
    """S20, S36: it is told as an error of the server, of which it says nothing, and frees all."""
    router = Router((BrokenTokenizer(demo_path()), texts[1]), MemoryEngine([260, 553]))
    for path, body in PATHS.items():
        failed, fine = await asyncio.gather(
            router.http.post(path, json=body), router.http.post("/generate", json={"inputs": "a"})
        )
        assert failed.status_code == 500, path
        assert "Its cause is in the server's log" in failed.text
        assert not any(word in failed.text for word in ("panicked", "0x7f", ".py", "Runtime"))
        assert fine.json() == {"generated_text": " a time"}
    assert router.metrics()["infercore_requests_in_flight", ""] == 0


@pytest.mark.parametrize("bad", IDS)
@pytest.mark.parametrize("field", ["prompt", "output", "stop", "bias"])
def test_ids_are_in_range_before_an_executor_sees_them(field: str, bad: int) -> None:
    """S21: the engine looks too, whoever sent the request."""
    engine = make_engine(NumpyExecutor())
    request = Request(1, prompt(4), GREEDY)
    with pytest.raises(InvalidRequest, match=f"{bad} is not a token id"):
        engine.add(_changed(request, field, bad))
    engine.add(request)


def _changed(request: Request, field: str, bad: int) -> Request:
    match field:
        case "prompt":
            return replace(request, prompt_ids=[2, bad])
        case "output":
            return replace(request, output_ids=(bad,))
        case "stop":
            return replace(request, sampling=replace(GREEDY, stop_token_ids=(bad,)))
        case _:
            return replace(request, sampling=replace(GREEDY, logit_bias={bad: 1.0}))


ATTACKS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1e-6, 1.0, 1e6]),
    top_k=st.sampled_from([0, 1, VOCAB, 2**30]),
    top_p=st.sampled_from([1e-9, 0.5, 1.0]),
    min_p=st.sampled_from([0.0, 1.0]),
    repetition_penalty=st.sampled_from([1e-6, 1.0, 1e6]),
    frequency_penalty=st.sampled_from([-2.0, 0.0, 2.0]),
    logit_bias=st.dictionaries(
        st.integers(0, VOCAB - 1), st.sampled_from([-1e30, -100.0, 100.0, 1e30])
    ),
    seed=st.integers(0, MAX_SEED),
    max_tokens=st.integers(1, 12),
    stop_token_ids=st.lists(st.integers(0, VOCAB - 1), max_size=3).map(tuple),
    logprobs=st.sampled_from([None, 0, VOCAB]),
    prompt_logprobs=st.sampled_from([None, 0, 5]),
)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(ATTACKS, st.integers(1, 20)), min_size=1, max_size=4))
def test_neighbours_get_the_same_bits(attacks: list[tuple[SamplingParams, int]]) -> None:
    """S21: tokens and log-probabilities, with and without others who ask for extremes."""
    sampled = replace(GREEDY, temperature=0.8, seed=7, logprobs=3)
    mine = [Request(1, prompt(5), replace(GREEDY, logprobs=3)), Request(2, prompt(9, 1), sampled)]
    alone = answers(NumpyExecutor(), mine)
    others = [
        Request(10 + i, prompt(length, i), sampling) for i, (sampling, length) in enumerate(attacks)
    ]
    beside = answers(NumpyExecutor(), [*others, *mine])[len(others) :]
    for one, other in zip(alone, beside, strict=True):
        assert one.tokens == other.tokens
        assert one.logprobs == other.logprobs


async def test_equal_ids_of_clients_do_not_meet(texts: Any) -> None:
    """S22: the engine's ids are the router's own, over HTTP and over gRPC."""
    router = Router(texts, MemoryEngine())
    headers = {"x-request-id": "same", "x-amzn-trace-id": "same"}
    async with serving_grpc(router.state) as channel:
        calls = [
            asyncio.create_task(
                router.http.post("/generate", json={"inputs": text}, headers=headers)
            )
            for text in ("a", "b")
        ]
        metadata = (("x-request-id", "same"),)
        third = asyncio.ensure_future(generation(channel).Generate(asked("c"), metadata=metadata))
        await until(lambda: len(router.engine.requests) == 3)
        by_text = {
            router.state.tokenizer.decode(request.prompt_ids): number
            for number, request in router.engine.requests.items()
        }
        assert len(by_text) == len(set(by_text.values())) == 3
        assert "same" not in map(str, router.engine.requests)
        for text, token in (("c", 508), ("b", 553), ("a", 260)):
            router.engine.say(by_text[text], [token], FinishReason.LENGTH)
        replies = [(await call).json()["generated_text"] for call in calls]
        assert replies == [router.state.tokenizer.decode([token]) for token in (260, 553)]
        assert (await third).generated_text == router.state.tokenizer.decode([508])


async def test_of_two_who_share_an_id_one_leaves(texts: Any) -> None:
    """S22: the other stays."""
    router = Router(texts, MemoryEngine())
    headers = {"x-request-id": "same"}
    first, second = (
        asyncio.create_task(router.http.post("/generate", json={"inputs": "a"}, headers=headers))
        for _ in range(2)
    )
    await until(lambda: len(router.engine.requests) == 2)
    first.cancel()
    await asyncio.wait({first})
    (aborted,) = router.engine.aborted
    (left,) = router.engine.requests.keys() - {aborted}
    router.engine.say(left, [260], FinishReason.LENGTH)
    assert (await second).json() == {"generated_text": " a"}


@pytest.mark.parametrize(
    "given_id",
    ["", " ", "two words", "a" * 129, "\N{LATIN SMALL LETTER E WITH ACUTE}", "a\tb", "\x1b[31m"],
)
async def test_ids_that_no_log_should_hold_are_replaced(router: Router, given_id: str) -> None:
    """S22, S38: by one of the server's."""
    headers = [(b"x-request-id", given_id.encode("latin-1"))]
    answer = await router.http.get("/info", headers=headers)
    assert len(answer.headers["x-request-id"]) == 32
    int(answer.headers["x-request-id"], 16)
