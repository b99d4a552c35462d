"""What the commands show: a bar with the time left, and one line for what refuses the work."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from infercore.errors import InferCoreError
from infercore.executor import Progress


@contextmanager
def told(what: str) -> Iterator[Progress]:
    """A Progress that draws a bar on standard error, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)

        def progress(phase: str, done: int, total: int) -> None:
            bar.update(task, description=f"{what}: {phase}", completed=done, total=total)

        yield progress


def with_one_line(work: Callable[[], None]) -> None:
    """Do the work; what refuses it is one line on standard error, and its exit status."""
    try:
        work()
    except InferCoreError as error:
        typer.echo(f"infercore: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
