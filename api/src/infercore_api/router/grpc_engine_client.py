"""An engine in another process, reached over one gRPC stream."""

import asyncio
import logging
from collections.abc import AsyncIterable, Callable
from time import monotonic

import grpc
import grpc.aio

from infercore.engine import codec
from infercore.engine import engine_pb2 as pb
from infercore.engine.info import EngineInfo
from infercore.engine.link import Link
from infercore.engine.request import EngineStats, FinishReason, Output, Request
from infercore.errors import EngineUnavailable
from infercore_api.router.engine_client import EngineClient, EnginePhase, EngineState, Sink

log = logging.getLogger(__name__)

RECONNECT_SECONDS = 0.1
_READ_SECONDS = 0.5
_CHANNEL_OPTIONS = (
    *codec.UNLIMITED_MESSAGES,
    ("grpc.use_local_subchannel_pool", 1),  # a new stream does not inherit an old one's back-off
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
)
_STARTING = EngineState(EnginePhase.STARTING)
_UNUSABLE = "request %d is dropped: its output could not be used"


class GrpcEngineClient(EngineClient):
    """Keeps one stream to the engine at `link`, and opens it again whenever it breaks.

    heartbeat_timeout: seconds without a message from a ready engine before it counts as lost.
    on_ready: called each time that the engine becomes ready.
    """

    def __init__(
        self,
        link: Link,
        heartbeat_timeout: float = 10.0,
        on_ready: Callable[[EngineInfo], None] | None = None,
    ) -> None:
        self._link = link
        self._heartbeat_timeout = heartbeat_timeout
        self._on_ready = on_ready
        self._live: dict[int, Sink] = {}
        self._outbox: asyncio.Queue[bytes] = asyncio.Queue()
        self._state = _STARTING
        self._info: EngineInfo | None = None
        self._stats = EngineStats()
        self._messages = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._task: asyncio.Task[None] | None = None

    @property
    def state(self) -> EngineState:
        return EngineState(EnginePhase.DRAINING) if self._draining else self._state

    @property
    def info(self) -> EngineInfo | None:
        return self._info

    @property
    def stats(self) -> EngineStats:
        return self._stats

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="engine client")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        self._lose("the server is shutting down")

    async def drain(self, seconds: float) -> bool:
        """Refuse new requests and give the live ones so long. Returns whether all of them ended."""
        self._draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def submit(self, request: Request, sink: Sink) -> None:
        if self._draining:
            raise EngineUnavailable("The server is shutting down and takes no new requests")
        if self._state.phase is not EnginePhase.READY:
            raise EngineUnavailable(
                f"The engine is not ready (it is {self._state.phase.value}); try again soon"
            )
        assert request.request_id not in self._live
        self._live[request.request_id] = sink
        self._idle.clear()
        self._outbox.put_nowait(codec.encode_submit(request))

    def abort(self, request_id: int) -> None:
        if self._live.pop(request_id, None) is None:
            return
        self._outbox.put_nowait(codec.encode_abort(request_id))
        if not self._live:
            self._idle.set()

    async def _run(self) -> None:
        while True:
            try:
                await self._session()
            except grpc.aio.AioRpcError as error:
                # a socket that is not there yet is how every start looks
                refused = error.code() is grpc.StatusCode.UNAUTHENTICATED
                say = log.error if refused else log.debug
                say("the stream to the engine broke: %s", error.details())
            self._lose("the engine that ran this request died")
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _session(self) -> None:
        """One stream, from its opening until it breaks. Raises AioRpcError."""
        async with _channel(self._link) as channel:
            self._outbox = asyncio.Queue()
            stream = channel.stream_stream(codec.METHOD)(
                metadata=self._link.metadata, wait_for_ready=True
            )
            reader = asyncio.create_task(self._read(stream))
            tasks = {
                reader,
                asyncio.create_task(self._watch()),
                asyncio.create_task(self._write(stream)),
            }
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if reader.done():
                    reader.result()
            finally:
                for task in tasks:
                    task.cancel()
                # a write that failed says only what the reader says too
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, stream: AsyncIterable[bytes]) -> None:
        async for message in stream:
            self._messages += 1
            self._receive(pb.ToRouter.FromString(message))

    async def _write(self, stream: "grpc.aio.StreamStreamCall[bytes, bytes]") -> None:
        while True:
            await stream.write(await self._outbox.get())

    async def _watch(self) -> None:
        """Return when an engine that was ready has fallen silent."""
        seen = -1
        while seen != self._messages or self._state.phase is not EnginePhase.READY:
            seen = self._messages
            await asyncio.sleep(self._heartbeat_timeout)
            # if this process was stopped itself, what came meanwhile is read first
            await asyncio.sleep(_READ_SECONDS)
        log.error("no sign of life from the engine for %.1f s", self._heartbeat_timeout)

    def _receive(self, message: pb.ToRouter) -> None:
        body = message.WhichOneof("body")
        if body == "outputs":
            self._deliver(message.outputs)
        elif body == "heartbeat":
            self._stats = codec.decode_stats(message.heartbeat)
        elif body == "hello":
            self._info = codec.decode_info(message.hello)
            self._state = EngineState(EnginePhase.READY)
            if self._on_ready is not None:
                self._on_ready(self._info)
        elif body == "progress":
            progress = message.progress
            warming = progress.phase.startswith("warm")
            phase = EnginePhase.WARMING if warming else EnginePhase.LOADING
            self._state = EngineState(phase, progress.done, progress.total)

    def _deliver(self, outputs: pb.Outputs) -> None:
        """Hand out what one step brought; the fault of one request must not end the others."""
        plain, others = codec.decode_outputs(outputs)
        now = monotonic()
        for request_id, token_id, logprob in plain:
            sink = self._live.get(request_id)
            if sink is not None:
                try:
                    sink.token(token_id, logprob, now)
                except Exception:
                    log.exception(_UNUSABLE, request_id)
                    self.abort(request_id)
        for output in others:
            sink = self._live.get(output.request_id)
            if output.finish_reason is not None:
                self._live.pop(output.request_id, None)
            if sink is not None and not _delivered(sink, output):
                self.abort(output.request_id)
        if not self._live:
            self._idle.set()

    def _lose(self, why: str) -> None:
        """End every live request: their engine is gone."""
        self._state = _STARTING
        self._stats = EngineStats()
        lost, self._live = self._live, {}
        self._idle.set()
        for request_id, sink in lost.items():
            error = EngineUnavailable(f"The request was not finished: {why}; it is safe to retry")
            _delivered(sink, Output(request_id, finish_reason=FinishReason.ERROR, error=error))


def _delivered(sink: Sink, output: Output) -> bool:
    """Whether the request took its output."""
    try:
        sink.output(output)
    except Exception:
        log.exception(_UNUSABLE, output.request_id)
        return False
    return True


def _channel(link: Link) -> grpc.aio.Channel:
    if not link.ca:
        return grpc.aio.insecure_channel(link.address, _CHANNEL_OPTIONS)
    credentials = grpc.ssl_channel_credentials(link.ca.encode())
    return grpc.aio.secure_channel(link.address, credentials, _CHANNEL_OPTIONS)
