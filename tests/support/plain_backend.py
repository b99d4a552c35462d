"""The least that a backend is, on torch's CPU, for defects to be planted in, one at a time."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

from infercore.backend import Attention, Backend, PackedLinear
from infercore.capabilities import Capabilities
from infercore.executor import KVGroup, Probe
from infercore.kinds import Kind
from infercore.layers.attention import PagedAttention
from infercore.layers.ops import Ops
from infercore.model_spec import AttentionSpec
from infercore.worker.thread_group import THREADS
from infercore_conformance.fixtures import Numerics
from infercore_conformance.subject import Implementation, Subject

Run = Callable[[Subject, Numerics], object]
Pack = Callable[[Backend, Kind], PackedLinear]


class PlainBackend(Backend):
    """Core's defaults. The class attributes are what a defect replaces."""

    name: ClassVar[str] = "plain"
    ops_class: ClassVar[type[Ops]] = Ops
    attention_class: ClassVar[type[PagedAttention]] = PagedAttention

    @classmethod
    def probe(cls) -> Probe:
        return Probe(True)

    def device(self, rank: int) -> torch.device:
        del rank
        return torch.device("cpu")

    def memory(self) -> tuple[int, int]:
        return 2**30, 0

    def ops(self) -> Ops:
        return self.ops_class()

    def attention(self, group: KVGroup, specs: Any) -> Attention:
        there = self.device(self.rank)
        return self.attention_class(group, specs, self.ops(), there, self.config)

    def capabilities(self) -> Capabilities:
        return replace(super().capabilities(), collectives=(THREADS,))


def subject_of(cls: type[Backend]) -> Subject:
    """What the suite is given for `--backend NAME`."""
    implementation = Implementation("tests", "1.0.0", "1.0")
    return Subject(cls.name, implementation, cls, Probe(True), cls().capabilities())


def with_ops(ops: type[Ops]) -> type[Backend]:
    return type("Broken", (PlainBackend,), {"ops_class": ops})


def with_attention(attention: type[PagedAttention]) -> type[Backend]:
    return type("Broken", (PlainBackend,), {"attention_class": attention})


def with_specs(change: Callable[[AttentionSpec], AttentionSpec], **group: Any) -> type[Backend]:
    """A backend that misreads its attention's specs, or fields of their KV group."""

    class Broken(PagedAttention):
        def __init__(self, read: KVGroup, specs: Any, *rest: Any) -> None:
            super().__init__(replace(read, **group), [change(spec) for spec in specs], *rest)

    return with_attention(Broken)


def with_pack(pack: Pack, **declared: Any) -> type[Backend]:
    """A backend that packs in its own way, and declares `declared`."""

    class Broken(PlainBackend):
        def pack(self, kind: Kind) -> PackedLinear:
            return pack(self, kind)

        def capabilities(self) -> Capabilities:
            return replace(super().capabilities(), **declared)

    return Broken


def fails(cls: type[Backend], run: Run, cause: str) -> None:
    """The sound backend passes the check, and the broken one fails it for the cause."""
    run(subject_of(PlainBackend), Numerics([]))
    with pytest.raises(AssertionError, match=cause):
        run(subject_of(cls), Numerics([]))
