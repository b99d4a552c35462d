"""Which sequences run in the next step, and how many tokens of each.

One token budget per step: decodes first, then chunks of prompts, then new requests. `running` is
kept in order of importance (priority, then age), and blocks are handed out in that order, so the
last running sequence is always the next to be preempted and never ahead of who needs its blocks.
"""

from bisect import insort
from collections.abc import Container
from dataclasses import dataclass
from operator import attrgetter

from infercore.engine.block_manager import BlockManager
from infercore.engine.limits import EngineLimits
from infercore.engine.pace import Pace
from infercore.engine.recovery import Quarantine
from infercore.engine.request import EngineStats, FinishReason
from infercore.engine.schedule import Schedule
from infercore.engine.sequence import Sequence
from infercore.errors import Overloaded

_BY_ORDER = attrgetter("order")
_BY_QUEUE_ORDER = attrgetter("queue_order")


@dataclass(slots=True)
class _Budget:
    """Tokens that the step being scheduled may still run."""

    decode: int
    prefill: int

    def take(self, remaining: int) -> int:
        if remaining == 1 and self.decode:
            self.decode -= 1
            return 1
        count = min(remaining, self.prefill)
        self.prefill -= count
        return count


class Scheduler:
    """Owns the queue and the running sequences. Moves counters of what is in flight only.

    tokens_per_step: most tokens that a row may yield (`Capabilities`).
    late_masks: masks may come after a step was submitted, so constrained rows are followed ahead.
    """

    def __init__(
        self,
        blocks: BlockManager,
        limits: EngineLimits,
        stats: EngineStats,
        *,
        tokens_per_step: int,
        late_masks: bool,
    ) -> None:
        self.blocks = blocks
        self.limits = limits
        self.stats = stats
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.quarantine = Quarantine()
        self.updated_step = 0
        self._step_id = 0
        self._block_size = blocks.block_size
        self._tokens_per_step = tokens_per_step
        self._late_masks = late_masks
        self._pace = Pace()
        self._free_slots = list(range(limits.max_num_seqs - 1, -1, -1))

    def require_room(self, prompt_len: int, now: float) -> None:
        """Raises Overloaded if the queue is full, with the seconds that it takes to empty."""
        waiting, limits = len(self.waiting), self.limits
        tokens = sum(seq.prompt_len for seq in self.waiting)
        if waiting >= limits.max_waiting:
            full = f"{waiting} requests are waiting and the queue holds {limits.max_waiting}"
        elif waiting and tokens + prompt_len > limits.max_waiting_tokens:
            full = (
                f"{tokens} prompt tokens are waiting and the queue holds "
                f"{limits.max_waiting_tokens}, too few for {prompt_len} more"
            )
        else:
            return
        wait = self._pace.seconds_for(tokens, now)
        raise Overloaded(f"{full}. Try again in {wait:.0f} s.", wait)

    def add(self, seq: Sequence) -> None:
        insort(self.waiting, seq, key=_BY_QUEUE_ORDER)

    def finish(self, seq: Sequence, reason: FinishReason) -> None:
        """End a sequence; what it holds goes once nothing in flight names it."""
        seq.finish_reason = reason
        if seq not in self.running:
            self.waiting.remove(seq)
            return
        self.running.remove(seq)
        if not seq.in_flight:
            self.vacate(seq)

    # -- one step -------------------------------------------------------------------------------

    def schedule(self, now: float, *, ahead: bool) -> Schedule | None:
        """The next step, or None if there is nothing to run until the one in flight landed.

        now: seconds on the clock of `Request.arrival`. ahead: a step is in flight.
        """
        suspects = self.quarantine.pending()
        if not suspects:
            return self._plan(now, None)
        if ahead:
            return None
        while (plan := self._plan(now, suspects)) is None:
            self.preempt([seq for seq in self.running if seq not in suspects][-1])
        return plan

    def _plan(self, now: float, only: Container[Sequence] | None) -> Schedule | None:
        plan = Schedule(self._step_id + 1, [[] for _ in self.blocks.groups])
        ready = [
            seq for seq in self.running if self._is_ready(seq) and (only is None or seq in only)
        ]
        remaining = [seq.remaining for seq in ready]
        tokens = self.limits.max_batch_tokens
        decoding = min(remaining.count(1), tokens)
        budget = _Budget(decoding, tokens - decoding)
        if self._plan_running(plan, ready, remaining, budget):
            self._admit(plan, budget, now, only)
        if not plan.seqs:
            return None
        self._step_id = plan.step_id
        return plan

    def _is_ready(self, seq: Sequence) -> bool:
        """Length is known ahead; all else about a token in flight is not."""
        pending = seq.num_pending
        if not pending:
            return True
        if pending > 1 or (seq.constraint is not None and not self._late_masks):
            return False
        return len(seq.ids) + pending < seq.max_len

    def _plan_running(
        self, plan: Schedule, ready: list[Sequence], remaining: list[int], budget: _Budget
    ) -> bool:
        """Schedule running sequences; False if blocks were short, so nothing new may start."""
        preempted = self.stats.preemptions
        for seq, wanted in zip(ready, remaining, strict=False):  # victims leave `ready` at its end
            count = budget.take(wanted)
            if not count:
                continue
            while not self._try_row(plan, seq, count, count == wanted):
                victim = self.running[-1]
                if victim.in_flight or len(self.running) == 1:
                    return False  # what is in flight lands first
                self.preempt(victim)
                if ready[-1] is victim:
                    ready.pop()
                if victim is seq:
                    return False
        return self.stats.preemptions == preempted

    def _try_row(self, plan: Schedule, seq: Sequence, count: int, choosing: bool) -> bool:
        """Append a row if there are blocks for it. choosing: it yields tokens."""
        start = seq.num_computed + seq.num_scheduled
        yields = int(choosing)
        if choosing and self._tokens_per_step > 1:
            yields = self._max_yield(seq)
            if not self.blocks.grow(seq, start + count + yields - 1, plan.fresh):
                yields = 1  # nobody is preempted for more than one token
        end = start + count
        if end > seq.num_blocks * self._block_size and not self.blocks.grow(seq, end, plan.fresh):
            return False
        plan.add(seq, start, count, yields)
        return True

    def _max_yield(self, seq: Sequence) -> int:
        if seq.constraint is not None:
            return 1
        return min(self._tokens_per_step, seq.max_len - seq.num_tokens - seq.num_pending)

    # -- admission --------------------------------------------------------------------------------

    def _admit(
        self, plan: Schedule, budget: _Budget, now: float, only: Container[Sequence] | None
    ) -> None:
        """Start waiting requests in order. At most `max_num_seqs` of them are looked at."""
        candidates = [seq for seq in self.waiting if only is None or seq in only]
        for seq in candidates[: self.limits.max_num_seqs]:
            if not (budget.prefill and self._free_slots):
                return
            match = self.blocks.match(seq)
            if self._awaits_prefix(seq, len(match[0]), plan.step_id):
                continue
            if self.blocks.fits(seq, match):
                self.waiting.remove(seq)
                self._start(seq, match, now)
                count = budget.take(seq.remaining)
                self._try_row(plan, seq, count, count == seq.remaining)
                continue
            if seq.blocked_since is None:
                seq.blocked_since = now
            if now - seq.blocked_since >= self.limits.max_overtake:
                return

    def _awaits_prefix(self, seq: Sequence, matched: int, step_id: int) -> bool:
        """Whether another's chunk in flight writes the next block; it is awaited once."""
        if seq.awaited_step is not None and self.updated_step >= seq.awaited_step:
            return False
        size = self.blocks.block_size
        if not (self.blocks.prefix_cache and seq.reads_cache):
            return False
        if matched >= (seq.num_tokens - 1) // size:
            return False
        digest = seq.hashes[matched]
        written = any(
            other.num_computed < (matched + 1) * size <= other.next_position
            and len(other.hashes) > matched
            and other.hashes[matched] == digest
            for other in self.running
        )
        if written and seq.awaited_step is None:
            seq.awaited_step = step_id
        return written

    def _start(self, seq: Sequence, match: list[list[int]], now: float) -> None:
        seq.slot = self._free_slots.pop()
        seq.blocked_since = seq.awaited_step = None
        self.blocks.start(seq, match)
        insort(self.running, seq, key=_BY_ORDER)
        if seq.started is None:
            seq.started = now
            self._pace.note(seq.prompt_len, now)
            seq.cached_tokens = min(seq.num_computed, seq.prompt_len)
            self.stats.prompt_tokens += seq.prompt_len
            self.stats.cached_tokens += seq.cached_tokens

    def preempt(self, seq: Sequence) -> None:
        """Send a running sequence back to the queue; it resumes by recomputing."""
        self.running.remove(seq)
        self.vacate(seq)
        self.add(seq)
        self.stats.preemptions += 1

    def vacate(self, seq: Sequence) -> None:
        """Take back slot and blocks."""
        self.blocks.release(seq)
        self._free_slots.append(seq.slot)
        seq.forget()

    # -- after a failure ------------------------------------------------------------------------

    def roll_back(self, plan: Schedule) -> None:
        """Forget a step that has no result, as if it had never been scheduled."""
        for row in range(len(plan.seqs)):
            seq = plan.land(row)
            if seq.in_flight:
                continue
            if seq.is_finished:
                self.vacate(seq)
            else:
                self.blocks.trim(seq)
                seq.initialised = False  # the executor may have appended tokens to its slot

    def restart(self) -> None:
        """The KV cache is lost and nothing is in flight: everyone resumes by recomputing."""
        for seq in list(self.running):
            self.preempt(seq)
        self.blocks.reset()
