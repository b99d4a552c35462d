"""The command `bench`, as a plugin of the command line. What it runs is imported when it runs."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from infercore.hookspecs import hookimpl

API_VERSION = (1, 0)


class Mode(StrEnum):
    """What to measure."""

    ALL = "all"
    OFFLINE = "offline"
    LATENCY = "latency"
    SERVE = "serve"


@hookimpl
def register_commands(cli: typer.Typer) -> None:
    cli.command()(bench)


def bench(
    mode: Annotated[
        Mode,
        typer.Argument(
            help="offline: the engine in this process, by batch size. latency: the same, one "
            "request at a time. serve: over HTTP, by concurrency. all: offline and serve."
        ),
    ] = Mode.ALL,
    *,
    model_id: Annotated[
        str, typer.Option(help="Model folder or hub id; with --url, whose ids prompts are made of.")
    ] = "infercore/demo",
    backend: Annotated[str, typer.Option(help="Backend that computes.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Compute dtype; auto = the checkpoint's.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads for compute.", show_default="the backend's")
    ] = None,
    prompt_len: Annotated[int, typer.Option(help="Tokens per prompt, random ids.")] = 32,
    output_len: Annotated[int, typer.Option(help="Tokens generated per request.")] = 32,
    batch_size: Annotated[str, typer.Option(help="Offline batch sizes.")] = "1,4,16,64",
    concurrency: Annotated[str, typer.Option(help="Streams at once over HTTP.")] = "1,16,64",
    num_requests: Annotated[
        int | None,
        typer.Option(help="Requests per round.", show_default="as many as streams, at least 4"),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds that each figure is the median of.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of the prompts.")] = 0,
    url: Annotated[
        str | None, typer.Option(help="Measure a server that runs already: http://host:port.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all figures to this file too.")
    ] = None,
) -> None:
    """Measure throughput and latency, offline and over HTTP.

    Prompts are random token ids, every request runs to its full length, greedily. The exit code
    is 1 if any request failed.
    """
    from infercore_api.bench.options import BenchOptions, counts
    from infercore_api.bench.runner import run

    options = BenchOptions(
        mode=mode.value,
        model_id=model_id,
        backend=backend,
        dtype=dtype,
        threads=threads,
        prompt_len=prompt_len,
        output_len=output_len,
        batch_sizes=counts("--batch-size", batch_size),
        concurrency=counts("--concurrency", concurrency),
        num_requests=num_requests,
        rounds=rounds,
        seed=seed,
        url=url,
    )
    raise typer.Exit(run(options, json_file))
