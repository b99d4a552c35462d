"""The commands `watermark …`: a detector that needs the tokenizer and the key, and no server."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from infercore.errors import ConfigError

watermark = typer.Typer(no_args_is_help=True, help="Marked texts.")


@watermark.callback()
def _group() -> None:
    # with a callback, a group of one command stays a group
    pass


@watermark.command("detect")
def detect_in_files(
    files: Annotated[
        list[str] | None, typer.Argument(help="Files of text; - or none is standard input.")
    ] = None,
    *,
    model_id: Annotated[
        str, typer.Option(envvar="MODEL_ID", help="The model whose tokenizer made the text.")
    ] = "infercore/demo",
    revision: Annotated[
        str | None, typer.Option(envvar="REVISION", help="The hub's branch, tag or commit.")
    ] = None,
    watermark_gamma: Annotated[
        float, typer.Option(envvar="WATERMARK_GAMMA", help="The server's share of green tokens.")
    ] = 0.5,
    watermark_key: Annotated[
        str, typer.Option(envvar="INFERCORE_WATERMARK_KEY", help="The server's secret.")
    ] = "",
    watermark_key_file: Annotated[
        Path | None,
        typer.Option(envvar="INFERCORE_WATERMARK_KEY_FILE", help="The file that holds it."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON per file.")] = False,
) -> None:
    """Say of each text how likely it carries the mark: z-score, p-value, tokens judged.

    The p-value is the probability that a text made without the key has as many green tokens.
    """
    from infercore.hub import resolve
    from infercore.text.tokenizer import Tokenizer
    from infercore.watermark import PUBLIC_KEY, Watermark, detect, key_of
    from infercore_api.cli.options import read_watermark_key

    if watermark_key_file is not None:
        if watermark_key:
            raise ConfigError("--watermark-key and --watermark-key-file say the same; give one")
        watermark_key = read_watermark_key(watermark_key_file)
    mark = Watermark(key_of(watermark_key) if watermark_key else PUBLIC_KEY, watermark_gamma)
    tokenizer = Tokenizer(resolve(model_id, revision, progress=_quiet).path)
    for name, text in _texts(files or ["-"]):
        found = asdict(detect(mark, tokenizer.encode(text, add_special_tokens=False)))
        if as_json:
            typer.echo(json.dumps({"file": name, **found}))
        else:
            typer.echo(
                f"{name}: z-score {found['z_score']:.2f}, p-value {found['p_value']:.3g}, "
                f"{found['green']} of {found['judged']} tokens green"
            )


def _quiet(phase: str, done: int, total: int) -> None:
    """A Progress that tells nobody."""
    del phase, done, total


def _texts(files: Sequence[str]) -> list[tuple[str, str]]:
    """(name, text) of each file. Raises ConfigError for one that cannot be read."""
    texts = []
    for name in files:
        try:
            data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
            texts.append((name, data.decode()))
        except OSError as error:
            raise ConfigError(f"{name} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{name} is no UTF-8 text") from error
    return texts
