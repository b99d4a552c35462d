"""The least that a streamed token can cost here: one small write per stream and step, nothing else.

    python benchmarks/socket_floor.py [STREAMS] [STEPS] [STEP_MILLISECONDS]

A uvloop process writes an event's worth of bytes to every connection once per step, as a router
does that has no work besides. Its CPU time per write is the machine's floor for `router's CPU`.
"""

import asyncio
import multiprocessing
import sys
import time
from multiprocessing.connection import Connection
from typing import cast

import uvloop

_EVENT = b"12c\r\n" + b"x" * 300 + b"\r\n"


class _Stream(asyncio.Protocol):
    def __init__(self, streams: list[asyncio.WriteTransport], full: asyncio.Event, count: int):
        self._streams, self._full, self._count = streams, full, count

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._streams.append(cast("asyncio.WriteTransport", transport))
        if len(self._streams) == self._count:
            self._full.set()


async def _serve(pipe: Connection, count: int, steps: int, pause: float) -> None:
    streams: list[asyncio.WriteTransport] = []
    full, loop = asyncio.Event(), asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Stream(streams, full, count), "127.0.0.1", 0)
    pipe.send(server.sockets[0].getsockname()[1])
    await full.wait()
    began = time.process_time()
    for _ in range(steps):
        await asyncio.sleep(pause)
        for stream in streams:
            stream.write(_EVENT)
    pipe.send((time.process_time() - began) / (steps * count))
    for stream in streams:
        stream.close()


def _child(pipe: Connection, count: int, steps: int, pause: float) -> None:
    uvloop.run(_serve(pipe, count, steps, pause))


async def _read_all(port: int, count: int) -> None:
    async def read() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while await reader.read(65536):
            pass
        writer.close()

    await asyncio.gather(*(read() for _ in range(count)))


def floor(count: int, steps: int, pause: float) -> float:
    """Microseconds of CPU per write."""
    ours, theirs = multiprocessing.Pipe()
    arguments = (theirs, count, steps, pause)
    process = multiprocessing.get_context("spawn").Process(target=_child, args=arguments)
    process.start()
    uvloop.run(_read_all(ours.recv(), count))
    spent: float = ours.recv()
    process.join()
    return 1e6 * spent


def main(count: int = 64, steps: int = 200, milliseconds: int = 50) -> None:
    spent = floor(count, steps, milliseconds / 1e3)
    print(f"{spent:.1f} µs per write, {count} streams, a step every {milliseconds} ms")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
