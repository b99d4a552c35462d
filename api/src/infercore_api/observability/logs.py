"""The access log: one line per request with ids, counts and times, never a prompt."""

import logging
import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

from infercore.sampling import SamplingParams

trace_id: ContextVar[str] = ContextVar("trace_id", default="")
"""Of the request that this task answers, 32 hex digits; "" if it is not traced."""

_access = logging.getLogger("infercore.access")
QUIET_PATHS = frozenset(
    {
        *("/health", "/health/live", "/health/ready", "/ping", "/metrics"),
        *("/v2/health/live", "/v2/health/ready"),
        *(f"/inference.GRPCInferenceService/Server{what}" for what in ("Live", "Ready")),
    }
)


@dataclass(slots=True)
class RequestRecord:
    """What is told about one request when it ended. Seconds are of the monotonic clock.

    status: of the response; 0 if the client left before there was one.
    finish_reason: of the first choice, or the kind of error.
    submitted, ended: when its sequences went to the engine, and ended there; 0 if they never did.
    sampling: of each of them. first_token_seconds: from `started`; 0 if there was none.
    """

    request_id: str
    method: str
    path: str
    started: float = field(default_factory=time.monotonic)
    status: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    queue_seconds: float = 0.0
    first_token_seconds: float = 0.0
    seconds: float = 0.0
    finish_reason: str = "-"
    cached_tokens: int = 0
    submitted: float = 0.0
    ended: float = 0.0
    sampling: Sequence[SamplingParams] = ()

    @property
    def prefill_seconds(self) -> float:
        """From the queue to the first token; 0 if there was none."""
        if not self.first_token_seconds:
            return 0.0
        waited = self.submitted - self.started + self.queue_seconds
        return max(0.0, self.first_token_seconds - waited)

    @property
    def decode_seconds(self) -> float:
        """From the first token to the end; 0 if there was none."""
        if not self.first_token_seconds:
            return 0.0
        return max(0.0, self.ended - self.started - self.first_token_seconds)


def log_access(record: RequestRecord) -> None:
    """Write the line; as `extra` it carries the same as separate `fields`. Probes log at debug."""
    level = logging.DEBUG if record.path in QUIET_PATHS else logging.INFO
    if not _access.isEnabledFor(level):
        return
    fields: dict[str, object] = {
        "request_id": record.request_id,
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "prompt_tokens": record.prompt_tokens,
        "generated_tokens": record.generated_tokens,
        "cached_tokens": record.cached_tokens,
        "queue_seconds": round(record.queue_seconds, 4),
        "prefill_seconds": round(record.prefill_seconds, 4),
        "decode_seconds": round(record.decode_seconds, 4),
        "first_token_seconds": round(record.first_token_seconds, 4),
        "seconds": round(record.seconds, 4),
        "finish_reason": record.finish_reason,
    }
    if trace := trace_id.get():
        fields["trace_id"] = trace
    text = " ".join(f"{name}={value}" for name, value in fields.items())
    _access.log(level, "%s", text, extra={"fields": fields})
