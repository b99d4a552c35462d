"""gRPC: the generation service, its refusals, and those who leave it."""

import asyncio
import contextlib
import json
import random
import runpy
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from grpc_calls import asked, first_of, generation, refusal, serving_grpc, until
from infercore.engine.request import FinishReason
from infercore.errors import GenerationFailed, Overloaded
from infercore.hub import demo_path
from infercore.text.chat_template import ChatTemplate
from infercore.text.tokenizer import Tokenizer
from infercore_api.router.grpc import generation_pb2 as pb
from infercore_api.router.grpc import open_inference_pb2 as oip
from infercore_api.router.tgi_schema import Parameters
from memory_engine import MemoryEngine
from memory_router import Router

SAID = [260, 553]  # " a", " time"


@pytest.fixture(scope="module")
def texts() -> Iterator[tuple[Tokenizer, ChatTemplate]]:
    with ChatTemplate.open(demo_path()) as template:
        yield Tokenizer(demo_path()), template


@pytest.fixture
def router(texts: Any) -> Router:
    """Answers " a time" to everything."""
    return Router(texts, MemoryEngine(SAID))


@pytest.fixture
async def channel(router: Router) -> AsyncIterator[grpc.aio.Channel]:
    async with serving_grpc(router.state) as opened:
        yield opened


# --- the service ----------------------------------------------------------------------------------


async def test_generate_answers_with_the_text_and_with_details(channel: Any) -> None:
    plain = await generation(channel).Generate(asked())
    assert plain.generated_text == " a time"
    assert not plain.HasField("details")
    reply = await generation(channel).Generate(
        asked(details=True, best_of=2, do_sample=True, top_n_tokens=1, return_full_text=True)
    )
    assert reply.generated_text == "a a time"
    details = reply.details
    assert (details.finish_reason, details.generated_tokens) == ("length", 2)
    assert [token.id for token in details.tokens] == SAID
    assert len(details.top_tokens) == 2
    (other,) = details.best_of_sequences
    assert other.generated_text == "a a time"
    assert {details.seed + 1, details.seed - 1} & {other.seed}


async def test_a_stream_has_a_message_per_token(channel: Any) -> None:
    replies = [each async for each in generation(channel).GenerateStream(asked(details=True))]
    assert [each.index for each in replies] == [1, 2]
    assert [each.token.text for each in replies] == [" a", " time"]
    first, last = replies
    assert not first.HasField("generated_text")
    assert last.generated_text == " a time"
    assert last.details.finish_reason == "length"
    assert last.details.input_length == 1
    assert not last.details.HasField("seed")


async def test_without_parameters_the_likeliest_tokens_are_taken(
    router: Router, channel: Any
) -> None:
    await generation(channel).Generate(pb.GenerateRequest(inputs="a"))
    await generation(channel).Generate(asked(temperature=0.5, seed=2**64 - 1))
    greedy, drawn = router.engine.requests.values()
    assert greedy.sampling.temperature == 0
    assert (drawn.sampling.temperature, drawn.sampling.seed) == (0.5, 2**64 - 1)


def test_parameters_are_those_of_generate() -> None:
    fields = {field.name for field in pb.Parameters.DESCRIPTOR.fields}
    assert fields == Parameters.model_fields.keys()


def test_the_generated_files_are_those_of_the_protocols(tmp_path: Path) -> None:
    """Else: run `python api/generate_protocols.py`."""
    root = Path(__file__).parents[2]
    script = runpy.run_path(str(root / "api" / "generate_protocols.py"))
    script["generate"](tmp_path)
    made = sorted(tmp_path.rglob("*_pb2.py*"))
    assert len(made) == 4
    for file in made:
        kept = root / "api" / "src" / file.relative_to(tmp_path)
        assert file.read_text() == kept.read_text(), f"{kept.name} is not what its .proto says"


# --- refusals -------------------------------------------------------------------------------------

BAD: tuple[dict[str, Any], ...] = (
    {"temperature": -0.5},
    {"temperature": float("nan")},
    {"top_p": 1.5},
    {"top_k": -1},
    {"top_k": 0},
    {"max_new_tokens": 0},
    {"max_new_tokens": 2**62},
    {"best_of": 1000},
    {"stop": ["a"] * 5},
    {"stop": ["a" * 1001]},
    {"top_n_tokens": 6},
    {"truncate": 0},
    {"frequency_penalty": 3},
    {"repetition_penalty": 0},
    {"adapter_id": "x"},
    {"grammar": pb.Grammar(type="regex", value="a+")},
)


@pytest.mark.parametrize("parameters", BAD, ids=str)
async def test_rules_and_words_are_those_of_generate(
    router: Router, channel: Any, parameters: dict[str, Any]
) -> None:
    fields = {
        name: {"type": value.type, "value": value.value} if name == "grammar" else value
        for name, value in parameters.items()
    }
    body = json.dumps({"inputs": "a", "parameters": fields})
    over_http = await router.http.post(
        "/generate", content=body, headers={"content-type": "application/json"}
    )
    assert over_http.status_code == 422
    for call in (generation(channel).Generate, first_of(generation(channel).GenerateStream)):
        code, text, metadata = await refusal(call(asked(**parameters)))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert text == over_http.json()["error"]
        assert metadata["error-type"] == "validation"


async def test_what_a_stream_cannot_show_is_refused(channel: Any) -> None:
    stream = first_of(generation(channel).GenerateStream)
    several: dict[str, Any] = {"best_of": 2, "do_sample": True}
    details: dict[str, Any] = {"decoder_input_details": True}
    for parameters in (several, details):
        code, text, _ = await refusal(stream(asked(**parameters)))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "not supported when streaming" in text


async def test_prompts_are_bounded_as_over_http(channel: Any) -> None:
    call = generation(channel).Generate
    code, text, _ = await refusal(call(asked("")))
    assert (code, "cannot be empty" in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    code, text, _ = await refusal(call(asked("word " * 700)))
    assert (code, "less than 511 tokens" in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    code, _, _ = await refusal(call(asked("a" * 2_000_001)))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_other_models_methods_and_messages_are_refused(channel: Any) -> None:
    unknown = pb.GenerateRequest(inputs="a", model="x" * 100_000)
    code, text, _ = await refusal(generation(channel).Generate(unknown))
    assert code is grpc.StatusCode.NOT_FOUND
    assert len(text) == 2000
    code, _, _ = await refusal(channel.unary_unary("/infercore.v1.Generation/Nothing")(b""))
    assert code is grpc.StatusCode.UNIMPLEMENTED
    for damaged in (b"\xff", b"\x0a\x02\xff\xfe", b"\x0a\x7f"):
        for name in ("Generate", "GenerateStream"):
            call = channel.unary_unary(f"/infercore.v1.Generation/{name}")(damaged)
            code, text, _ = await refusal(call)
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert "cannot be decoded as infercore.v1.GenerateRequest" in text


async def test_too_much_at_once_says_when_to_try_again(texts: Any) -> None:
    router = Router(texts, MemoryEngine(), max_concurrent_requests=1)
    async with serving_grpc(router.state) as channel:
        running = generation(channel).Generate(asked())
        first = asyncio.ensure_future(running.code())
        await router.engine.arrived.wait()
        code, text, metadata = await refusal(generation(channel).Generate(asked()))
        assert (code, text) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "Model is overloaded")
        assert metadata["retry-after"] == "1"
        assert metadata["grpc-retry-pushback-ms"] == "1000"
        running.cancel()
        assert await first is grpc.StatusCode.CANCELLED


@pytest.mark.parametrize(
    ("error", "code", "pushback"),
    [
        (GenerationFailed("the step failed"), grpc.StatusCode.INTERNAL, "-1"),
        (Overloaded("full", retry_after=7), grpc.StatusCode.RESOURCE_EXHAUSTED, "7000"),
    ],
)
async def test_what_fails_in_the_engine_has_a_status(
    texts: Any, error: Exception, code: grpc.StatusCode, pushback: str
) -> None:
    router = Router(texts, MemoryEngine())
    async with serving_grpc(router.state) as channel:
        for call in (generation(channel).Generate, first_of(generation(channel).GenerateStream)):
            router.engine.arrived.clear()
            failing = asyncio.ensure_future(refusal(call(asked())))
            await router.engine.arrived.wait()
            router.engine.say(max(router.engine.requests), [], FinishReason.ERROR, error)
            found, _, metadata = await failing
            assert (found, metadata["grpc-retry-pushback-ms"]) == (code, pushback)


async def test_an_unexpected_error_gives_nothing_away(
    router: Router, channel: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("/secret/path 0x7f00")

    monkeypatch.setattr(router.engine, "submit", fail)
    code, text, metadata = await refusal(generation(channel).Generate(asked()))
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in text
    assert "ZeroDivisionError" not in text
    assert "ZeroDivisionError" in caplog.text
    assert metadata["x-request-id"]


async def test_damaged_messages_harm_nobody(router: Router, channel: Any) -> None:
    """Bytes of good messages, changed: whatever comes, each is answered as a fault of its own."""
    chance = random.Random(7)
    infer = oip.ModelInferRequest(model_name="infercore/demo", id="7")
    infer.inputs.add(name="x", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"a")
    infer.parameters["top_k"].int64_param = 5
    good = {
        "infercore.v1.Generation/Generate": asked(temperature=0.7, top_k=9, stop=["x"], seed=1),
        "infercore.v1.Generation/GenerateStream": asked(details=True, top_n_tokens=2),
        "inference.GRPCInferenceService/ModelInfer": infer,
        "inference.GRPCInferenceService/ModelMetadata": oip.ModelMetadataRequest(name="tgi"),
    }
    expected = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"}
    for path, message in good.items():
        data = message.SerializeToString()
        for _ in range(40):
            changed = bytearray(data)
            for _ in range(chance.randint(1, 4)):
                changed[chance.randrange(len(changed))] = chance.randrange(256)
            call = channel.unary_stream(f"/{path}")(bytes(changed))
            with contextlib.suppress(grpc.aio.AioRpcError):
                async for _ in call:  # a status comes after what there is to read
                    pass
            code = await call.code()
            assert code.name in expected, (path, bytes(changed), await call.details())
    assert (await generation(channel).Generate(asked())).generated_text == " a time"
    assert router.metrics()["infercore_requests_in_flight", ""] == 0


# --- those who leave ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cancel", "deadline"])
@pytest.mark.parametrize("name", ["Generate", "GenerateStream"])
async def test_a_call_that_ends_early_ends_its_generation(texts: Any, name: str, how: str) -> None:
    router = Router(texts, MemoryEngine())
    async with serving_grpc(router.state) as channel:
        call = getattr(generation(channel), name)(
            asked(), timeout=0.5 if how == "deadline" else None
        )
        await router.engine.arrived.wait()
        ((request_id, _),) = router.engine.requests.items()
        router.engine.say(request_id, [260])
        if how == "cancel":
            call.cancel()
        ended = await call.code()
        assert ended in (grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)
        await until(lambda: bool(router.engine.aborted))
        assert router.engine.aborted == [request_id]
        assert router.metrics()["infercore_requests_in_flight", ""] == 0


async def test_who_does_not_read_is_cut(texts: Any) -> None:
    router = Router(texts, MemoryEngine(), write_timeout=0.2)
    async with serving_grpc(router.state) as channel:
        call = generation(channel).GenerateStream(asked(max_new_tokens=500, return_full_text=True))
        await router.engine.arrived.wait()
        ((request_id, _),) = router.engine.requests.items()

        def cut() -> bool:  # nobody reads, so windows fill and writes wait
            if not router.engine.aborted:
                router.engine.say(request_id, [260] * 400)
            return bool(router.engine.aborted)

        await until(cut)
        with pytest.raises(grpc.aio.AioRpcError, match="left unread for 0.2 s") as caught:
            async for _ in call:
                pass
        assert caught.value.code() is grpc.StatusCode.ABORTED
        assert router.metrics()["infercore_requests_in_flight", ""] == 0
