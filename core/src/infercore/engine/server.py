"""The engine as a process: a gRPC thread, a step thread, a watchdog.

    router ──Submit, Abort──▶ gRPC thread ──inbox──▶ step thread: launch, then add, abort, step
    router ◀─one message per step─ gRPC thread ◀─outputs──┘

The step thread owns the engine and its executor, from launch to close. It sleeps on the inbox when
there is nothing to do. The gRPC thread is the main one and never waits for a router that is slow
to read. Losing a router's stream aborts its requests.
"""

import asyncio
import contextlib
import faulthandler
import gc
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from infercore.child import ExitCode
from infercore.engine import codec
from infercore.engine import engine_pb2 as pb
from infercore.engine.info import EngineInfo
from infercore.engine.link import Listener
from infercore.engine.request import EngineStats, FinishReason, Output, Request
from infercore.errors import ConfigError, RequestError
from infercore.executor import Progress

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 0.5
_PROGRESS_SECONDS = 0.1
_LAST_STEP_SECONDS = 1.0  # how long the end waits for the step under way
_LAST_STREAM_SECONDS = 0.5  # and for streams to end
_ID_SPACE = 2**40  # request ids of one stream; the stream's number stands above them


class ServedEngine(Protocol):
    """What the server asks of `Engine`."""

    def add(self, request: Request) -> None: ...
    def abort(self, request_id: int) -> None: ...
    def step(self) -> list[Output]: ...
    def stats(self) -> EngineStats: ...
    @property
    def has_work(self) -> bool: ...


class Launched(Protocol):
    """An engine that is ready, its facts, and how to end it."""

    @property
    def engine(self) -> ServedEngine: ...
    @property
    def info(self) -> EngineInfo: ...
    def close(self) -> None: ...


class Report(Protocol):
    """Tells the supervisor."""

    def __call__(self, report: str, **facts: Any) -> None: ...


class _BrokenProtocol(Exception):
    """A router sent what none may; its stream ends, and its requests with it."""


class _Stream:
    """One router's stream: its live requests, and what waits to be written to it.

    serving: the task that reads it; the stream ends with it.
    """

    def __init__(self, number: int, serving: "asyncio.Task[Any]") -> None:
        self.number = number
        self.serving = serving
        self.live: set[int] = set()
        self.outbox: asyncio.Queue[bytes] = asyncio.Queue()


class EngineServer:
    """Serves one engine until `SIGTERM`.

    launch: builds the engine; runs in the step thread, its errors end `serve`.
    step_timeout: seconds of silence with work pending before the watchdog ends the process.
    """

    def __init__(
        self, launch: Callable[[Progress], Launched], step_timeout: float, report: Report
    ) -> None:
        self._launch = launch
        self._step_timeout = step_timeout
        self._report = report
        self._inbox: queue.SimpleQueue[Request | int | None] = queue.SimpleQueue()
        self._streams: dict[int, _Stream] = {}
        self._stream_count = 0
        self._launched: Launched | None = None
        self._last_progress = ("", 0, 0)
        self._progress_told = 0.0
        self._closing = False
        self._idle = True  # the step thread waits for work
        self._beat = time.monotonic()  # when it last began a step

    async def serve(self, listener: Listener) -> None:
        """Listen, launch, and serve. Raises what `launch` or a step raised."""
        loop = self._loop = asyncio.get_running_loop()
        stopped = asyncio.Event()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, stopped.set)
        server = grpc.aio.server(options=codec.UNLIMITED_MESSAGES)
        server.add_generic_rpc_handlers((_Handler(self._connect),))
        self._listener = listener
        _bind(server, listener)
        await server.start()
        steps = loop.run_in_executor(ThreadPoolExecutor(1, "step"), self._run_steps)
        heart = asyncio.create_task(self._beat_heart())
        stopping = asyncio.create_task(stopped.wait())
        ends: set[asyncio.Future[Any]] = {steps, heart, stopping}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        self._inbox.put(None)
        await asyncio.wait({steps}, timeout=_LAST_STEP_SECONDS)
        # streams end by themselves: one that grpc has to cancel leaves a traceback
        self._closing = True
        for stream in self._streams.values():
            stream.serving.cancel()
        await server.stop(grace=_LAST_STREAM_SECONDS)
        for end in ends:
            if end.done():
                end.result()
            end.cancel()

    # ---- step thread ------------------------------------------------------------------------

    def _run_steps(self) -> None:
        launched = self._launch(self._on_progress)
        gc.collect()
        gc.freeze()  # what was loaded stays, so later collections need not look at it
        self._loop.call_soon_threadsafe(self._on_ready, launched)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        engine = launched.engine
        try:
            while self._take_arrivals(engine):
                outputs = engine.step()
                if outputs:
                    self._loop.call_soon_threadsafe(self._deliver, outputs)
        finally:
            self._idle = True  # no step is awaited any more, so the watchdog must not end anybody
            launched.close()

    def _take_arrivals(self, engine: ServedEngine) -> bool:
        """Hand over all that arrived, waiting for it if there is no work. False: stop."""
        self._idle = not engine.has_work
        wait = self._idle
        while True:
            try:
                arrival = self._inbox.get(block=wait)
            except queue.Empty:
                return True
            finally:
                self._beat = time.monotonic()
                self._idle = wait = False
            if arrival is None:
                return False
            if isinstance(arrival, int):
                engine.abort(arrival)
            else:
                self._add(engine, arrival)

    def _add(self, engine: ServedEngine, request: Request) -> None:
        try:
            engine.add(request)
        except RequestError as error:
            refusal = Output(request.request_id, finish_reason=FinishReason.ERROR, error=error)
            self._loop.call_soon_threadsafe(self._deliver, [refusal])

    def _on_progress(self, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        due = now - self._progress_told > _PROGRESS_SECONDS
        if due or done == total or phase != self._last_progress[0]:
            self._last_progress, self._progress_told = (phase, done, total), now
            self._loop.call_soon_threadsafe(self._tell_progress, phase, done, total)

    # ---- watchdog ---------------------------------------------------------------------------

    def _watch(self) -> None:
        pause = min(1.0, self._step_timeout / 4)
        while True:
            time.sleep(pause)
            if not self._is_stuck():
                continue
            time.sleep(pause)  # if the whole process was stopped, its steps go on first
            if self._is_stuck():
                log.critical(
                    "no step finished for %.1f s with work pending; stacks follow, then this "
                    "engine ends. Raise --step-timeout if steps may take so long.",
                    time.monotonic() - self._beat,
                )
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                os._exit(ExitCode.STEP_TIMEOUT)

    def _is_stuck(self) -> bool:
        return not self._idle and time.monotonic() - self._beat > self._step_timeout

    # ---- gRPC thread ------------------------------------------------------------------------

    def _tell_progress(self, phase: str, done: int, total: int) -> None:
        self._report("progress", phase=phase, done=done, total=total)
        self._broadcast(codec.encode_progress(phase, done, total))

    def _on_ready(self, launched: Launched) -> None:
        self._launched = launched
        self._broadcast(codec.encode_info(launched.info))
        self._report("ready")

    def _broadcast(self, message: bytes) -> None:
        for stream in self._streams.values():
            stream.outbox.put_nowait(message)

    def _deliver(self, outputs: Sequence[Output]) -> None:
        """One message per stream for the outputs of one step."""
        by_stream: defaultdict[int, list[Output]] = defaultdict(list)
        for output in outputs:
            number, output.request_id = divmod(output.request_id, _ID_SPACE)
            stream = self._streams.get(number)
            if stream is not None and output.request_id in stream.live:
                by_stream[number].append(output)
                if output.finish_reason is not None:
                    stream.live.remove(output.request_id)
        for number, mine in by_stream.items():
            self._streams[number].outbox.put_nowait(codec.encode_outputs(mine))

    async def _beat_heart(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            if self._launched is None:
                self._report("heartbeat", steps=0)
                continue
            stats = self._launched.engine.stats()
            self._report("heartbeat", steps=stats.steps)
            self._broadcast(codec.encode_heartbeat(stats))

    async def _connect(
        self, messages: AsyncIterator[bytes], context: "grpc.aio.ServicerContext[bytes, bytes]"
    ) -> None:
        """Serve one router's stream until it ends."""
        if not self._listener.admits(context.invocation_metadata()):
            log.warning("a stranger is refused: %s has not the secret", context.peer())
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the secret is wrong or missing")
        serving = asyncio.current_task()
        if self._closing or serving is None:
            return
        self._stream_count += 1
        stream = _Stream(self._stream_count, serving)
        self._streams[stream.number] = stream
        if self._launched is not None:
            stream.outbox.put_nowait(codec.encode_info(self._launched.info))
        else:
            stream.outbox.put_nowait(codec.encode_progress(*self._last_progress))
        writer = asyncio.create_task(_write(context, stream.outbox))
        try:
            async for message in messages:
                self._receive(stream, message)
        except _BrokenProtocol as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except asyncio.CancelledError:
            # its router is gone, or this server ends: the stream ends too, and that is no error
            log.debug("stream %d was cancelled", stream.number)
        finally:
            del self._streams[stream.number]
            for request_id in stream.live:
                self._inbox.put(stream.number * _ID_SPACE + request_id)
            writer.cancel()  # last: a write that failed raises what it failed with
            with contextlib.suppress(asyncio.CancelledError):
                await writer

    def _receive(self, stream: _Stream, encoded: bytes) -> None:
        try:
            message = pb.ToEngine.FromString(encoded)
        except DecodeError as error:
            raise _BrokenProtocol(f"not a message of engine.proto: {error}") from error
        if message.HasField("abort"):
            if message.abort in stream.live:
                stream.live.remove(message.abort)
                self._inbox.put(stream.number * _ID_SPACE + message.abort)
            return
        request_id = message.submit.request_id
        if request_id >= _ID_SPACE or request_id in stream.live:
            raise _BrokenProtocol(f"request id {request_id} is in use, or not below 2^40")
        stream.live.add(request_id)
        try:
            request = codec.decode_submit(message.submit)
        except RequestError as error:
            stream.live.remove(request_id)
            refusal = Output(request_id, finish_reason=FinishReason.ERROR, error=error)
            stream.outbox.put_nowait(codec.encode_outputs([refusal]))
            return
        request.request_id += stream.number * _ID_SPACE
        self._inbox.put(request)


def _bind(server: grpc.aio.Server, listener: Listener) -> None:
    """Raises ConfigError if the address cannot be had."""
    try:
        if listener.certificate:
            pair = (listener.key.encode(), listener.certificate.encode())
            server.add_secure_port(listener.address, grpc.ssl_server_credentials([pair]))
        else:
            server.add_insecure_port(listener.address)
    except RuntimeError as error:
        raise ConfigError(
            f"cannot listen on {listener.address}: {error}. Stop the program that uses it, or "
            "choose another address"
        ) from error


async def _write(
    context: "grpc.aio.ServicerContext[bytes, bytes]", outbox: asyncio.Queue[bytes]
) -> None:
    while True:
        await context.write(await outbox.get())


class _Handler(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Routes the one method; messages stay bytes, the codec reads them."""

    def __init__(self, connect: Callable[..., Any]) -> None:
        async def stream(messages: Any, context: Any) -> None:
            await connect(messages, context)

        self._method = grpc.stream_stream_rpc_method_handler(stream)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._method if handler_call_details.method == codec.METHOD else None
