"""The commands `eval …`, as a plugin of the command line. What they run is imported late."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infercore.errors import ConfigError
from infercore.hookspecs import hookimpl
from infercore_quantization.produce.terminal import told, with_one_line

if TYPE_CHECKING:
    from infercore_quantization.produce.perplexity import Scores

API_VERSION = (1, 0)

evaluation = typer.Typer(no_args_is_help=True, help="Measure how well a model predicts.")


@hookimpl
def register_commands(cli: typer.Typer) -> None:
    cli.add_typer(evaluation, name="eval")


@evaluation.callback()
def _group() -> None:
    """A group of one command stays a group."""


@evaluation.command()
def perplexity(
    model: Annotated[str, typer.Argument(help="A model folder or a hub id.")],
    *,
    text: Annotated[Path, typer.Option(help="The text, in UTF-8.")],
    against: Annotated[
        str | None, typer.Option(help="Another form of the model, to give the KL from it.")
    ] = None,
    backend: Annotated[str, typer.Option(help="Name of the installed backend.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Compute dtype.")] = "auto",
    activation_dtype: Annotated[
        str, typer.Option(help="Inputs of quantized layers: int8, bf16 = not rounded, auto.")
    ] = "auto",
    quantize: Annotated[
        str | None, typer.Option(help="Quantize MODEL while loading, as `serve` does.")
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens of a window; without it, as many as the model reads."),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=2, help="Read this many tokens of the text only.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
) -> None:
    """Print the perplexity of a text, and the KL from another form of the model."""

    def work() -> None:
        from infercore.config import EngineConfig
        from infercore_quantization.produce.opening import open_model
        from infercore_quantization.produce.perplexity import Scorer, evaluate
        from infercore_quantization.produce.windows import consecutive, read_tokens

        opened = open_model(model, quantize)
        length = _window(window, opened.spec.max_position)
        config = EngineConfig(
            model,
            backend=backend,
            dtype=dtype,
            activation_dtype=activation_dtype,
            threads=threads,
        )
        windows = consecutive(read_tokens(text, opened.folder.path)[:tokens], length)
        scorer = Scorer(opened, config, length)
        other = None if against is None else Scorer(open_model(against), config, length)
        with told("Evaluating") as progress:
            scores = evaluate(scorer, windows, other, progress)
        typer.echo(_lines(scores))

    with_one_line(work)


def _window(wanted: int | None, longest: int) -> int:
    if wanted is not None and wanted > longest:
        raise ConfigError(
            f"--window {wanted} is more than the {longest} tokens that the model reads; lower it"
        )
    return wanted or longest


def _lines(scores: "Scores") -> str:
    lines = [f"perplexity {scores.perplexity:.4f}", f"tokens     {scores.tokens}"]
    if scores.kl is not None:
        lines.append(f"KL         {scores.kl:.5f} nats per token")
    return "\n".join([*lines, f"seconds    {scores.seconds:.1f}"])
