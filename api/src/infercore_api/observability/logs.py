"""The access log: one line per request with ids, counts and times, never a prompt."""

import logging
import time
from dataclasses import dataclass, field

_access = logging.getLogger("infercore.access")
_QUIET_PATHS = frozenset({"/health", "/health/live", "/health/ready", "/ping", "/metrics"})


@dataclass(slots=True)
class RequestRecord:
    """What is told about one request when it ended. Seconds are of the monotonic clock.

    status: of the response; 0 if the client left before there was one.
    finish_reason: of the first choice, or the kind of error.
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


def log_access(record: RequestRecord) -> None:
    """Write the line; as `extra` it carries the same as separate `fields`. Probes log at debug."""
    level = logging.DEBUG if record.path in _QUIET_PATHS else logging.INFO
    if not _access.isEnabledFor(level):
        return
    fields: dict[str, object] = {
        "request_id": record.request_id,
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "prompt_tokens": record.prompt_tokens,
        "generated_tokens": record.generated_tokens,
        "queue_seconds": round(record.queue_seconds, 4),
        "first_token_seconds": round(record.first_token_seconds, 4),
        "seconds": round(record.seconds, 4),
        "finish_reason": record.finish_reason,
    }
    text = " ".join(f"{name}={value}" for name, value in fields.items())
    _access.log(level, "%s", text, extra={"fields": fields})
