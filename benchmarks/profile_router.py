"""Where the router's CPU time goes: cProfile inside the real router while streams run.

    python benchmarks/profile_router.py [STREAMS] [OUTPUT_LEN]

The router is told by signals when to begin and to end, through a `sitecustomize` that only this
script puts on its path. Profiling makes calls look dearer than they are: read the order.
"""

import os
import pstats
import signal
import sys
import tempfile
import time
from pathlib import Path

from infercore.hub import DEMO, demo_path
from infercore_api.bench.options import BenchOptions
from infercore_api.bench.prompts import Prompts
from infercore_api.bench.serve import Load
from infercore_api.bench.server_process import ServerProcess
from infercore_api.bench.sse_client import Target

_ROUTER = "infercore_api.router.main"
_HOOK = """
import cProfile, os, signal, sys, time
if "{module}" in sys.orig_argv:
    profile = cProfile.Profile(time.thread_time)  # CPU, not what other processes took
    signal.signal(signal.SIGUSR1, lambda *_: profile.enable())
    def end(*_):
        profile.disable()
        profile.dump_stats("{path}.part")
        os.rename("{path}.part", "{path}")
    signal.signal(signal.SIGUSR2, end)
"""


def main(streams: int = 64, output_len: int = 128) -> None:
    options = BenchOptions(threads=1, output_len=output_len, concurrency=(streams,))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile"
        (Path(folder) / "sitecustomize.py").write_text(_HOOK.format(module=_ROUTER, path=path))
        os.environ["PYTHONPATH"] = folder
        with ServerProcess(("--model-id", DEMO, "--threads", "1")) as server:
            load = Load(Target(server.url), options, Prompts(demo_path(), 0))
            router = server.child(_ROUTER)
            assert router is not None, "the router is found through /proc"
            load.round(streams, router)
            os.kill(router, signal.SIGUSR1)
            measured = load.round(streams, router)
            os.kill(router, signal.SIGUSR2)
            while not path.exists():
                time.sleep(0.05)
        spent = measured.router_seconds or 0.0
        print(f"{1e6 * spent / measured.tokens:.0f} µs per token, profiled")
        stats = pstats.Stats(str(path)).strip_dirs()
        stats.sort_stats("tottime").print_stats(35)
        stats.sort_stats("cumulative").print_stats(45)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
