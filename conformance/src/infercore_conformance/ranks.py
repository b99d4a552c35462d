"""What the checks of several ranks need: models that they can share, and ranks that fail.

Importing this module does not import torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from zlib import crc32

from infercore.backend import Backend, Collective
from infercore.capabilities import FULL, Capabilities, Capability, Support
from infercore.executor import Executor, ExecutorConfig, KVGroups, Progress, Weights
from infercore.kinds import Dense, Kind
from infercore.model_spec import ModelSpec
from infercore.step import Float32
from infercore_conformance.engine_wrappers import Around
from infercore_conformance.made_kinds import Variant
from infercore_conformance.needs import Need
from infercore_conformance.running import Running, config_for
from infercore_conformance.steps import Row, prompt
from infercore_conformance.subject import Subject

if TYPE_CHECKING:
    from torch import Tensor

HEADS, FEATURES = 12, 96  # what 2, 3 and 4 ranks share evenly
LENGTH, TOKENS = 37, 3  # of the prompts, and tokens that are forced behind them


@dataclass(frozen=True, slots=True)
class ManyRanks(Need):
    """The ranks of a model can talk, by any collective."""

    def answer(self, can: Capabilities) -> Capability:
        if can.collectives:
            return FULL
        return Capability(Support.UNSUPPORTED, "collectives is empty: it serves on one rank")

    def __str__(self) -> str:
        return "collectives"


MANY = ManyRanks()


def shared(architecture: str, kv_heads: int = HEADS) -> dict[str, Any]:
    """Settings of a tiny model that 2, 3 and 4 ranks can share, by the names of its family.

    kv_heads: where the family lets one choose.
    """
    if architecture == "GPT2LMHeadModel":
        return {"n_head": HEADS, "n_inner": FEATURES}
    return {
        "num_attention_heads": HEADS,
        "num_key_value_heads": kv_heads,
        "intermediate_size": FEATURES,
    }


def forced(subject: Subject, folder: Path, ranks: int) -> Float32:
    """Log-probabilities float32 [3, 1 + TOKENS, V], by id, of three prompts and forced tokens."""
    running = Running.start(subject, folder, config_for(subject.capabilities, ranks=ranks))
    try:
        rows = [Row(slot, prompt(LENGTH, salt=slot)) for slot in range(3)]
        tokens = [prompt(TOKENS, salt=9 + row.slot) for row in rows]
        return running.forced(running.stepper(), rows, tokens, chunk=16)
    finally:
        running.executor.shutdown()


# --- weights of any kind -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MadeWeights:
    """`Weights` whose layers' matrices are made, each from its name; all else is the file's."""

    whole: Weights
    shapes: Mapping[str, tuple[int, int]]
    variant: Variant

    def linear(self, name: str) -> Kind:
        if name not in self.shapes:
            return self.whole.linear(name)
        return self.variant.weight(*self.shapes[name], seed=crc32(name.encode()))

    def tensor(self, name: str) -> Dense:
        return self.whole.tensor(name)


def of_kind(subject: Subject, variant: Variant) -> Subject:
    """The same, but whatever model it loads has matrices of `variant` in its layers."""

    class Made(Around):
        def __init__(self) -> None:
            super().__init__(subject.executor())

        def load(
            self, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
        ) -> KVGroups:
            shapes = {
                linear.name: (linear.out_features, linear.in_features)
                for linear in spec.linears()
                if linear.name != spec.head.name
            }
            made = MadeWeights(weights, shapes, variant)
            return self.inner.load(spec, made, config, progress)

    return replace(subject, cls=cast("type[Executor]", Made))


# --- ranks that fail -----------------------------------------------------------------------------


@dataclass
class Fuse:
    """Raises `error`, once, in the sum over ranks that `countdown` others of the rank precede."""

    error: BaseException | None = None
    countdown: int = 0
    blown: int = 0

    def burn(self) -> None:
        if self.error is None:
            return
        self.countdown -= 1
        if self.countdown < 0:
            error, self.error = self.error, None
            self.blown += 1
            raise error


@dataclass
class FailingEnd:
    """The last rank's end of a group; it fails when its fuse says so."""

    inner: Collective
    fuse: Fuse
    rank: int = field(init=False)
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.rank, self.size = self.inner.rank, self.inner.size

    def all_reduce(self, x: "Tensor") -> "Tensor":
        self.fuse.burn()
        return self.inner.all_reduce(x)

    def all_gather(self, x: "Tensor", dim: int) -> "Tensor":
        return self.inner.all_gather(x, dim)

    def abort(self) -> None:
        self.inner.abort()

    def recover(self) -> None:
        self.inner.recover()


def with_fuse(subject: Subject) -> tuple[Subject, Fuse]:
    """The same Backend, whose last rank fails on demand."""
    fuse, cls = Fuse(), subject.cls
    assert issubclass(cls, Backend), "needs=THREADS keeps other executors away"
    join: Callable[[Backend, int], Collective] = cls.collective

    def collective(self: Backend, ranks: int) -> Collective:
        end = join(self, ranks)
        return FailingEnd(end, fuse) if end.rank == ranks - 1 else end

    failing = type(f"Failing{cls.__name__}", (cls,), {"collective": collective})
    return replace(subject, cls=failing), fuse


def shares_of(vocab: int, ranks: int) -> list[int]:
    """The first and the last token of each rank's share of a vocabulary, in turn."""
    size = -(-vocab // ranks)
    return [
        token for first in range(0, vocab, size) for token in (first, min(first + size, vocab) - 1)
    ]
