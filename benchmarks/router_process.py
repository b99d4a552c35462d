"""What a streamed token costs the router's whole process: gRPC, text, metrics, HTTP, sockets.

    python benchmarks/router_process.py [STREAMS] [TOKENS] [--rounds N] [--step-ms MS]

A real server, but its engine computes nothing (`scripted_engine.py`), so the cores are the
router's and the clients'. Beside it, in turns, runs `socket_floor.py`'s bare write: the least that
a token can cost on this machine. Read the ratio; the microseconds are this machine's.
"""

import argparse
import os
import statistics
import sys
from dataclasses import replace
from pathlib import Path

from infercore.hub import DEMO, demo_path
from infercore_api.bench.options import BenchOptions
from infercore_api.bench.prompts import Prompts
from infercore_api.bench.serve import Load
from infercore_api.bench.server_process import ServerProcess
from infercore_api.bench.sse_client import Target
from infercore_api.cli.main import main as cli
from infercore_api.supervisor import serve as supervision
from socket_floor import floor

_ROUTER = "infercore_api.router.main"
_serve = supervision.serve


def _serve_scripted(options: supervision.ServeOptions) -> int:
    return _serve(replace(options, engine_module="scripted_engine"))


def measure(streams: int, tokens: int, rounds: int, step_ms: float) -> None:
    """Print microseconds per token of the router and of the floor, and their ratio."""
    os.environ["STEP_MILLISECONDS"] = str(step_ms)
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    options = BenchOptions(output_len=tokens, prompt_len=32, concurrency=(streams,))
    command = (sys.executable, __file__, "serve", "--port", "0", "--json-output")
    with ServerProcess(("--model-id", DEMO), command=command) as server:
        load = Load(Target(server.url), options, Prompts(demo_path(), 0))
        router = server.child(_ROUTER)
        assert router is not None, "the router is found through /proc"
        load.round(streams, router)
        costs, floors = [], []
        for _ in range(rounds):
            measured = load.round(streams, router)
            costs.append(1e6 * (measured.router_seconds or 0.0) / measured.tokens)
            floors.append(floor(streams, tokens, step_ms / 1e3))
    ratio = statistics.median(c / f for c, f in zip(costs, floors, strict=True))
    print(
        f"{streams} streams, a step each {step_ms} ms: router {statistics.median(costs):.1f} µs "
        f"per token ({min(costs):.1f} to {max(costs):.1f}), bare write "
        f"{statistics.median(floors):.1f}, ratio {ratio:.1f} (medians of {rounds} rounds)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU of the router's process per token.")
    parser.add_argument("streams", nargs="?", type=int, default=64)
    parser.add_argument("tokens", nargs="?", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--step-ms", type=float, default=10.0)
    given = parser.parse_args()
    measure(given.streams, given.tokens, given.rounds, given.step_ms)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        supervision.serve = _serve_scripted
        cli()
    else:
        main()
