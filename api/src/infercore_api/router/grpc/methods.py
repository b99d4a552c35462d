"""From methods that take and give messages to the handlers of a gRPC service."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from infercore.errors import InvalidRequest
from infercore_api.router.grpc.call import Call, Context
from infercore_api.router.streaming import ClientLeft

Unary: TypeAlias = Callable[[Any, Call], Awaitable[Message]]
"""Takes the request's message, answers with one."""

Streaming: TypeAlias = Callable[[Any, Call], AsyncGenerator[Message, None]]
"""Takes the request's message, or an iterator of them, answers with any number."""


def service_handler(
    service: ServiceDescriptor, methods: Mapping[str, Unary | Streaming], write_timeout: float
) -> grpc.GenericRpcHandler:
    """A handler of all methods of `service`.

    Messages are decoded here and not by gRPC, so that a damaged one is refused like any other.
    write_timeout: seconds that a client may leave a message unread before its call is ended.
    """
    handlers = {
        method.name: _handler(method, methods[method.name], write_timeout)
        for method in service.methods
    }
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


def _handler(
    method: MethodDescriptor, function: Any, write_timeout: float
) -> grpc.RpcMethodHandler:
    path = f"/{method.containing_service.full_name}/{method.name}"
    decode = _decoder(method)

    async def unary(data: bytes, context: Context) -> bytes:
        async with Call(context, path) as call:
            reply: Message = await function(decode(data), call)
            return reply.SerializeToString()

    async def streaming(data: bytes, context: Context) -> None:
        await _stream(context, path, lambda call: function(decode(data), call), write_timeout)

    async def both_streaming(requests: AsyncIterator[bytes], context: Context) -> None:
        decoded = (decode(data) async for data in requests)
        await _stream(context, path, lambda call: function(decoded, call), write_timeout)

    if method.client_streaming:
        return grpc.stream_stream_rpc_method_handler(both_streaming)
    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(streaming)
    return grpc.unary_unary_rpc_method_handler(unary)


def _decoder(method: MethodDescriptor) -> Callable[[bytes], Message]:
    kind = GetMessageClass(method.input_type)

    def decode(data: bytes) -> Message:
        try:
            return kind.FromString(data)
        except DecodeError as error:
            raise InvalidRequest(
                f"the message cannot be decoded as {method.input_type.full_name}"
            ) from error

    return decode


async def _stream(
    context: Context,
    path: str,
    replies_of: Callable[[Call], AsyncGenerator[Message, None]],
    write_timeout: float,
) -> None:
    try:
        async with Call(context, path) as call, aclosing(replies_of(call)) as replies:
            async for reply in replies:
                await _write(reply, context, write_timeout)
    except ClientLeft:
        # the status comes after what is unread, so waiting until it is sent would have no end
        context.set_code(grpc.StatusCode.ABORTED)
        context.set_details(f"The stream was left unread for {write_timeout:g} s")


async def _write(reply: Message, context: Context, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await context.write(reply.SerializeToString())
    except TimeoutError as error:
        raise ClientLeft from error
