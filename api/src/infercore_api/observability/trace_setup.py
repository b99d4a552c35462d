"""Whether requests are traced, and what to say where the libraries for it are missing."""

import logging
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from infercore.errors import ConfigError
from infercore_api.router.options import RouterOptions

if TYPE_CHECKING:
    from infercore_api.observability.traces import Traces

log = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_MISSING = "traces need more packages; install them with `pip install infercore-api[otel]`"


def check_endpoint(endpoint: str) -> None:
    """Refuse a collector that cannot be used. Raises ConfigError."""
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigError(
            f"--otlp-endpoint {endpoint!r} is no URL; write http://HOST:4317, or https://"
        )
    if not _installed():
        raise ConfigError(f"--otlp-endpoint: {_MISSING}")


def open_traces(options: RouterOptions) -> "Traces | None":
    """Traces to the collector that the flag names, or OTEL_*; None if neither does.

    Variables of OpenTelemetry are often set for a whole cluster, so for them alone missing
    packages are a warning. Raises ConfigError for what cannot be used.
    """
    asked = options.otlp_endpoint is not None
    if asked:
        check_endpoint(str(options.otlp_endpoint))
    elif not _environment_asks():
        return None
    elif not _installed():
        log.warning("OTEL_* asks for traces: %s", _MISSING)
        return None
    from infercore_api.observability.traces import Traces, exporter_of

    exporter = exporter_of(options.otlp_endpoint)
    return Traces(exporter, options.otlp_service_name, options.version, options.model_names[0])


def _environment_asks() -> bool:
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporters = os.environ.get("OTEL_TRACES_EXPORTER", "otlp")
    return exporters == "otlp" and any(os.environ.get(name) for name in _ENDPOINTS)


def _installed() -> bool:
    try:
        return all(
            find_spec(f"opentelemetry.{name}") is not None
            for name in ("sdk.trace", "exporter.otlp.proto.grpc", "exporter.otlp.proto.http")
        )
    except ModuleNotFoundError:  # of a package above it
        return False
