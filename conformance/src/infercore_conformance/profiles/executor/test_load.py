"""Loading a model: what comes back, what is refused, what is told meanwhile."""

from dataclasses import replace

import pytest

from infercore.errors import CheckpointError, UnsupportedModel
from infercore.executor import GroupKind, Weights
from infercore.kinds import Dense, Kind
from infercore_conformance import check
from infercore_conformance.fixtures import Models, Numerics, Start
from infercore_conformance.running import Running, config_for, open_model, quiet
from infercore_conformance.steps import Row, prompt
from infercore_conformance.subject import Subject

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}


@check(
    "executor.load.groups", "The KV groups hold every layer once, with the block size asked for."
)
def test_groups_hold_every_layer_once(start: Start, architecture: str) -> None:
    """The block manager trusts them: a layer without a group has no cache."""
    running = start(architecture)
    groups, spec = running.groups, running.spec
    layers = sorted(layer for group in groups for layer in group.layers)
    assert layers == list(range(len(spec.layers))), f"the groups hold layers {layers}"
    assert len({group.name for group in groups}) == len(groups), "two groups have one name"
    for group in groups:
        windows = {spec.layers[layer].attention.window for layer in group.layers}
        assert group.kind is GroupKind.STATE or group.block_size == running.config.block_size
        assert group.bytes_per_block > 0
        if group.kind is GroupKind.WINDOW:
            assert windows == {group.window}, f"group {group.name} reads {group.window} positions"
        else:
            assert group.window is None, f"group {group.name} is no window, and has one"


@check("executor.load.block_bytes", "A block takes at least the bytes of its keys and values.")
def test_a_block_takes_what_it_holds(start: Start, architecture: str, numerics: Numerics) -> None:
    """Core divides memory by it: a figure that is too small ends in out of memory, in traffic."""
    running = start(architecture)
    itemsize = ITEMSIZE.get(running.config.kv_dtype, 1)
    for group in running.groups:
        if group.kind in (GroupKind.FULL, GroupKind.WINDOW):
            heads = (running.spec.layers[layer].attention for layer in group.layers)
            values = sum(2 * spec.num_kv_heads * spec.head_dim for spec in heads)
            share = values * itemsize * group.block_size / group.bytes_per_block
            numerics.record("content_share_of_block_bytes", share, 1.0)


@check("executor.load.dtype", "Every declared dtype loads, and yields tokens.")
def test_every_dtype_loads(start: Start, dtype: str) -> None:
    """What cannot be loaded is not to be declared."""
    _generates(start(dtype=dtype, kv_dtype=dtype))


@check("executor.load.kv_dtype", "Every declared dtype of the KV cache loads, and yields tokens.")
def test_every_kv_dtype_loads(start: Start, kv_dtype: str) -> None:
    """Core resolves "auto" to the compute dtype."""
    _generates(start(**({} if kv_dtype == "auto" else {"kv_dtype": kv_dtype})))


@check("executor.load.block_size", "Every declared block size loads, and yields tokens.")
def test_every_block_size_loads(start: Start, block_size: int) -> None:
    _generates(start(block_size=block_size))


@check("executor.load.architecture", "Every architecture that is served loads, and yields tokens.")
def test_every_architecture_loads(start: Start, architecture: str) -> None:
    """None in `architectures` declares all families of core."""
    _generates(start(architecture))


@check("executor.load.progress", "Loading tells how far it is.")
def test_loading_tells_how_far_it_is(subject: Subject, models: Models) -> None:
    """Large models load for minutes; the watchdog and the banner live on these calls."""
    calls: list[tuple[str, int, int]] = []
    spec, weights = open_model(models())
    executor = subject.executor()
    try:
        config = config_for(subject.capabilities)
        executor.load(spec, weights, config, lambda *call: calls.append(call))
    finally:
        executor.shutdown()
    assert calls, "progress was never called"
    for phase, done, total in calls:
        assert 0 <= done <= total, f"progress({phase!r}, {done}, {total})"


@check("executor.load.unsupported", "An operation that is missing is refused at load, by its name.")
def test_an_unknown_operation_is_refused_at_load(subject: Subject, models: Models) -> None:
    """UnsupportedModel at the start, never at the first token, and never another operation."""
    spec, weights = open_model(models())
    layers = tuple(replace(x, mlp=replace(x.mlp, activation="sinusoid")) for x in spec.layers)
    executor = subject.executor()
    try:
        with pytest.raises(UnsupportedModel, match="sinusoid"):
            executor.load(
                replace(spec, layers=layers), weights, config_for(subject.capabilities), quiet
            )
    finally:
        executor.shutdown()


class _Damaged:
    """Weights of which one matrix cannot be read."""

    def __init__(self, weights: Weights, name: str) -> None:
        self._weights, self._name = weights, name

    def linear(self, name: str) -> Kind:
        if name == self._name:
            raise CheckpointError(f"{name} is damaged; download it again")
        return self._weights.linear(name)

    def tensor(self, name: str) -> Dense:
        return self._weights.tensor(name)


@check(
    "executor.load.damaged", "What a damaged checkpoint raises while loading reaches the caller."
)
def test_a_damaged_checkpoint_is_told(subject: Subject, models: Models) -> None:
    """As it is: its message names the tensor and the remedy. Shutdown then works as ever."""
    spec, weights = open_model(models())
    last = list(spec.linears())[-1].name
    executor = subject.executor()
    try:
        with pytest.raises(CheckpointError, match="is damaged; download it again"):
            executor.load(spec, _Damaged(weights, last), config_for(subject.capabilities), quiet)
    finally:
        executor.shutdown()


def _generates(running: Running) -> None:
    size = running.config.block_size
    rows = [Row(0, prompt(size + 3)), Row(1, prompt(5))]
    for new in running.generate(running.stepper(), rows, 3):
        assert all(0 <= token < running.spec.vocab_size for token in new), f"tokens {new}"
