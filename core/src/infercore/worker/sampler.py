"""The torch sampler: equals the definition in `infercore.sampling`, a batch of rows at a time.

A row's token does not depend on the other rows. Work that no row asks for is not done: a greedy
batch is one argmax, plain temperature adds noise without sorting, and filters look at a short
sorted head of the vocabulary unless their survivors reach beyond it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infercore.sampling import RowStatus
from infercore.step import NO_LOGPROBS, Float32, Int32, LateInputs, SlotInit, Step, UInt64
from infercore.worker.sampling_ops import (
    Filters,
    green,
    log_total,
    noise,
    noise_at,
    ranked,
    survivors,
)

TINY = float(np.finfo(np.float32).tiny)
# as plain numbers, since looking a member up takes microseconds
_OK, _NO_TOKEN, _NOT_FINITE, _DROPPED = (
    int(status)
    for status in (RowStatus.OK, RowStatus.NO_TOKEN, RowStatus.NOT_FINITE, RowStatus.DROPPED)
)


@dataclass(slots=True)
class Report:
    """Log-probabilities of the A rows that asked for them; 0 where the status is not OK.

    rows: int64[A], which of the sampled rows. logprobs: float32[A].
    top_ids int32[A, N], top_logprobs float32[A, N]: N = the most that a row asked for.
    """

    rows: NDArray[np.int64]
    logprobs: Float32
    top_ids: Int32
    top_logprobs: Float32


@dataclass(slots=True)
class Sampled:
    """What S rows yielded.

    chosen: int64[S], on the device; means nothing where the status is not OK, but is an id.
    tokens int32[S], status uint8[S] (`RowStatus`): on the host; 0 where the status is not OK.
    report: None if no row asked.
    """

    chosen: Tensor
    tokens: Int32
    status: NDArray[np.uint8]
    report: Report | None


class Sampler:
    """Chooses tokens, and keeps per slot what choosing needs. Not thread-safe."""

    def __init__(self, vocab_size: int, num_slots: int, device: torch.device) -> None:
        self.vocab_size = vocab_size
        self.device = device
        self._inits: list[SlotInit | None] = [None] * num_slots
        self._history = History(vocab_size, num_slots, device)
        self._temperature = np.zeros(num_slots, np.float32)
        self._greedy = np.ones(num_slots, np.bool_)
        self._filtered = np.zeros(num_slots, np.bool_)
        self._processed = np.zeros(num_slots, np.bool_)
        self._marked = np.zeros(num_slots, np.bool_)
        # of marked slots: the token that their next one comes after
        self._latest = torch.zeros(num_slots, dtype=torch.int64, device=device)

    def init_slots(self, inits: Sequence[SlotInit]) -> None:
        """Take over admitted or resumed sequences; what their slots held before is forgotten."""
        for init in inits:
            slot, p = init.slot, init.sampling
            self._inits[slot] = init
            self._temperature[slot] = p.temperature
            self._greedy[slot] = p.greedy
            self._filtered[slot] = p.top_k > 0 or p.min_p > 0 or min(p.top_p, p.typical_p) < 1
            bans = len(init.stop_ids) > 0 and init.min_position > 0
            self._marked[slot] = marked = p.watermark is not None
            self._processed[slot] = p.has_penalties or bool(p.logit_bias) or marked or bans
            if marked:
                self._latest[slot] = int([*init.prompt_ids[-1:], *init.output_ids[-1:]][-1])
            self._history.forget(slot)
            if p.has_penalties:
                self._history.start(slot, init.prompt_ids, init.output_ids)

    def reset(self) -> None:
        """Forget all slots and free what they held."""
        self._inits = [None] * len(self._inits)
        self._history = History(self.vocab_size, len(self._inits), self.device)

    def sample(self, logits: Tensor, rows: Int32, step: Step, late: LateInputs | None) -> Sampled:
        """Choose one token per row and append it to what the row's slot keeps.

        logits: float32 [S, V], not written to. rows: int32[S], which of the step's rows they are.
        Every row's slot was initialised. Ids in logit biases and histories are below V.
        """
        slots = step.slots[rows]
        highest, tokens = logits.max(dim=1)
        scores, best = logits, highest
        if (late is not None and len(late.rows)) or self._processed[slots].any():
            scores = self._process(logits.clone(), slots, rows, step, late)
            best, tokens = scores.max(dim=1)
        if not self._greedy[slots].all():
            self._draw(tokens, scores, best, slots, step.seeds[rows], step.sample_positions[rows])
        status = _status(_host(highest), _host(best))
        if late is not None:
            status[late.drop[rows]] = _DROPPED
        self._remember(slots, tokens, status)
        report = self._report(logits, tokens, status, step, rows)
        host = np.where(status == _OK, _host(tokens), 0).astype(np.int32)
        return Sampled(tokens, host, status, report)

    def prompt_logprobs(
        self, logits: Tensor, targets: Tensor, n: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of targets int64[t] under logits float32 [t, V], and the n likeliest.

        Returns float32[t], int32[t, n], float32[t, n].
        """
        normalizer = log_total(logits)
        chosen = (logits.gather(1, targets[:, None]) - normalizer).float()[:, 0]
        if n == 0:
            empty = logits.new_zeros(len(targets), 0)
            return chosen, empty.int(), empty
        top, ids = ranked(logits, n)
        return chosen, ids.int(), (top - normalizer).float()

    def _remember(self, slots: Int32, tokens: Tensor, status: NDArray[np.uint8]) -> None:
        """Append to what slots keep, where the rows are OK."""
        kept = np.flatnonzero(status == _OK)
        self._history.append(slots, tokens, kept)
        marked = kept[self._marked[slots[kept]]]
        if len(marked):
            self._latest[self._tensor(slots[marked]).long()] = tokens[self._tensor(marked)]

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _column(self, values: Float32) -> Tensor:
        return self._tensor(values)[:, None]

    def _init(self, slot: int) -> SlotInit:
        init = self._inits[slot]
        assert init is not None, f"slot {slot} samples before it was initialised"
        return init

    def _process(
        self, scores: Tensor, slots: Int32, rows: Int32, step: Step, late: LateInputs | None
    ) -> Tensor:
        """Masks, bans, bias, marks and penalties, in place."""
        inits = [self._init(slot) for slot in slots]
        if late is not None and len(late.rows):
            self._mask(scores, rows, late)
        bans = [
            (i, int(token), 0.0)
            for i, init in enumerate(inits)
            if step.sample_positions[rows[i]] < init.min_position
            for token in init.stop_ids
            if token < self.vocab_size
        ]
        self._put(scores, bans, ban=True)
        biases = [
            (i, token, value)
            for i, init in enumerate(inits)
            for token, value in init.sampling.logit_bias.items()
        ]
        self._put(scores, biases, ban=False)
        marked = np.flatnonzero(self._marked[slots])
        if len(marked):
            at = self._tensor(marked)
            scores[at] = self._mark(scores[at], slots[marked])
        penalized = np.flatnonzero([init.sampling.has_penalties for init in inits])
        if len(penalized):
            at = self._tensor(penalized)
            scores[at] = self._penalize(scores[at], slots[penalized])
        return scores

    def _mask(self, scores: Tensor, rows: Int32, late: LateInputs) -> None:
        index = {int(row): i for i, row in enumerate(rows)}
        masked = [(index[int(row)], m) for m, row in enumerate(late.rows) if int(row) in index]
        if not masked:
            return
        here, there = (np.array(side) for side in zip(*masked, strict=True))
        words = self._tensor(late.bitmask[there].view(np.int32))[:, :, None]
        bits = words >> torch.arange(32, dtype=torch.int32, device=self.device) & 1
        forbidden = bits.flatten(1)[:, : self.vocab_size] == 0
        at = self._tensor(here)
        scores[at] = scores[at].masked_fill(forbidden, -torch.inf)

    def _put(self, scores: Tensor, entries: list[tuple[int, int, float]], *, ban: bool) -> None:
        """Ban, or add to, the scores at (row, token)."""
        if not entries:
            return
        row, token, value = zip(*entries, strict=True)
        at = (self._tensor(np.array(row)), self._tensor(np.array(token)))
        if ban:
            scores[at] = -torch.inf
        else:
            scores[at] += self._tensor(np.array(value, np.float32))

    def _mark(self, scores: Tensor, slots: Int32) -> Tensor:
        """With each row's delta added to its green tokens."""
        marks = [mark for slot in slots if (mark := self._init(slot).sampling.watermark)]
        keys = np.array([mark.key for mark in marks], np.uint64)
        thresholds = self._tensor(np.array([[mark.threshold] for mark in marks], np.int32))
        deltas = self._column(np.array([mark.delta for mark in marks], np.float32))
        contexts = self._latest[self._tensor(slots).long()][:, None]
        is_green = green(keys, thresholds, contexts, self.vocab_size)
        return torch.where(is_green, scores + deltas, scores)

    def _penalize(self, scores: Tensor, slots: Int32) -> Tensor:
        params = [self._init(slot).sampling for slot in slots]
        repetition, frequency, presence = (
            self._column(np.array([getattr(p, f"{name}_penalty") for p in params], np.float32))
            for name in ("repetition", "frequency", "presence")
        )
        seen, counts = self._history.read(slots)
        repeated = torch.where(scores > 0, scores / repetition, scores * repetition)
        scores = torch.where(seen, repeated, scores)
        scores = scores - frequency * counts.float()
        return torch.where(counts > 0, scores - presence, scores)

    def _draw(
        self,
        tokens: Tensor,
        scores: Tensor,
        best: Tensor,
        slots: Int32,
        seeds: UInt64,
        positions: Int32,
    ) -> None:
        """Replace the best token of rows that are not greedy by a drawn one, in place."""
        random = ~self._greedy[slots]
        for filtered in (False, True):
            rows = np.flatnonzero(random & (self._filtered[slots] == filtered))
            if not len(rows):
                continue
            whole = len(rows) == len(slots)
            at = slice(None) if whole else self._tensor(rows)
            divisor = self._column(np.maximum(self._temperature[slots[rows]], np.float32(TINY)))
            scaled = (scores[at] - best[at, None]) / divisor
            filters = self._filters(slots[rows]) if filtered else None
            tokens[at] = draw(scaled, filters, seeds[rows], positions[rows])

    def _filters(self, slots: Int32) -> Filters:
        params = [self._init(slot).sampling for slot in slots]
        return Filters(
            self._tensor(np.array([[p.top_k] for p in params], np.int64)),
            *(
                self._tensor(np.array([[getattr(p, name)] for p in params], np.float64))
                for name in ("top_p", "typical_p", "min_p")
            ),
        )

    def _report(
        self,
        logits: Tensor,
        tokens: Tensor,
        status: NDArray[np.uint8],
        step: Step,
        rows: Int32,
    ) -> Report | None:
        wanted = step.num_logprobs[rows]
        asking = np.flatnonzero(wanted != NO_LOGPROBS)
        if not len(asking):
            return None
        if len(asking) < len(rows):
            at = self._tensor(asking)
            logits, tokens = logits[at], tokens[at]
        shown = min(int(wanted.max()), self.vocab_size)
        chosen, ids, top = map(_host, self.prompt_logprobs(logits, tokens, shown))
        chosen = np.where(status[asking] == _OK, chosen, np.float32(0))
        return Report(asking, chosen, ids, top)


class History:
    """Which tokens a slot has seen and how often it chose them, for slots with penalties only.

    One row of int32 [V] per such slot: bit 0 = seen in the prompt, the rest counts the output.
    """

    def __init__(self, vocab_size: int, num_slots: int, device: torch.device) -> None:
        self._rows = torch.zeros(0, vocab_size, dtype=torch.int32, device=device)
        self._free: list[int] = []
        self._row_of_slot = np.full(num_slots, -1)

    def start(self, slot: int, prompt_ids: Int32, output_ids: Int32) -> None:
        """Begin a slot's history. Rows double when none is free."""
        if not self._free:
            used = len(self._rows)
            grown = self._rows.new_zeros(max(1, 2 * used), self._rows.shape[1])
            grown[:used] = self._rows
            self._rows = grown
            self._free = list(range(used, len(grown)))
        row = self._row_of_slot[slot] = self._free.pop()
        size = self._rows.shape[1]
        state = 2 * np.bincount(output_ids, minlength=size)
        state[prompt_ids] |= 1
        self._rows[row] = torch.from_numpy(state.astype(np.int32)).to(self._rows.device)

    def forget(self, slot: int) -> None:
        """Free the slot's row, if it has one."""
        if self._row_of_slot[slot] >= 0:
            self._free.append(int(self._row_of_slot[slot]))
            self._row_of_slot[slot] = -1

    def read(self, slots: Int32) -> tuple[Tensor, Tensor]:
        """bool [S, V]: in prompt or output; int32 [S, V]: times in the output."""
        rows = torch.from_numpy(self._row_of_slot[slots]).to(self._rows.device)
        state = self._rows[rows]
        return state > 0, state >> 1

    def append(self, slots: Int32, tokens: Tensor, at: NDArray[np.int64]) -> None:
        """Count the tokens of the rows `at` whose slots keep a history."""
        kept = at[self._row_of_slot[slots[at]] >= 0]
        if len(kept):
            device = self._rows.device
            rows = torch.from_numpy(self._row_of_slot[slots[kept]]).to(device)
            self._rows[rows, tokens[torch.from_numpy(kept).to(device)]] += 2


def draw(scaled: Tensor, filters: Filters | None, seeds: UInt64, positions: Int32) -> Tensor:
    """argmax(score + noise) over the survivors of scaled scores [S, V]: token ids int64[S]."""
    if filters is None:
        return noise(seeds, positions, scaled.shape[1], scaled.device).add_(scaled).argmax(dim=1)
    scores, ids = survivors(scaled, filters)
    noisy = noise_at(seeds, positions, ids).add_(scores)
    highest = noisy.amax(dim=1, keepdim=True)
    return torch.where(noisy == highest, ids, scaled.shape[1] - 1).amin(dim=1)


def _status(highest: Float32, best: Float32) -> NDArray[np.uint8]:
    """`RowStatus` uint8[S]; highest, best: the largest logit as it came and as it was left."""
    status: NDArray[np.uint8] = np.full(len(best), _OK, np.uint8)
    status[best == -np.inf] = _NO_TOKEN
    # a NaN is the maximum, and is below nothing
    status[~((highest < np.inf) & (best < np.inf))] = _NOT_FINITE
    return status


def _host(tensor: Tensor) -> NDArray[Any]:
    return tensor.cpu().numpy()
