"""The command `quantize`, as a plugin of the command line. What it runs is imported late."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from infercore.errors import ConfigError
from infercore.hookspecs import hookimpl
from infercore_quantization.produce.terminal import told, with_one_line

API_VERSION = (1, 0)


@hookimpl
def register_commands(cli: typer.Typer) -> None:
    cli.command("quantize")(quantize)


def quantize(
    model: Annotated[str, typer.Argument(help="The original: a model folder or a hub id.")],
    *,
    method: Annotated[str, typer.Option(help="gptq, awq, int4, int8, nf4 or fp4.")],
    output: Annotated[Path, typer.Option(help="A new folder for the quantized model.")],
    bits: Annotated[int | None, typer.Option(help="Of gptq: 2, 3, 4 (default) or 8.")] = None,
    group_size: Annotated[
        int | None, typer.Option(help="Inputs that share a scale; 128 by default, -1 = all.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="For gptq and awq: a text like what the model will read.")
    ] = None,
    windows: Annotated[
        int | None, typer.Option(min=1, help="Windows of the text to use; 128 by default.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=2, help="Tokens of a window; 2048 by default.")
    ] = None,
    symmetric: Annotated[
        bool | None,
        typer.Option("--symmetric/--asymmetric", help="No zero points (default), or one a group."),
    ] = None,
    act_order: Annotated[
        bool | None,
        typer.Option("--act-order/--no-act-order", help="gptq: large inputs first (default)."),
    ] = None,
    static_groups: Annotated[
        bool | None,
        typer.Option(
            "--static-groups/--no-static-groups",
            help="gptq: groups of neighbours also with --act-order (default).",
        ),
    ] = None,
    damping: Annotated[float | None, typer.Option(min=0.0, help="gptq: 0.01 by default.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
) -> None:
    """Quantize a model into files of the field's formats. Goes on if it was interrupted."""
    options = {
        "bits": bits,
        "group_size": group_size,
        "windows": windows,
        "window": window,
        "symmetric": symmetric,
        "act_order": act_order,
        "static_groups": static_groups,
        "damping": damping,
    }
    with_one_line(lambda: _quantize(model, method, output, calibration, threads, options))


def _quantize(
    model: str,
    method: str,
    output: Path,
    calibration: Path | None,
    threads: int | None,
    options: Mapping[str, Any],
) -> None:
    import torch

    from infercore_quantization.produce.opening import open_model
    from infercore_quantization.produce.run import quantize as run
    from infercore_quantization.produce.settings import Settings
    from infercore_quantization.produce.windows import read_tokens, spread

    settings = Settings.of(method, **options)
    _require_text(settings.calibrated, method, calibration)
    if threads is not None:
        torch.set_num_threads(threads)
    opened = open_model(model)
    pieces = None
    if calibration is not None:
        tokens = read_tokens(calibration, opened.folder.path)
        length = min(settings.window, opened.spec.max_position)
        pieces = spread(tokens, length, settings.windows)
    with told("Quantizing") as progress:
        errors = run(opened, settings, output, pieces, progress)
    typer.echo(_table(errors, settings.calibrated))
    typer.echo(f"written to {output}")


def _require_text(calibrated: bool, method: str, text: Path | None) -> None:
    if calibrated and text is None:
        raise ConfigError(f"--method {method} needs a text; give --calibration FILE")
    if not calibrated and text is not None:
        raise ConfigError(f"--method {method} needs no text; leave --calibration out")


def _table(errors: Mapping[str, Mapping[str, float]], calibrated: bool) -> str:
    what = "of the outputs" if calibrated else "of the weights"
    lines = [f"error {what}, as a share of their square"]
    for layer in sorted(errors, key=int):
        lines += [f"{name:<48} {error:.6f}" for name, error in errors[layer].items()]
    return "\n".join(lines)
