"""Ranks that share a model: sums, shares, and who is told when one fails."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from infercore.errors import ExecutorLost, StepFailed, UnsupportedModel
from infercore.executor import Executor, ExecutorConfig, KVGroups, Memory, Progress, Weights
from infercore.kinds import Blocks, Codebook4, Dense, IntGrouped, Kind
from infercore.model_spec import ModelSpec
from infercore.step import Step, StepResult
from planted.defect import defect, replaced

if TYPE_CHECKING:
    from torch import Tensor

Unary = Callable[["Tensor"], "Tensor"]
Gather = Callable[["Tensor", int], "Tensor"]
BUFFERS: dict[tuple[int, ...], "Tensor"] = {}
Load = Callable[[ModelSpec, Weights, ExecutorConfig, Progress], KVGroups]


@defect(at="Collective.all_reduce", caught_by="distributed.logprobs", base="sim")
def ranks_count_themselves_twice(right: Unary, x: "Tensor") -> "Tensor":
    """A rank's own part is twice in a sum."""
    return right(x) + x


@defect(at="Collective.all_reduce", caught_by="distributed.greedy", base="sim")
def sums_leave_out_the_last_column(right: Unary, x: "Tensor") -> "Tensor":
    """The last feature of a sum is the rank's own."""
    total = right(x)
    total[..., -1] = 40 * x[..., -1]
    return total


@dataclass(frozen=True)
class Rolled:
    """Weights whose key and value matrices have their rows one head further."""

    whole: Weights
    size: int

    def linear(self, name: str) -> Kind:
        kind = self.whole.linear(name)
        if not isinstance(kind, Dense) or not name.endswith(("k_proj", "v_proj")):
            return kind
        return replace(kind, data=np.roll(kind.data, self.size, axis=0))

    def tensor(self, name: str) -> Dense:
        return self.whole.tensor(name)


@defect(at="Executor.load", caught_by="distributed.kv_heads", base="sim")
def replicas_are_of_the_next_head(
    right: Load, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
) -> KVGroups:
    """Where KV heads are held by several ranks, each holds its neighbour's."""
    attention = spec.layers[0].attention
    if config.ranks > attention.num_kv_heads:
        weights = Rolled(weights, attention.head_dim)
    return right(spec, weights, config, progress)


def _seeds_shifted(right: Callable[[Step], object], step: Step) -> object:
    return right(replace(step, seeds=step.seeds + np.uint64(1)))


@defect(at="Executor", caught_by="distributed.seeded", base="sim")
def noise_counts_the_ranks(executor: Executor) -> None:
    """With several ranks, rows draw with another seed."""

    def load(
        right: Load, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
    ) -> KVGroups:
        if config.ranks > 1:
            replaced(executor, "submit", _seeds_shifted)
        return right(spec, weights, config, progress)

    replaced(executor, "load", load)


@defect(at="Collective.all_gather", caught_by="distributed.vocabulary", base="sim")
def the_end_of_a_share_is_lost(right: Gather, x: "Tensor", dim: int) -> "Tensor":
    """The last token of each rank's share of the vocabulary is never likely."""
    x = x.clone()
    x[..., -1] = -1e4
    return right(x, dim)


@defect(at="pack", caught_by="distributed.kinds", base="sim")
def cut_blocks_are_whole(kind: Kind) -> Kind:
    """A share that begins within a block is read as if it began with one."""
    if not isinstance(kind, Codebook4) or not kind.blocks.offset:
        return kind
    whole = Blocks(kind.blocks.length, kind.blocks.size)
    return replace(kind, blocks=whole, scales=kind.scales.slice_k(0, whole.count))


@defect(at="pack", caught_by="distributed.kinds", base="sim")
def groups_of_a_share_are_sorted(kind: Kind) -> Kind:
    """The columns of a share are taken to be in the order of their groups."""
    if not isinstance(kind, IntGrouped):
        return kind
    return replace(kind, group_of_row=np.sort(kind.group_of_row))


def _all_of_it(right: Callable[[], Memory]) -> Memory:
    told = right()
    return replace(told, weights=2 * told.weights)


@defect(at="Executor", caught_by="distributed.memory", base="sim")
def every_rank_holds_all(executor: Executor) -> None:
    """Each of two ranks keeps the whole model, and uses its share."""

    def load(
        right: Load, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
    ) -> KVGroups:
        if config.ranks > 1:
            replaced(executor, "memory", _all_of_it)
        return right(spec, weights, config, progress)

    replaced(executor, "load", load)


@defect(at="Executor.load", caught_by="distributed.refused.uneven", base="sim")
def uneven_counts_are_one(
    right: Load, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
) -> KVGroups:
    """A count of ranks that does not divide the model is ignored."""
    try:
        return right(spec, weights, config, progress)
    except UnsupportedModel:
        return right(spec, weights, replace(config, ranks=1), progress)


@defect(at="Executor.load", caught_by="distributed.refused.uneven", base="sim")
def refusals_say_nothing(
    right: Load, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
) -> KVGroups:
    """The refusal of a count of ranks names no count."""
    try:
        return right(spec, weights, config, progress)
    except UnsupportedModel as error:
        raise UnsupportedModel("the model cannot be split") from error


@defect(at="Executor.load", caught_by="distributed.refused.undeclared")
def ranks_are_ignored(
    right: Load, spec: ModelSpec, weights: Weights, config: ExecutorConfig, progress: Progress
) -> KVGroups:
    """Whatever was asked for, one rank serves."""
    return right(spec, weights, replace(config, ranks=1), progress)


@defect(
    at="Collective.abort", caught_by="distributed.failed_rank", cause="Hung", slow=True, base="sim"
)
def nobody_is_released(right: Callable[[], None]) -> None:
    """A rank that fails leaves the others waiting for it."""


@defect(at="Handle.result", caught_by="distributed.lost_rank", cause="StepDropped", base="sim")
def a_lost_rank_is_a_failed_step(
    right: Callable[..., StepResult], timeout: float | None = None
) -> StepResult:
    """A rank that is gone fails its step, and every one after it."""
    try:
        return right(timeout)
    except ExecutorLost as error:
        raise StepFailed(str(error), retryable=False) from error


@defect(at="Collective.all_gather", caught_by="distributed.collective.shape", base="sim")
def gathered_in_float64(right: Gather, x: "Tensor", dim: int) -> "Tensor":
    """What is gathered gets wider."""
    return right(x, dim).double()


@defect(at="Collective.all_reduce", caught_by="distributed.collective.in_turn", base="sim")
def a_sum_is_kept_where_the_last_one_was(right: Unary, x: "Tensor") -> "Tensor":
    """Sums of one shape share a buffer."""
    total = right(x)
    kept = BUFFERS.setdefault((threading.get_ident(), *total.shape), total)
    return kept.copy_(total)


@defect(at="Collective.all_reduce", caught_by="distributed.collective.not_finite", base="sim")
def sums_have_no_nan(right: Unary, x: "Tensor") -> "Tensor":
    """A NaN counts as zero in a sum."""
    return right(x.nan_to_num())
