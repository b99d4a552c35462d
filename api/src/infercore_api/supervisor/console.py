"""What `infercore serve` shows: progress, then a banner; plain lines where there is no terminal."""

import json
import logging
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

import infercore

log = logging.getLogger(__name__)

_LINE_SECONDS = 5.0  # between plain progress lines of one phase


class ServeConsole:
    """An Observer of the supervisor. A context manager: on exit the terminal is left clean.

    url: where the server listens. limits, auth: lines of the banner.
    """

    def __init__(self, url: str, limits: str, auth: str, *, json_output: bool) -> None:
        self._url, self._limits, self._auth = url, limits, auth
        self._json_output = json_output
        self._console = Console(stderr=True, highlight=False)
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._told = ("", 0.0)
        self._started = time.monotonic()
        self._announced = False

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._json_output:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
            )
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop_progress()

    def progress(self, phase: str, done: int, total: int) -> None:
        if self._progress is not None:
            if phase not in self._tasks:
                self._tasks[phase] = self._progress.add_task(phase)
            self._progress.update(self._tasks[phase], completed=done, total=total or None)
            return
        last_phase, last_time = self._told
        now = time.monotonic()
        if phase != last_phase or now - last_time > _LINE_SECONDS:
            self._told = (phase, now)
            log.info("%s: %d of %d", phase, done, total)

    def ready(self, info: Mapping[str, Any]) -> None:
        self._stop_progress()
        seconds = time.monotonic() - self._started
        if self._announced:
            log.info("ready again at %s", self._url)
        elif self._json_output:
            fields = {"url": self._url, "engine": info}
            log.info("ready at %s after %.1f s", self._url, seconds, extra={"fields": fields})
        else:
            self._banner(facts(info) | {"limits": self._limits, "auth": self._auth}, seconds)
        self._announced = True

    def _banner(self, lines: Mapping[str, str], seconds: float) -> None:
        table = Table.grid(padding=(0, 2))
        for name, value in lines.items():
            table.add_row(f"[bold]{name}[/bold]" if self._console.is_terminal else name, value)
        show = self._console.print
        show()
        show(f"InferCore {infercore.__version__}", style="bold cyan")
        show(table, soft_wrap=True)
        show()
        show(f"Ready after {seconds:.1f} s at {self._url} - try it:", style="bold green")
        show(f"  {example(self._url)}", soft_wrap=True, markup=False)
        show("Ctrl-C stops it.", style="dim")

    def _stop_progress(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def facts(info: Mapping[str, Any]) -> dict[str, str]:
    """The banner's lines about an engine, from the fields of EngineInfo."""
    held = info["memory_weights"] + info["memory_workspace"] + info["memory_kv"]
    revision = f" at {info['revision']}" if info["revision"] else ""
    quantized = "" if info["quantization"] in ("", "none", "dense") else f", {info['quantization']}"
    return {
        "model": f"{info['model_id']}{revision} ({info['architecture']}, "
        f"{info['num_parameters'] / 1e6:,.1f} M parameters)",
        "dtype": f"{info['dtype']}, KV cache {info['kv_dtype']}{quantized}",
        "backend": f"{info['backend']}: {', '.join(info['devices'])}",
        "memory": f"weights {size(info['memory_weights'])}, "
        f"workspace {size(info['memory_workspace'])}, KV {size(info['memory_kv'])}, "
        f"free {size(max(0, info['memory_total'] - held))} of {size(info['memory_total'])}",
        "context": f"{info['max_model_len']:,} tokens at most, prompt {info['max_input_len']:,}; "
        f"{info['kv_tokens']:,} tokens fit in the KV cache",
        "batch": f"{info['max_num_seqs']} sequences, {info['max_batch_tokens']:,} tokens per step",
    }


def example(url: str) -> str:
    """A command that asks the server something."""
    body = json.dumps(
        {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 64, "stream": True}
    )
    return f"curl -N {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'"


def size(count: int) -> str:
    """Bytes for people: 21.0 MiB."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
