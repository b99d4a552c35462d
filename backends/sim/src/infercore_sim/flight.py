"""What `submit` and `copy_blocks` return."""

from collections.abc import Callable
from concurrent.futures import Future

from infercore.executor import Handle
from infercore.step import LateInputs, Step, StepResult
from infercore_sim.options import Fault
from infercore_sim.rules import Owned, require


class Flight(Handle):
    """A step from its submission until its result returned.

    era: how many failures the engine had heard of. done: set by the device. `on_return` hears of
    the end of the step before the engine does.
    """

    def __init__(
        self, step: Step, fault: Fault | None, era: int, on_return: "Callable[[Flight], None]"
    ) -> None:
        self.step = step
        self.fault = fault
        self.era = era
        self.late: Future[LateInputs] = Future()
        self.done: Future[StepResult]
        self._name = f"step {step.step_id}"
        self._owned = [Owned(self._name, step)]
        self._on_return = on_return
        self._returned = False

    def sample(self, late: LateInputs) -> None:
        require(
            self.step.late, f"{self._name}: it was submitted with late=False and takes no sample()"
        )
        require(not self.late.done(), f"{self._name}: sample() comes once")
        self._owned.append(Owned(f"{self._name}'s late inputs", late))
        self.late.set_result(late)

    def result(self, timeout: float | None = None) -> StepResult:
        sampled = self.late.done() or not self.step.late
        require(sampled or timeout is not None, f"{self._name}: result() comes before sample()")
        require(not self._returned, f"{self._name}: result() comes once")
        self.done.exception(timeout)  # a TimeoutError leaves the step unresolved
        self._returned = True
        self._on_return(self)
        self.check_arrays()
        return self.done.result()

    def check_arrays(self) -> None:
        """Raises RuleBroken if the engine changed what it had handed over."""
        for owned in self._owned:
            owned.check()


class Copying(Handle):
    """Blocks being copied."""

    def __init__(self, done: "Future[StepResult]") -> None:
        self._done = done

    def sample(self, late: LateInputs) -> None:
        del late
        require(kept=False, rule="a copy samples nothing")

    def result(self, timeout: float | None = None) -> StepResult:
        return self._done.result(timeout)
