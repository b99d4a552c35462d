"""Finds a model: a local folder, the bundled demo, or a download from the Hugging Face hub."""

import re
from dataclasses import dataclass
from pathlib import Path

import infercore
from infercore.errors import CheckpointError, ConfigError
from infercore.executor import Progress

DEMO = "infercore/demo"
"""The bundled model's id."""

_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_HUB_ID = re.compile(rf"{_NAME}/{_NAME}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+-]{0,254}")


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model's folder on this machine. commit: the hub's, "" for a local folder."""

    path: Path
    commit: str = ""


def demo_path() -> Path:
    """The folder of the bundled model."""
    return Path(infercore.__file__).parent / "demo"


def resolve(model: str, revision: str | None, *, progress: Progress) -> ResolvedModel:
    """The folder of `model`, downloaded first if it is a hub id whose files are not here yet.

    revision: the hub's branch, tag or commit; None = its main branch. With the commit that an
        earlier call returned, a second one needs no network. progress: told the phase "download",
        in bytes, perhaps from another thread.

    Raises ConfigError for an id or revision that cannot be one, CheckpointError for what is not
    there or not to be had.
    """
    local = demo_path() if model == DEMO else _local_folder(model)
    if local is not None:
        if revision is not None:
            raise ConfigError(
                f"{model} is a folder on this machine and has no revision {revision!r}; "
                "leave --revision out, or name a hub id"
            )
        return ResolvedModel(local)
    _require_hub_id(model)
    if revision is not None:
        _require_revision(revision)
    # late: a local folder needs neither the library nor its third of a second
    from infercore.hub.download import fetch

    path = fetch(model, revision or "main", progress)
    return ResolvedModel(path, path.name)


def _local_folder(model: str) -> Path | None:
    """The folder that `model` is or claims to be; None if it may be a hub id."""
    path = Path(model).expanduser() if model.startswith("~") else Path(model)
    try:
        if model and path.is_dir():
            return path
        if model and path.exists():
            raise CheckpointError(f"{model} is a file; name the folder that holds the model")
    except OSError as error:
        raise CheckpointError(
            f"{model} cannot be looked at: {error.strerror}; check the path and its permissions"
        ) from error
    if model.startswith(("/", ".", "~")) or "\\" in model or model.count("/") > 1:
        raise CheckpointError(
            f"there is no folder {model} (looked for {path.absolute()}); check the path, "
            "or name a hub id (owner/name)"
        )
    return None


def _require_hub_id(model: str) -> None:
    owned = _HUB_ID.fullmatch(model) and not re.search(r"--|\.\.|\.git$", model)
    if not owned:
        raise ConfigError(
            f"{model!r} is neither a folder here nor a hub id. A hub id is owner/name, "
            "as in openai-community/gpt2; a folder may be written ./name"
        )


def _require_revision(revision: str) -> None:
    if not _REVISION.fullmatch(revision) or re.search(r"\.\.|//|/$|\.lock$", revision):
        raise ConfigError(
            f"--revision {revision!r} is no name that git allows; give a branch, a tag, "
            "or a commit of 40 hexadecimal digits"
        )
