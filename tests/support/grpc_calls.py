"""Callers of our gRPC services, made from their descriptors, for channels of both kinds."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from infercore_api.router.grpc import generation_pb2 as pb
from infercore_api.router.grpc import generation_service, inference_service
from infercore_api.router.grpc.server import GrpcServer
from infercore_api.router.state import RouterState


class Stub:
    """A service's methods as attributes."""

    def __init__(self, channel: Any, service: ServiceDescriptor) -> None:
        for method in service.methods:
            client = "stream" if method.client_streaming else "unary"
            server = "stream" if method.server_streaming else "unary"
            make = getattr(channel, f"{client}_{server}")
            call = make(
                f"/{service.full_name}/{method.name}",
                request_serializer=GetMessageClass(method.input_type).SerializeToString,
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
            setattr(self, method.name, call)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the service has no method {name}")


def generation(channel: Any) -> Stub:
    return Stub(channel, generation_service.SERVICE)


def inference(channel: Any) -> Stub:
    return Stub(channel, inference_service.SERVICE)


@asynccontextmanager
async def serving_grpc(state: RouterState) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a gRPC server of `state`, in this process."""
    server = GrpcServer(state, "127.0.0.1", 0)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield channel
    finally:
        await server.stop(0)


def asked(inputs: str = "a", **parameters: Any) -> pb.GenerateRequest:
    """A request of the generation service."""
    return pb.GenerateRequest(inputs=inputs, parameters=pb.Parameters(**parameters))


async def refusal(call: Any) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    """Code, message and trailing metadata of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    metadata = {str(name): str(value) for name, value in error.trailing_metadata()}
    return error.code(), str(error.details()), metadata


def first_of(stream: Any) -> Any:
    """A call of a method that streams, which gives the first reply."""

    async def call(request: Any, **more: Any) -> Any:
        return await anext(aiter(stream(request, **more)))

    return call


async def until(holds: Callable[[], bool]) -> None:
    """Look again and again until `holds`."""
    for _ in range(2000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to be")
