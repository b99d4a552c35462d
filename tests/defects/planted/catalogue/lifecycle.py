"""The calls around the steps: load, memory, warm-up, health, reset, shutdown."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from infercore.errors import CheckpointError, ExecutorLost, UnsupportedModel
from infercore.executor import (
    Bucket,
    Executor,
    ExecutorConfig,
    Handle,
    KVGroups,
    Memory,
    Progress,
    Weights,
)
from infercore.model_spec import ModelSpec
from infercore.step import Step
from planted.defect import defect, replaced

Load = Callable[[ModelSpec, Weights, ExecutorConfig, Progress], KVGroups]
Submit = Callable[[Step], Handle]
Call = Callable[[], None]
WarmUp = Callable[[Sequence[Bucket], float, Progress], int]

_newest: list[Submit] = []  # what is shared where nothing is to be
_freed: list[bool] = []


@defect(at="Executor.load", caught_by="executor.load.groups")
def last_layer_has_no_group(
    right: Load, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
) -> KVGroups:
    """The last layer is in no KV group."""
    groups = right(spec, weights, config, progress)
    return tuple(replace(group, layers=group.layers[:-1]) for group in groups)


@defect(at="Executor.load", caught_by="executor.load.groups")
def block_size_is_twice_what_was_asked(
    right: Load, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
) -> KVGroups:
    """Groups have blocks of another size than the operator's."""
    groups = right(spec, weights, config, progress)
    return tuple(replace(group, block_size=2 * group.block_size) for group in groups)


@defect(at="Executor.load", caught_by="executor.load.block_bytes")
def values_are_not_counted(
    right: Load, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
) -> KVGroups:
    """A block's bytes are those of its keys."""
    groups = right(spec, weights, config, progress)
    return tuple(replace(g, bytes_per_block=g.bytes_per_block // 2) for g in groups)


@defect(at="Executor.load", caught_by="executor.load.block_bytes")
def one_layer_is_counted(
    right: Load, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
) -> KVGroups:
    """A block's bytes are those of one layer of its group."""
    groups = right(spec, weights, config, progress)
    return tuple(replace(g, bytes_per_block=g.bytes_per_block // len(g.layers)) for g in groups)


@defect(at="Executor.load", caught_by="executor.load.progress")
def loading_is_silent(
    right: Load, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
) -> KVGroups:
    """Loading tells nobody how far it is."""
    return right(spec, weights, config, lambda *_: None)


@defect(at="Executor.load", caught_by="executor.load.progress")
def loading_is_more_than_done(
    right: Load, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
) -> KVGroups:
    """Progress counts from one, and ends beyond its total."""
    return right(spec, weights, config, lambda phase, done, all_: progress(phase, done + 1, all_))


@defect(at="Executor.load", caught_by="executor.load.unsupported")
def unknown_operations_are_replaced(
    right: Load, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
) -> KVGroups:
    """An activation that there is not is computed as another one."""
    known = "silu", "gelu", "gelu_tanh", "relu"
    mlps = [layer.mlp for layer in spec.layers]
    mlps = [m if m.activation in known else replace(m, activation="silu") for m in mlps]
    layers = tuple(replace(a, mlp=m) for a, m in zip(spec.layers, mlps, strict=True))
    return right(replace(spec, layers=layers), weights, config, progress)


@defect(at="Executor.load", caught_by="executor.load.unsupported")
def unknown_operations_are_not_named(
    right: Load, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
) -> KVGroups:
    """A model is refused without a word about what is missing."""
    try:
        return right(spec, weights, config, progress)
    except UnsupportedModel:
        raise UnsupportedModel("this model cannot be run here") from None


@defect(at="Executor.load", caught_by="executor.load.damaged")
def damage_is_swallowed(
    right: Load, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
) -> KVGroups:
    """A checkpoint that cannot be read is loaded in part."""
    try:
        return right(spec, weights, config, progress)
    except CheckpointError:
        return ()


@defect(at="Executor.load", caught_by="executor.load.damaged")
def damage_is_not_told(
    right: Load, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
) -> KVGroups:
    """The failure does not say which tensor is damaged, or what to do."""
    try:
        return right(spec, weights, config, progress)
    except CheckpointError:
        raise CheckpointError("the model could not be loaded") from None


@defect(at="Executor.load", caught_by="executor.load.block_size", cause="UnsupportedModel")
def one_block_size_is_built(
    right: Load, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
) -> KVGroups:
    """Of the block sizes that are declared the largest has no kernel."""
    if config.block_size > 64:
        raise UnsupportedModel(f"there is no kernel for blocks of {config.block_size} tokens")
    return right(spec, weights, config, progress)


@defect(at="Executor.load", caught_by="executor.load.architecture", cause="UnsupportedModel")
def a_family_has_no_kernel(
    right: Load, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
) -> KVGroups:
    """Of the families that are declared one does not load."""
    if spec.architecture == "LlamaForCausalLM":
        raise UnsupportedModel(f"there are no kernels for {spec.architecture}")
    return right(spec, weights, config, progress)


@defect(at="Executor.load", caught_by="executor.model.reference")
def cache_is_in_another_dtype(
    right: Load, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
) -> KVGroups:
    """The cache is bfloat16, whatever was asked for."""
    return right(spec, weights, replace(config, kv_dtype="bfloat16"), progress)


@defect(at="Executor.memory", caught_by="executor.memory.adds_up")
def weights_are_under_reported(right: Callable[[], Memory]) -> Memory:
    """A tenth of the weights is not counted."""
    memory = right()
    return replace(memory, weights=memory.weights * 9 // 10)


@defect(at="Executor.memory", caught_by="executor.memory.adds_up")
def weights_are_counted_twice(right: Callable[[], Memory]) -> Memory:
    """The checkpoint's copy of the weights is counted beside the packed one, and is gone."""
    memory = right()
    return replace(memory, weights=2 * memory.weights)


@defect(at="Executor.memory", caught_by="executor.memory.weights")
def weights_are_rounded_up(right: Callable[[], Memory]) -> Memory:
    """A twentieth is added to the weights, to be on the safe side."""
    memory = right()
    return replace(memory, weights=memory.weights * 21 // 20)


@defect(at="Executor.memory", caught_by="executor.memory.adds_up")
def budget_is_exceeded(right: Callable[[], Memory]) -> Memory:
    """Memory is promised beyond the operator's budget."""
    memory = right()
    return replace(memory, total=2 * memory.total)


@defect(at="Executor.memory", caught_by="executor.memory.adds_up")
def workspace_is_negative(right: Callable[[], Memory]) -> Memory:
    """The workspace is measured before the step that needs it."""
    memory = right()
    return replace(memory, workspace=-1 - memory.workspace)


@defect(
    at="Executor.memory",
    caught_by="executor.memory.free_is_free",
    cause="MemoryBudgetError",
    thorough=True,
    base="sim",
)
def memory_is_promised_twice(right: Callable[[], Memory]) -> Memory:
    """Memory is promised that is not there."""
    memory = right()
    return replace(memory, total=2 * memory.total)


@defect(at="Executor", caught_by="executor.memory.no_leak", slow=True, thorough=True)
def steps_are_kept(executor: Executor) -> None:
    """Every step that was ever submitted is held on to."""
    kept: list[Step] = []

    def submit(right: Submit, step: Step) -> Handle:
        kept.append(step)
        return right(step)

    replaced(executor, "submit", submit)


@defect(at="Executor.warm_up", caught_by="executor.warm_up.deadline", slow=True)
def deadline_is_ignored(
    right: WarmUp, buckets: Sequence[Bucket], deadline: float, progress: Progress
) -> int:
    """Each bucket is compiled, for six seconds, however late it is."""
    if deadline < time.monotonic():
        time.sleep(6.0 * len(buckets))
    return right(buckets, deadline, progress)


@defect(at="Executor.warm_up", caught_by="executor.warm_up.progress")
def warm_up_is_silent(
    right: WarmUp, buckets: Sequence[Bucket], deadline: float, progress: Progress
) -> int:
    """Warm-up tells nobody how far it is."""
    return right(buckets, deadline, lambda *_: None)


@defect(at="Executor.warm_up", caught_by="executor.warm_up.progress")
def warm_up_is_more_than_done(
    right: WarmUp, buckets: Sequence[Bucket], deadline: float, progress: Progress
) -> int:
    """Warm-up's progress ends beyond its total."""
    return right(buckets, deadline, lambda phase, done, all_: progress(phase, done + 1, all_))


@defect(at="Executor.health", caught_by="executor.health.answers", cause="ExecutorLost")
def health_is_doubted(right: Call) -> None:
    """A device that is well is said to be lost."""
    raise ExecutorLost("the device does not answer; restart the engine")


@defect(at="Executor.health", caught_by="executor.health.answers")
def health_clears_the_cache(right: Any) -> None:
    """Asking how the device is makes it forget its cache."""
    executor: Executor = right.__self__
    executor.allocate_kv({"full": 64})


@defect(at="Executor.reset", caught_by="executor.reset.forgets", cause="RuntimeError")
def reset_unloads(right: Any) -> None:
    """Reset drops the model with the slots."""
    right.__self__.shutdown()


@defect(at="Executor", caught_by="executor.reset.forgets")
def reset_lets_noise_go_on(executor: Executor) -> None:
    """What counts tokens for the noise is not reset."""
    steps: list[int] = []

    def submit(right: Submit, step: Step) -> Handle:
        steps.append(step.step_id)
        shift = np.int32(len(steps) // 7)
        return right(replace(step, sample_positions=step.sample_positions + shift))

    replaced(executor, "submit", submit)


@defect(
    at="Executor.shutdown", caught_by="executor.shutdown.twice", cause="RuntimeError", stateful=True
)
def second_shutdown_fails() -> Callable[[Call], None]:
    """Shutdown frees what it has freed already."""
    freed: list[bool] = []

    def shutdown(right: Call) -> None:
        if freed:
            raise RuntimeError("double free")
        freed.append(True)
        right()

    return shutdown


@defect(at="Executor", caught_by="executor.shutdown.twice", cause="RuntimeError")
def shutdown_needs_a_model(executor: Executor) -> None:
    """Shutdown fails where nothing was loaded."""
    loaded: list[bool] = []

    def load(right: Load, *arguments: Any) -> KVGroups:
        loaded.append(True)
        return right(*arguments)

    def shutdown(right: Call) -> None:
        right()
        if not loaded:
            raise RuntimeError("there is no model")

    replaced(replaced(executor, "load", load), "shutdown", shutdown)


@defect(at="Executor", caught_by="executor.shutdown.again", cause="ExecutorLost")
def the_device_is_freed_for_good(executor: Executor) -> None:
    """What the shutdown of a model has freed cannot be had again in its process."""
    loaded: list[bool] = []

    def load(right: Load, *arguments: Any) -> KVGroups:
        if _freed:
            raise ExecutorLost("the device was freed; restart the process")
        loaded.append(True)
        return right(*arguments)

    def shutdown(right: Call) -> None:
        right()
        _freed.extend(loaded)

    replaced(replaced(executor, "load", load), "shutdown", shutdown)


@defect(at="Executor", caught_by="executor.shutdown.two")
def executors_share_their_model(executor: Executor) -> None:
    """The model that was loaded last is every executor's."""
    own = executor.submit

    def load(right: Load, *arguments: Any) -> KVGroups:
        _newest[:] = [own]
        return right(*arguments)

    replaced(executor, "load", load)
    replaced(executor, "submit", lambda _, step: _newest[0](step))


@defect(at="Executor", caught_by="executor.shutdown.unresolved", cause="Hung", slow=True)
def shutdown_waits_for_late_steps(executor: Executor) -> None:
    """Shutdown waits until everything that was submitted has its result."""
    handles: list[Handle] = []

    def submit(right: Submit, step: Step) -> Handle:
        handles.append(right(step))
        return handles[-1]

    def shutdown(right: Call) -> None:
        for handle in handles:
            handle.result()
        right()

    replaced(replaced(executor, "submit", submit), "shutdown", shutdown)
