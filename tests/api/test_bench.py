"""`infercore bench`: statistics on known data, the client on known bytes, small real runs."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infercore.errors import ConfigError
from infercore_api.bench.figures import Figure, Trace, latencies, latency_figures, output_rate
from infercore_api.bench.offline import Offline
from infercore_api.bench.options import BenchOptions, counts
from infercore_api.bench.report import number
from infercore_api.bench.sse_client import ChunkedBody, Target


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "infercore_api.cli.main", "bench", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


# -- statistics ---------------------------------------------------------------------------------


def test_latencies_of_a_known_trace() -> None:
    trace = Trace(sent=10.0, arrivals=[10.5, 10.75, 11.75], ended=12.0, tokens=3)
    assert latencies(trace) == (0.5, [0.25, 1.0], 2.0)


def test_percentiles_are_of_rounds_and_the_median_is_over_them() -> None:
    def round_of(scale: float) -> list[Trace]:
        firsts = [scale * n for n in range(1, 101)]
        return [Trace(0.0, [first, first + 0.25], first + 0.25, 2) for first in firsts]

    rounds = [round_of(scale) for scale in (0.001, 0.002, 0.005)]
    figures = {(f.row, f.column): f for f in latency_figures("t", "x", rounds)}
    p90 = figures["x, first token", "p90"]
    expected = [1e3 * np.percentile([s * n for n in range(1, 101)], 90) for s in (1e-3, 2e-3, 5e-3)]
    assert p90.rounds == pytest.approx(expected)
    assert p90.median == pytest.approx(expected[1])
    assert figures["x, between tokens", "p99"].rounds == pytest.approx([250.0] * 3)
    assert figures["x, whole request", "p50"].median == pytest.approx(2 * 50.5 + 250)


def test_failed_requests_count_for_no_rate_and_no_latency() -> None:
    good = [Trace(0.0, [1.0, 2.0], 2.0, 2), Trace(1.0, [3.0, 4.0], 4.0, 2)]
    bad = Trace(0.0, [0.1], 9.0, 1, error="status 500")
    assert output_rate([*good, bad]) == 1.0  # four tokens in four seconds
    with_bad, without = (latency_figures("t", "x", [r]) for r in ([*good, bad], good))
    assert with_bad == without
    assert output_rate([bad]) == 0.0
    assert latency_figures("t", "x", [[bad]]) == []


def test_a_figure_tells_its_unit_and_every_round() -> None:
    told = Figure("HTTP", "1 stream", "output", "tokens/s", (3.0, 1.0, 2.0)).as_json()
    assert (told["unit"], told["median"], told["min"], told["max"]) == ("tokens/s", 2.0, 1.0, 3.0)
    assert told["rounds"] == [3.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0, "0"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234"), (7.0, "7")]
)
def test_numbers_show_three_digits(value: float, shown: str) -> None:
    assert number(value) == shown


# -- options ------------------------------------------------------------------------------------


def test_lists_of_counts() -> None:
    assert counts("--concurrency", "1, 16,64") == (1, 16, 64)
    for text in ("", "0", "1,x", "-4"):
        with pytest.raises(ConfigError, match="--concurrency takes positive numbers"):
            counts("--concurrency", text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rounds": 0},
        {"output_len": 1},
        {"mode": "offline", "url": "http://x:1"},
        {"url": "http://x:1", "threads": 2},
    ],
)
def test_options_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        BenchOptions(**wrong)


# -- the client ---------------------------------------------------------------------------------


@given(
    parts=st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
def test_chunks_come_apart_wherever_reads_cut_them(parts: Sequence[bytes], cuts: list[int]) -> None:
    framed = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    edges = [0, *sorted(min(cut, len(framed)) for cut in cuts), len(framed)]
    body = ChunkedBody()
    read = b"".join(body.feed(framed[a:b]) for a, b in pairwise(edges))
    assert read == b"".join(parts)
    assert body.ended


def event(text: str, usage: dict[str, int] | None = None, *, empty: bool = False) -> bytes:
    choices = [] if empty else [{"index": 0, "text": text}]
    fields = {"choices": choices, "usage": usage}
    return f"data: {json.dumps(fields, separators=(',', ':'))}\n\n".encode()


async def answer_with(head: bytes, *parts: bytes) -> Trace:
    """What the client makes of a server that sends these bytes, part by part, and closes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head)
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.001)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        target = Target(f"http://127.0.0.1:{port}")
        return await target.send(target.completion("m", [5, 6], 3))


OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"


async def test_tokens_are_what_usage_says_and_usage_is_no_token() -> None:
    usage = event("", {"prompt_tokens": 2, "completion_tokens": 3}, empty=True)
    stream = event("a") + event("b") + b":\n\n" + event('{"error"') + usage + b"data: [DONE]\n\n"
    trace = await answer_with(OK + b"\r\n", stream[:50], stream[50:])
    assert (trace.tokens, len(trace.arrivals), trace.error) == (3, 3, "")
    assert trace.sent < trace.arrivals[0] <= trace.arrivals[-1] == trace.ended


async def test_chunked_streams_are_read_too() -> None:
    stream = event("a", {"completion_tokens": 1}) + b"data: [DONE]\n\n"
    framed = b"%x\r\n%s\r\n0\r\n\r\n" % (len(stream), stream)
    trace = await answer_with(OK + b"Transfer-Encoding: chunked\r\n\r\n", framed[:9], framed[9:])
    assert (trace.tokens, len(trace.arrivals), trace.error) == (1, 1, "")


async def test_failures_are_told() -> None:
    refused = await answer_with(b"HTTP/1.1 429 Too Many Requests\r\n\r\n", b'{"error":"busy"}')
    assert refused.error == 'status 429: {"error":"busy"}'
    late = await answer_with(OK + b"\r\n", event("a"), b'data: {"error":{"message":"x"}}\n\n')
    assert late.error == '{"error":{"message":"x"}}'
    cut = await answer_with(OK + b"\r\n", event("a"))
    assert cut.error == "the stream ended before its last event"
    nobody = await Target("http://127.0.0.1:1").send(b"")
    assert nobody.error.startswith("cannot connect")


@pytest.mark.parametrize("url", ["https://x:1", "x:1", "http://x:1/v1"])
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="http://host:port"):
        Target(url)


# -- real runs ----------------------------------------------------------------------------------


def test_the_bare_loop_computes_what_the_engine_computed() -> None:
    offline = Offline(
        BenchOptions(dtype="float32", threads=1, prompt_len=9, output_len=5, batch_sizes=(3,))
    )
    try:
        pairs = list(offline.pairs(3))
    finally:
        offline.close()
    assert len(pairs) == 3
    for through, bare in pairs:
        assert len(through.tokens) == 3 * 5
        assert bare.tokens == through.tokens
        assert bare.device_seconds > 0
        assert bare.decode_seconds > 0
        assert through.decode_tokens == 3 * 4
        assert 0 < through.own_seconds < through.seconds


def test_offline_prints_tables_and_writes_json(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    small = ("--prompt-len", "4", "--output-len", "4", "--rounds", "2", "--threads", "1")
    done = bench("offline", *small, "--batch-size", "1,2", "--json", str(path))
    assert done.returncode == 0, done.stderr
    assert "engine / bare loop" in done.stdout
    document = json.loads(path.read_text())
    assert document["machine"]["cpu"]
    assert document["model"]["architecture"] == "LlamaForCausalLM"
    assert document["failures"] == []
    figures = {(f["row"], f["column"]): f for f in document["figures"]}
    decode = figures["batch 2", "decode"]
    assert decode["unit"] == "tokens/s"
    assert len(decode["rounds"]) == 2
    assert 0 < decode["min"] <= decode["median"] <= decode["max"]
    assert figures["batch 1", "engine's own"]["unit"] == "µs/step"


def test_a_server_that_is_not_there_is_one_sentence() -> None:
    done = bench("serve", "--url", "http://127.0.0.1:1")
    assert done.returncode == 2
    assert "no server answers at 127.0.0.1 port 1" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_serve_measures_a_server_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    small = ("--prompt-len", "8", "--output-len", "6", "--rounds", "2", "--threads", "1")
    done = bench("serve", *small, "--concurrency", "1,4", "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(path.read_text())
    figures = {(f["row"], f["column"]): f for f in document["figures"]}
    assert figures["4 streams", "failed requests"]["rounds"] == [0, 0]
    assert figures["4 streams", "output"]["min"] > 0
    assert figures["4 streams, between tokens", "p90"]["unit"] == "ms"
    assert figures["server", "ready"]["unit"] == "s"
    if sys.platform == "linux":
        assert figures["1 stream", "router's CPU"]["unit"] == "µs/token"
