"""Seconds from the start of `infercore serve` to the first healthy answer, on the bundled model.

python benchmarks/ready_time.py [ROUNDS]
"""

import statistics
import sys

from infercore.hub import DEMO
from infercore_api.bench.server_process import ServerProcess


def main(rounds: int = 5) -> None:
    seconds = []
    for _ in range(rounds):
        with ServerProcess(("--model-id", DEMO)) as server:
            seconds.append(server.ready_seconds)
    print(
        f"ready after {statistics.median(seconds):.2f} s ({min(seconds):.2f} - {max(seconds):.2f})"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
