"""The stages of `infercore.sampling` in torch, on batches of rows and without state."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infercore.sampling import KEY_PARITY, LARGEST_V, ROTATIONS, threefry2x32
from infercore.step import Int32, UInt64
from infercore.watermark import CONTEXT_BIT, LOT_BITS

HEAD = 1024  # likeliest tokens that filters without top-k look at first
SMALL_HASH = 2**15  # words below which NumPy hashes faster than torch's many small kernels


@dataclass(frozen=True, slots=True)
class Filters:
    """Limits of F rows, each a tensor [F, 1]; top_k int64 (0 = off), the others float64."""

    top_k: Tensor
    top_p: Tensor
    typical_p: Tensor
    min_p: Tensor


def ranked(scores: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The best `width` of [F, V], (score falling, id rising): scores and ids int64 [F, width]."""
    if width < scores.shape[1]:
        top, ids = scores.topk(width)
        # topk may take any of the tokens that tie at its edge
        if bool(((scores >= top[:, -1:]).sum(1) == width).all()):
            ids = ids.sort(dim=1).values
            top, order = scores.gather(1, ids).sort(dim=1, descending=True, stable=True)
            return top, ids.gather(1, order)
    top, ids = scores.sort(dim=1, descending=True, stable=True)
    return top[:, :width], ids[:, :width]


def log_total(logits: Tensor) -> Tensor:
    """log Σ exp of each row, float64 [S, 1]."""
    highest = logits.amax(dim=1, keepdim=True)
    return (logits - highest).exp().sum(1, keepdim=True, dtype=torch.float64).log() + highest


def survivors(scores: Tensor, filters: Filters) -> tuple[Tensor, Tensor]:
    """Scores and ids [F, W] in rank order; what the filters dropped has the score −inf.

    scores: float32 [F, V], scaled, the largest is 0. Looks at the head of the vocabulary; if a
    row's survivors may reach beyond it, at all of it.
    """
    vocab = scores.shape[1]
    most_k = int(filters.top_k.max())
    width = min(vocab, most_k if bool((filters.top_k > 0).all()) else max(HEAD, most_k))
    total = None
    if width < vocab:
        total = scores.double().exp().sum(1, keepdim=True)
        head, ids = ranked(scores, width)
        if bool(_head_suffices(head, filters, total).all()):
            return _trimmed(_filtered(head, filters, total), ids)
    head, ids = ranked(scores, vocab)
    return _trimmed(_filtered(head, filters, total), ids)


def _trimmed(head: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Without the columns, at the end, that no row has a survivor in."""
    used = (head > -torch.inf).any(dim=0).nonzero()
    width = int(used[-1]) + 1 if len(used) else 1
    return head[:, :width], ids[:, :width]


def _head_suffices(head: Tensor, filters: Filters, total: Tensor) -> Tensor:
    """Whether each row's survivors all lie in `head` [F, W]."""
    weights = head.double().exp()
    covered = weights.sum(1, keepdim=True)
    by_k = (filters.top_k > 0) & (filters.top_k <= head.shape[1])
    # A little beyond what is asked, so that rounding of the sums cannot matter
    by_p = (filters.top_p < 1) & (covered > filters.top_p * total * (1 + 1e-9))
    by_min_p = (filters.typical_p == 1) & (weights[:, -1:] < filters.min_p)
    return by_k | by_p | by_min_p


def _filtered(head: Tensor, filters: Filters, total: Tensor | None) -> Tensor:
    """`head`, sorted scores [F, W], with −inf where a filter drops; total: mass of all V tokens."""
    rank = torch.arange(head.shape[1], device=head.device)
    alive = (head > -torch.inf) & ((filters.top_k <= 0) | (rank < filters.top_k))
    weights = head.double().exp()
    if bool((filters.top_p < 1).any()):
        mass = torch.where(alive, weights, 0).cumsum(1)
        whole = (
            mass[:, -1:] if total is None else torch.where(filters.top_k > 0, mass[:, -1:], total)
        )
        alive &= _shortest(mass, filters.top_p, whole)
    if bool((filters.typical_p < 1).any()):
        alive &= _typical(head, torch.where(alive, weights, 0), filters.typical_p)
    weights = torch.where(alive, weights, 0)
    alive &= weights >= filters.min_p * weights.amax(1, keepdim=True)
    return torch.where(alive, head, -torch.inf)


def _shortest(mass: Tensor, p: Tensor, whole: Tensor) -> Tensor:
    """Which tokens are in the shortest prefix with mass ≥ p · whole; all where p is 1."""
    before = torch.nn.functional.pad(mass[:, :-1], (1, 0))
    return (before < p * whole) | (p == 1)


def _typical(head: Tensor, weights: Tensor, p: Tensor) -> Tensor:
    alive = weights > 0
    scores = torch.where(alive, head, 0).double()
    mean = (weights * scores).cumsum(1)[:, -1:] / weights.cumsum(1)[:, -1:]
    distance = torch.where(alive, (mean - scores).abs(), torch.inf)
    order = distance.argsort(dim=1, stable=True)
    mass = weights.gather(1, order).cumsum(1)
    return torch.zeros_like(alive).scatter(1, order, _shortest(mass, p, mass[:, -1:]))


def noise(seeds: UInt64, positions: Int32, vocab: int, device: torch.device) -> Tensor:
    """Gumbel noise of every token, float64 [S, V]."""
    pairs = torch.arange((vocab + 1) // 2, dtype=torch.int32, device=device)[None]
    words = _hash(seeds, _column(positions, device), pairs)
    return _gumbel(torch.stack(words, dim=2).view(len(seeds), -1)[:, :vocab])


def noise_at(seeds: UInt64, positions: Int32, ids: Tensor) -> Tensor:
    """Gumbel noise of ids int64 [S, W], float64 [S, W]."""
    even, odd = _hash(seeds, _column(positions, ids.device), (ids >> 1).int())
    return _gumbel(torch.where(ids % 2 == 1, odd, even))


def green(keys: UInt64, thresholds: Tensor, contexts: Tensor, vocab: int) -> Tensor:
    """`watermark.Watermark.green_list` of S rows, bool [S, V].

    thresholds int32[S, 1], contexts int64[S, 1]: on the device.
    """
    first, device = contexts.int() | CONTEXT_BIT - 2**32, contexts.device
    fours = torch.arange((vocab + 3) // 4, dtype=torch.int32, device=device)[None]
    # a CPU hashes a few rows at a time, those that its caches hold
    tile = max(1, SMALL_HASH // fours.shape[1]) if device.type == "cpu" else len(keys)
    lists = torch.empty(len(keys), vocab, dtype=torch.bool, device=device)
    for at in range(0, len(keys), tile):
        rows = slice(at, at + tile)
        words = _hash(keys[rows], first[rows], fours)
        lots = [word >> shift & (1 << LOT_BITS) - 1 for word in words for shift in (0, LOT_BITS)]
        flat = torch.stack(lots, dim=2).flatten(1)[:, :vocab]
        torch.lt(flat, thresholds[rows], out=lists[rows])
    return lists


def _gumbel(words: Tensor) -> Tensor:
    """words: int32 that hold the bits of uint32."""
    v = ((words.long() & 0xFFFFFFFF).float() + 0.5) * 2.0**-32
    return v.clamp_(max=LARGEST_V).double().neg_().log1p_().neg_().log_().neg_()


def _column(words: NDArray[np.generic], device: torch.device) -> Tensor:
    """int32 [S, 1] that holds the bits of words of 32 bits [S]."""
    return torch.from_numpy(words.astype(np.uint32).view(np.int32)).to(device)[:, None]


def _hash(keys: UInt64, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Threefry-2x32 of rows' keys and counters (first, second): two int32 [S, C].

    first: int32 [S, 1], second: int32 [1 or S, C], both with the bits of uint32.
    """
    low, high = keys & np.uint64(0xFFFFFFFF), keys >> np.uint64(32)
    device = second.device
    if device.type == "cpu" and len(keys) * second.shape[1] <= SMALL_HASH:
        counter = (first.numpy().view(np.uint32), second.numpy().view(np.uint32))
        words = threefry2x32((low[:, None], high[:, None]), counter)
        even, odd = (torch.from_numpy(word.view(np.int32)) for word in words)
        return even, odd
    return _threefry(_column(low, device), _column(high, device), first, second)


def _threefry(k0: Tensor, k1: Tensor, c0: Tensor, c1: Tensor) -> tuple[Tensor, Tensor]:
    """`sampling.threefry2x32` on int32, whose right shift needs its sign bits masked off."""
    keys = (k0, k1, k0 ^ k1 ^ KEY_PARITY)
    x1 = c1 + k1
    x0 = (c0 + k0).expand_as(x1).clone()
    for i in range(20):
        bits = ROTATIONS[i % 8]
        x0 += x1
        low = (x1 >> (32 - bits)).bitwise_and_((1 << bits) - 1)
        x1 = x1.bitwise_left_shift_(bits).bitwise_or_(low).bitwise_xor_(x0)
        if i % 4 == 3:
            n = i // 4 + 1
            x0 += keys[n % 3]
            x1 += keys[(n + 1) % 3] + n
    return x0, x1
