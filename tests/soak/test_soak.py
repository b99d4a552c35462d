"""Many requests on the bundled model, through real processes: nothing is lost, nothing is kept."""

import asyncio
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
import pytest
from scipy.stats import linregress

from infercore.hub import DEMO, demo_path
from infercore_api.bench.prompts import Prompts
from infercore_api.bench.server_process import ServerProcess
from infercore_api.bench.sse_client import Target

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="children are found through /proc"),
]

STREAMS, LONGEST_PROMPT, OUTPUT_LEN = 64, 512, 48
REQUESTS, WARM, EVERY = 5000, 200, 100

# Bytes that a request must not leave behind. Its ids, its parameters and the objects that carry
# them through router or engine take 1 to 2 KiB, so one that is kept shows. Heaps move by
# themselves: the engine's by megabytes up and down, the router's grows by 3 MB until about request
# 2,000 and then stays. So a slope counts only as far as it lies beyond twice its standard error.
LEAK = 1024.0


def serving(*arguments: str) -> ServerProcess:
    return ServerProcess(("--model-id", DEMO, "--threads", "1", *arguments))


@dataclass
class Stream:
    """What a client saw of one stream."""

    tokens: int = 0
    reasons: list[str] = field(default_factory=list)
    dones: int = 0
    left: bool = False


async def follow(target: Target, request: bytes, leave_after: int | None) -> Stream:
    """Read a stream to its end, or close the connection after some events."""
    seen = Stream()
    reader, writer = await asyncio.open_connection(target.host, target.port, limit=1 << 20)
    writer.write(request)
    assert b" 200 " in await reader.readline()
    async for line in reader:
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            seen.dones += 1
            continue
        event = json.loads(line[6:])
        assert "error" not in event, event
        seen.tokens = (event.get("usage") or {}).get("completion_tokens", seen.tokens)
        reasons = [choice["finish_reason"] for choice in event["choices"]]
        seen.reasons += [reason for reason in reasons if reason]
        if leave_after is not None:
            leave_after -= 1
            if not leave_after:
                seen.left = True
                break
    writer.close()
    return seen


def metrics(target: Target) -> dict[str, float]:
    """Samples of /metrics by name and labels."""
    status, body = target.get("/metrics")
    assert status == 200
    found = re.findall(r"^([a-z_]+(?:\{[^}]*\})?) (\S+)$", body.decode(), re.MULTILINE)
    return {name: float(value) for name, value in found}


def eventually(check: Callable[[], Any], seconds: float = 20.0) -> None:
    """Heartbeats and closing sockets take a moment; what is not so by then is wrong."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            check()
        except AssertionError:
            if time.monotonic() > deadline:
                raise
        else:
            return
        time.sleep(0.1)


def assert_idle(target: Target) -> None:
    """No request is in work, and no block is held."""
    now = metrics(target)
    for name in ("running_sequences", "waiting_sequences", "kv_usage_ratio", "requests_in_flight"):
        assert now[f"infercore_{name}"] == 0, name


def test_64_streams_end_exactly_once_and_give_everything_back() -> None:
    with serving("--max-batch-total-tokens", "32768") as server:
        run_64_streams(Target(server.url))


def run_64_streams(target: Target) -> None:
    prompts, random = Prompts(demo_path(), 0), np.random.default_rng(0)
    lengths = [1, LONGEST_PROMPT, *random.integers(1, LONGEST_PROMPT, STREAMS - 2, endpoint=True)]
    requests = [
        target.completion(DEMO, prompts.draw(1, int(length))[0], OUTPUT_LEN) for length in lengths
    ]
    cuts = [
        int(random.integers(1, OUTPUT_LEN // 2)) if i % 3 == 2 else None for i in range(STREAMS)
    ]
    before = metrics(target)

    async def all_at_once() -> Sequence[Stream]:
        return await asyncio.gather(
            *(follow(target, r, cut) for r, cut in zip(requests, cuts, strict=True))
        )

    streams = asyncio.run(all_at_once())
    for stream, cut in zip(streams, cuts, strict=True):
        if cut is None:
            assert (stream.tokens, stream.reasons, stream.dones) == (OUTPUT_LEN, ["length"], 1)
        else:
            assert (stream.left, stream.reasons, stream.dones) == (True, [], 0)
    left = sum(cut is not None for cut in cuts)
    expected = {"success": STREAMS - left, "cancelled": left, "failure": 0}

    def each_ended_once() -> None:
        assert_idle(target)
        after = metrics(target)
        for outcome, count in expected.items():
            name = f'infercore_requests_total{{outcome="{outcome}"}}'
            assert after[name] - before[name] == count, outcome

    eventually(each_ended_once)


@dataclass
class Footprint:
    """What a process held at one moment."""

    rss: int
    fds: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> "Footprint":
        process = psutil.Process(pid)
        return cls(process.memory_info().rss, process.num_fds(), process.num_threads())


def test_memory_is_flat_over_5000_requests() -> None:
    # a KV cache of 200 blocks: each request leaves one in the prefix cache, so that 200 of them
    # touch all its memory for the first time and later ones evict
    with serving("--max-batch-total-tokens", "3200", "--max-total-tokens", "128") as server:
        run_5000_requests(server)


def run_5000_requests(server: ServerProcess) -> None:
    target, prompts = Target(server.url), Prompts(demo_path(), 1)
    modules = ("infercore.engine_process", "infercore_api.router.main")
    pids = [pid for module in modules if (pid := server.child(module)) is not None]
    assert len(pids) == 2
    samples: list[list[Footprint]] = []
    for _ in range(REQUESTS // EVERY):
        requests = [target.completion(DEMO, prompt, 4) for prompt in prompts.draw(EVERY, 24)]
        assert asyncio.run(_send(target, requests)) == ["" for _ in requests]
        eventually(lambda: assert_idle(target))
        samples.append([Footprint.of(pid) for pid in pids])
    assert [server.child(module) for module in modules] == pids  # nobody died meanwhile
    warm = samples[WARM // EVERY - 1 :]
    served = np.arange(len(warm)) * EVERY
    slopes = []
    for index, module in enumerate(modules):
        fit: Any = linregress(served, [sample[index].rss for sample in warm])
        series = [sample[index].rss >> 10 for sample in samples]
        print(
            f"{module}: {fit.slope:.0f} ± {fit.stderr:.0f} bytes per request; "
            f"KiB every {EVERY}: {series}"
        )
        slopes.append(fit.slope - 2 * fit.stderr)
    assert max(slopes) < LEAK, f"a process keeps {max(slopes):.0f} bytes of every request"

    def handles_are_back() -> None:
        for index, pid in enumerate(pids):
            now, then = Footprint.of(pid), warm[0][index]
            assert now.fds <= then.fds
            assert now.threads <= then.threads

    eventually(handles_are_back)


async def _send(target: Target, requests: Sequence[bytes]) -> list[str]:
    free = asyncio.Semaphore(50)

    async def send(request: bytes) -> str:
        async with free:
            return (await target.send(request)).error

    return await asyncio.gather(*map(send, requests))
