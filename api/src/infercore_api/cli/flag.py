"""Flag: one option of `infercore serve`, and the ways to write one down."""

from dataclasses import dataclass
from typing import Any

from infercore.config import EngineConfig
from infercore_api.router.options import RouterOptions

TGI_ONLY = "Accepted for TGI's users"


@dataclass(frozen=True, slots=True)
class Flag:
    """One option.

    name: without dashes, as TGI or we spell it. kind: str, int, float, bool, or list[str].
    field: where the value goes, "engine.x", "router.x", "serve.x"; "" for those of TGI_ONLY.
    env: environment variable, "" for none; of several, with spaces between, the first wins.
    no: a bool flag also has `--no-NAME`.
    secret: its value is never shown.
    zero: a number may be 0; otherwise it must be positive.
    note: what is said if a flag of TGI_ONLY is given. allowed: values of it that change nothing;
        any other is refused, unless the tuple is empty: then every value is noted.
    """

    name: str
    kind: Any
    default: Any
    section: str
    help: str
    field: str = ""
    env: str = ""
    aliases: tuple[str, ...] = ()
    no: bool = False
    zero: bool = False
    secret: bool = False
    note: str = ""
    allowed: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The name as an identifier."""
        return self.name.replace("-", "_")

    @property
    def spellings(self) -> tuple[str, ...]:
        dashed = tuple(f"-{a}" if len(a) == 1 else f"--{a}" for a in self.aliases)
        first = f"--{self.name}/--no-{self.name}" if self.no else f"--{self.name}"
        return (first, *dashed)


def _engine(field: str) -> Any:
    return EngineConfig.__dataclass_fields__[field].default


def _router(field: str) -> Any:
    return RouterOptions.__dataclass_fields__[field].default


def flag(name: str, kind: Any, section: str, text: str, field: str = "", **more: Any) -> Flag:
    """A flag whose default and environment variable follow from its name and its field."""
    home, _, attribute = field.partition(".")
    defaults = {"engine": _engine, "router": _router}
    default = more.pop("default", defaults[home](attribute) if home in defaults else None)
    env = more.pop("env", name.upper().replace("-", "_"))
    return Flag(name, kind, default, section, text, field, env, **more)


def ours(name: str, kind: Any, section: str, text: str, field: str, **more: Any) -> Flag:
    """A flag that TGI has not; its environment variable carries our name."""
    env = "INFERCORE_" + name.upper().replace("-", "_")
    return flag(name, kind, section, text, field, env=env, **more)


def noted(name: str, kind: Any, note: str, **more: Any) -> Flag:
    """A flag of TGI's that does nothing here, and says so.

    A value is a str, never parsed: its variable may be another program's, as PROMETHEUS_PORT is.
    """
    return flag(name, kind, TGI_ONLY, f"No effect: {note}.", note=note, **more)


def refused(name: str, kind: Any, note: str, *allowed: str, **more: Any) -> Flag:
    """A flag of TGI's whose function is not here; refused unless its value changes nothing."""
    text = f"Refused: {note}."
    return flag(name, kind, TGI_ONLY, text, note=note, allowed=allowed or ("false",), **more)
