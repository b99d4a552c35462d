"""StepTimes: how long steps took, by phase and by part, as histograms.

A step that runs any position of a prompt is of phase "prefill", with or without decodes beside;
the others are of phase "decode". Its parts:

    schedule  choose the sequences          build   lay out their arrays
    execute   until the result is there     update  append, finish, free
    step      from its submission to the end of its update

Steps overlap where one is submitted before the last one's result. Time that two of them share
counts for the earlier, so that `execute`, and `step`, add up to the time that passed.
"""

from bisect import bisect_left

from infercore.engine.schedule import Schedule

PHASES = ("prefill", "decode")
PARTS = ("schedule", "build", "execute", "update", "step")
BOUNDS = tuple(0.0001 * 1.5**n for n in range(1, 36))
"""Upper bounds of the buckets in seconds, 0.15 ms to 146 s: those of TGI's durations."""

PREFILL, DECODE = range(len(PHASES))
SCHEDULE, BUILD, EXECUTE, UPDATE, STEP = range(len(PARTS))
_BUCKETS = len(BOUNDS) + 1  # the last has no bound


class StepTimes:
    """Counters of the step thread; any thread may read them.

    joined: steps in which prompts ran beside decodes. failed: steps that failed, per phase.
    prompts: prompts[n] is the number of steps that ran n of them, from n = 0.
    """

    def __init__(self) -> None:
        self.joined = 0
        self.failed = [0] * len(PHASES)
        self.prompts = [0]
        rows = len(PHASES) * len(PARTS)
        self._counts = [0] * (rows * _BUCKETS)
        self._seconds = [0.0] * rows
        self._executed = 0.0
        self._updated = 0.0

    @property
    def counts(self) -> tuple[int, ...]:
        """[phases × parts × buckets], row-major; a bucket does not hold what lower ones do."""
        return tuple(self._counts)

    @property
    def seconds(self) -> tuple[float, ...]:
        """[phases × parts] sums, row-major."""
        return tuple(self._seconds)

    def phase_of(self, plan: Schedule) -> int:
        """Count a step's prompts. Returns its phase."""
        rows = zip(plan.seqs, plan.starts, strict=True)
        prompts = sum([start < seq.prompt_len for seq, start in rows])
        while len(self.prompts) <= prompts:
            self.prompts.append(0)
        self.prompts[prompts] += 1
        self.joined += 0 < prompts < len(plan.seqs)
        return PREFILL if prompts else DECODE

    def observe(self, phase: int, part: int, seconds: float) -> None:
        row = phase * len(PARTS) + part
        self._counts[row * _BUCKETS + bisect_left(BOUNDS, seconds)] += 1
        self._seconds[row] += seconds

    def retired(self, phase: int, submitted: float, executed: float, updated: float) -> None:
        """A step ended well: when it was submitted, had its result, and was brought in."""
        self.observe(phase, EXECUTE, executed - max(submitted, self._executed))
        self.observe(phase, UPDATE, updated - executed)
        self.observe(phase, STEP, updated - max(submitted, self._updated))
        self._executed, self._updated = executed, updated
