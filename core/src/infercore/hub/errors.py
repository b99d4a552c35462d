"""Says what a hub's refusal means, and what to do. The one place that knows the hub's answers."""

from pathlib import Path

import httpx2
from huggingface_hub import get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from infercore.errors import CheckpointError


def reached(error: BaseException) -> bool:
    """Whether the hub itself answered, and its answer counts; a hub that is down has not."""
    return isinstance(error, HfHubHTTPError) and not _is_down(error.response.status_code)


def refusal(
    error: BaseException, repo_id: str, revision: str, endpoint: str, cache: Path
) -> CheckpointError:
    """What to raise for an error of the library while it asked for `repo_id` at `revision`."""
    if not isinstance(error, HfHubHTTPError) or not reached(error):
        return CheckpointError(
            f"{endpoint} cannot be reached for {repo_id} at {revision} ({reason(error)}), and no "
            f"complete copy is in {cache}; check the network, HF_ENDPOINT and any proxy, or name "
            "a local folder. Start again then: files that are complete are kept"
        )
    return CheckpointError(_meaning(error, repo_id, revision, endpoint))


def broken(error: OSError, repo_id: str, cache: Path) -> CheckpointError:
    """What to raise for an error of this machine, or a file that came incomplete."""
    if error.errno is None:  # the library's own, about what the hub sent
        return CheckpointError(
            f"the download of {repo_id} broke ({reason(error)}); start again: files that are "
            "complete are kept"
        )
    return CheckpointError(
        f"{repo_id} cannot be kept in {cache}: {error.strerror}; check that folder's permissions, "
        "or set HF_HUB_CACHE to another"
    )


def _is_down(status: int) -> bool:
    return status >= 500 or status in (408, 429)


def _meaning(error: HfHubHTTPError, repo_id: str, revision: str, endpoint: str) -> str:
    page = f"{endpoint}/{repo_id}"
    status = error.response.status_code
    token = get_token()
    if isinstance(error, GatedRepoError):
        return (
            f"{repo_id} is gated: open {page}, accept its terms, and set HF_TOKEN to a token of "
            f"that account{' (another one than is set now)' if token else ''}"
        )
    if isinstance(error, RevisionNotFoundError):
        return (
            f"{repo_id} has no revision {revision!r}; {page} lists its branches and tags, "
            "and --revision takes one of them or a commit"
        )
    invalid = "invalid credentials" in error.response.headers.get("X-Error-Message", "").lower()
    if invalid or (status == 401 and not isinstance(error, RepositoryNotFoundError)):
        return (
            f"{endpoint} does not accept the token in HF_TOKEN (or of `hf auth login`); make a "
            f"new one at {endpoint}/settings/tokens, or unset it for public models"
        )
    if isinstance(error, RepositoryNotFoundError):
        access = (
            "the token that was sent may not read it"
            if token
            else "private, which needs HF_TOKEN set to a token that may read it"
        )
        return (
            f"{endpoint} knows no model {repo_id}, or it is hidden: {access}. Check the spelling; "
            f"a folder may be written ./{repo_id}"
        )
    return (
        f"{endpoint} refuses {repo_id} at {revision} with status {status} ({reason(error)}); "
        "check what the token in HF_TOKEN may read, or name a local folder"
    )


def reason(error: BaseException) -> str:
    """An error of the library in one line, without its advice."""
    if isinstance(error, HfHubHTTPError):
        told = error.server_message or error.response.reason_phrase
        return f"status {error.response.status_code}: {told}"
    if isinstance(error, httpx2.TimeoutException):
        return "no answer in time"
    return str(error).strip().split("\n")[0] or type(error).__name__
