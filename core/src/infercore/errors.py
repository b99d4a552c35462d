"""Every error that InferCore raises on purpose, in one tree.

    InferCoreError
    ├── ConfigError                     the start is refused; nothing was served yet
    │   ├── PluginError                 a plugin is missing, broken, doubled, too old or misspelt
    │   ├── HardwareUnavailable         the backend is installed, its device is not there
    │   ├── UnsupportedModel            no family, kind or capability serves this checkpoint
    │   ├── CheckpointError             a file of the model is missing, damaged or refused
    │   └── MemoryBudgetError           the model does not fit; the message holds the arithmetic
    ├── RequestError                    one request ends; nothing else is harmed
    │   ├── InvalidRequest              the caller can fix it; `param` names the field
    │   ├── Overloaded                  the queue is full; try again later
    │   ├── TemplateError               the chat template refused these messages, or ran too long
    │   ├── GenerationFailed            the step that computed this request failed
    │   └── EngineUnavailable           the engine died, or is not ready; safe to retry
    └── ExecutorError                   what an executor reports to the engine
        ├── StepFailed                  a step did not finish; says which rows, and what survived
        ├── StepDropped                 an earlier step failed, so this one never counted
        └── ExecutorLost                the device or a rank is gone; only a restart helps

A message says what happened, to which request or plugin, and what to do.
"""

from collections.abc import Sequence


class InferCoreError(Exception):
    """Base of all errors raised on purpose. `exit_code` is what the command line exits with."""

    exit_code = 1


class ConfigError(InferCoreError):
    """The configuration, the model or the machine does not allow a start."""

    exit_code = 2


class PluginError(ConfigError):
    """A plugin cannot be used; the message names its distribution."""

    exit_code = 3


class HardwareUnavailable(ConfigError):
    """The backend's device, driver or matching torch build is not there."""

    exit_code = 4


class UnsupportedModel(ConfigError):
    """Nothing installed serves this architecture, weight kind or option."""

    exit_code = 5


class CheckpointError(ConfigError):
    """A checkpoint's file is missing, truncated, inconsistent or of a refused format."""

    exit_code = 6


class MemoryBudgetError(ConfigError):
    """Weights, workspace and at least one full-length request do not fit in memory."""

    exit_code = 7


class RequestError(InferCoreError):
    """One request failed. Front ends map the class to a status, never the text."""


class InvalidRequest(RequestError):
    """The request breaks a rule. `param` is the field at fault, if one is."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class Overloaded(RequestError):
    """The queue is full. `retry_after` is the advised wait in seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TemplateError(RequestError):
    """The chat template raised, or went over its time or size limit."""


class GenerationFailed(RequestError):
    """The device failed on this request, and on this request alone."""


class EngineUnavailable(RequestError):
    """No engine can take or finish the request now."""


class ExecutorError(InferCoreError):
    """What an executor reports instead of a result."""


class StepFailed(ExecutorError):
    """A submitted step has no result.

    rows: the rows at fault, or None if the executor cannot tell; the engine then halves.
    retryable: the same rows may succeed in a smaller step.
    kv_intact: blocks that earlier steps wrote are still valid; False makes the engine reset.
    """

    def __init__(
        self,
        message: str,
        rows: Sequence[int] | None = None,
        *,
        retryable: bool = True,
        kv_intact: bool = True,
    ) -> None:
        super().__init__(message)
        self.rows = None if rows is None else tuple(rows)
        self.retryable = retryable
        self.kv_intact = kv_intact


class StepDropped(ExecutorError):
    """A step submitted after one that failed: nothing it did may be used."""


class ExecutorLost(ExecutorError):
    """The device, the driver or a rank does not answer any more."""
