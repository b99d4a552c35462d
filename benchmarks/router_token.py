"""What a streamed token costs the router: CPU per token, from the engine's output to the socket.

    python benchmarks/router_token.py [STREAMS] [TOKENS] [--profile]

The real application with the bundled model's tokenizer, called in this process: an engine that
computes nothing delivers to every stream one token per step, and what the streams send is counted
and thrown away. Counted is the thread's own time between the first output and the last event:
detokenizing, metrics, JSON and asyncio, without gRPC and without HTTP's framing.
"""

import argparse
import asyncio
import cProfile
import itertools
import json
import pstats
import time
from collections.abc import MutableMapping
from typing import Any

import uvloop

from infercore.engine.info import EngineInfo
from infercore.engine.request import EngineStats, FinishReason, Output, Request, TokenLogprobs
from infercore.hub import DEMO, demo_path
from infercore.text.chat_template import ChatTemplate
from infercore.text.tokenizer import Tokenizer
from infercore_api.router import openai, tgi
from infercore_api.router.app import create_app
from infercore_api.router.engine_client import EngineClient, EnginePhase, EngineState, Sink
from infercore_api.router.options import RouterOptions
from infercore_api.router.state import RouterState

STORY = "Once upon a time there was a fox who lived near a river. One day she met a hen. "
BODIES = {
    "/generate_stream": {"inputs": STORY, "parameters": {}},
    "/v1/completions": {"prompt": STORY, "stream": True},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": STORY}], "stream": True},
}
LIMITS = {"max_model_len": 4096, "max_input_len": 4095, "vocab_size": 4096, "eos_ids": (2,)}


class ScriptedEngine(EngineClient):
    """Keeps what is submitted until `step` gives each request one more token of `script`.

    complete: set once `streams` requests came.
    """

    def __init__(self, script: list[int], streams: int) -> None:
        facts: dict[str, Any] = {
            name: () if name == "devices" else "" if kind in (str, "str") else 0
            for name, kind in EngineInfo.__annotations__.items()
        }
        self._info = EngineInfo(**facts | LIMITS)
        self._script = script
        self._streams = streams
        self.complete = asyncio.Event()
        self.live: dict[int, tuple[Sink, bool]] = {}

    async def start(self) -> None:
        """There is nothing to connect to."""

    async def close(self) -> None:
        """There is nothing to disconnect from."""

    def submit(self, request: Request, sink: Sink) -> None:
        self.live[request.request_id] = sink, request.sampling.logprobs is not None
        if len(self.live) == self._streams:
            self.complete.set()

    def abort(self, request_id: int) -> None:
        self.live.pop(request_id, None)

    def step(self, at: int, *, last: bool) -> None:
        """Deliver token `at` of the script, each stream starting elsewhere in it."""
        now = time.monotonic()
        for request_id, (sink, wants_logprobs) in list(self.live.items()):
            token_id = self._script[(at + 7 * request_id) % len(self._script)]
            logprob = -1.2345678 if wants_logprobs else None
            if at and not last:
                sink.token(token_id, logprob, now)
                continue
            entry = None if logprob is None else [TokenLogprobs(logprob)]
            reason = FinishReason.LENGTH if last else None
            sink.output(Output(request_id, [token_id], entry, reason))
        if last:
            self.live.clear()

    @property
    def state(self) -> EngineState:
        return EngineState(EnginePhase.READY)

    @property
    def info(self) -> EngineInfo | None:
        return self._info

    @property
    def stats(self) -> EngineStats:
        return EngineStats()


class Connection:
    """One connection: its request goes in, and what comes out is only counted."""

    def __init__(self, path: str, body: dict[str, Any]) -> None:
        self.events = 0
        content = json.dumps(body).encode()
        self._messages = [{"type": "http.request", "body": content, "more_body": False}]
        self.scope = {
            "type": "http", "method": "POST", "path": path, "raw_path": path.encode(),
            "query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1",
            "server": ("router", 80), "client": ("client", 1),
            "headers": [(b"content-type", b"application/json")],
        }  # fmt: skip

    async def receive(self) -> MutableMapping[str, Any]:
        if self._messages:
            return self._messages.pop()
        await asyncio.Event().wait()  # the client stays
        raise AssertionError

    async def send(self, message: MutableMapping[str, Any]) -> None:
        self.events += message.get("body", b"").count(b"data: {")


async def measure(path: str, streams: int, tokens: int, profile: cProfile.Profile | None) -> float:
    """Microseconds of this thread's CPU per token."""
    tokenizer = Tokenizer(demo_path())
    engine = ScriptedEngine(tokenizer.encode(STORY), streams)
    options = RouterOptions((DEMO,), max_concurrent_requests=streams)
    with ChatTemplate.open(demo_path()) as template:
        state = RouterState(engine, tokenizer, template, options)

        def register_routes(**given: Any) -> None:
            tgi.register_routes(**given)
            openai.register_routes(**given)

        app = create_app(state, register_routes)
        key = "max_new_tokens" if path == "/generate_stream" else "max_tokens"
        body = json.loads(json.dumps(BODIES[path]))
        body.get("parameters", body)[key] = tokens
        connections = [Connection(path, body) for _ in range(streams)]
        calls = [
            asyncio.create_task(app(each.scope, each.receive, each.send)) for each in connections
        ]
        await engine.complete.wait()
        if profile is not None:
            profile.enable()
        began = time.thread_time()
        for at in range(tokens):
            engine.step(at, last=at + 1 == tokens)
            await asyncio.sleep(0)  # as between two messages of the engine: streams write
        await asyncio.gather(*calls)
        spent = time.thread_time() - began
        if profile is not None:
            profile.disable()
        state.workers.close()
    assert sum(each.events for each in connections) >= streams * tokens // 2, "streams were written"
    return 1e6 * spent / (streams * tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU of the router per streamed token.")
    parser.add_argument("streams", nargs="?", type=int, default=64)
    parser.add_argument("tokens", nargs="?", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    given = parser.parse_args()
    for path in BODIES:
        rounds = sorted(
            uvloop.run(measure(path, given.streams, given.tokens, None))
            for _ in range(given.rounds)
        )
        middle = rounds[len(rounds) // 2]
        print(
            f"{path:22} {middle:5.1f} µs per token at {given.streams} streams "
            f"(median of {given.rounds}; {rounds[0]:.1f} to {rounds[-1]:.1f})"
        )
    if given.profile:
        profile = cProfile.Profile(time.thread_time)
        for path in itertools.islice(BODIES, 1):
            uvloop.run(measure(path, given.streams, given.tokens, profile))
        pstats.Stats(profile).strip_dirs().sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
