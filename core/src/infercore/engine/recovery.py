"""After a failed step: who is to blame, found by running suspects without company."""

from infercore.engine.schedule import Schedule
from infercore.engine.sequence import Sequence
from infercore.errors import StepFailed


class Quarantine:
    """Groups of suspects, halved with every failure until one sequence fails alone.

    While there is a group, only its members run, with nothing in flight beside them. A member is
    cleared when it is past the position where it failed; where the KV cache was lost that takes
    several steps, since it resumes by recomputing.
    """

    def __init__(self) -> None:
        self._groups: list[dict[Sequence, int]] = []  # {sequence: tokens that clear it}

    def pending(self) -> list[Sequence]:
        """Members of the newest group that are not cleared yet; empty if there is no group."""
        while self._groups:
            suspects = [
                seq
                for seq, goal in self._groups[-1].items()
                if seq.num_computed < goal and not seq.is_finished
            ]
            if suspects:
                return suspects
            self._groups.pop()
        return []

    def blame(self, plan: Schedule, error: StepFailed) -> list[Sequence]:
        """Sequences that end because `plan` failed with `error`; others become suspects.

        A row that failed alone gets one more try, unless the error says that it is no use.
        """
        named = error.rows is not None
        rows = range(len(plan.seqs)) if error.rows is None else error.rows
        goals = {
            plan.seqs[row]: plan.starts[row] + plan.counts[row]
            for row in rows
            if not plan.seqs[row].is_finished
        }
        alone = len(plan.seqs) == 1
        known = any(seq in group for group in self._groups for seq in goals)
        for group in self._groups:
            for seq in goals:
                group.pop(seq, None)
        hopeless = (alone or named) and not error.retryable
        if hopeless or (alone and known):
            return list(goals)
        if named and len(goals) < len(plan.seqs):
            self._groups.append(goals)
        else:
            self._halve(goals)
        return []

    def _halve(self, goals: dict[Sequence, int]) -> None:
        items = list(goals.items())
        middle = (len(items) + 1) // 2
        for half in (items[middle:], items[:middle]):
            if half:
                self._groups.append(dict(half))
