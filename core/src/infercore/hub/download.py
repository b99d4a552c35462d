"""Downloads a model from the Hugging Face hub: settings and safetensors, never pickle, never code.

Everything is checked that can be before the first large file: that the model could be served, and
that the disk has room for it.
"""

import errno
import glob
import logging
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

import infercore
from infercore.errors import CheckpointError
from infercore.executor import Progress
from infercore.hub.cache import Hub, setting_files, shards, weight_files
from infercore.hub.errors import broken, reached, reason, refusal
from infercore.hub.progress import ByteMeter
from infercore.logs import debugging
from infercore.worker.loader import INDEX, PICKLED, SHOWN

log = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT = 10.0  # seconds until a hub that does not answer counts as out of reach
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NAME, _VERSION = "infercore", infercore.__version__  # who asks, for the hub's own statistics


@contextmanager
def _as_our_own_lines() -> Iterator[None]:
    """Meanwhile the library's lines come once, in this process's format, without each request's.

    Those would tell signed addresses, which let whoever reads the log download the files.
    """
    library, client = logging.getLogger("huggingface_hub"), logging.getLogger("httpx2")
    handlers, level = library.handlers, client.level
    if logging.getLogger().handlers:
        library.handlers = []
    if not debugging():
        client.setLevel(logging.WARNING)
    try:
        yield
    finally:
        library.handlers = handlers
        client.setLevel(level)


@_as_our_own_lines()
def fetch(repo_id: str, revision: str, progress: Progress) -> Path:
    """The snapshot folder of a repository, named after its commit; downloads what is missing.

    Needs no network for a commit that is complete in the cache. Raises ConfigError or
    CheckpointError.
    """
    hub = Hub.from_environment()
    cached = hub.cached(repo_id, revision)
    if cached is not None and (hub.offline or _COMMIT.fullmatch(revision)):
        return cached
    if hub.offline:
        raise CheckpointError(
            f"HF_HUB_OFFLINE is set, and {repo_id} at {revision} is not complete in {hub.cache}; "
            "download it once without HF_HUB_OFFLINE, or set HF_HUB_CACHE to the cache that has it"
        )
    try:
        commit, sizes = _listing(hub, repo_id, revision)
        if cached is not None and cached.name == commit:
            return cached
        return _download(hub, repo_id, revision, commit, sizes, progress)
    except (httpx2.HTTPError, httpx2.InvalidURL, LocalEntryNotFoundError) as error:
        # what the library could not find here, it had failed to get from the hub
        cause = (error.__cause__ if isinstance(error, LocalEntryNotFoundError) else None) or error
        if cached is None or reached(cause):
            raise refusal(cause, repo_id, revision, hub.endpoint, hub.cache) from error
        log.warning(
            "%s cannot be reached (%s); using %s at %s, found in %s",
            hub.endpoint, reason(cause), repo_id, cached.name, hub.cache,
        )  # fmt: skip
        return cached
    except OSError as error:
        raise broken(error, repo_id, hub.cache) from error


def _download(
    hub: Hub, repo_id: str, revision: str, commit: str, sizes: Mapping[str, int], progress: Progress
) -> Path:
    _require_loadable(repo_id, revision, sizes)
    indexed = None
    if INDEX in sizes:
        index = hf_hub_download(
            repo_id,
            INDEX,
            revision=commit,
            cache_dir=hub.cache,
            endpoint=hub.endpoint,
            library_name=_NAME,
            library_version=_VERSION,
        )
        indexed = shards(Path(index))
        if absent := sorted(indexed - sizes.keys()):
            raise CheckpointError(
                f"{INDEX} of {repo_id} at {commit} lists {', '.join(absent[:SHOWN])}, which the "
                "repository does not hold; choose another --revision, or ask its owner"
            )
    wanted = [*setting_files(sizes), *weight_files(sizes, indexed)]
    folder = hub.cache / f"models--{repo_id.replace('/', '--')}" / "snapshots" / commit
    needed = sum(sizes[name] for name in wanted if not (folder / name).exists())
    _require_space(hub.cache, repo_id, needed)
    try:
        got = _snapshot(hub, repo_id, revision, wanted, ByteMeter(progress, needed))
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise _disk_full(hub.cache, repo_id, needed) from error
        raise
    if got.name != commit:
        raise CheckpointError(
            f"{repo_id} moved from {commit} to {got.name} while it was downloaded; start again"
        )
    return got


def _listing(hub: Hub, repo_id: str, revision: str) -> tuple[str, dict[str, int]]:
    """The commit that `revision` stands for, and the size in bytes of each of its files."""
    api = HfApi(endpoint=hub.endpoint, library_name=_NAME, library_version=_VERSION)
    try:
        info = api.model_info(repo_id, revision=revision, timeout=_TIMEOUT, files_metadata=True)
        siblings = info.siblings or ()
        sizes = {file.rfilename: file.size or 0 for file in siblings}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{hub.endpoint} does not answer like a hub ({error!r}); check HF_ENDPOINT, "
            "and any proxy on the way"
        ) from error
    if info.sha is None or not _COMMIT.fullmatch(info.sha):
        raise CheckpointError(
            f"{hub.endpoint} names no commit for {repo_id} at {revision}; check HF_ENDPOINT"
        )
    return info.sha, sizes


def _require_loadable(repo_id: str, revision: str, names: Collection[str]) -> None:
    """Refuse, before anything is downloaded, a repository that could not be served."""
    top = sorted(name for name in names if "/" not in name)
    if not any(name.endswith(".safetensors") for name in top):
        pickled = [name for name in top if any(fnmatchcase(name, p) for p in PICKLED)]
        if not pickled:
            raise CheckpointError(
                f"{repo_id} at {revision} holds no *.safetensors file, so there is nothing to "
                "serve; check the id and --revision"
            )
        raise CheckpointError(
            f"{repo_id} holds only pickled weights ({', '.join(pickled[:SHOWN])}), which can run "
            "code when read and are refused; nothing was downloaded. Convert them once, where you "
            "trust them, and serve the folder: python -c "
            '"from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
            f"[C.from_pretrained({repo_id!r}, revision={revision!r}).save_pretrained('converted') "
            'for C in (M, T)]"'
        )
    if "config.json" not in names:
        raise CheckpointError(
            f"{repo_id} at {revision} holds no config.json, so it is no complete model; an "
            "adapter, for one, must be merged into its base model first"
        )


def _snapshot(
    hub: Hub, repo_id: str, revision: str, wanted: Iterable[str], meter: ByteMeter
) -> Path:
    def download() -> str:
        return snapshot_download(
            repo_id,
            revision=revision,
            cache_dir=hub.cache,
            endpoint=hub.endpoint,
            allow_patterns=[glob.escape(name) for name in wanted],
            tqdm_class=meter.bar_class(),
            library_name=_NAME,
            library_version=_VERSION,
        )

    # In a thread of its own, since the library waits for its downloads even after Ctrl-C: this way
    # the meter can break them off, one piece of a file later.
    with meter, ThreadPoolExecutor(1, "hub") as pool:
        future = pool.submit(download)
        try:
            return Path(future.result())
        except BaseException:
            meter.cancel()
            raise


def _require_space(cache: Path, repo_id: str, needed: int) -> None:
    standing = next(path for path in (cache, *cache.parents) if path.exists())
    if shutil.disk_usage(standing).free < needed:
        raise _disk_full(cache, repo_id, needed)


def _disk_full(cache: Path, repo_id: str, needed: int) -> CheckpointError:
    standing = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(standing).free
    return CheckpointError(
        f"{repo_id} needs {needed:,} more bytes in {cache}, and {free:,} are free there; "
        "make room, or set HF_HUB_CACHE to a folder on another disk"
    )
