"""KV blocks: who holds which, which are cached under the hash of their prefix, which are free.

Every block of a pool but block 0 is in exactly one of three places:

    free      never written, or not worth keeping      ref_count 0, no hash
    cached    unreferenced, found again by its hash    ref_count 0, hash; evicted oldest first
    held      in ref_count block tables                ref_count > 0, hash or none
"""

import hashlib
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from typing import TypeAlias

import numpy as np

from infercore.engine.kv_budget import blocks_per_sequence
from infercore.engine.limits import EngineLimits
from infercore.engine.sequence import Sequence
from infercore.errors import UnsupportedModel
from infercore.executor import GroupKind, KVGroup, KVGroups
from infercore.step import Int32

BlockLists: TypeAlias = list[list[int]]
"""Block ids per group, in the order of the groups."""


class BlockPool:
    """The blocks of one KV group."""

    def __init__(self, num_blocks: int) -> None:
        self.ref_count = [0] * num_blocks
        self._hash: list[bytes | None] = [None] * num_blocks
        self._by_hash: dict[bytes, int] = {}
        self._free = list(range(num_blocks - 1, 0, -1))
        self._cached: dict[int, None] = {}  # unreferenced, oldest first

    @property
    def num_free(self) -> int:
        return len(self._free) + len(self._cached)

    @property
    def num_used(self) -> int:
        return len(self.ref_count) - 1 - self.num_free

    def take(self) -> int:
        """A block for new contents; the least recently used cached one if none is free."""
        if self._free:
            block = self._free.pop()
        else:
            block = next(iter(self._cached))
            del self._cached[block]
            digest = self._hash[block]
            assert digest is not None
            del self._by_hash[digest]
            self._hash[block] = None
        self.ref_count[block] = 1
        return block

    def find(self, digest: bytes) -> int | None:
        return self._by_hash.get(digest)

    def share(self, block: int) -> None:
        """Hold a block that `find` gave."""
        self._cached.pop(block, None)
        self.ref_count[block] += 1

    def seal(self, block: int, digest: bytes) -> None:
        """Let later sequences find a held, full block; the first one under a hash wins."""
        assert self.ref_count[block] > 0
        if self._hash[block] is None and digest not in self._by_hash:
            self._hash[block] = digest
            self._by_hash[digest] = block

    def forget(self, digest: bytes) -> None:
        """Let nobody find the block under a hash again; who holds it keeps it."""
        block = self._by_hash.pop(digest, None)
        if block is None:
            return
        self._hash[block] = None
        if not self.ref_count[block]:
            del self._cached[block]
            self._free.append(block)

    def release(self, block: int) -> None:
        assert self.ref_count[block] > 0, f"block {block} is released but nobody holds it"
        self.ref_count[block] -= 1
        if self.ref_count[block]:
            return
        if self._hash[block] is None:
            self._free.append(block)
        else:
            self._cached[block] = None


class BlockManager:
    """Block tables of the running sequences, over one pool per KV group.

    tables: int32 [G, slots, W]; entry i of a sequence's row holds its positions
        i · block_size : (i + 1) · block_size, or is 0: not taken yet, or out of the window.

    Raises UnsupportedModel for groups that it cannot keep.
    """

    def __init__(
        self, groups: KVGroups, num_blocks: Mapping[str, int], limits: EngineLimits
    ) -> None:
        for group in groups:
            if group.kind is GroupKind.STATE:
                raise UnsupportedModel(
                    f"KV group {group.name!r} holds one state per sequence, which this engine "
                    "does not schedule. Serve a model whose layers all attend."
                )
        if len({group.block_size for group in groups}) != 1:
            sizes = {group.name: group.block_size for group in groups}
            raise UnsupportedModel(
                f"KV groups must share one block size, and this model's differ: {sizes}"
            )
        self.groups = groups
        self.block_size = groups[0].block_size
        self.prefix_cache = limits.prefix_cache
        self._max_chunk = limits.max_batch_tokens
        self._num_blocks = [num_blocks[group.name] for group in groups]
        self._windows = [
            (g, group.window)
            for g, group in enumerate(groups)
            if group.kind is GroupKind.WINDOW and group.window is not None
        ]
        width = -(-limits.max_model_len // self.block_size)
        self.tables: Int32 = np.zeros((len(groups), limits.max_num_seqs, width), np.int32)
        self.reset()

    def reset(self) -> None:
        """Forget all blocks and everything cached."""
        self.pools = [BlockPool(count) for count in self._num_blocks]
        self.tables.fill(0)

    @property
    def num_blocks(self) -> int:
        return sum(self._num_blocks) - len(self.pools)

    @property
    def num_used(self) -> int:
        return sum(pool.num_used for pool in self.pools)

    @property
    def windows(self) -> SequenceOf[tuple[int, int]]:
        """(group index, window) of the groups whose blocks age."""
        return self._windows

    def first_in_window(self, window: int, position: int) -> int:
        """Index of the first block that a query at `position` reads."""
        return max(0, position - window + 1) // self.block_size

    # -- prefix cache ---------------------------------------------------------------------------

    def match(self, seq: Sequence) -> BlockLists:
        """The longest cached prefix of `seq`, as the leading entries of its block tables.

        At least one token is left to run, because the next choice needs logits.
        """
        found: BlockLists = [[] for _ in self.groups]
        if not (self.prefix_cache and seq.reads_cache):
            return found
        limit = (seq.num_tokens - 1) // self.block_size
        hashes = self.hashes(seq, limit)
        length = self._longest_match(hashes[:limit])
        for group, pool, blocks in zip(self.groups, self.pools, found, strict=True):
            first = self._first_kept(group, length * self.block_size)
            blocks.extend([0] * first)
            for digest in hashes[first:length]:
                block = pool.find(digest)
                assert block is not None
                blocks.append(block)
        return found

    def _longest_match(self, hashes: list[bytes]) -> int:
        length = len(hashes)
        for group, pool in zip(self.groups, self.pools, strict=True):
            if group.kind is not GroupKind.WINDOW:
                length = next(
                    (i for i in range(length) if pool.find(hashes[i]) is None),
                    length,
                )
        while length:
            missing = self._missing_in_windows(hashes, length)
            if missing is None:
                break
            length = missing  # whatever reaches beyond the hole needs it
        return length

    def _missing_in_windows(self, hashes: list[bytes], length: int) -> int | None:
        for g, window in self._windows:
            first = self.first_in_window(window, length * self.block_size)
            for i in range(length - 1, first - 1, -1):
                if self.pools[g].find(hashes[i]) is None:
                    return i
        return None

    def _first_kept(self, group: KVGroup, position: int) -> int:
        if group.kind is not GroupKind.WINDOW or group.window is None:
            return 0
        return self.first_in_window(group.window, position)

    def hashes(self, seq: Sequence, count: int) -> list[bytes]:
        """Chained hashes of the first `count` blocks, at least; keyed with the salt."""
        size, hashes = self.block_size, seq.hashes
        for i in range(len(hashes), count):
            parent = hashes[-1] if hashes else b""
            block = seq.ids[i * size : (i + 1) * size].tobytes()
            hashes.append(
                hashlib.blake2b(parent + block, digest_size=32, key=seq.salt_key).digest()
            )
        return hashes

    # -- a sequence's blocks ----------------------------------------------------------------------

    def fits(self, seq: Sequence, match: BlockLists) -> bool:
        """Whether all tokens known of `seq` find room now, next to what others hold."""
        matched = len(match[0]) * self.block_size
        for group, pool, blocks in zip(self.groups, self.pools, match, strict=True):
            whole = -(-seq.num_tokens // self.block_size) - self._first_kept(group, matched)
            most = min(whole, blocks_per_sequence(group, seq.num_tokens, self._max_chunk))
            shared = sum(1 for block in blocks if pool.ref_count[block])
            if most - shared > pool.num_free:
                return False
        return True

    def start(self, seq: Sequence, match: BlockLists) -> None:
        """Give a sequence that has a slot the blocks of its cached prefix."""
        length = len(match[0])
        for g, blocks in enumerate(match):
            for block in blocks:
                if block:
                    self.pools[g].share(block)
            self.tables[g, seq.slot, :length] = blocks
        seq.num_blocks = seq.num_sealed = length
        seq.num_computed = length * self.block_size

    def grow(self, seq: Sequence, num_tokens: int, fresh: BlockLists) -> bool:
        """Make room for `num_tokens` positions; False, and nothing taken, if there is none.

        fresh: the blocks taken are appended to it.
        """
        have = seq.num_blocks
        if num_tokens <= have * self.block_size:
            return True
        need = -(-num_tokens // self.block_size) - have
        if any(pool.num_free < need for pool in self.pools):
            return False
        for g, pool in enumerate(self.pools):
            blocks = [pool.take() for _ in range(need)]
            self.tables[g, seq.slot, have : have + need] = blocks
            fresh[g].extend(blocks)
        seq.num_blocks = have + need
        return True

    def advance(self, seq: Sequence, num_tokens: int) -> None:
        """Count `num_tokens` as written: cache the blocks they filled, let go what aged."""
        before = seq.num_computed
        seq.num_computed = now = before + num_tokens
        if now >= (seq.num_sealed + 1) * self.block_size:
            self._seal(seq, now // self.block_size)
        for g, window in self._windows:
            first, last = self.first_in_window(window, before), self.first_in_window(window, now)
            if first < last:
                self._release(g, seq.slot, first, last)

    def _seal(self, seq: Sequence, full: int) -> None:
        if self.prefix_cache:
            hashes = self.hashes(seq, full)
            for g, pool in enumerate(self.pools):
                blocks = self.tables[g, seq.slot, seq.num_sealed : full].tolist()
                for block, digest in zip(blocks, hashes[seq.num_sealed : full], strict=True):
                    pool.seal(block, digest)
        seq.num_sealed = full

    def distrust(self, seq: Sequence) -> None:
        """Let nobody else read what a sequence wrote or read: one of its numbers was none.

        A chunk that ends before the last known token has no status, so a block may be cached
        before its NaN shows in a score.
        """
        for pool in self.pools:
            for digest in seq.hashes:
                pool.forget(digest)

    def trim(self, seq: Sequence) -> None:
        """Let go the blocks that only steps without a result were to write."""
        kept = -(-seq.num_computed // self.block_size)
        for g in range(len(self.pools)):
            self._release(g, seq.slot, kept, seq.num_blocks)
        seq.num_blocks = min(seq.num_blocks, kept)

    def release(self, seq: Sequence) -> None:
        """Let go all blocks of a sequence."""
        for g in range(len(self.pools)):
            self._release(g, seq.slot, 0, seq.num_blocks)
        seq.num_blocks = 0

    def _release(self, g: int, slot: int, start: int, stop: int) -> None:
        entries = self.tables[g, slot, start:stop]
        for block in reversed(entries.tolist()):  # the end of a prefix is evicted before its start
            if block:
                self.pools[g].release(block)
        entries.fill(0)
