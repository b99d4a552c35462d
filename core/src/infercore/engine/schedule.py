"""What one step runs: rows of sequences, as plain lists."""

from dataclasses import dataclass, field

from infercore.engine.sequence import Sequence


@dataclass(slots=True)
class Schedule:
    """Rows of one step. All lists have one entry per row, `fresh` one per KV group.

    starts, counts: the row runs positions start : start + count of its sequence.
    yields: most tokens that the row may yield; 0 = a chunk that ends before the last known token.
    """

    step_id: int
    fresh: list[list[int]]
    seqs: list[Sequence] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    yields: list[int] = field(default_factory=list)

    def add(self, seq: Sequence, start: int, count: int, yields: int) -> None:
        """Append a row, and count it as in flight."""
        self.seqs.append(seq)
        self.starts.append(start)
        self.counts.append(count)
        self.yields.append(yields)
        seq.num_scheduled += count
        seq.num_pending += yields
        seq.in_flight += 1

    def land(self, row: int) -> Sequence:
        """Count a row as no longer in flight; what it wrote and yielded is the caller's to add."""
        seq = self.seqs[row]
        seq.num_scheduled -= self.counts[row]
        seq.num_pending -= self.yields[row]
        seq.in_flight -= 1
        return seq

    def constrained_rows(self) -> list[int]:
        """Rows whose choice needs a mask."""
        return [
            row
            for row, seq in enumerate(self.seqs)
            if seq.constraint is not None and self.yields[row]
        ]
