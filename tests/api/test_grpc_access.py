"""gRPC: health, keys, reflection, and the same tokens as over HTTP from a real server."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from grpc_calls import asked, first_of, generation, inference, refusal, serving_grpc
from infercore.errors import ConfigError
from infercore.hub import demo_path
from infercore.text.chat_template import ChatTemplate
from infercore.text.tokenizer import Tokenizer
from infercore_api.router.engine_client import EnginePhase
from infercore_api.router.grpc import open_inference_pb2 as oip
from infercore_api.router.grpc.server import GrpcServer
from memory_engine import MemoryEngine
from memory_router import Router
from processes import Server, eventually, free_port, serving

SAID = [260, 553]  # " a", " time"
STORY = "Once upon a time"


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


# --- health, reflection, keys ---------------------------------------------------------------------


async def test_health_follows_the_engine(router: Router, channel: Any) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    serving_status = health_pb2.HealthCheckResponse.SERVING
    for name in ("", "infercore.v1.Generation", "inference.GRPCInferenceService"):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == serving_status
    watch = stub.Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == serving_status
    router.engine.phase = EnginePhase.DRAINING
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    ready = await inference(channel).ServerReady(oip.ServerReadyRequest())
    live = await inference(channel).ServerLive(oip.ServerLiveRequest())
    assert (live.live, ready.ready) == (True, False)
    code, text, metadata = await refusal(generation(channel).Generate(asked()))
    assert (code, text) == (grpc.StatusCode.UNAVAILABLE, "The engine is not ready")
    assert metadata["retry-after"] == "1"


async def test_keys_are_asked_for(texts: Any) -> None:
    router = Router(texts, MemoryEngine(SAID), api_keys=("First", "Second"))
    wrong: tuple[tuple[tuple[str, str], ...], ...] = (
        (),
        (("authorization", "First"),),
        (("authorization", "Bearer first"),),
        (("x-api-key", "Firs"),),
        (("x-api-key", "First"), ("authorization", "Bearer Second")),
    )
    right: tuple[tuple[tuple[str, str], ...], ...] = (
        (("authorization", "Bearer First"),),
        (("authorization", "bearer Second"),),
        (("x-api-key", "Second"),),
    )
    async with serving_grpc(router.state) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        open_calls = (
            stub.Check(health_pb2.HealthCheckRequest()),
            inference(channel).ServerLive(oip.ServerLiveRequest()),
            inference(channel).ServerReady(oip.ServerReadyRequest()),
        )
        for call in open_calls:
            await call
        for metadata in wrong:
            for call in _every_other_call(channel, metadata):
                code, text, _ = await refusal(call)
                assert code is grpc.StatusCode.UNAUTHENTICATED
                assert "First" not in text
        for metadata in right:
            reply = await generation(channel).Generate(asked(), metadata=metadata)
            assert reply.generated_text == " a time"
            stream = first_of(generation(channel).GenerateStream)
            assert (await stream(asked(), metadata=metadata)).index == 1


def _every_other_call(channel: Any, metadata: Any) -> Iterator[Any]:
    ours, theirs = generation(channel), inference(channel)
    yield ours.Generate(asked(), metadata=metadata)
    yield first_of(ours.GenerateStream)(asked(), metadata=metadata)
    for name in ("ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer"):
        kind = getattr(oip, f"{name}Request")
        yield getattr(theirs, name)(kind(), metadata=metadata)
    for path in ("inference.GRPCInferenceService/ModelStreamInfer", "a.B/C",
                 "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                 "/grpc.health.v1.Health/Check", "grpc.health.v1.Health/check"):  # fmt: skip
        yield first_of(channel.stream_stream(f"/{path}"))(iter([b""]), metadata=metadata)


async def test_the_id_of_a_call_is_the_clients(channel: Any) -> None:
    call = generation(channel).Generate(asked(), metadata=(("x-request-id", "mine-1"),))
    await call
    assert dict(await call.trailing_metadata())["x-request-id"] == "mine-1"


async def test_a_port_in_use_refuses_the_start(router: Router) -> None:
    first = GrpcServer(router.state, "127.0.0.1", 0)
    with pytest.raises(ConfigError, match=f"port {first.port} for gRPC.*--grpc-port"):
        GrpcServer(router.state, "127.0.0.1", first.port)
    await first.stop(0)


# --- a real server --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, grpc.Channel]]:
    port = free_port()
    flags = ("--dtype", "float32", "--max-total-tokens", "600", "--grpc-port", str(port))
    folder = tmp_path_factory.mktemp("grpc")
    with serving(folder, *flags) as server, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield server, channel
        assert server.end() == 0
        assert "Traceback" not in server.log.read_text()


def test_tokens_are_those_of_generate(served: tuple[Server, grpc.Channel]) -> None:
    server, channel = served
    for more in ({}, {"do_sample": True, "seed": 7, "top_p": 0.9}):
        parameters: dict[str, Any] = {"max_new_tokens": 12, "details": True, **more}
        over_http = server.post("/generate", {"inputs": STORY, "parameters": parameters})
        whole = generation(channel).Generate(asked(STORY, **parameters))
        streamed = list(generation(channel).GenerateStream(asked(STORY, **parameters)))
        ids = [token["id"] for token in over_http["details"]["tokens"]]
        assert [token.id for token in whole.details.tokens] == ids
        assert [message.token.id for message in streamed] == ids
        assert whole.generated_text == over_http["generated_text"]
        assert streamed[-1].generated_text == over_http["generated_text"]


def test_cancelling_frees_the_kv_blocks(served: tuple[Server, grpc.Channel]) -> None:
    server, channel = served
    stream = generation(channel).GenerateStream(asked(STORY, max_new_tokens=500, do_sample=True))
    for _ in range(3):
        next(stream)
    assert server.metric("infercore_requests_in_flight") == 1
    stream.cancel()

    def idle() -> bool:
        gauges = ("running_sequences", "kv_usage_ratio", "requests_in_flight")
        return all(server.metric(f"infercore_{gauge}") == 0 for gauge in gauges)

    eventually(idle, 10, "nothing runs or holds a block")


def test_reflection_shows_every_service(served: tuple[Server, grpc.Channel]) -> None:
    _, channel = served
    found = ProtoReflectionDescriptorDatabase(channel)
    assert {"infercore.v1.Generation", "inference.GRPCInferenceService",
            "grpc.health.v1.Health"} <= set(found.get_services())  # fmt: skip
    pool = DescriptorPool(found)
    service = pool.FindServiceByName("infercore.v1.Generation")
    assert [method.name for method in service.methods] == ["Generate", "GenerateStream"]
