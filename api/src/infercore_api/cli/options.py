"""From the values of flags to ServeOptions: parsed, checked, and nothing dropped in silence."""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import infercore
from infercore.config import EngineConfig
from infercore.errors import ConfigError
from infercore_api.cli.flags import FLAGS, TGI_ONLY, Flag
from infercore_api.router.options import RouterOptions
from infercore_api.supervisor.serve import ServeOptions

log = logging.getLogger(__name__)

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


def serve_options(values: Mapping[str, Any]) -> ServeOptions:
    """The options behind {flag's key: value}; None, and an empty list, is the default.

    Raises ConfigError, naming the flag, for a value that cannot be.
    """
    homes: dict[str, dict[str, Any]] = {"engine": {}, "router": {}, "serve": {}}
    for flag in FLAGS:
        value = values.get(flag.key)
        if flag.section == TGI_ONLY:
            _say_about(flag, value)
        elif value is not None and value != []:
            home, _, field = flag.field.partition(".")
            homes[home][field] = value
    engine, router, serve = homes["engine"], homes["router"], homes["serve"]
    if "memory_budget" in engine:
        engine["memory_budget"] = parse_size("--memory-budget", engine["memory_budget"])
    if hub_cache := serve.pop("hub_cache", None):
        os.environ["HF_HUB_CACHE"] = hub_cache  # the engine inherits it
    router.setdefault("model_names", [engine["model"]])
    _check_ranges(values)
    options = RouterOptions(
        version=infercore.__version__, **{n: _frozen(value) for n, value in router.items()}
    )
    return ServeOptions(engine=EngineConfig(**engine), router=asdict(options), **serve)


def parse_size(flag: str, text: str) -> int:
    """Bytes of "8G", "512M", "1.5GiB" or "1000000"; units are powers of 1024."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{flag} {text!r} is no size; write bytes, or a number with K, M, G or T")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _say_about(flag: Flag, value: Any) -> None:
    """Note or refuse a flag of TGI's that has no function here."""
    if value is None or value == flag.default:
        return
    if flag.allowed and str(value).lower() not in flag.allowed:
        raise ConfigError(f"--{flag.name} {value}: {flag.note}")
    log.warning("--%s has no effect: %s", flag.name, flag.note)


_POSITIVE = (
    "max_concurrent_requests",
    "max_best_of",
    "max_client_batch_size",
    "payload_limit",
    "validation_workers",
    "write_timeout",
)
_NOT_NEGATIVE = (
    "max_stop_sequences",
    "max_top_n_tokens",
    "max_overtake",
    "graceful_termination_timeout",
)


def _check_ranges(values: Mapping[str, Any]) -> None:
    for keys, lowest in ((_POSITIVE, "positive"), (_NOT_NEGATIVE, "at least 0")):
        for key in keys:
            value = values.get(key)
            bad = value is not None and (value < 0 or (value == 0 and lowest == "positive"))
            if bad or value != value:  # noqa: PLR0124 - NaN
                raise ConfigError(f"--{key.replace('_', '-')} must be {lowest}. Given: {value}")
    port = values.get("port")
    if port is not None and not 0 <= port < 2**16:
        raise ConfigError(f"--port must be between 0 and 65535. Given: {port}")
