"""The engine as a server: routers on one Unix socket, each with its own stream and ids."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from engine_traffic import GREEDY, INFO, make_engine, prompt
from infercore.child import ExitCode
from infercore.engine import codec
from infercore.engine import engine_pb2 as pb
from infercore.engine.engine import Engine
from infercore.engine.info import EngineInfo
from infercore.engine.link import Listener
from infercore.engine.request import EngineStats, FinishReason, Output, Request
from infercore.engine.server import EngineServer
from infercore.errors import ConfigError, ExecutorLost, InvalidRequest, Overloaded
from infercore.executor import Progress
from infercore.sampling import SamplingParams
from infercore.step import StepResult
from numpy_executor import NumpyExecutor
from toy_model import expected

LONG = SamplingParams(temperature=0.0, max_tokens=3000, ignore_eos=True)


@dataclass
class Toy:
    """What a launch gives: an engine on the NumPy executor."""

    engine: Engine
    info: EngineInfo = INFO
    closed: bool = False

    def close(self) -> None:
        self.closed = True


class Router:
    """The little of a router that a test needs: one stream, read message by message."""

    def __init__(self, path: Path) -> None:
        self._channel = grpc.aio.insecure_channel(f"unix:{path}", codec.UNLIMITED_MESSAGES)
        self.stream = self._channel.stream_stream(codec.METHOD)(wait_for_ready=True)

    async def send(self, message: bytes) -> None:
        await self.stream.write(message)

    async def next(self, body: str) -> Any:
        """The next message of a kind; others before it are passed over."""
        async for encoded in self.stream:
            message = pb.ToRouter.FromString(encoded)
            if message.WhichOneof("body") == body:
                return getattr(message, body)
        raise EOFError(f"the stream ended before {body!r}")

    async def answer(self, request_id: int) -> tuple[list[int], Output]:
        """All tokens of a request, and its last output."""
        tokens: list[int] = []
        while True:
            plain, others = codec.decode_outputs(await self.next("outputs"))
            tokens += [token_id for owner, token_id, _ in plain if owner == request_id]
            for output in others:
                if output.request_id == request_id:
                    tokens += output.token_ids
                    if output.finish_reason is not None:
                        return tokens, output

    async def idle_stats(self) -> EngineStats:
        """The first counters from now on that show nothing running."""
        while True:
            stats = codec.decode_stats(await self.next("heartbeat"))
            if not stats.running and not stats.waiting:
                return stats

    async def close(self) -> None:
        self.stream.cancel()
        await self._channel.close()


@dataclass
class House:
    """A server under test, and what it told its supervisor."""

    path: Path
    toy: Toy
    reports: list[tuple[str, dict[str, Any]]]
    serving: "asyncio.Task[None]"

    @asynccontextmanager
    async def router(self) -> AsyncIterator[Router]:
        router = Router(self.path)
        try:
            await router.next("hello")
            yield router
        finally:
            await router.close()


@asynccontextmanager
async def serve(
    folder: Path,
    executor: NumpyExecutor | None = None,
    before: Callable[[Progress], None] = lambda progress: None,
    **limits: Any,
) -> AsyncIterator[House]:
    """A server in this process, ended by SIGTERM like any other."""
    chosen = {"num_blocks": 1024, "max_model_len": 4000, **limits}
    toy = Toy(make_engine(executor or NumpyExecutor(), **chosen))
    reports: list[tuple[str, dict[str, Any]]] = []

    def launch(progress: Progress) -> Toy:
        before(progress)
        return toy

    server = EngineServer(launch, 30.0, lambda report, **facts: reports.append((report, facts)))
    path = folder / "engine.sock"
    serving = asyncio.create_task(server.serve(Listener(f"unix:{path}")))
    await asyncio.sleep(0)  # it has its signal handlers before anyone ends it
    try:
        yield House(path, toy, reports, serving)
    finally:
        if not serving.done():
            os.kill(os.getpid(), signal.SIGTERM)
            await serving


async def test_two_routers_use_the_same_ids_and_get_their_own(tmp_path: Path) -> None:
    async with serve(tmp_path) as house, house.router() as one, house.router() as other:
        mine, theirs = Request(1, prompt(9), GREEDY), Request(1, prompt(5, 3), GREEDY)
        await one.send(codec.encode_submit(mine))
        await other.send(codec.encode_submit(theirs))
        for router, request in ((one, mine), (other, theirs)):
            tokens, last = await router.answer(1)
            assert tokens == expected(request, NumpyExecutor().model, 4000).tokens
            assert last.finish_reason is FinishReason.LENGTH
    assert house.toy.closed


async def test_losing_a_stream_aborts_its_requests(tmp_path: Path) -> None:
    async with serve(tmp_path) as house, house.router() as other:
        async with house.router() as one:
            await one.send(codec.encode_submit(Request(1, prompt(9), LONG)))
            await one.send(codec.encode_submit(Request(2, prompt(9), LONG)))
            await one.next("outputs")
        await other.send(codec.encode_submit(Request(1, prompt(5), GREEDY)))
        await other.answer(1)  # counters from before it are passed over
        stats = await other.idle_stats()
        assert stats.kv_blocks_used == 0
        assert 8 < stats.generated_tokens < 6000


async def test_an_aborted_request_says_nothing_more(tmp_path: Path) -> None:
    async with serve(tmp_path) as house, house.router() as router:
        await router.send(codec.encode_submit(Request(1, prompt(9), LONG)))
        await router.next("outputs")
        await router.send(codec.encode_abort(1))
        await router.send(codec.encode_abort(77))  # unknown: ignored
        await router.send(codec.encode_submit(Request(2, prompt(5), GREEDY)))
        _, last = await router.answer(2)
        assert last.finish_reason is FinishReason.LENGTH
        assert (await router.idle_stats()).generated_tokens < 3000


async def test_refused_requests_are_answered(tmp_path: Path) -> None:
    async with serve(tmp_path, max_waiting=0) as house, house.router() as router:
        out_of_range = pb.ToEngine(submit=pb.Submit(request_id=1, prompt_ids=[3]))
        await router.send(out_of_range.SerializeToString())  # top_p is 0
        _, last = await router.answer(1)
        assert isinstance(last.error, InvalidRequest)
        assert last.error.param == "top_p"
        await router.send(codec.encode_submit(Request(1, prompt(4001), GREEDY)))
        _, last = await router.answer(1)
        assert isinstance(last.error, InvalidRequest)
        assert last.error.param == "prompt"
        await router.send(codec.encode_submit(Request(1, prompt(3), GREEDY)))
        _, last = await router.answer(1)
        assert isinstance(last.error, Overloaded)


@pytest.mark.parametrize(
    "message", [b"\xff\xff\xff", codec.encode_submit(Request(2**40, [3], LONG))]
)
async def test_a_router_that_breaks_the_protocol_loses_its_stream(
    tmp_path: Path, message: bytes
) -> None:
    async with serve(tmp_path) as house, house.router() as other:
        async with house.router() as one:
            await one.send(codec.encode_submit(Request(1, prompt(9), LONG)))
            await one.send(message)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await one.answer(1)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await other.send(codec.encode_submit(Request(1, prompt(5), GREEDY)))
        _, last = await other.answer(1)
        assert last.finish_reason is FinishReason.LENGTH
        assert (await other.idle_stats()).kv_blocks_used == 0


async def test_progress_then_hello_then_heartbeats(tmp_path: Path) -> None:
    def before(progress: Progress) -> None:
        for done in range(4):
            progress("load", done, 3)

    async with serve(tmp_path, before=before) as house:
        router = Router(house.path)
        assert codec.decode_info(await router.next("hello")) == INFO
        assert (await router.next("heartbeat")).stats.kv_blocks == 1023
        await router.close()
    names = [report for report, _ in house.reports]
    assert names.index("progress") < names.index("ready") < names.index("heartbeat")
    assert ("progress", {"phase": "load", "done": 3, "total": 3}) in house.reports


async def test_a_launch_that_is_refused_ends_the_server(tmp_path: Path) -> None:
    def refuse(progress: Progress) -> None:
        raise ConfigError("no such model")

    async with serve(tmp_path, before=refuse) as house:
        with pytest.raises(ConfigError, match="no such model"):
            await house.serving


async def test_a_lost_device_ends_the_server(tmp_path: Path) -> None:
    class Lost(NumpyExecutor):
        def resolve(self, handle: Any) -> StepResult:
            raise ExecutorLost("the device fell off")

    async with serve(tmp_path, Lost()) as house, house.router() as router:
        await router.send(codec.encode_submit(Request(1, prompt(9), GREEDY)))
        with pytest.raises(ExecutorLost, match="fell off"):
            await house.serving
    assert house.toy.closed


HANGING = """
import asyncio, sys, time
from engine_traffic import make_engine
from infercore.engine.link import Listener
from infercore.engine.server import EngineServer
from numpy_executor import NumpyExecutor
from test_engine_server import Toy

class Hanging(NumpyExecutor):
    def resolve(self, handle):
        time.sleep(600)

launch = lambda progress: Toy(make_engine(Hanging()))
server = EngineServer(launch, 0.4, lambda report, **facts: None)
asyncio.run(server.serve(Listener("unix:" + sys.argv[1])))
"""


async def test_the_watchdog_ends_a_step_that_hangs(tmp_path: Path) -> None:
    """An idle engine may be silent for longer; one with work may not."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent / "support")])
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        HANGING,
        str(tmp_path / "engine.sock"),
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
    )
    router = Router(tmp_path / "engine.sock")
    await router.next("hello")
    await router.next("heartbeat")
    await router.next("heartbeat")  # half a second later it lives
    await router.send(codec.encode_submit(Request(1, prompt(9), GREEDY)))
    _, stderr = await process.communicate()
    assert process.returncode == ExitCode.STEP_TIMEOUT
    assert b"in resolve" in stderr
    await router.close()
