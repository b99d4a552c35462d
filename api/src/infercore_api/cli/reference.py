"""The page of flags: `python -m infercore_api.cli.reference > docs/reference/serve.md`."""

import sys
from itertools import groupby

from infercore_api.cli.flag import TGI_ONLY, Flag
from infercore_api.cli.flags import FLAGS

_HEAD = """# infercore serve

Every option can be set on the command line, by its environment variable, or in a TOML file that
`--config FILE` or `INFERCORE_CONFIG` names, whose keys are the options' names. Command line >
environment > file > default; `infercore config show --origin`, with the same options, prints what
holds and who said it.
Names and meanings are those of TGI's launcher where it has the function; variables that begin with
`INFERCORE_` belong to options that TGI has not. This page is generated from the table of flags.

Exit codes: 0 after a clean end, 2–7 where the start is refused (see [errors](errors.md)), 22 when a
process died five times in five minutes, 23 when requests were cut after
`--graceful-termination-timeout`, 128 + N after a second signal N.
"""
_TGI_HEAD = """
Flags of TGI's launcher whose function is not here. None is dropped in silence: those that would
change nothing are accepted and logged, the others are refused unless their value changes nothing.
"""


def flags_markdown() -> str:
    """docs/reference/serve.md, from the table of flags."""
    parts = [_HEAD]
    for section, flags in groupby(FLAGS, key=lambda flag: flag.section):
        parts.append(f"\n## {section}\n")
        if section == TGI_ONLY:
            parts.append(_TGI_HEAD)
        parts.append("\n| flag | environment | default | meaning |\n| --- | --- | --- | --- |\n")
        parts += map(_row, flags)
    return "".join(parts)


def _row(flag: Flag) -> str:
    names = ", ".join(f"`{spelling}`" for spelling in flag.spellings)
    variables = ", ".join(f"`{variable}`" for variable in flag.env.split())
    default = "" if flag.default is None else f"`{str(flag.default).lower()}`"
    return f"| {names} | {variables} | {default} | {flag.help} |\n"


if __name__ == "__main__":
    sys.stdout.write(flags_markdown())
