"""From the values of flags to ServeOptions: parsed, checked, and nothing dropped in silence."""

import logging
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import infercore
from infercore.config import EngineConfig
from infercore.engine.link import Link, tcp_link
from infercore.errors import ConfigError, InvalidRequest
from infercore_api.cli.flag import TGI_ONLY, Flag
from infercore_api.cli.flags import FLAGS
from infercore_api.observability.trace_setup import check_endpoint
from infercore_api.router.api_keys import check_key, read_keys
from infercore_api.router.options import RouterOptions
from infercore_api.supervisor.serve import ServeOptions

log = logging.getLogger(__name__)

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


def serve_options(values: Mapping[str, Any]) -> ServeOptions:
    """The options behind {flag's key: value}; None, and an empty list, is the default.

    Raises ConfigError, naming the flag, for a value that cannot be.
    """
    _check_numbers(values)
    homes: dict[str, dict[str, Any]] = {"engine": {}, "router": {}, "serve": {}}
    for flag in FLAGS:
        value = values.get(flag.key)
        if flag.section == TGI_ONLY:
            _say_about(flag, value)
        elif value is not None and value != []:
            home, _, field = flag.field.partition(".")
            if field in homes[home]:
                raise ConfigError(
                    f"{_FLAG_NAMES[flag.field]} and --{flag.name} say the same; give one"
                )
            homes[home][field] = value
    engine, router, serve = homes["engine"], homes["router"], homes["serve"]
    if "memory_budget" in engine:
        engine["memory_budget"] = parse_size("--memory-budget", engine["memory_budget"])
    if hub_cache := serve.pop("hub_cache", None):
        os.environ["HF_HUB_CACHE"] = hub_cache  # the engine inherits it
    serve["link"] = _link(values, serve)
    router.setdefault("model_names", [engine["model"]])
    if key_file := serve.pop("watermark_key_file", None):
        _take_watermark_key(router, Path(key_file))
    _check_keys(router)
    _check_routes(router)
    if "otlp_endpoint" in router:
        check_endpoint(router["otlp_endpoint"])
    config = _engine_config(engine)
    router.setdefault("stall_timeout", 2 * config.step_timeout)
    options = RouterOptions(
        version=infercore.__version__, **{n: _frozen(value) for n, value in router.items()}
    )
    _check_watermark(options)
    return ServeOptions(engine=config, router=asdict(options), **serve)


def parse_size(flag: str, text: str) -> int:
    """Bytes of "8G", "512M", "1.5GiB" or "1000000"; units are powers of 1024."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{flag} {text!r} is no size; write bytes, or a number with K, M, G or T")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _link(values: Mapping[str, Any], serve: dict[str, Any]) -> Link | None:
    """Where an engine is that somebody else runs; what is said about such a one is taken out."""
    address = serve.pop("engine_address", None)
    files = {name: serve.pop(f"engine_{name}_file", None) for name in ("secret", "ca")}
    if address is None:
        for name, file in files.items():
            if file is not None:
                raise ConfigError(f"--engine-{name}-file is for an engine that --engine names")
        return None
    for flag in FLAGS:  # it has its own options; of ours, only the model counts
        own = flag.field.startswith("engine.") and flag.field not in _OF_THE_MODEL
        if own and values.get(flag.key) not in (None, flag.default):
            raise ConfigError(f"--{flag.name} is the engine's: give it to `infercore engine`")
    return tcp_link(address, *(Path(file) if file else None for file in files.values()))


def _check_keys(router: dict[str, Any]) -> None:
    """Refuse unusable keys before anything loads."""
    for key in router.get("api_keys", ()):
        check_key(key, "--api-key")
    if "api_key_file" in router:
        file = Path(router["api_key_file"]).absolute()
        read_keys(file)
        router["api_key_file"] = str(file)


def _take_watermark_key(router: dict[str, Any], file: Path) -> None:
    if "watermark_key" in router:
        raise ConfigError("--watermark-key and --watermark-key-file say the same; give one")
    router["watermark_key"] = read_watermark_key(file)


def read_watermark_key(file: Path) -> str:
    """The secret in a file. Raises ConfigError if it cannot be read or holds none."""
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ConfigError(f"--watermark-key-file {file}: {why}") from error
    if not key:
        raise ConfigError(f"--watermark-key-file {file} is empty; write the secret into it")
    return key


def _check_watermark(options: RouterOptions) -> None:
    """Refuse unusable numbers before anything loads."""
    try:
        _ = options.watermark
    except InvalidRequest as error:
        raise ConfigError(f"--watermark-gamma, --watermark-delta: {error}") from error


def _check_routes(router: Mapping[str, Any]) -> None:
    for name in ("vertex_predict_route", "vertex_health_route"):
        route = router.get(name, "/")
        if _ROUTE.fullmatch(route) is None:
            raise ConfigError(f"{_FLAG_NAMES[f'router.{name}']} {route!r} is no path")


def _say_about(flag: Flag, value: Any) -> None:
    """Note or refuse a flag of TGI's that has no function here."""
    if value is None or value == flag.default:
        return
    if flag.allowed and str(value).lower() not in flag.allowed:
        given = "" if flag.kind is bool else f" {value}"
        raise ConfigError(f"--{flag.name}{given}: {flag.note}")
    log.warning("--%s has no effect: %s", flag.name, flag.note)


def _check_numbers(values: Mapping[str, Any]) -> None:
    for flag in FLAGS:
        value = values.get(flag.key)
        if flag.kind not in (int, float) or flag.section == TGI_ONLY or value is None:
            continue
        if not math.isfinite(value):
            raise ConfigError(f"--{flag.name} must be finite. Given: {value}")
        if value < 0 or (value == 0 and not flag.zero):
            least = "at least 0" if flag.zero else "positive"
            raise ConfigError(f"--{flag.name} must be {least}. Given: {value}")
    for name in ("port", "grpc_port"):
        port = values.get(name) or 0
        if port >= 2**16:
            raise ConfigError(f"--{name.replace('_', '-')} must be below 65536. Given: {port}")


def _engine_config(fields: Mapping[str, Any]) -> EngineConfig:
    try:
        return EngineConfig(**fields)
    except ConfigError as error:
        raise ConfigError(_FIELD.sub(_flag_of_field, str(error))) from error


_FLAG_NAMES = {flag.field: f"--{flag.name}" for flag in reversed(FLAGS)}
_OF_THE_MODEL = ("engine.model", "engine.revision", "engine.step_timeout")
_ROUTE = re.compile(r"/[\w./:@~-]*")
_FIELD = re.compile(r"\b[a-z]+(?:_[a-z]+)+\b")


def _flag_of_field(word: re.Match[str]) -> str:
    return _FLAG_NAMES.get(f"engine.{word[0]}", word[0])
