"""The command `conformance`, as a plugin of the command line. What it runs is imported late.

Exit status: 0 = conformant, 1 = not, 2 = nothing could be run or read.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from infercore.errors import ConfigError, InferCoreError
from infercore.hookspecs import hookimpl
from infercore_conformance.diff import diff
from infercore_conformance.scaffold import new_backend

API_VERSION = (1, 0)
NOT_CONFORMANT = 1
COULD_NOT_RUN = ConfigError.exit_code

conformance = typer.Typer(
    no_args_is_help=True, help="Hold a backend against the contract, and read the reports."
)


@hookimpl
def register_commands(cli: typer.Typer) -> None:
    cli.add_typer(conformance, name="conformance")
    cli.command("new-backend")(new_backend)


@conformance.command()
def run(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="Behind --: arguments for pytest.", show_default=False),
    ] = None,
    *,
    backend: Annotated[str, typer.Option(help="Name of the installed backend.")],
    profile: Annotated[
        list[str] | None, typer.Option(help="Run this profile only; may be given again.")
    ] = None,
    check: Annotated[
        list[str] | None, typer.Option(help="Run this check only; may be given again.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the thorough cases.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write the JSON report to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write it as Markdown too.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write it as JUnit XML too.")] = None,
    expected_failures: Annotated[
        Path | None, typer.Option(help="TOML file of failures that are expected for now.")
    ] = None,
    own_checks: Annotated[
        list[Path] | None, typer.Option(help="Run the checks in this file or folder too.")
    ] = None,
) -> None:
    """Check a backend: 0 = conformant, 1 = not, 2 = it could not be run."""
    from infercore_conformance.junit import as_junit
    from infercore_conformance.markdown import as_markdown
    from infercore_conformance.report import write_report
    from infercore_conformance.runner import Options
    from infercore_conformance.runner import run as run_suite
    from infercore_conformance.summary import summary

    options = Options(
        backend=backend,
        profiles=tuple(profile or ()),
        checks=tuple(check or ()),
        quick=quick,
        expected=expected_failures,
        own=tuple(own_checks or ()),
        arguments=tuple(arguments or ()),
    )

    def work() -> int:
        made = run_suite(options)
        if report is not None:
            write_report(made, report)
        if markdown is not None:
            markdown.write_text(as_markdown(made), encoding="utf-8")
        if junit is not None:
            junit.write_text(as_junit(made), encoding="utf-8")
        typer.echo(summary(made))
        return 0 if made["conformant"] else NOT_CONFORMANT

    _exit(work)


@conformance.command("list")
def list_checks(
    profile: Annotated[
        list[str] | None, typer.Option(help="List this profile only; may be given again.")
    ] = None,
) -> None:
    """List the checks: id, level, what it needs, and what it says."""
    from infercore_conformance.listing import listing

    _exit(lambda: _say(listing(profile or ())))


@conformance.command()
def explain(check: Annotated[str, typer.Argument(help="Id of a check.")]) -> None:
    """Say what a check holds a backend to, why, and how to run it alone."""
    from infercore_conformance.listing import explanation

    _exit(lambda: _say(explanation(check)))


@conformance.command()
def compare(
    first: Annotated[Path, typer.Argument(help="The report to compare with.")],
    second: Annotated[Path, typer.Argument(help="The report to compare.")],
) -> None:
    """Show what changed from one report to another; 1 if a check got worse."""
    from infercore_conformance.comparison import compared
    from infercore_conformance.report import read_report

    def work() -> int:
        text, worse = compared(read_report(first), read_report(second))
        typer.echo(text)
        return NOT_CONFORMANT if worse else 0

    _exit(work)


@conformance.command()
def badge(
    report: Annotated[Path, typer.Argument(help="The report.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file, not to the screen.")
    ] = None,
) -> None:
    """Draw a report's badge, as SVG."""
    from infercore_conformance.badge import draw
    from infercore_conformance.report import read_report

    def work() -> int:
        picture = draw(read_report(report))
        if output is None:
            return _say(picture)
        output.write_text(picture, encoding="utf-8")
        return 0

    _exit(work)


@conformance.command()
def matrix(
    reports: Annotated[list[Path], typer.Argument(help="Reports, in the order of the columns.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file, not to the screen.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Write the reports, shortened, into this folder too.")
    ] = None,
) -> None:
    """Show reports beside each other, as a Markdown page."""
    from infercore_conformance.matrix import as_matrix, write_short
    from infercore_conformance.report import read_report

    def work() -> int:
        made = [read_report(report) for report in reports]
        page = as_matrix(made)
        if keep is not None:
            for report in made:
                write_short(report, keep / f"{report['implementation']['backend']}.json")
        if output is None:
            return _say(page)
        output.write_text(page, encoding="utf-8")
        return 0

    _exit(work)


conformance.command()(diff)


def _say(text: str) -> int:
    typer.echo(text)
    return 0


def _exit(work: Callable[[], int]) -> None:
    """Exit with what `work` returns; whatever refuses the work is one line and status 2."""
    try:
        status = work()
    except InferCoreError as error:
        typer.echo(f"infercore: {error}", err=True)
        status = COULD_NOT_RUN
    raise typer.Exit(status)
