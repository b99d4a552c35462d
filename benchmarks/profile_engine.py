"""Where the engine's own time goes: cProfile over decode steps, the executor's waits left out.

    python benchmarks/profile_engine.py [BATCH] [OUTPUT_LEN]

Percentages are of the step loop without its waits; profiling itself makes calls look dearer than
they are, so read the order, not the seconds.
"""

import cProfile
import pstats
import sys

from infercore_api.bench.offline import Offline, run_batch
from infercore_api.bench.options import BenchOptions


def main(batch: int = 16, output_len: int = 64) -> None:
    options = BenchOptions(threads=1, output_len=output_len, batch_sizes=(batch,))
    offline = Offline(options)
    prompts = offline.prompts.draw(batch, options.prompt_len)
    plain = run_batch(offline.launched.engine, prompts, output_len)
    profile = cProfile.Profile()
    profile.enable()
    run_batch(offline.launched.engine, prompts, output_len)
    profile.disable()
    print(f"batch {batch}: {1e6 * plain.own_seconds / plain.steps:.0f} µs own per step, unprofiled")
    stats = pstats.Stats(profile)
    stats.sort_stats("tottime").print_stats("infercore/engine|builtin|ufunc", 30)
    stats.sort_stats("cumulative").print_stats("infercore/engine", 30)
    offline.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
