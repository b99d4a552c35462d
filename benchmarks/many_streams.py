"""Many streams at once on one router: do all complete, what do they cost, is health answered?

    python benchmarks/many_streams.py [STREAMS] [TOKENS] [--rounds N] [--step-ms MS] [--no-text]

A real server, but its engine computes nothing (`scripted_engine.py`). While the streams run, one
client asks for `/health` every 20 ms, and another has a text of 100,000 characters tokenized, again
and again; each is a process of its own, so that the load generator's pace is not in their figures.
With `--no-text` nothing is tokenized beside the streams: what differs is the tokenizer's doing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

from infercore.hub import DEMO, demo_path
from infercore_api.bench.options import BenchOptions
from infercore_api.bench.prompts import Prompts
from infercore_api.bench.serve import Load, Round
from infercore_api.bench.server_process import ServerProcess
from infercore_api.bench.sse_client import Target
from infercore_api.cli.main import main as cli
from infercore_api.supervisor import serve as supervision

LONG = "word " * 20_000
PAUSE = 0.02  # seconds between two looks at /health
_ROUTER = "infercore_api.router.main"
_serve = supervision.serve


def _serve_scripted(options: supervision.ServeOptions) -> int:
    return _serve(replace(options, engine_module="scripted_engine"))


def ask_again_and_again(what: str, host: str, port: int, until: Path) -> None:
    """Call one route until the file is there; print the seconds that each answer took."""
    connection = HTTPConnection(host, port, timeout=60)
    body = json.dumps({"inputs": LONG})
    took = []
    while not until.exists():
        began = time.perf_counter()
        if what == "/health":
            connection.request("GET", what)
        else:
            connection.request("POST", what, body, {"content-type": "application/json"})
        response = connection.getresponse()
        response.read()
        assert response.status == 200, response.status
        took.append(time.perf_counter() - began)
        if what == "/health":
            time.sleep(PAUSE)
    json.dump(took, sys.stdout)


@contextmanager
def asking(kinds: Sequence[str], target: Target) -> Iterator[dict[str, list[float]]]:
    """Processes that ask; {what: seconds of each answer}, which is filled when this ends."""
    took: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        until = Path(folder) / "over"
        command = [sys.executable, __file__, "ask"]
        where = [target.host, str(target.port), str(until)]
        asked = {
            what: subprocess.Popen([*command, what, *where], stdout=subprocess.PIPE, text=True)
            for what in kinds
        }
        time.sleep(1.0)  # all have begun
        yield took
        until.touch()
        for what, process in asked.items():
            took[what] = json.loads(process.communicate()[0])


def _milliseconds(seconds: Sequence[float]) -> str:
    ordered = sorted(seconds)
    shares = [1e3 * ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.99, 1)]
    return "{} answers, median {:.1f} ms, 99 % {:.1f}, most {:.1f}".format(len(ordered), *shares)


def _line(measured: Round, took: Mapping[str, Sequence[float]]) -> str:
    whole = len(measured.traces) - len(measured.failures)
    cost = 1e6 * (measured.router_seconds or 0.0) / max(1, measured.tokens)
    return "; ".join(
        (
            f"{whole} of {len(measured.traces)} streams complete, {measured.tokens} tokens",
            *(f"{what}: {_milliseconds(seconds)}" for what, seconds in took.items()),
            f"router's CPU, all of this together, {cost:.0f} µs per token",
        )
    )


def measure(streams: int, tokens: int, rounds: int, step_ms: float, kinds: Sequence[str]) -> None:
    """Print a line per round."""
    os.environ["STEP_MILLISECONDS"] = str(step_ms)
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    options = BenchOptions(output_len=tokens, prompt_len=32, concurrency=(streams,))
    command = (sys.executable, __file__, "serve", "--port", "0", "--json-output")
    flags = ("--model-id", DEMO, "--max-concurrent-requests", str(2 * streams))
    with ServerProcess(flags, command=command) as server:
        target = Target(server.url)
        load = Load(target, options, Prompts(demo_path(), 0))
        router = server.child(_ROUTER)
        assert router is not None, "the router is found through /proc"
        load.round(streams, router)
        for _ in range(rounds):
            with asking(kinds, target) as took:
                measured = load.round(streams, router)
            print(_line(measured, took), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Many streams at once on one router.")
    parser.add_argument("streams", nargs="?", type=int, default=256)
    parser.add_argument("tokens", nargs="?", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--step-ms", type=float, default=50.0)
    parser.add_argument("--no-text", action="store_true")
    given = parser.parse_args()
    kinds = ("/health",) if given.no_text else ("/health", "/tokenize")
    measure(given.streams, given.tokens, given.rounds, given.step_ms, kinds)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        supervision.serve = _serve_scripted
        cli()
    elif sys.argv[1:2] == ["ask"]:
        ask_again_and_again(sys.argv[2], sys.argv[3], int(sys.argv[4]), Path(sys.argv[5]))
    else:
        main()
