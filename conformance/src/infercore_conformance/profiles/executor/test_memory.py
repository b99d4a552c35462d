"""Memory: what `memory` says, whether it is there, and that traffic leaves none behind."""

import gc
import math
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from infercore.backend import Backend, PackedLinear
from infercore.kinds import Kind
from infercore_conformance import Level, check, thorough
from infercore_conformance.device import IS_BACKEND
from infercore_conformance.fixtures import Models, Numerics, Start
from infercore_conformance.running import Running, config_for, open_model, quiet
from infercore_conformance.steps import Row, Stepper, prompt
from infercore_conformance.subject import Subject

BUDGET = 256 * 2**20
SHARE = 0.02  # by which accounting may be wrong
FILLED = 1.1  # times the tensors, for layouts that are filled up
ITEMSIZE = {"float32": 4}  # of every other compute dtype: 2
LARGER: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4}
REQUESTS, WARM = 1000, 200
AT_ONCE, TOKENS = 8, 3
LEAK = 64.0  # bytes per request that rounding and the allocator's own tables may be


@check("executor.memory.adds_up", "Total, weights and workspace are what the budget and model say.")
def test_memory_adds_up(start: Start, models: Models, numerics: Numerics) -> None:
    """What is left becomes KV blocks: weights that are not counted end in out of memory, and those
    that are counted twice in a cache of half the size. A head may be a float32 copy of its own, and
    layouts may be filled up.
    """
    running = start(models(**LARGER), memory_budget=BUDGET)
    memory = running.executor.memory()
    assert 0 < memory.total <= BUDGET, f"{memory.total} bytes in all, of a budget of {BUDGET}"
    assert memory.workspace >= 0
    assert memory.free == memory.total - memory.weights - memory.workspace
    itemsize = ITEMSIZE.get(running.config.dtype, 2)
    least = running.spec.num_parameters * itemsize
    numerics.record("weights_not_counted", 1 - memory.weights / least, SHARE)
    most = least + 4 * running.spec.vocab_size * running.spec.hidden_size
    numerics.record("weights_to_tensors", memory.weights / most, FILLED)


@check(
    "executor.memory.weights",
    "The weights are the sum of what was packed and of the tensors beside it, to 2 %.",
    level=Level.EXTENDED,
    needs=IS_BACKEND,
)
def test_weights_are_what_was_packed(
    subject: Subject, models: Models, dtype: str, numerics: Numerics
) -> None:
    """Neither less nor more: tensors beside it are embeddings and norms, in the compute dtype."""
    backend = subject.cls()
    assert isinstance(backend, Backend), "needs=IS_BACKEND keeps other executors away"
    packed: list[PackedLinear] = []
    for name in ("pack", "pack_head"):
        setattr(backend, name, partial(_kept, packed, getattr(backend, name)))
    executor = backend.executor()
    try:
        spec, weights = open_model(models(**LARGER, tie_word_embeddings=False))
        executor.load(spec, weights, config_for(subject.capabilities, dtype=dtype), quiet)
        told = executor.memory().weights
    finally:
        executor.shutdown()
    matrices = {f"{linear.name}.weight" for linear in spec.linears()}
    beside = sum(math.prod(shape) for name, shape in spec.tensors().items() if name not in matrices)
    itemsize = ITEMSIZE.get(backend.config.dtype, 2)
    expected = sum(each.nbytes for each in packed) + beside * itemsize
    numerics.record(f"{dtype}.weights_off_by", abs(told / expected - 1), SHARE)


def _kept(
    packed: list[PackedLinear], pack: Callable[[Kind], PackedLinear], kind: Kind
) -> PackedLinear:
    packed.append(pack(kind))
    return packed[-1]


@check("executor.memory.free_is_free", "The blocks that fit into what is free can be allocated.")
@thorough
def test_what_is_free_can_be_allocated(start: Start) -> None:
    """All of it, as the server does; the last block then works like the first."""
    running = start(memory_budget=BUDGET)
    memory = running.executor.memory()
    blocks = memory.free // sum(group.bytes_per_block for group in running.groups)
    running.executor.allocate_kv({group.name: blocks for group in running.groups})
    stepper = Stepper(running.groups, blocks)
    for free in stepper.free:
        free.sort()
    assert running.run(stepper.step([(Row(0, prompt(40)), 40)])).n_tokens.tolist() == [1]


@check("executor.memory.no_leak", "A thousand requests leave no memory behind.", timeout=600)
@thorough
def test_requests_leave_nothing_behind(running: Running, numerics: Numerics) -> None:
    """The slope of what Python and NumPy hold, over the requests behind the first two hundred."""
    stepper = running.stepper()
    held: list[tuple[int, int]] = []
    gc.collect()
    gc.freeze()  # what is there already is not looked through again and again
    tracemalloc.start()
    try:
        for done in range(0, REQUESTS, AT_ONCE):
            _serve(running, stepper, done)
            if done >= WARM:
                gc.collect()
                held.append((done, tracemalloc.get_traced_memory()[0]))
    finally:
        tracemalloc.stop()
        gc.unfreeze()
    requests, sizes = np.array(held, np.float64).T
    slope = float(np.polyfit(requests, sizes, 1)[0])
    numerics.record("host_bytes_per_request", slope, LEAK)


def _serve(running: Running, stepper: Stepper, salt: int) -> None:
    rows = [Row(slot, prompt(5 + slot, salt=salt + slot)) for slot in range(AT_ONCE)]
    running.generate(stepper, rows, TOKENS)
    for row in rows:
        stepper.release(row)
