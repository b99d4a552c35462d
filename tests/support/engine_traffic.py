"""An engine on the NumPy executor, driven step by step, with its books audited after each."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from infercore.engine.buckets import Buckets, largest_step, plan_buckets
from infercore.engine.engine import Engine
from infercore.engine.info import EngineInfo
from infercore.engine.limits import EngineLimits
from infercore.engine.request import FinishReason, Output, Request, TokenLogprobs
from infercore.sampling import SamplingParams
from numpy_executor import NumpyExecutor
from toy_model import EOS, VOCAB

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


INFO = EngineInfo(
    model_id="toy",
    model_path="/models/toy",
    revision="",
    architecture="ToyModel",
    backend="numpy",
    devices=("NumPy",),
    dtype="float32",
    kv_dtype="float32",
    quantization="none",
    vocab_size=VOCAB,
    eos_ids=(EOS,),
    num_parameters=0,
    max_model_len=64,
    max_input_len=63,
    max_num_seqs=8,
    max_batch_tokens=32,
    block_size=4,
    kv_blocks=64,
    kv_tokens=252,
    memory_total=2**20,
    memory_weights=0,
    memory_workspace=0,
    memory_kv=4096,
    prompt_logprobs=True,
    late_inputs=True,
    batch_invariant=True,
    capabilities='{"limits": {}, "features": {}}',
)


class Clock:
    """Time as the test says it is."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make_engine(
    executor: NumpyExecutor,
    num_blocks: int = 64,
    clock: Clock | None = None,
    warm: int | None = None,
    **limits: Any,
) -> Engine:
    """num_blocks: of every group, block 0 included. limits: fields of EngineLimits.

    warm: how many buckets there was time for; None = all.
    """
    blocks = {group.name: num_blocks for group in executor.groups}
    executor.allocate_kv(blocks)
    chosen = {"max_model_len": 64, "max_num_seqs": 8, "max_batch_tokens": 32, **limits}
    static = executor.capabilities().static_dimensions
    largest = largest_step(static, chosen["max_num_seqs"], chosen["max_batch_tokens"])
    chosen["max_batch_tokens"] = largest.scheduled
    size = executor.groups[0].block_size
    planned = plan_buckets(static, largest, -(-chosen["max_model_len"] // size))[:warm]
    executor.warm_up(planned, 0.0, lambda *_: None)
    return Engine(
        executor,
        executor.groups,
        blocks,
        EngineLimits(**chosen),
        eos_ids=(EOS,),
        vocab_size=VOCAB,
        buckets=Buckets.of(static, planned),
        clock=clock or Clock(),
    )


def prompt(length: int, start: int = 2) -> list[int]:
    """`length` different-looking tokens, none of them EOS."""
    return [2 + (start * 7 + 5 * i) % (VOCAB - 2) for i in range(length)]


@dataclass
class Received:
    """All that one request got."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    last: Output | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    cached_tokens: int = 0

    @property
    def reason(self) -> FinishReason | None:
        return None if self.last is None else self.last.finish_reason

    def take(self, output: Output) -> None:
        assert self.last is None, f"request {output.request_id} got an output after its end"
        assert output.token_ids or output.finish_reason, "an output says something"
        assert (output.error is not None) == (output.finish_reason is FinishReason.ERROR)
        self.tokens += output.token_ids
        self.logprobs += output.logprobs or []
        self.prompt_logprobs = output.prompt_logprobs or self.prompt_logprobs
        self.cached_tokens += output.cached_tokens
        if output.finish_reason is not None:
            self.last = output


class Driver:
    """Steps an engine, and keeps what every request received."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.received: defaultdict[int, Received] = defaultdict(Received)

    def add(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self.engine.add(request)

    def step(self) -> list[Output]:
        outputs = self.engine.step()
        for output in outputs:
            self.received[output.request_id].take(output)
        audit(self.engine)
        return outputs

    def run(self, most: int = 2000) -> dict[int, Received]:
        """Step until nothing is left to do; everything must have been given back then."""
        for _ in range(most):
            if not self.engine.has_work:
                break
            self.step()
        assert not self.engine.has_work, f"work is left after {most} steps"
        stats = self.engine.stats()
        assert (stats.running, stats.waiting, stats.kv_blocks_used) == (0, 0, 0)
        return dict(self.received)


def answers(executor: NumpyExecutor, requests: Iterable[Request], **options: Any) -> list[Received]:
    """What requests that are added at once receive, in their order."""
    requests = list(requests)
    driver = Driver(make_engine(executor, **options))
    driver.add(requests)
    received = driver.run()
    return [received[request.request_id] for request in requests]


def audit(engine: Engine) -> None:
    """Every block is in exactly one place, and held as often as block tables name it."""
    scheduler, blocks = engine._scheduler, engine._blocks
    holders = {id(seq): seq for seq in scheduler.running}
    holders |= {id(seq): seq for flight in engine._flights for seq in flight.plan.seqs}
    slots = [seq.slot for seq in holders.values()]
    assert len(set(slots)) == len(slots), "two sequences have one slot"
    assert not set(slots) & set(scheduler._free_slots), "a slot in use is free"
    assert len(slots) + len(scheduler._free_slots) == engine._rules.limits.max_num_seqs
    for pool, table in zip(blocks.pools, blocks.tables, strict=True):
        named = np.bincount(table[table > 0], minlength=len(pool.ref_count)).tolist()
        assert named == pool.ref_count, "blocks are held otherwise than tables name them"
        places = [*pool._free, *pool._cached, *(b for b, n in enumerate(pool.ref_count) if n)]
        assert sorted(places) == list(range(1, len(pool.ref_count))), "a block is lost or doubled"
        assert pool._by_hash == {
            digest: block for block, digest in enumerate(pool._hash) if digest is not None
        }
