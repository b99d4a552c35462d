"""Which hub is asked, and what its cache on this machine holds already.

The cache is the library's own, so that models are shared with whatever else runs here, and its
environment variables count, as they stand at the call.
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import (
    get_cached_repo_tree,
    get_token,
    is_offline_mode,
    try_to_load_from_cache,
)
from huggingface_hub.errors import CachedRepoTreeNotFoundError

from infercore.errors import ConfigError
from infercore.worker.loader import INDEX, SINGLE, read_index

# What a folder needs beside its weights. No pattern may match code or a nested copy of the model.
_SETTINGS = ("*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt")
_TEMPLATES = "additional_chat_templates/*.jinja"


@dataclass(frozen=True, slots=True)
class Hub:
    """A hub's address, and where its files are kept. offline: it is never to be asked."""

    endpoint: str
    cache: Path
    offline: bool

    @classmethod
    def from_environment(cls) -> "Hub":
        """Raises ConfigError if HF_ENDPOINT is no URL, or HF_TOKEN cannot be sent."""
        endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f"HF_ENDPOINT is {endpoint!r}, which is no URL of a hub; it must be of the form "
                "https://host, or not set at all"
            )
        if not re.fullmatch(r"[!-~]*", get_token() or ""):
            raise ConfigError(
                "HF_TOKEN holds characters that no token has, so it cannot be sent; "
                "set it to the token alone"
            )
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        return cls(endpoint, _cache_folder(os.environ), offline or is_offline_mode())

    def cached(self, repo_id: str, revision: str) -> Path | None:
        """The snapshot that an earlier download left here, if it is complete."""
        config = try_to_load_from_cache(
            repo_id, "config.json", cache_dir=self.cache, revision=revision
        )
        if not isinstance(config, str):
            return None
        folder = Path(config).parent
        try:
            listing = get_cached_repo_tree(repo_id, revision=folder.name, cache_dir=self.cache)
            names = [file.path for file in listing]
        except CachedRepoTreeNotFoundError:  # other programs download without taking a listing
            names = [path.name for path in folder.iterdir()]
        if INDEX in names and not (folder / INDEX).is_file():
            return None
        weights = weight_files(names, shards(folder / INDEX) if INDEX in names else None)
        wanted = [*setting_files(names), *weights]
        return folder if weights and all((folder / name).is_file() for name in wanted) else None


def setting_files(names: Iterable[str]) -> list[str]:
    """Those of a repository's files that describe the model, its tokenizer and its defaults."""
    return [
        name
        for name in names
        if fnmatchcase(name, _TEMPLATES)
        or (
            "/" not in name
            and any(fnmatchcase(name, pattern) for pattern in _SETTINGS)
            and (name == INDEX or not name.endswith(".index.json"))  # other formats' indices
        )
    ]


def weight_files(names: Collection[str], indexed: Collection[str] | None) -> list[str]:
    """The safetensors files that the loader will open: the index's, the single one, or all.

    indexed: the files that the index lists, None if there is no index.
    """
    if indexed is not None:
        return sorted(indexed)
    if SINGLE in names:
        return [SINGLE]
    return sorted(name for name in names if "/" not in name and name.endswith(".safetensors"))


def shards(index: Path) -> set[str]:
    """The files that an index lists. Raises CheckpointError if it is no sound index."""
    return set(read_index(index).values())


def _cache_folder(environment: Mapping[str, str]) -> Path:
    """Where the library keeps models, by its own rules but as the environment stands now."""

    def first(*names: str, default: str) -> str:
        return next((environment[name] for name in names if environment.get(name)), default)

    user = first("XDG_CACHE_HOME", default="~/.cache")
    home = first("HF_HOME", default=f"{user}/huggingface")
    folder = first("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", default=f"{home}/hub")
    return Path(os.path.expandvars(folder)).expanduser().absolute()
