"""Checks the bench's bare loop against the model runner itself, without executor and thread.

    python benchmarks/bare_runner.py [BATCH] [OUTPUT_LEN] [ROUNDS]

Three loops in turns over the same steps: the engine; the steps replayed through the executor (what
`infercore bench` calls the bare loop); the steps given to `ModelRunner.forward` and `.finish` in
this thread. Prints decode milliseconds per step of each, and the engine's over the runner's.
"""

import statistics
import sys
import time
from collections.abc import Sequence

import torch

from infercore.step import Step
from infercore.worker.model_runner import ModelRunner
from infercore.worker.torch_executor import TorchExecutor
from infercore_api.bench.offline import Offline, run_batch
from infercore_api.bench.options import BenchOptions
from infercore_api.bench.replay import recorded, replay


def run_steps(runner: ModelRunner, steps: Sequence[Step]) -> float:
    """Seconds of the decode steps, one after the other."""
    decoding = 0.0
    with torch.inference_mode():
        for step in steps:
            began = time.perf_counter()
            runner.finish(runner.forward(step), None)
            if step.num_tokens == step.num_rows:
                decoding += time.perf_counter() - began
    return decoding


def main(batch: int = 16, output_len: int = 64, rounds: int = 5) -> None:
    options = BenchOptions(threads=1, output_len=output_len, batch_sizes=(batch,))
    offline = Offline(options)
    engine, executor = offline.launched.engine, offline.launched.executor
    assert isinstance(executor, TorchExecutor), "only torch executors have a model runner"
    prompts = offline.prompts.draw(batch, options.prompt_len)
    with recorded(executor) as steps:
        run_batch(engine, prompts, output_len)
    depth = executor.capabilities().max_in_flight
    seconds: dict[str, list[float]] = {"engine": [], "bare loop": [], "model runner": []}
    for _ in range(rounds):
        seconds["engine"].append(run_batch(engine, prompts, output_len).decode_seconds)
        seconds["bare loop"].append(replay(executor, steps, depth).decode_seconds)
        seconds["model runner"].append(run_steps(executor.runner, steps))
    for name, values in seconds.items():
        per_step = sorted(1e3 * value / (output_len - 1) for value in values)
        print(
            f"{name:13} {statistics.median(per_step):7.2f} ms/step "
            f"({per_step[0]:.2f} - {per_step[-1]:.2f})"
        )
    ratios = [a / b for a, b in zip(seconds["engine"], seconds["model runner"], strict=True)]
    print(
        f"engine / model runner: {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} - {max(ratios):.3f})"
    )
    offline.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
