"""`infercore conformance diff`: the command. What it runs is imported late."""

from typing import Annotated

import typer

from infercore.errors import InferCoreError


def diff(
    *,
    backend: Annotated[
        list[str], typer.Option(help="Name of an installed backend; give it twice.")
    ],
    model: Annotated[str, typer.Option(help="A model folder or a hub id.")],
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Compare behind this text; may be given again. Drawn ids by default."),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to compare behind each prompt.")] = 32,
    dtype: Annotated[
        str | None, typer.Option(help="Compute dtype; float32 where both have it.")
    ] = None,
) -> None:
    """Run one model on two backends, and show where they part: 1 if it is beyond rounding.

    Shows the divergence of their logits, the first differing token and, where both are Backends,
    the first differing layer.
    """
    from infercore_conformance.divergence import described
    from infercore_conformance.two_backends import Comparison

    try:
        comparison = Comparison.open(backend, model, dtype, prompt or (), tokens)
        found = comparison.run()
    except InferCoreError as error:
        typer.echo(f"infercore: {error}", err=True)
        raise typer.Exit(2) from error
    first, second = (subject.name for subject in comparison.subjects)
    typer.echo(f"{model} in {comparison.dtype} on {described(found, first, second)}")
    raise typer.Exit(0 if found.alike else 1)
