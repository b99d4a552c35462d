"""What is declared: capabilities that are not there, that change, or that mean nothing."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

from infercore.capabilities import FULL, Capabilities
from infercore.executor import Executor, KVGroups, Probe
from planted.defect import defect, replaced

Declare = Callable[[], Capabilities]
Look = Callable[[], Probe]


@defect(at="Executor.capabilities", caught_by="executor.load.dtype", cause="UnsupportedModel")
def a_dtype_too_many(right: Declare) -> Capabilities:
    """A dtype is declared that cannot be loaded."""
    can = right()
    return replace(can, dtypes=(*can.dtypes, "float8_e4m3"))


@defect(at="Executor.capabilities", caught_by="executor.load.kv_dtype", cause="UnsupportedModel")
def a_kv_dtype_too_many(right: Declare) -> Capabilities:
    """A dtype of the cache is declared that cannot be allocated."""
    can = right()
    return replace(can, kv_dtypes=(*can.kv_dtypes, "float8_e4m3"))


@defect(at="Executor.capabilities", caught_by="executor.step.batch_invariant", base="sim")
def batch_invariance_is_declared(right: Declare) -> Capabilities:
    """Bits are said not to depend on the batch, and do."""
    return replace(right(), batch_invariant=FULL)


@defect(at="Executor.capabilities", caught_by="executor.copy.host", cause="UnsupportedModel")
def host_copies_are_declared(right: Declare) -> Capabilities:
    """Blocks are said to come back from the host, and do not."""
    return replace(right(), block_copy=FULL)


@defect(at="Executor.capabilities", caught_by="executor.capabilities.constant", stateful=True)
def capabilities_change() -> Callable[[Declare], Capabilities]:
    """An executor declares more each time that it is asked."""
    asked: list[int] = []

    def capabilities(right: Declare) -> Capabilities:
        asked.append(1)
        return replace(right(), batch_tokens=256 + len(asked))

    return capabilities


@defect(at="Executor", caught_by="executor.capabilities.constant")
def loading_changes_the_capabilities(executor: Executor) -> None:
    """What the model needs decides what is declared, and so it changes when one is loaded."""
    loaded: list[bool] = []

    def load(right: Callable[..., KVGroups], *arguments: Any) -> KVGroups:
        loaded.append(True)
        return right(*arguments)

    def capabilities(right: Declare) -> Capabilities:
        return replace(right(), batch_tokens=1) if loaded else right()

    replaced(replaced(executor, "load", load), "capabilities", capabilities)


@defect(at="Executor.capabilities", caught_by="executor.capabilities.legal")
def a_block_size_is_declared_twice(right: Declare) -> Capabilities:
    """A block size stands in the list twice."""
    can = right()
    return replace(can, block_sizes=(*can.block_sizes, can.block_sizes[0]))


@defect(at="Executor.capabilities", caught_by="executor.capabilities.legal")
def a_block_of_no_tokens(right: Declare) -> Capabilities:
    """A block size of 0 is declared."""
    can = right()
    return replace(can, block_sizes=(*can.block_sizes, 0))


@defect(at="Executor.capabilities", caught_by="executor.capabilities.legal")
def dense_is_not_declared(right: Declare) -> Capabilities:
    """No weight kind is declared that core's dequantized weights have."""
    return replace(right(), weight_kinds=())


@defect(at="Executor.capabilities", caught_by="executor.capabilities.legal")
def a_feature_is_true(right: Declare) -> Capabilities:
    """A feature is declared as True, which is no Capability."""
    yes: Any = True
    return replace(right(), activation_int8=yes)


@defect(at="Executor.capabilities", caught_by="executor.capabilities.legal")
def an_extra_is_a_text(right: Declare) -> Capabilities:
    """An extra is declared by a text, which is no Capability."""
    extras: Any = {"lora": "full"}
    return replace(right(), extras=extras)


@defect(at="Executor.capabilities", caught_by="executor.capabilities.models")
def architectures_are_named_otherwise(right: Declare) -> Capabilities:
    """Architectures are named as a vendor does, and not as config.json."""
    return replace(right(), architectures=("llama", "mistral"))


@defect(at="Backend.probe", caught_by="executor.probe.devices")
def devices_have_no_name(right: Look) -> Probe:
    """The hardware is there, and has no name."""
    return replace(right(), devices=())


@defect(at="Backend.probe", caught_by="executor.probe.light", slow=True)
def probing_imports_torch(right: Look) -> Probe:
    """Looking for the hardware loads torch."""
    import torch

    return replace(right(), devices=(f"torch {torch.__version__}",))


@defect(at="Backend.probe", caught_by="executor.probe.fast", slow=True)
def probing_is_slow(right: Look) -> Probe:
    """Looking for the hardware starts its driver, for more than a second."""
    time.sleep(1.2)
    return right()


@defect(at="Executor", caught_by="executor.import.no_patches", slow=True)
def core_is_patched(executor: Any) -> None:
    """A function of core's is replaced by one of the plugin's."""
    from infercore import sampling

    module: ModuleType = sampling
    module.survivors = partial(sampling.survivors)  # type: ignore[attr-defined]
