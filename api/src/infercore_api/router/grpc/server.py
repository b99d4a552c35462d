"""GrpcServer: the router's second port, for those who speak gRPC. In the same process and loop."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from infercore.errors import ConfigError
from infercore_api.router import access
from infercore_api.router.api_keys import ApiKeys
from infercore_api.router.engine_client import EnginePhase
from infercore_api.router.grpc import generation_service, inference_service
from infercore_api.router.grpc.call import Call, Context, headers_of
from infercore_api.router.grpc.generation_service import GenerationService
from infercore_api.router.grpc.inference_service import InferenceService
from infercore_api.router.grpc.methods import service_handler
from infercore_api.router.state import RouterState

LOOK_SECONDS = 0.25  # how late those who watch the health may learn of a change
_MAX_STREAMS = 1024  # calls at once on one connection; more wait at the client
_HEALTH_METHODS = tuple(f"/{health.SERVICE_NAME}/{name}" for name in ("Check", "Watch", "List"))
OPEN_METHODS = frozenset(
    (
        *_HEALTH_METHODS,
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ServerReady",
    )
)
"""What needs no key: health, as over HTTP. Whatever is not named needs one, reflection too."""


class GrpcServer:
    """Serves a router's state at `host`:`port` until it is stopped.

    Raises ConfigError if the address cannot be had, or for an unusable file of keys.
    """

    def __init__(self, state: RouterState, host: str, port: int) -> None:
        self._state = state
        options = state.options
        file = Path(options.api_key_file) if options.api_key_file else None
        keys = ApiKeys(options.api_keys, file)
        self._server = grpc.aio.server(
            interceptors=[_KeyCheck(keys)] if keys else [],
            options=(
                ("grpc.max_receive_message_length", options.payload_limit),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", _MAX_STREAMS),
                ("grpc.so_reuseport", 0),  # two servers on one port is a mistake
            ),
        )
        self._health = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
        self._names = ("", *self._add_services())
        self.port = self._bind(host, port)
        self._watching: asyncio.Task[None] | None = None

    def _add_services(self) -> tuple[str, ...]:
        """Returns the full names of those whose health is told."""
        state, seconds = self._state, self._state.options.write_timeout
        services = (
            (generation_service.SERVICE, GenerationService(state).methods),
            (inference_service.SERVICE, InferenceService(state).methods),
        )
        names = tuple(service.full_name for service, _ in services)
        handlers = [service_handler(*service, seconds) for service in services]
        self._server.add_generic_rpc_handlers(handlers)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        every = (*names, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(every, self._server)
        return names

    def _bind(self, host: str, port: int) -> int:
        shown = f"[{host}]" if ":" in host else host
        try:
            return int(self._server.add_insecure_port(f"{shown}:{port}"))
        except RuntimeError as error:
            raise ConfigError(
                f"cannot listen on {host} port {port} for gRPC. Stop the program that uses it "
                "(`ss -ltnp` names it), or choose another with --grpc-port"
            ) from error

    async def start(self) -> None:
        await self._tell_health()
        await self._server.start()
        self._watching = asyncio.create_task(self._watch(), name="gRPC health")

    async def stop(self, seconds: float) -> None:
        """Take nothing new, and end after so long at most what is not answered yet."""
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        await self._health.enter_graceful_shutdown()
        await self._server.stop(seconds)

    async def _watch(self) -> None:
        while True:
            await self._tell_health()
            await asyncio.sleep(LOOK_SECONDS)

    async def _tell_health(self) -> None:
        ready = self._state.engine.state.phase is EnginePhase.READY
        statuses = health_pb2.HealthCheckResponse
        status = statuses.SERVING if ready else statuses.NOT_SERVING
        for name in self._names:
            await self._health.set(name, status)


class _KeyCheck(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # gRPC has no types of its own
    """Refuses calls without a key in `authorization` or `x-api-key`, as over HTTP."""

    def __init__(self, keys: ApiKeys) -> None:
        self._keys = keys

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        details = handler_call_details
        headers = headers_of(details.invocation_metadata)
        if details.method in OPEN_METHODS or access.bring_key(headers, self._keys):
            return await continuation(details)

        async def refuse(requests: Any, context: Context) -> None:
            del requests
            async with Call(context, str(details.method)):
                raise access.no_key()

        return grpc.stream_stream_rpc_method_handler(refuse)
