"""Seconds that `import infercore` takes in a fresh interpreter, the interpreter's own start apart.

python benchmarks/import_time.py [ROUNDS]
"""

import statistics
import subprocess
import sys

_CODE = """
import sys, time
began = time.perf_counter()
{statement}
print(time.perf_counter() - began, len(sys.modules))
"""
_STATEMENTS = (
    "import infercore",
    "from infercore import SamplingParams",
    "from infercore import LLM",
    "import infercore_api.bench.command",
    "import infercore_api.cli.main",
)


def main(rounds: int = 20) -> None:
    for statement in _STATEMENTS:
        seconds, modules = [], 0
        for _ in range(rounds):
            out = subprocess.run(
                [sys.executable, "-c", _CODE.format(statement=statement)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.split()
            seconds.append(float(out[0]))
            modules = int(out[1])
        print(
            f"{statement:40} {1e3 * statistics.median(seconds):8.1f} ms "
            f"({1e3 * min(seconds):.1f} - {1e3 * max(seconds):.1f}), {modules} modules"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
