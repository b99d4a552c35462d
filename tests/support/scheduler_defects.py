"""Defects of the scheduler and the block manager: each stands in the place of one method.

    @defect(BlockPool, "release", by=ALONE, says="a block is lost or doubled")
    def block_is_freed_twice(right, pool, block):
        'A block that nobody holds any more is put among the free ones twice.'

`right` is the method. by: the test that must fail, "module.function", or one of the properties
below, which are tried on traffic after traffic. It fails by an assertion of the tests' own, or by
what is named: says, a pattern of the message, and cause, an exception of core's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from infercore.engine.block_manager import BlockManager, BlockPool
from infercore.engine.engine import Engine
from infercore.engine.recovery import Quarantine
from infercore.engine.request import FinishReason
from infercore.engine.schedule import Schedule
from infercore.engine.scheduler import Scheduler, _Budget
from infercore.engine.sequence import Sequence

Right: TypeAlias = Callable[..., Any]

ALONE = "test_engine_properties.test_everyone_gets_what_they_would_get_alone"
PASSES = "test_engine_properties.test_a_failure_that_passes_ends_nobody"
SCHEDULER, BLOCKS = "test_scheduler.test_", "test_block_manager.test_"

DEFECTS: "list[Defect]" = []


@dataclass(frozen=True)
class Defect:
    """What is planted where, and the test that must catch it."""

    owner: type
    method: str
    function: Callable[..., Any]
    by: str
    says: str = ""
    cause: type[Exception] = AssertionError

    @property
    def id(self) -> str:
        return self.function.__name__

    def planted(self) -> Callable[..., Any]:
        """The method that is to stand in the place of the right one."""
        right, function = getattr(self.owner, self.method), self.function
        return lambda own, *args, **named: function(right, own, *args, **named)


def defect(
    owner: type, method: str, *, by: str, says: str = "", cause: type[Exception] = AssertionError
) -> Callable[[Right], Right]:
    def declare(function: Right) -> Right:
        DEFECTS.append(Defect(owner, method, function, by, says, cause))
        return function

    return declare


# --- the pool of one group -----------------------------------------------------------------------


@defect(BlockPool, "release", by=BLOCKS + "what_is_full_already_is_shared_by_its_first_writer")
def block_is_freed_twice(right: Right, pool: BlockPool, block: int) -> None:
    """A block that nobody holds any more is put among the free ones twice."""
    right(pool, block)
    if not pool.ref_count[block] and block not in pool._cached:
        pool._free.append(block)


@defect(BlockPool, "share", by=ALONE, says="held otherwise than tables name them")
def a_shared_block_counts_twice(right: Right, pool: BlockPool, block: int) -> None:
    """Who shares a block holds it once more than it lets go."""
    right(pool, block)
    pool.ref_count[block] += 1


@defect(
    BlockPool,
    "share",
    by=BLOCKS + "whole_blocks_of_a_prefix_are_shared_and_one_token_is_left_to_run",
)
def a_shared_block_does_not_count(right: Right, pool: BlockPool, block: int) -> None:
    """A block that several share is let go with the first of them."""
    right(pool, block)
    pool.ref_count[block] = 1


@defect(BlockPool, "__init__", by=ALONE, says="block 0 was given out|is lost or doubled")
def block_0_is_handed_out(right: Right, pool: BlockPool, num_blocks: int) -> None:
    """The block of padding is among the free ones."""
    right(pool, num_blocks)
    pool._free.append(0)


@defect(BlockPool, "take", by=ALONE)
def an_evicted_block_is_still_found(right: Right, pool: BlockPool) -> int:
    """A cached block that is taken for new contents keeps the hash of its old ones."""
    known = dict(pool._by_hash)
    block: int = right(pool)
    pool._by_hash.update(known)
    return block


@defect(BlockPool, "take", by=BLOCKS + "a_block_without_a_hash_is_taken_before_a_cached_one")
def cached_blocks_are_taken_first(right: Right, pool: BlockPool) -> int:
    """What may be found again is given up while there are blocks that hold nothing."""
    free, pool._free = pool._free, [] if pool._cached else pool._free
    block: int = right(pool)
    pool._free = free if pool._free is not free else pool._free
    return block


@defect(BlockPool, "release", by=BLOCKS + "the_block_unused_for_longest_is_evicted_first")
def the_newest_block_is_evicted(right: Right, pool: BlockPool, block: int) -> None:
    """The block that was let go last is evicted first."""
    right(pool, block)
    if block in pool._cached:
        pool._cached = {block: None, **pool._cached}


# --- the tables of sequences ---------------------------------------------------------------------


@defect(
    BlockManager,
    "grow",
    by=SCHEDULER + "a_second_request_waits_for_the_prefix_of_one_in_prefill_for_one_chunk",
)
def blocks_are_cached_before_they_are_written(
    right: Right, blocks: BlockManager, seq: Sequence, num_tokens: int, fresh: Any
) -> bool:
    """A block is found by others from the step on that is to write it."""
    grown: bool = right(blocks, seq, num_tokens, fresh)
    if grown and num_tokens <= seq.num_tokens:
        blocks._seal(seq, num_tokens // blocks.block_size)
    return grown


@defect(BlockManager, "advance", by=ALONE)
def a_token_too_many_is_written(
    right: Right, blocks: BlockManager, seq: Sequence, num_tokens: int
) -> None:
    """The token that was just chosen counts as computed."""
    right(blocks, seq, num_tokens + (seq.num_tokens > seq.num_computed + num_tokens))


@defect(BlockManager, "hashes", by=BLOCKS + "a_block_is_found_behind_its_own_prefix_only")
def hashes_have_no_parent(
    right: Right, blocks: BlockManager, seq: Sequence, count: int
) -> list[bytes]:
    """A block is found by its own tokens, whatever came before them."""
    size = blocks.block_size
    for i in range(len(seq.hashes), count):
        seq.hashes.append(seq.salt_key + seq.ids[i * size : (i + 1) * size].tobytes())
    return seq.hashes


@defect(BlockManager, "hashes", by=BLOCKS + "a_prefix_is_keyed_by_salt_and_by_all_that_came_before")
def tenants_share_a_cache(
    right: Right, blocks: BlockManager, seq: Sequence, count: int
) -> list[bytes]:
    """The salt of a request is not part of its blocks' hashes."""
    seq.salt_key = b""
    hashes: list[bytes] = right(blocks, seq, count)
    return hashes


@defect(BlockManager, "match", by=BLOCKS + "prompt_logprobs_fill_the_cache_but_do_not_read_it")
def scored_prompts_are_skipped(right: Right, blocks: BlockManager, seq: Sequence) -> Any:
    """Positions whose log-probabilities are wanted come from the cache, and have none."""
    asked, seq.prompt_logprobs = seq.prompt_logprobs, None
    found = right(blocks, seq)
    seq.prompt_logprobs = asked
    return found


@defect(BlockManager, "first_in_window", by=ALONE)
def windows_let_go_too_early(right: Right, blocks: BlockManager, window: int, position: int) -> int:
    """The oldest block of a window is let go while a query still reads it."""
    first: int = right(blocks, window, position + blocks.block_size)
    return first


@defect(
    BlockManager,
    "advance",
    by=BLOCKS + "a_window_group_lets_go_what_no_query_reads_any_more",
)
def windows_let_nothing_go(
    right: Right, blocks: BlockManager, seq: Sequence, num_tokens: int
) -> None:
    """Blocks that left a window are kept to the sequence's end."""
    windows, blocks._windows = blocks._windows, []
    right(blocks, seq, num_tokens)
    blocks._windows = windows


@defect(BlockManager, "grow", by=BLOCKS + "growing_takes_all_or_nothing")
def growing_takes_what_there_is(
    right: Right, blocks: BlockManager, seq: Sequence, num_tokens: int, fresh: Any
) -> bool:
    """Where blocks are short, those that are left are taken all the same."""
    while not (grown := bool(right(blocks, seq, num_tokens, fresh))):
        num_tokens -= blocks.block_size
        if right(blocks, seq, num_tokens, fresh):
            return False
    return grown


@defect(BlockManager, "trim", by=BLOCKS + "trimming_keeps_what_results_wrote")
def nothing_is_trimmed(right: Right, blocks: BlockManager, seq: Sequence) -> None:
    """Blocks that a failed step was to write stay with their sequence."""


@defect(BlockManager, "release", by=ALONE, says="held otherwise than tables name them|lost")
def the_last_block_is_kept(right: Right, blocks: BlockManager, seq: Sequence) -> None:
    """A sequence that ends keeps its last block."""
    for g in range(len(blocks.pools)):
        blocks._release(g, seq.slot, 0, seq.num_blocks - 1)
    blocks.tables[:, seq.slot] = 0
    seq.num_blocks = 0


@defect(
    BlockManager,
    "distrust",
    by="test_engine_failures.test_nobody_reads_what_led_to_scores_that_are_not_finite",
)
def what_is_not_finite_stays_cached(right: Right, blocks: BlockManager, seq: Sequence) -> None:
    """The next request with the prefix of one whose scores were NaN reads the same NaN."""


# --- who runs ------------------------------------------------------------------------------------


@defect(Scheduler, "finish", by=ALONE, says="got an output after its end")
def a_cancel_is_lost(
    right: Right, scheduler: Scheduler, seq: Sequence, reason: FinishReason
) -> None:
    """A request that is aborted runs on."""
    if reason is not FinishReason.ABORT:
        right(scheduler, seq, reason)


@defect(
    Scheduler, "finish", by=ALONE, says=r"rule \(c\)|in flight|two sequences|is free|after 2000"
)
def blocks_in_flight_are_let_go(
    right: Right, scheduler: Scheduler, seq: Sequence, reason: FinishReason
) -> None:
    """A sequence that ends gives its blocks back while a step still writes to them."""
    right(scheduler, seq, reason)
    if seq.in_flight and seq.num_blocks:
        scheduler.blocks.release(seq)


@defect(Scheduler, "preempt", by=ALONE)
def a_preempted_row_keeps_its_blocks(right: Right, scheduler: Scheduler, seq: Sequence) -> None:
    """Preemption takes back the slot, and not the blocks."""
    scheduler.running.remove(seq)
    scheduler._free_slots.append(seq.slot)
    seq.forget()
    scheduler.add(seq)
    scheduler.stats.preemptions += 1


@defect(Scheduler, "vacate", by=ALONE)
def a_slot_is_freed_twice(right: Right, scheduler: Scheduler, seq: Sequence) -> None:
    """The slot of a sequence that ends is put among the free ones twice."""
    slot = seq.slot
    right(scheduler, seq)
    scheduler._free_slots.append(slot)


@defect(
    Scheduler,
    "preempt",
    by=SCHEDULER + "preempted_is_the_lowest_priority_then_the_youngest_and_it_resumes",
)
def the_oldest_is_preempted(right: Right, scheduler: Scheduler, seq: Sequence) -> None:
    """Blocks are taken from who has run longest."""
    right(scheduler, next(each for each in scheduler.running if not each.in_flight))


@defect(Scheduler, "add", by=SCHEDULER + "priority_then_age_decides_who_starts")
def priority_is_ignored(right: Right, scheduler: Scheduler, seq: Sequence) -> None:
    """Requests start as they come."""
    scheduler.waiting.append(seq)


@defect(
    _Budget,
    "take",
    by=SCHEDULER + "a_prompt_longer_than_the_budget_runs_in_chunks_of_it",
    says="could not broadcast",  # a step's buffers hold no more than the budget
    cause=ValueError,
)
def the_budget_is_exceeded(right: Right, budget: Any, remaining: int) -> int:
    """A prompt runs whole while there is anything left of the budget."""
    taken: int = right(budget, remaining)
    return remaining if taken else 0


@defect(_Budget, "take", by=SCHEDULER + "a_prompt_of_higher_priority_does_not_hold_up_decodes")
def decodes_wait_for_prompts(right: Right, budget: Any, remaining: int) -> int:
    """Decodes have no share of the budget of their own."""
    budget.prefill += budget.decode
    budget.decode = 0
    taken: int = right(budget, remaining)
    return taken


@defect(Scheduler, "_is_ready", by=SCHEDULER + "length_is_known_ahead_so_no_step_is_wasted_on_it")
def length_is_not_known_ahead(right: Right, scheduler: Scheduler, seq: Sequence) -> bool:
    """A step ahead runs a row whose last token is in flight."""
    return seq.num_pending <= 1


@defect(
    Scheduler,
    "_awaits_prefix",
    by=SCHEDULER + "a_second_request_waits_for_the_prefix_of_one_in_prefill_for_one_chunk",
)
def nobody_waits_for_a_prefix(right: Right, *arguments: Any) -> bool:
    """Two requests with one prompt compute it both."""
    return False


@defect(Scheduler, "_admit", by=SCHEDULER + "with_no_overtaking_the_queue_waits_in_order")
def small_requests_always_overtake(
    right: Right, scheduler: Scheduler, plan: Any, budget: Any, now: float, only: Any
) -> None:
    """What does not fit waits for as long as something smaller comes."""
    for seq in scheduler.waiting:
        seq.blocked_since = now + 1e9
    right(scheduler, plan, budget, now, only)


@defect(
    Scheduler,
    "require_room",
    by="test_engine.test_a_full_queue_refuses_new_requests_but_not_resumed_ones",
)
def the_queue_has_no_limit(right: Right, *arguments: Any) -> None:
    """Requests are queued until memory ends."""


@defect(Scheduler, "restart", by=PASSES)
def a_lost_cache_is_read(right: Right, scheduler: Scheduler) -> None:
    """After the cache was lost its blocks are found by their hashes."""
    for seq in list(scheduler.running):
        scheduler.preempt(seq)


@defect(Scheduler, "roll_back", by=PASSES)
def an_abort_in_a_failed_step_is_forgotten(
    right: Right, scheduler: Scheduler, plan: Schedule
) -> None:
    """A sequence that ended while a step was in flight keeps its slot when that step fails."""
    vacate = scheduler.vacate
    setattr(scheduler, "vacate", lambda seq: None)  # noqa: B010 - a method
    right(scheduler, plan)
    setattr(scheduler, "vacate", vacate)  # noqa: B010


@defect(Quarantine, "blame", by="test_engine_failures.test_a_failure_that_passes_harms_nobody")
def all_are_to_blame(right: Right, quarantine: Quarantine, plan: Schedule, error: Any) -> Any:
    """A step that fails ends everyone in it."""
    right(quarantine, plan, error)
    return [seq for seq in plan.seqs if not seq.is_finished]


@defect(Engine, "_masks", by=ALONE, says="was chosen against the mask")
def late_masks_are_dropped(right: Right, engine: Engine, plan: Schedule, rows: list[int]) -> Any:
    """A step's masks are made, and do not reach it."""
    masked, bitmask = right(engine, plan, rows)
    return masked[:0], bitmask[:0]
